"""Paths on this machine or in a bucket: gs://BUCKET/DIRECTORY."""

import importlib.util
import os
import pathlib
import secrets
import stat
from typing import Any

from etils import epath

from longjax.errors import InputError

MOST_BYTES = 1 << 28  # of descriptions and vocabularies: the largest have 40 MB


def is_remote(path) -> bool:
  """Whether a path is in a bucket.

  Raises:
    InputError: a scheme other than gs, or no library for gs.
  """
  scheme, separator, _ = str(path).partition('://')
  if separator and scheme != 'gs':
    raise InputError(f'{path} is neither local nor gs://...')
  if separator and not importlib.util.find_spec('gcsfs'):
    raise InputError(f'{path} needs pip install gcsfs')
  return bool(separator)


def content(path) -> bytes:
  """A file that others wrote, read whole; OSError where it is not there.

  Raises:
    InputError: it is no regular file, or larger than MOST_BYTES.
  """
  if not is_remote(path):
    check_file(path)
  file = epath.Path(path)
  size: Any = file.stat()
  if size.length > MOST_BYTES:
    raise InputError(
      f'{path} has {size.length:,} bytes; at most {MOST_BYTES:,} are read'
    )
  return file.read_bytes()


def real(path) -> pathlib.Path:
  """A path without links; Path.resolve raises RuntimeError where they turn."""
  return pathlib.Path(os.path.realpath(path))


def write_text(path: pathlib.Path, text: str):
  """Writes a local file atomically, also beside others that write it."""
  temporary = path.with_name(f'{path.name}.{secrets.token_hex(4)}.tmp')
  try:
    temporary.write_text(text)
    temporary.replace(path)
  except OSError:
    temporary.unlink(missing_ok=True)
    raise


def link_targets(directory) -> list[pathlib.Path]:
  """Where links in a directory may lead: into it, or from a snapshot in Hugging
  Face's cache to the blobs/ beside the snapshots."""
  root = real(directory)
  caches = (p.parent for p in (root, *root.parents) if p.name == 'snapshots')
  return [root, *(cache / 'blobs' for cache in caches)]


def inside(directory, name) -> str:
  """The path of the file `name` of a local directory.

  Raises:
    InputError: it is not there, or not in `link_targets`.
  """
  root = real(directory)
  try:
    target = real(root / str(name))
    exists = target.is_file()
  except (OSError, ValueError) as error:  # too long, or with a null byte
    raise InputError(
      f'{directory}: {name!r:.80} cannot be the name of a file: {error!s:.80}'
    ) from None
  if not any(target.is_relative_to(place) for place in link_targets(root)):
    raise InputError(
      f'{directory}: {name!r} leads out of this directory, to {target}; copy '
      'the file into it'
    )
  if not exists:
    raise InputError(f'{directory}: lacks the file {name}')
  return str(pathlib.Path(directory) / str(name))


def is_safe_file(path) -> bool:
  """Whether there is such a file, local or remote; InputError for a link that
  leads out of its directory, see `inside`."""
  if is_remote(path):
    return epath.Path(path).is_file()
  return os.path.isfile(path) and bool(inside(*os.path.split(path)))


def check_files(directory):
  """InputError for what a library would read without an end, or into memory
  that it does not have: pipes, and files of a size that the disk does not hold;
  and for links that lead out of the directory."""
  for place, _, names in () if is_remote(directory) else os.walk(directory):
    for name in names:
      if os.path.exists(path := os.path.join(place, name)):
        check_file(path)
        inside(directory, os.path.relpath(path, directory))


def check_file(path):
  """InputError for one such; OSError where there is none."""
  status = os.stat(path)
  if is_sparse(status) or not stat.S_ISREG(status.st_mode):
    raise InputError(f'{path} is not a regular file, or is a sparse file')


def is_sparse(status) -> bool:
  """Whether a file is far larger than what the disk holds of it."""
  held = status.st_blocks * 512
  return status.st_size > MOST_BYTES and held * 16 < status.st_size


def files_below(directory: epath.Path):
  """Yields the files of a directory and of those in it; epath has no rglob."""
  for path in directory.iterdir():
    if path.is_dir():
      yield from files_below(path)
    else:
      yield path


def directory(path) -> epath.Path:
  """The path of a directory that may not exist yet.

  Raises:
    InputError: it is a file, or the bucket cannot be reached.
  """
  remote = is_remote(path)
  found = epath.Path(path)
  if remote:
    try:
      found.exists()
    except Exception as error:  # whatever the bucket's library raises
      raise InputError(f'{path} cannot be reached: {error}') from None
  elif found.is_file():
    raise InputError(f'{path} is a file; a directory is needed')
  return found
