"""Requests by signal to a running job: stop, or trace some steps.

kill -TERM PID   save and end with exit code 75: run the same command again
kill -USR1 PID   profile the next steps
"""

import contextlib
import signal
from collections.abc import Callable, Iterator

from longjax.errors import PREEMPTED


class StopRequest:
  """The requests that signals have made so far.

  Attributes:
    stop: to save and end; set only inside `deferred`.
    profile: to profile; the profiler resets it.
  """

  def __init__(self):
    self.stop = self.profile = False

  @contextlib.contextmanager
  def deferred(self) -> Iterator[None]:
    """Inside, SIGTERM sets `stop`, and the loop saves before it ends."""
    with handling(signal.SIGTERM, lambda *_: setattr(self, 'stop', True)):
      yield


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
  """Handles the signals; SIGTERM raises SystemExit(75) unless `deferred`."""
  request = StopRequest()
  with (
    handling(signal.SIGTERM, _exit),
    handling(signal.SIGUSR1, lambda *_: setattr(request, 'profile', True)),
  ):
    yield request


def _exit(*_):
  raise SystemExit(PREEMPTED)


@contextlib.contextmanager
def handling(number: int, handler: Callable) -> Iterator[None]:
  """Handles one signal; does nothing outside the main thread, which alone may
  set handlers."""
  try:
    before = signal.signal(number, handler)
  except ValueError:
    before = None
  try:
    yield
  finally:
    if before is not None:
      signal.signal(number, before)
