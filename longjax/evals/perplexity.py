"""Perplexity over windows, in the four ways in which papers have counted it.

  press              windows of L tokens advance by S; of each only the S new
                     tokens count (the first counts whole); every token counts
                     the same. Press et al., arXiv:2108.12409, appendix B
  prefix             the first L tokens of each document in one window; every
                     document counts the same. YaRN's tables (eval.sh)
  yarn_equal_window  the windows of `press`, but every window counts the same,
                     the first as much as a slice of S. YaRN's GovReport
  longlora           windows of L advance by S over the documents end to end;
                     all their tokens count. LongLoRA's eval.py

The four differ by much (the mean context of a token is L - S/2 in one and L/2
in another), so a number without its mode means little.
"""

import math
from typing import NamedTuple

import numpy as np

from longjax.batch import one_document
from longjax.errors import InputError
from longjax.evals import evaluation
from longjax.evals.evaluation import DOCUMENTS, Evaluation, Point, Setup

STRIDE = 256  # of the papers


class Window(NamedTuple):
  """Tokens `start` to `end` are read, those from `scored` on count."""

  start: int
  end: int
  scored: int


def windows(tokens: int, length: int, stride: int) -> list[Window]:
  """Windows over a document: each token but the first is scored once.

  The last window ends where the document does and is as long as the others.

  Raises:
    InputError: a stride after which a new token has nothing before it.
  """
  if not 0 < stride < length:
    raise InputError(
      f'windows of {length} tokens cannot advance by {stride}: they score at '
      f'least 1 new token and have at least 1 before it'
    )
  found = [Window(0, min(length, tokens), 1)]
  while (end := found[-1].end) < tokens:
    new = min(end + stride, tokens)
    found.append(Window(new - length, new, end))
  return found


def press(lm, documents, length: int, stride: int) -> float:
  """exp of the mean loss of all tokens, each once."""
  losses = [x for d in documents for x in _windowed(lm, d, length, stride)]
  return math.exp(np.concatenate(losses).mean())


def prefix(lm, documents, length: int, stride: int) -> float:
  """exp of the mean over documents of the mean loss of their first tokens."""
  del stride
  means = [_windowed(lm, d[:length], length, 1)[0] for d in documents]
  return math.exp(np.mean([x.mean() for x in means]))


def yarn_equal_window(lm, documents, length: int, stride: int) -> float:
  """exp of the mean over windows of the mean loss of their new tokens."""
  losses = [x for d in documents for x in _windowed(lm, d, length, stride)]
  return math.exp(np.mean([x.mean() for x in losses]))


def longlora(lm, documents, length: int, stride: int) -> float:
  """exp of the mean loss of all tokens of windows over all documents."""
  stream = np.concatenate(documents)
  whole = [
    Window(start, min(start + length, len(stream)), start + 1)
    for start in range(0, max(len(stream) - length, 0) + 1, stride)
  ]
  return math.exp(np.concatenate(_losses(lm, stream, whole)).mean())


MODES = dict(
  press=press,
  prefix=prefix,
  yarn_equal_window=yarn_equal_window,
  longlora=longlora,
)


def table(lm, documents, lengths, stride=STRIDE) -> dict:
  """{'length': [...], mode: [perplexity at each length]} and the stride.

  Args:
    lm: language_model.LM.
    documents: list of [tokens] ids, with what stands before a document.
    lengths: tokens of a window, at least 2.
    stride: tokens by which windows advance; shorter ones by all but one of
      theirs.
  """
  result: dict = dict(length=[int(n) for n in lengths], stride=stride)
  for name, mode in MODES.items():
    result[name] = [mode(lm, documents, n, min(stride, n - 1)) for n in lengths]
  return result


def _windowed(lm, document, length, stride):
  document = np.asarray(document)
  return _losses(lm, document, windows(len(document), length, stride))


def _losses(lm, tokens, found) -> list[np.ndarray]:
  """The losses that count, an array for each window."""
  rows = np.stack([tokens[w.start : w.end] for w in found])
  nll = np.asarray(lm.nll(one_document(rows)), np.float64)
  # Place i of a row predicts token start + i + 1.
  return [
    row[w.scored - w.start - 1 : w.end - w.start - 1]
    for row, w in zip(nll, found)
  ]


def check(setup: Setup, part: str):
  shortest, length = min(setup.options.lengths), setup.options.length
  if not 2 <= shortest <= length:
    raise InputError(
      f'perplexity needs eval.lengths from 2 to eval.length {length}, got '
      f'{tuple(setup.options.lengths)}'
    )


def run(lm, setup: Setup, part: str) -> dict:
  """Over windows of those eval.lengths that documents have."""
  lengths = [n for n in setup.options.lengths if n <= setup.options.length]
  return table(lm, setup.documents(), lengths)


def scores(result: dict) -> dict:
  return {
    f'{mode}/{length}': Point(value)
    for mode in MODES
    for length, value in zip(result['length'], result[mode])
  }


def text(results: dict, options):
  stride = next(iter(results.values()))['stride']
  above = (
    f'Stride {stride} tokens, at most all but one of the window; '
    f'{evaluation.describe_documents(options)} of {options.length:,} tokens. '
    'The modes are those of longjax/evals/perplexity.py: compare within one.'
  )
  return [above], []


EVALUATION = Evaluation(
  'perplexity', 'Perplexity over windows', DOCUMENTS, run, scores,
  ('mode', 'window'), text=text, check=check,
)  # fmt: skip
