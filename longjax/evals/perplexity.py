"""Perplexity over windows, in the five ways in which papers have counted it.

  press              windows of L tokens advance by S; of each only the S new
                     tokens count (the first counts whole); every token counts
                     the same. Press et al., arXiv:2108.12409, appendix B
  prefix             the first L tokens of each document in one window; every
                     document counts the same. YaRN's tables (eval.sh)
  yarn_equal_window  windows of BOS and L - 1 tokens advance by S, the last is
                     shorter; of each only the new tokens count, and every
                     window counts the same. YaRN's GovReport (perplexity.py)
  pose               these windows, but every token counts the same. PoSE's
                     eval_ppl.py
  longlora           windows of L advance by S over the documents end to end;
                     all their tokens count. LongLoRA's eval.py

They differ by much (the mean context of a token is L - S/2 in one and L/2
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


def yarn_equal_window(lm, documents, length: int, stride: int, bos=True):
  """exp of the mean over windows of the mean loss of their new tokens."""
  losses = [
    x for d in documents for x in _after_bos(lm, d, length, stride, bos)
  ]
  return math.exp(np.mean([x.mean() for x in losses]))


def pose(lm, documents, length: int, stride: int, bos=True) -> float:
  """exp of the mean loss of all tokens, in the windows of YaRN's code."""
  losses = [
    x for d in documents for x in _after_bos(lm, d, length, stride, bos)
  ]
  return math.exp(np.concatenate(losses).mean())


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
  pose=pose,
  longlora=longlora,
)
AFTER_BOS = ('yarn_equal_window', 'pose')


def table(lm, documents, lengths, stride=STRIDE, bos=True) -> dict:
  """{'length': [...], mode: [perplexity at each length]} and the stride.

  Args:
    lm: language_model.LM.
    documents: list of [tokens] ids, with what stands before a document.
    lengths: tokens of a window, at least 2.
    stride: tokens by which windows advance; shorter ones by all but one of
      theirs.
    bos: whether documents begin with a BOS.
  """
  result: dict = dict(length=[int(n) for n in lengths], stride=stride)
  for name, mode in MODES.items():
    more = (bos,) if name in AFTER_BOS else ()
    result[name] = [
      mode(lm, documents, n, min(stride, n - 1), *more) for n in lengths
    ]
  return result


def _windowed(lm, document, length, stride):
  document = np.asarray(document)
  return _losses(lm, document, windows(len(document), length, stride))


def _after_bos(lm, document, length, stride, bos) -> list[np.ndarray]:
  """The losses of the new tokens of each window of YaRN's code."""
  head, text = np.split(np.asarray(document), [int(bos)])
  size, scored, found = length - len(head), 1 - len(head), []
  for start in range(0, len(text), stride):
    found.append(Window(start, min(start + size, len(text)), scored))
    scored = found[-1].end
    if scored == len(text):
      break
  rows = [np.concatenate([head, text[w.start : w.end]]) for w in found]
  # Causal: what fills the last row changes nothing before it.
  padded = [np.pad(row, (0, len(rows[0]) - len(row))) for row in rows]
  nll = np.asarray(lm.nll(one_document(np.stack(padded))), np.float64)
  return [
    row[len(head) + w.scored - w.start - 1 :][: w.end - w.scored]
    for row, w in zip(nll, found)
  ]


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
  bos = setup.tokenizer.document_start is not None
  return table(lm, setup.documents(), lengths, bos=bos)


def scores(result: dict) -> dict:
  return {
    f'{mode}/{length}': Point(value)
    for mode in MODES
    for length, value in zip(result['length'], result.get(mode, []))
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
