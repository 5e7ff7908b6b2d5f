"""Curricula: the longest segment at each step.

`data.curriculum` is ((share of the steps, tokens), ...). Llama 2 Long
(2309.16039, section 4.4) trains at 4,096 tokens for 40 % of the steps, then at
32,768: ((0.4, 4096), (0.6, 32_768)). Rows keep their length and are cut into
segments, as if they were several shorter rows: a batch has as many tokens as
before, nothing is compiled again, and each token is read as often.
"""

import operator

from longjax import errors


def check(curriculum, seq_len: int):
  """InputError unless rows of seq_len tokens can be cut by this curriculum."""
  try:
    stages = [(1.0 * share, operator.index(n)) for share, n in curriculum]
  except (TypeError, ValueError):
    stages = [(0.0, 0)]
  shares = [share for share, _ in stages]
  if stages and not (min(shares) > 0 and abs(sum(shares) - 1) < 1e-6):
    raise errors.InputError(
      f'data.curriculum must be (share of the steps, tokens) pairs whose '
      f'shares add up to 1, got {curriculum!r}'
    )
  for _, length in stages:
    if length < 1 or seq_len % length:
      raise errors.InputError(
        f'data.curriculum: segments of {length} tokens do not divide '
        f'train.seq_len {seq_len}'
      )


def segment_length(curriculum, step: int, steps: int) -> int:
  """Tokens that a segment has at most in a step; 0 is no limit.

  Args:
    curriculum: (share, tokens) pairs.
    step: from 0.
    steps: of the whole training.
  """
  end = 0.0
  for share, length in curriculum:
    end += share
    if step < round(end * steps):
      return int(length)
  return int(curriculum[-1][1]) if curriculum else 0
