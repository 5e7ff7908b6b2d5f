"""Where the time of a run went, over all its restarts: goodput.json.

Goodput is the share of the time since the first start that trained steps whose
result was kept.
"""

import contextlib
import itertools
import json
import pathlib
import time
from collections.abc import Iterator

from longjax import storage

# What a run spends its time with; the rest is 'starting'.
KINDS = (
  'training', 'compiling', 'restoring', 'saving', 'evaluating',
  'waiting for data', 'lost to restarts',
)  # fmt: skip
WRITE_SECONDS = 10


class Clock:
  """The seconds of this start by kind, after those of earlier starts."""

  def __init__(self):
    """Starts counting; writes nothing before `attach`."""
    self.path, self._before = None, []
    self._began = self._written = time.monotonic()
    self._start = time.time()
    self._seconds = {kind: 0.0 for kind in KINDS}

  def attach(self, workdir):
    """Reads the earlier starts of a run directory, and writes there."""
    self.path = pathlib.Path(workdir) / 'goodput.json'
    self._before = read(workdir)
    self.write()

  @contextlib.contextmanager
  def timed(self, kind: str) -> Iterator[None]:
    """Counts the time inside; not to be nested."""
    began = time.monotonic()
    try:
      yield
    finally:
      self.add(kind, time.monotonic() - began)

  def add(self, kind: str, seconds: float):
    """Counts seconds that were measured elsewhere."""
    self._seconds[kind] += seconds
    if time.monotonic() - self._written > WRITE_SECONDS:
      self.write()

  def starts(self) -> list[dict]:
    """One {kind: seconds} for each start, 'began' and 'seconds' among them."""
    here = dict(
      began=self._start, seconds=time.monotonic() - self._began, **self._seconds
    )
    return [*self._before, here]

  def goodput(self) -> float:
    """The share of all time that trained steps which were kept."""
    return summary(self.starts())['goodput']

  def write(self):
    """Writes goodput.json; a disk that fails must not end training."""
    self._written = time.monotonic()
    if self.path is None:
      return
    with contextlib.suppress(OSError):
      storage.write_text(self.path, json.dumps(self.starts(), indent=1))

  close = write


def read(workdir) -> list[dict]:
  """The starts of a run; [] if the file is missing or damaged."""
  try:
    starts = json.loads((pathlib.Path(workdir) / 'goodput.json').read_bytes())
    starts = [{k: float(v) for k, v in start.items()} for start in starts]
    return [dict(began=s['began'], seconds=s['seconds']) | s for s in starts]
  except (OSError, ValueError, TypeError, KeyError, AttributeError):
    return []


def summary(starts) -> dict:
  """{kind: seconds} over all starts, with what is none of KINDS.

  Returns:
    KINDS, 'starting', 'down' (between two starts), 'seconds' of all, and
    'goodput'.
  """
  total: dict = {k: sum(s.get(k, 0.0) for s in starts) for k in KINDS}
  up = sum(s['seconds'] for s in starts)
  # 'lost to restarts' is training of an earlier start, counted there.
  total['starting'] = up - sum(total[k] for k in KINDS[:-1])
  total['down'] = sum(
    max(after['began'] - before['began'] - before['seconds'], 0.0)
    for before, after in itertools.pairwise(starts)
  )  # clocks may jump
  total['training'] -= total['lost to restarts']
  total['seconds'] = up + total['down']
  total['goodput'] = max(total['training'], 0.0) / max(total['seconds'], 1e-9)
  return total
