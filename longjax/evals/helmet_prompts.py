"""How HELMET, arXiv:2410.02694, picks examples, cuts contexts, reads answers.

After its data.py, utils.py and model_utils.py.
"""

import bisect
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from longjax.errors import InputError
from longjax.evals import records

LENGTHS = (8192, 16384, 32768, 65536, 131072)  # for which it has sizes
MARK = ' ... [the rest of the text is omitted]'


def size_for(sizes, length: int):
  """That of the longest of LENGTHS which is not above a length."""
  at = bisect.bisect_right(LENGTHS, length) - 1
  if at < 0:
    raise InputError(
      f'HELMET has nothing for {length:,} tokens: use --lengths 8K or more'
    )
  return sizes[at]


def permuted(data: records.DataSet, spec) -> Iterator:
  """The records in the order of HELMET's draw, which takes the first 100."""
  rows = list(records.in_order(data, spec))
  for i in np.random.default_rng(spec.seed).permutation(len(rows)):
    yield rows[i]


def shots(examples: Iterable, key: str, record) -> list:
  """Two examples with other values of a key, drawn by a hash of its own."""
  others = [x for x in examples if x[key] != record[key]]
  first: dict = {}
  for i in np.random.default_rng(seed_of(record[key])).permutation(len(others)):
    first.setdefault(others[i][key], others[i])
  return list(first.values())[:2]


def seed_of(value, seed: int = 0) -> int:
  """A seed that depends on a value and, if wanted, another seed."""
  digest = hashlib.sha256(str(value).encode()).hexdigest()
  return (int(digest, 16) + seed) % 2**31


def cut(spec, form: Callable, context: str, prefix: str, mark='') -> str:
  """form(context), which loses its end for `mark` if it is too long."""
  fill = lambda text: form(text if text == context else text + mark)
  return records.cut(spec, context, prefix, fill)


def line_after(marker: str, text: str) -> str:
  """The rest of the line after a marker, else the first line."""
  found = re.search(f'{marker}(.*)', text, re.IGNORECASE)
  line = found[1] if found else text.partition('\n')[0]
  return re.sub(f'^{marker}', '', line.strip(), flags=re.IGNORECASE).strip()


def best(metric: Callable, cue: str, marker='Answer:') -> Callable:
  """A score: a metric of the cue and what follows, or of the line after the
  marker in both if that is better."""

  def score_answer(answer: str, references) -> float:
    whole = cue + answer
    return max(
      metric(whole, references), metric(line_after(marker, whole), references)
    )

  return score_answer
