"""Where this machine keeps what can be made or fetched again."""

import os
import pathlib


def directory() -> pathlib.Path:
  """$LONGJAX_CACHE, else longjax/ in the user's cache directory."""
  if os.environ.get('LONGJAX_CACHE'):
    return pathlib.Path(os.environ['LONGJAX_CACHE']).expanduser()
  base = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  return pathlib.Path(base).expanduser() / 'longjax'


def compiled(workdir: str = '') -> str:
  """The directory of compiled programs, for a run in `workdir`.

  Only process 0 writes them, so those of a run in a bucket are in the bucket:
  from a disk of their own the other hosts would compile at each start.
  """
  if workdir.startswith('gs://'):
    bucket, _, _ = workdir.removeprefix('gs://').partition('/')
    return f'gs://{bucket}/longjax-compiled'
  return str(directory() / 'compiled')
