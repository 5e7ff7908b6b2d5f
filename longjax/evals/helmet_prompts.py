"""How HELMET, arXiv:2410.02694, sizes and cuts contexts, and reads answers.

After its data.py, utils.py and model_utils.py.
"""

import bisect
import re
from collections.abc import Callable

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


def tokens(spec, text: str) -> int:
  """Of a text with the BOS, as transformers encodes it."""
  bos = spec.tokenizer.document_start is not None
  return bos + len(spec.tokenizer.encode(text))


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
