"""Which files a source has, and which of them make up a document.

Files and directories whose name starts with a dot are left out, symbolic links,
and what `datasets` writes beside its arrow files.
"""

import hashlib
import pathlib
from typing import Any, NamedTuple

import numpy as np

from longjax import errors
from longjax.data import downloads, formats

ROOT = pathlib.Path(__file__).resolve().parents[2]
JOINED = ('repository', 'repositories', 'directories')  # files to a document
WHOLE_BYTES = 1 << 23  # files up to this are hashed whole for the fingerprint


class File(NamedTuple):
  """A file of a source."""

  name: str  # inside the path of the source
  location: str
  size: int


def groups(name, settings, log) -> list[tuple[str, list[File]]]:
  """Files by the document that they become."""
  if not settings['path']:
    pins = settings['packages'] or ((settings['package'], settings['sha256']),)
    archives = [(pin, downloads.fetch(pin, sha, log)) for pin, sha in pins]
    return [
      (title, [File(path.name, str(path), path.stat().st_size)])
      for title, path in archives
    ]
  files, kind = list_files(name, settings), settings['kind']
  if kind not in JOINED:
    formats.check(file.name for file in files)
    return [(file.name, [file]) for file in files]
  grouped: dict[str, list[File]] = {}
  for file in files:
    inside = pathlib.PurePosixPath(file.name)
    title = pathlib.PurePath(settings['path']).name
    if kind == 'repositories':
      title = inside.parts[0]
    elif kind == 'directories':
      title = inside.parent.as_posix()
    grouped.setdefault(title, []).append(file)
  if kind == 'directories':
    grouped = {
      title: _shuffled(title, files) for title, files in grouped.items()
    }
  return list(grouped.items())


def _shuffled(title: str, files) -> list[File]:
  """In random order, always the same."""
  seed = hashlib.sha256(title.encode('utf-8', 'replace')).digest()[:8]
  rng = np.random.default_rng(int.from_bytes(seed, 'little'))
  return [files[i] for i in rng.permutation(len(files))]


def locate(location: str):
  """A local path, or one in a bucket."""
  if '://' not in location:
    return ROOT / pathlib.Path(location).expanduser()
  from etils import epath

  return epath.Path(location)


def list_files(name, settings) -> list[File]:
  """The files of a path source that may hold documents, in order of name."""
  root = locate(settings['path'])
  if root.is_file():
    return [File(root.name, str(root), _size(root))]
  if not root.is_dir():
    raise errors.InputError(
      f'source {name!r}: {root}: no such file or directory'
    )
  files = []
  for path in root.rglob('*'):
    inside = path.relative_to(root)
    hidden = any(part.startswith('.') for part in inside.parts)
    link = isinstance(path, pathlib.Path) and path.is_symlink()
    wanted = downloads.matches(
      inside.as_posix(), settings['include'], settings['exclude']
    )
    if wanted and not hidden and not link and path.is_file():
      files.append(File(inside.as_posix(), str(path), _size(path)))
  inside = {file: pathlib.PurePosixPath(file.name) for file in files}
  arrow = {path.parent for path in inside.values() if path.suffix == '.arrow'}
  return sorted(
    file
    for file, path in inside.items()
    if path.name not in formats.ARROW_METADATA or path.parent not in arrow
  )


def _size(path) -> int:
  status: Any = path.stat()
  return status.length if hasattr(status, 'length') else status.st_size


def digest(file: File) -> str:
  """Of a file, or of a large one's size and 64 pieces.

  One in a bucket is known by its size and time.
  """
  path = locate(file.location)
  if '://' in file.location:
    status: Any = path.stat()
    return f'{status.length} {status.mtime}'
  if file.size <= WHOLE_BYTES:
    return downloads.sha256_of(path)
  hashed = hashlib.sha256(str(file.size).encode())
  with open(path, 'rb') as handle:
    for start in np.linspace(0, file.size - (1 << 16), 64).astype(int).tolist():
      handle.seek(start)
      hashed.update(handle.read(1 << 16))
  return hashed.hexdigest()
