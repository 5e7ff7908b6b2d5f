"""Ends a process that hangs with exit code 75, so that it is restarted.

A collective waits for ever for a process that is gone, and so does a read from
storage that does not answer: nothing raises, and a slice stands still.
"""

import contextlib
import faulthandler
import os
import threading
import time
from collections.abc import Callable, Iterator

from longjax import progress
from longjax.errors import PREEMPTED

STDERR = 2  # whoever has replaced sys.stderr
# A step may take so many times as long as the longest before it.
LONGER = 10


class Watchdog:
  """Watches from construction to `close`."""

  def __init__(self, seconds: float, log: Callable = print):
    """Starts to count.

    Args:
      seconds: after so long without a step, or ten times the longest step if
        that is more, the process ends with code 75 and the stacks of its
        threads on stderr; 0: never.
      log: called with a line before that.
    """
    self._least, self._log = seconds, log
    self._last, self._longest, self._paused = time.monotonic(), 0.0, False
    self._closed = threading.Event()
    if seconds:
      threading.Thread(target=self._watch, daemon=True).start()

  def step_done(self):
    """To be called after each step and its save."""
    now = time.monotonic()
    self._longest, self._last = max(self._longest, now - self._last), now

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Inside, nothing is counted: evaluations take their own time."""
    self._paused = True
    try:
      yield
    finally:
      self._last, self._paused = time.monotonic(), False

  def close(self):
    self._closed.set()

  @property
  def limit(self) -> float:
    """Seconds that the next step may take."""
    return max(self._least, LONGER * self._longest)

  def _watch(self):
    while not self._closed.wait(min(self._least / 10, 10)):
      waited = time.monotonic() - self._last
      if not self._paused and waited > self.limit:
        self._log(
          f'no step for {progress.duration(waited)} (config.train.hang_seconds '
          f'is {self._least:g}); the stacks of all threads are on stderr; run '
          'the same command again'
        )
        faulthandler.dump_traceback(file=STDERR)
        os._exit(PREEMPTED)  # no clean-up: that would wait as well
