"""The one exception that means: the input is wrong, not the program."""

import contextlib
import difflib
import errno
from collections.abc import Iterable
from typing import Any

# Exit code that means: run the same command again. After SIGTERM the loop saves
# and ends with it (train/loop.py); so does train/preemption.py where there is
# nothing to save yet, and train/watchdog.py, without a save, where a run hangs.
PREEMPTED = 75
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of an OSError: no room

MAX_CHARACTERS = 2000  # of a message


class InputError(ValueError):
  """Says in one line what was given, what is needed and what to do.

  Raised for configs, files and data that a user can mend. The commands in
  `launch/` print its message as one line and exit with code 2.
  """

  def __str__(self):
    text = ' '.join(super().__str__().splitlines())  # also of what it quotes
    return (
      text
      if len(text) < MAX_CHARACTERS
      else f'{text[: MAX_CHARACTERS // 2]} ... {text[-MAX_CHARACTERS // 4 :]}'
    )


@contextlib.contextmanager
def of_disk(what: str):
  """Makes an OSError inside of it an InputError: what failed, and why."""
  try:
    yield
  except OSError as error:
    reason = error.strerror or f'is the disk full? {error}'
    raise InputError(f'{what}: {reason}') from error


def nearest(name: str, known: Iterable[str]) -> str | None:
  """What was probably meant; None if nothing is known."""
  close = difflib.get_close_matches(name, list(known), n=1, cutoff=0)
  return close[0] if close else None


def check_choice(what: str, value: Any, known: Iterable[str]):
  """InputError unless the value is known."""
  if value not in known:
    raise InputError(
      f'{what} {value!r} is not one of {", ".join(known)}; nearest is '
      f'{nearest(str(value), known)!r}'
    )


def refuse_unknown_keys(what: str, given: Iterable[str], known: Iterable[str]):
  """InputError for the first key that is not known, naming the nearest."""
  for key in given:
    if key not in known:
      raise InputError(
        f'{what} has an unknown key {key!r}; did you mean '
        f'{nearest(key, known)!r}?'
      )
