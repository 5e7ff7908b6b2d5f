"""Directories to read and to make: whole or not at all, here or in a bucket.

What is being made lies beside its place under another name and gets its own at
the end. Files in a bucket (gs://) pass through the local disk.
"""

import contextlib
import fcntl
import glob
import os
import pathlib
import shutil
import tempfile

from etils import epath

from longjax import errors, storage
from longjax.progress import size
from longjax.weights import stored
from longjax.weights.work import each_in_parallel


@contextlib.contextmanager
def whole(directory, needed_bytes):
  """A directory to fill, which becomes `directory` if all went well.

  Raises:
    InputError: it exists, or the disk has too little space.
  """
  if not storage.is_remote(directory):
    with _whole(pathlib.Path(os.path.abspath(directory)), needed_bytes) as made:
      yield made
    return
  bucket = storage.directory(directory)
  _refuse_existing(bucket)
  with tempfile.TemporaryDirectory() as scratch:
    local = pathlib.Path(scratch) / 'made'
    with _whole(local, needed_bytes) as made:
      yield made
    copy_tree(local, bucket)


def _refuse_existing(target):
  if target.exists() or os.path.islink(target):  # which may lead nowhere
    raise errors.InputError(f'{target} exists: name a new directory')


@contextlib.contextmanager
def _whole(target, needed_bytes):
  """`whole` on this machine."""
  _refuse_existing(target)
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    made, lock = _partial(target)
  except OSError as error:
    raise errors.InputError(
      f'{target} cannot be made: {error.strerror}'
    ) from None
  try:
    free = shutil.disk_usage(target.parent).free
    if free < needed_bytes * 1.05:
      raise errors.InputError(
        f'{target} needs {size(needed_bytes)}, the disk has {size(free)}'
      )
    os.chmod(made, 0o777 & ~_umask())
    with _room(target):
      yield pathlib.Path(made)
    os.rename(made, target)
  except BaseException:
    shutil.rmtree(made, ignore_errors=True)
    raise
  finally:
    os.close(lock)


@contextlib.contextmanager
def _room(target):
  """Turns a disk or quota that became full into one line."""
  try:
    yield
  except OSError as error:
    if error.errno not in errors.FULL:
      raise
    raise errors.InputError(
      f'{target} cannot be made: {error.strerror}; nothing of it was kept'
    ) from None


def _partial(target):
  """A new directory beside `target`, locked until the descriptor is closed.

  A process that is killed leaves its own, unlocked: those are removed.
  """
  prefix = f'{target.name}.partial-'
  for path in target.parent.glob(f'{glob.escape(prefix)}*'):
    with contextlib.suppress(FileNotFoundError):
      lock, locked = _lock(path)
      if locked:
        shutil.rmtree(path, ignore_errors=True)
      os.close(lock)
  while True:
    made = tempfile.mkdtemp(prefix=prefix, dir=target.parent)
    lock, _ = _lock(made)
    if os.path.isdir(made):  # else another took it for abandoned meanwhile
      return made, lock
    os.close(lock)


def _lock(directory):
  """(descriptor, whether it is locked): not on a file system without locks.

  Raises:
    InputError: another process has it.
  """
  descriptor = os.open(directory, os.O_RDONLY)
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    os.close(descriptor)
    raise errors.InputError(
      f'{directory}: another process is making it; wait for that or end it, or '
      'name another directory'
    ) from None
  except OSError:
    return descriptor, False
  return descriptor, True


@contextlib.contextmanager
def fetched(path):
  """The path itself, or a local copy of what is in a bucket."""
  if not storage.is_remote(path):
    yield path
    return
  remote = storage.directory(path)
  with tempfile.TemporaryDirectory() as scratch:
    local = pathlib.Path(scratch) / remote.name
    if remote.is_dir():
      copy_tree(remote, local)
    elif remote.exists():
      remote.copy(local)
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

  paths = [*_files(source)]
  about = [path for path in paths if path.name == stored.ABOUT]
  each_in_parallel([(copy, path) for path in paths if path not in about])
  each_in_parallel([(copy, path) for path in about])


def _files(directory):
  for path in directory.iterdir():
    if path.is_dir():
      yield from _files(path)
    else:
      yield path


def copy_files(source, directory, names):
  """Copies those of the files that are there."""
  for name in names:
    path = epath.Path(source) / name
    if path.exists():
      path.copy(epath.Path(directory) / name, overwrite=True)


def _umask():
  mask = os.umask(0)
  os.umask(mask)
  return mask
