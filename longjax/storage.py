"""Paths on this machine or in a bucket: gs://BUCKET/DIRECTORY."""

import importlib.util

from etils import epath

from longjax.errors import InputError


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


def directory(path) -> epath.Path:
  """The path of a directory that may not exist yet.

  Raises:
    InputError: it is a file, or the bucket cannot be reached.
  """
  found = epath.Path(path)
  if is_remote(path):
    try:
      found.exists()
    except Exception as error:  # whatever the bucket's library raises
      raise InputError(f'{path} cannot be reached: {error}') from None
  elif found.is_file():
    raise InputError(f'{path} is a file; a directory is needed')
  return found
