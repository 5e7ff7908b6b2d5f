"""Directories that are made whole or not at all, here or in a bucket.

What is being made is called NAME.partial and is renamed at the end. Files in a
bucket (gs://) pass through the local disk.
"""

import concurrent.futures
import contextlib
import fcntl
import os
import pathlib
import shutil
import tempfile

from etils import epath

from longjax import errors, storage
from longjax.progress import size

# By it a checkpoint is recognized as complete.
WRITTEN_LAST = '_CHECKPOINT_METADATA'


@contextlib.contextmanager
def create(directory, needed_bytes):
  """Yields a directory to fill, which becomes `directory` if all went well.

  Raises:
    InputError: `directory` exists, or the disk has too little space.
  """
  if not storage.is_remote(directory):
    with _create(pathlib.Path(os.path.abspath(directory)), needed_bytes) as it:
      yield it
    return
  bucket = storage.directory(directory)
  _refuse_existing(bucket)
  with tempfile.TemporaryDirectory() as scratch:
    local = pathlib.Path(scratch) / 'made'
    with _create(local, needed_bytes) as partial:
      yield partial
    copy_tree(local, bucket)


def _refuse_existing(target):
  if target.exists() or os.path.islink(target):  # which may lead nowhere
    raise errors.InputError(f'{target} exists: name a new directory')


@contextlib.contextmanager
def _create(target, needed_bytes):
  """`create` on this machine."""
  _refuse_existing(target)
  partial = target.with_name(f'{target.name}.partial')
  with errors.of_disk(f'{target} cannot be made'):
    partial.mkdir(parents=True, exist_ok=True)
    lock = _lock(partial)
    for name in os.listdir(partial):  # of a process that was killed
      shutil.rmtree(partial / name)
  try:
    free = shutil.disk_usage(partial).free
    if free < needed_bytes * 1.05:
      raise errors.InputError(
        f'{target} needs {size(needed_bytes)}, but only {size(free)} are free'
      )
    yield partial
    os.rename(partial, target)
  except BaseException as error:
    shutil.rmtree(partial, ignore_errors=True)
    if isinstance(error, OSError) and error.errno in errors.FULL:
      raise errors.InputError(
        f'{target} cannot be made: {error.strerror}; its files were removed'
      ) from None
    raise
  finally:
    os.close(lock)


def _lock(directory) -> int:
  """The descriptor of a directory, locked where the file system has locks.

  Raises:
    InputError: another process has locked it.
  """
  descriptor = os.open(directory, os.O_RDONLY)
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    os.close(descriptor)
    raise errors.InputError(
      f'{directory}: another process is making it; wait for it, end it, or '
      'name another directory'
    ) from None
  except OSError:
    pass
  return descriptor


@contextlib.contextmanager
def fetched(path):
  """Yields the path itself, or a local copy of what is elsewhere."""
  if not storage.is_remote(path):
    yield path
    return
  there = storage.directory(path)
  with tempfile.TemporaryDirectory() as scratch:
    local = pathlib.Path(scratch) / there.name
    if there.is_dir():
      copy_tree(there, local)
    elif there.exists():
      there.copy(local)
    else:
      raise errors.InputError(f'{path} does not exist')
    yield local


def copy_tree(source, target):
  """Copies a directory; what makes it count as a checkpoint comes last."""
  source, target = epath.Path(source), epath.Path(target)

  def copy(path):
    to = target / path.relative_to(source)
    to.parent.mkdir(parents=True, exist_ok=True)
    path.copy(to)

  groups: tuple[list, list] = [], []
  for path in storage.files_below(source):
    groups[path.name == WRITTEN_LAST].append(path)
  with concurrent.futures.ThreadPoolExecutor(16) as pool:
    for group in groups:
      list(pool.map(copy, group))


def copy_files(source, directory, names):
  """Copies those of the named files that exist."""
  for name in names:
    path = epath.Path(source) / name
    if path.exists():
      path.copy(epath.Path(directory) / name, overwrite=True)
