"""Runs jobs on gigabytes in threads."""

import concurrent.futures
import os

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
