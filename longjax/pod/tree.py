"""The files of this checkout, as they go to the hosts.

Only what git tracks: no weights, no keys. The hosts have no git, so a file
`.pushed` records the commit.
"""

import hashlib
import json
import os
import pathlib
import shutil
import subprocess
from typing import NamedTuple

from longjax import cache
from longjax.errors import InputError

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Tree(NamedTuple):
  """The tracked files of a checkout."""

  root: pathlib.Path
  files: dict[str, tuple[int, bytes]]  # path below root: mode, contents
  commit: str  # with '+' at its end: files differ from it
  digest: str  # of commit, names, modes and contents

  @property
  def id(self) -> str:
    return self.digest[:12]


def read(root=ROOT) -> Tree:
  """The tree as it is on disk. Raises InputError outside of a checkout."""
  root = pathlib.Path(root)
  names = _git(root, 'ls-files', '-z').split('\0')
  dirty = _git(root, 'status', '--porcelain', '--untracked-files=no').strip()
  commit = _git(root, 'rev-parse', 'HEAD').strip() + ('+' if dirty else '')
  digest, files = hashlib.sha256(commit.encode()), {}
  for name in filter(None, names):
    path = root / name
    if not os.path.lexists(path):  # deleted, not yet committed
      continue
    if path.is_symlink() or not path.is_file():
      raise InputError(f'{path} is not a plain file and cannot be pushed')
    mode = 0o755 if os.access(path, os.X_OK) else 0o644
    content = path.read_bytes()
    files[name] = mode, content
    digest.update(f'\0{name}\0{mode:o}\0{len(content)}\0'.encode() + content)
  return Tree(root, files, commit, digest.hexdigest())


def check(tree: Tree, dirty: bool):
  """Refuses files that differ from the commit, unless `dirty` allows it."""
  if tree.commit.endswith('+') and not dirty:
    raise InputError(
      'files differ from the commit, so the run could not record its code: '
      'commit them, or give --dirty'
    )


def config_path(tree: Tree, path: str) -> str:
  """The config below the root of the tree, or InputError.

  Args:
    path: as --config has it, FILE or FILE:ARGUMENTS.
  """
  file, colon, rest = path.partition(':')
  try:
    below = pathlib.Path(file).resolve().relative_to(tree.root.resolve())
  except ValueError:
    raise InputError(
      f'{path} is outside of {tree.root}; only files in it are pushed'
    ) from None
  if below.as_posix() not in tree.files:
    raise InputError(f'git does not track {below}, so push omits it: git add')
  return below.as_posix() + colon + rest


def unpacked(tree: Tree) -> pathlib.Path:
  """Where `unpack` writes the tree."""
  return cache.directory() / 'pods' / tree.id


def unpack(tree: Tree):
  """Writes the tree and .pushed to a directory."""
  place = unpacked(tree)
  if place.exists():
    return
  temporary = place.with_name(f'{place.name}.{os.getpid()}.tmp')
  shutil.rmtree(temporary, ignore_errors=True)
  about = json.dumps(dict(commit=tree.commit, sha256=tree.digest)) + '\n'
  files = tree.files | {'.pushed': (0o644, about.encode())}
  for name, (mode, content) in files.items():
    path = temporary / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)
  temporary.replace(place)


def archive(tree: Tree) -> pathlib.Path:
  """Where `pack` writes the tree."""
  return cache.directory() / 'pods' / f'longjax-{tree.id}.tar.gz'


def pack(tree: Tree):
  """Writes the tree and .pushed as a .tar.gz."""
  unpack(tree)
  if not archive(tree).exists():
    base = str(archive(tree).with_name(f'{tree.id}.{os.getpid()}'))
    made = shutil.make_archive(base, 'gztar', unpacked(tree))
    pathlib.Path(made).replace(archive(tree))


def _git(root, *arguments) -> str:
  try:
    done = subprocess.run(
      ['git', '-C', str(root), *arguments], capture_output=True, check=True
    )
  except (OSError, subprocess.CalledProcessError):
    raise InputError(
      f'{root} is not a git checkout; pod.py pushes the files that git tracks'
    ) from None
  return os.fsdecode(done.stdout)
