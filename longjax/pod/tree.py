"""The files of this checkout, as they go to the workers.

What git tracks, no more: no weights, no keys that lie about, and the commit
says which code ran. The worker has no git: a file `.pushed` says the commit.
"""

import gzip
import hashlib
import io
import json
import os
import pathlib
import shutil
import stat
import subprocess
import tarfile
from typing import NamedTuple

from longjax import cache
from longjax.errors import InputError

ROOT = pathlib.Path(__file__).resolve().parents[2]
PUSHED = '.pushed'


class Tree(NamedTuple):
  """The tracked files of a checkout."""

  root: pathlib.Path
  files: tuple[str, ...]  # paths below root
  commit: str  # '+' at its end: files differ from it
  digest: str  # of names, modes and contents

  @property
  def id(self) -> str:
    return self.digest[:12]


def read(root=ROOT) -> Tree:
  """The tree as it lies there. Raises InputError outside of a checkout."""
  root = pathlib.Path(root)
  files = tuple(x for x in _git(root, 'ls-files', '-z').split('\0') if x)
  dirty = _git(root, 'status', '--porcelain', '--untracked-files=no').strip()
  commit = _git(root, 'rev-parse', 'HEAD').strip() + ('+' if dirty else '')
  digest = hashlib.sha256(commit.encode())
  files = tuple(f for f in files if os.path.lexists(root / f))
  for file in files:
    mode, content = _content(root / file)
    digest.update(f'\0{file}\0{mode:o}\0{len(content)}\0'.encode())
    digest.update(content)
  return Tree(root, files, commit, digest.hexdigest())


def check(tree: Tree, dirty: bool):
  """Refuses files that differ from the commit, unless that was asked for."""
  if tree.commit.endswith('+') and not dirty:
    raise InputError(
      'files differ from the commit, so the run could not say which code it '
      'ran: commit them, or give --dirty'
    )


def config_path(tree: Tree, path: str) -> str:
  """The config below the root of the tree, or InputError."""
  file = pathlib.Path(path.split(':', maxsplit=1)[0])
  rest = path[len(str(file)) :] if path.startswith(str(file)) else ''
  try:
    below = file.resolve().relative_to(tree.root.resolve()).as_posix()
  except ValueError:
    raise InputError(
      f'{path} lies outside of {tree.root}; the workers get only what is in it'
    ) from None
  if below not in tree.files:
    raise InputError(
      f'git does not track {below}, so it would not go to the workers: git add'
    )
  return below + rest


def archive(tree: Tree) -> pathlib.Path:
  """Where `pack` puts the tree."""
  return cache.directory() / 'pods' / f'longjax-{tree.id}.tar.gz'


def pack(tree: Tree):
  """A .tar.gz that is the same, byte for byte, for the same tree."""
  path = archive(tree)
  plain = io.BytesIO()
  with tarfile.open(fileobj=plain, mode='w') as tar:
    for file in tree.files:
      mode, content = _content(tree.root / file)
      _add(tar, file, mode, content)
    about = dict(commit=tree.commit, sha256=tree.digest)
    _add(tar, PUSHED, 0o644, json.dumps(about).encode() + b'\n')
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f'{path.name}.{os.getpid()}.tmp')
  temporary.write_bytes(gzip.compress(plain.getvalue(), mtime=0))
  temporary.replace(path)


def unpacked(tree: Tree) -> pathlib.Path:
  """Where `unpack` puts the tree."""
  return cache.directory() / 'pods' / tree.id


def unpack(tree: Tree):
  """The tree as a directory of its own, for programs that copy directories."""
  place = unpacked(tree)
  if place.exists():
    return
  temporary = place.with_name(f'{place.name}.{os.getpid()}.tmp')
  temporary.mkdir(parents=True)
  try:
    pack(tree)
    with tarfile.open(archive(tree)) as tar:
      # Python has filters from 3.11.4 on; the archive is our own.
      tar.extraction_filter = getattr(tarfile, 'data_filter', None)
      tar.extractall(temporary)
    temporary.replace(place)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def _content(path: pathlib.Path) -> tuple[int, bytes]:
  """Mode and bytes of a file."""
  if path.is_symlink() or not path.is_file():
    raise InputError(f'{path} is no plain file, and would not go along')
  mode = 0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644
  return mode, path.read_bytes()


def _add(tar, name, mode, content):
  info = tarfile.TarInfo(name)
  info.size, info.mode = len(content), mode
  tar.addfile(info, io.BytesIO(content))


def _git(root, *arguments) -> str:
  try:
    done = subprocess.run(
      ['git', '-C', str(root), *arguments], capture_output=True, check=True
    )
  except (OSError, subprocess.CalledProcessError):
    raise InputError(
      f'{root} is no git checkout; the workers get the files that git tracks'
    ) from None
  return os.fsdecode(done.stdout)
