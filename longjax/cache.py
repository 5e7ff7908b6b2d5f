"""Where this machine keeps what can be made or fetched again."""

import os
import pathlib


def directory() -> pathlib.Path:
  """$LONGJAX_CACHE, else longjax/ in the user's cache directory."""
  if os.environ.get('LONGJAX_CACHE'):
    return pathlib.Path(os.environ['LONGJAX_CACHE']).expanduser()
  base = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  return pathlib.Path(base).expanduser() / 'longjax'
