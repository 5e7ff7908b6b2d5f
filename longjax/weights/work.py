"""Work on gigabytes: in threads, with lines about how far it is."""

import concurrent.futures
import os
import threading
import time

from longjax.train import metrics

WORKERS = min(2 * (os.cpu_count() or 1), 16)  # half of them wait for the disk


def each_in_parallel(jobs, workers=WORKERS):
  """Calls each (function, *arguments); the first error ends the rest."""
  with concurrent.futures.ThreadPoolExecutor(min(workers, WORKERS)) as pool:
    futures = [pool.submit(*job) for job in jobs]
    try:
      for future in concurrent.futures.as_completed(futures):
        future.result()
    except BaseException:
      pool.shutdown(cancel_futures=True)
      raise


class Progress:
  """Lines about bytes that are done: share, speed, time left."""

  def __init__(self, what, total_bytes, log, every_seconds=5):
    self.what, self.total, self.log = what, total_bytes, log
    self.every, self.done = every_seconds, 0
    self.began = self.said = time.monotonic()
    self._lock = threading.Lock()

  def add(self, done_bytes):
    """Counts bytes, and says so now and then. Threads may share it."""
    with self._lock:
      self.done += done_bytes
      now = time.monotonic()
      if now - self.said < self.every:
        return
      self.said, rate = now, self.done / (now - self.began)
    left = metrics.duration((self.total - self.done) / rate)
    self.log(
      f'{self.what}: {gigabytes(self.done)} of {gigabytes(self.total)}, '
      f'{gigabytes(rate)}/s, {left} left'
    )


def gigabytes(count) -> str:
  """12.3 GB, or for less than a tenth MB."""
  return f'{count / 1e9:.1f} GB' if count >= 1e8 else f'{count / 1e6:.2f} MB'
