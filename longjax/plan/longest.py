"""The longest rows with which a config fits a slice.

The estimate of search.py gives the first length; compiles then decide.
"""

import bisect

from longjax import checks, slices
from longjax.errors import InputError
from longjax.plan.compile import check, plan
from longjax.plan.search import estimated_bytes

FACTOR = 1.25  # between lengths until one fits and one does not
PRECISION = 16  # the answer is at most a 16th below the limit
MOST_TOKENS = 2**31 - 1  # positions are int32


def longest(config, target: slices.Slice, documents: str, log) -> list[dict]:
  """Finds the longest rows that fit, by bisection over compiles.

  Mesh, batch and remat policy stay those of the config. Lengths are multiples
  of 2 x mesh.seq x model.block: whole blocks on each device in every layout.

  Args:
    config, target, documents, log: as for `plan`.

  Returns:
    Reports of `plan`: first the longest that fits, then the other lengths that
    were compiled, shortest first. If none fits, the first is the shortest.
  """
  check(config, target, documents, log)
  unit = 2 * config.mesh.seq * config.model.block
  reports: dict[int, dict] = {}
  low = high = 0  # units that fit, and that do not; 0 is unknown
  units = _guess(config, target, unit)
  while not high or high - low > max(1, low // PRECISION):
    log(f'trying rows of {units * unit:,} tokens')
    trial = _with_length(config, units * unit)
    reports[units] = plan(trial, target, documents, log)
    if reports[units]['fits']:
      low = units
    else:
      high = units
    if low and high:
      units = (low + high) // 2
    elif low:
      units = max(low + 1, int(low * FACTOR))
    else:
      units = max(1, min(high - 1, int(high / FACTOR)))
  best = reports.pop(low or min(reports))
  return [best, *(reports[units] for units in sorted(reports))]


def _guess(config, target, unit: int) -> int:
  """The most units that fit by the estimate, at least 1."""
  trial = config.copy_and_resolve_references()

  def is_too_large(units):
    trial.train.seq_len = units * unit
    return estimated_bytes(trial) >= target.chip.usable

  units = range(1, MOST_TOKENS // unit)
  return max(1, bisect.bisect_left(units, True, key=is_too_large))


def _with_length(config, seq_len: int):
  """The config with rows of seq_len tokens, checked."""
  trial = config.copy_and_resolve_references()
  trial.train.seq_len = seq_len
  trial.train.lengths = ()  # full rows, which are the longest
  try:
    checks.check(trial)
  except InputError as error:
    raise InputError(f'rows of {seq_len:,} tokens: {error}') from None
  return trial
