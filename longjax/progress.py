"""Text about time and amounts, and a progress line every few seconds."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

EVERY_SECONDS = 5
SILENT_SECONDS = 10  # after which a line says that work goes on


def duration(seconds: float) -> str:
  """'3m20s', '2h05m', '12s'."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f'{hours}h{minutes:02}m'
  return f'{minutes}m{seconds:02}s' if minutes else f'{seconds}s'


def size(count: float) -> str:
  """Bytes as '12.3 GB'; below 0.1 GB as '12.34 MB'."""
  return f'{count / 1e9:.1f} GB' if count >= 1e8 else f'{count / 1e6:.2f} MB'


class Progress:
  """Logs what is done, the rate and the time left, every few seconds.

  `importing: 1.2 GB of 8.6 GB, 0.5 GB/s, 15s left`. Threads may share it.
  """

  def __init__(
    self,
    what: str,
    total: float,
    log: Callable[[str], object] = print,
    text: Callable[[float], str] = size,
    every_seconds: float = EVERY_SECONDS,
  ):
    """Starts the clock.

    Args:
      what: the work, at the start of each line.
      total: the whole amount, in what `add` counts; 0 if it is not known.
      log: called with each line.
      text: an amount with its unit, e.g. `lambda n: f'{n:,.0f} tokens'`.
      every_seconds: at least this long between lines.
    """
    self.what, self.total, self.log, self.text = what, total, log, text
    self.every_seconds, self.done = every_seconds, 0.0
    self._began = self._logged = time.monotonic()
    self._lock = threading.Lock()

  def add(self, amount: float):
    """Counts finished work; logs a line if the last one is old enough."""
    with self._lock:
      self.done += amount
      now = time.monotonic()
      if now - self._logged < self.every_seconds:
        return
      self._logged = now
      line = self.line(now - self._began)
    self.log(line)

  def line(self, seconds: float) -> str:
    """The progress line after so many seconds."""
    rate = self.done / max(seconds, 1e-3)
    of = f' of {self.text(self.total)}' if self.total else ''
    line = f'{self.what}: {self.text(self.done)}{of}, {self.text(rate)}/s'
    if self.total and rate:
      line += f', {duration(max(self.total - self.done, 0) / rate)} left'
    return line


@contextlib.contextmanager
def with_heartbeat(
  log: Callable[[str], object], seconds: float = SILENT_SECONDS
) -> Iterator[Callable[[str], object]]:
  """Yields `log`; inside, a line comes after so many seconds without one, after
  twice as many, and so on.

  A compilation and a compiled step cannot tell how far they are.
  """
  last, ended = [time.monotonic()], threading.Event()  # last: the newest line

  def logged(line):
    last[0] = time.monotonic()
    return log(line)

  def watch():
    since, wait = last[0], seconds
    while not ended.wait(since + wait - time.monotonic()):
      if since != last[0]:  # a line has come
        since, wait = last[0], seconds
        continue
      wait *= 2
      silent = duration(time.monotonic() - since)
      with contextlib.suppress(OSError):  # a full disk, a closed terminal
        log(f'  ... still running, {silent} since the last line')

  threading.Thread(target=watch, daemon=True).start()
  try:
    yield logged
  finally:
    ended.set()
