"""What a running job is asked for from outside.

kill -TERM PID   save and end, exit code 75: run the same command again
kill -USR1 PID   profile the next steps
"""

import contextlib
import signal
from collections.abc import Iterator

from longjax.errors import PREEMPTED


class Asked:
  """What has been asked for so far.

  Attributes:
    end: to save and end.
    profile: to profile; whoever does so sets it back.
  """

  def __init__(self):
    self.end = self.profile = False
    self._unsaved = False

  @contextlib.contextmanager
  def unsaved(self) -> Iterator[None]:
    """While there is work to save, `end` waits to be seen. Elsewhere it is
    the end: SystemExit is raised, wherever we are."""
    self._unsaved = True
    try:
      yield
    finally:
      self._unsaved = False

  def _terminate(self, *_):
    self.end = True
    if not self._unsaved:
      raise SystemExit(PREEMPTED)

  def _profile(self, *_):
    self.profile = True


@contextlib.contextmanager
def listening() -> Iterator[Asked]:
  """Asked, as long as the signals are ours."""
  asked = Asked()
  handlers = {
    signal.SIGTERM: asked._terminate,
    signal.SIGUSR1: asked._profile,
  }
  before = {}
  with contextlib.suppress(ValueError):  # not the main thread: not our signals
    for number, handler in handlers.items():
      before[number] = signal.signal(number, handler)
  try:
    yield asked
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
