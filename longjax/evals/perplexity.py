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

from longjax.errors import InputError
from longjax.evals import evaluation
from longjax.evals.evaluation import DOCUMENTS, Evaluation, Point, Setup
from longjax.inference.language_model import row_losses

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


def of_tokens(losses) -> float:
  """exp of the mean loss of all tokens."""
  return math.exp(np.concatenate(losses).mean())


def of_windows(losses) -> float:
  """exp of the mean over windows of the mean loss of their tokens."""
  return math.exp(np.mean([x.mean() for x in losses]))


def press(lm, documents, length: int, stride: int, bos) -> list[np.ndarray]:
  found = [(d, windows(len(d), length, stride)) for d in documents]
  return [x for d, w in found for x in _losses(lm, d, w)]


def prefix(lm, documents, length: int, stride: int, bos) -> list[np.ndarray]:
  return press(lm, [d[:length] for d in documents], length, 1, bos)


def after_bos(lm, documents, length: int, stride: int, bos) -> list[np.ndarray]:
  losses = []
  for document in documents:
    head, text = np.split(np.asarray(document), [int(bos)])
    size, scored, found = length - len(head), 1 - len(head), []
    for start in range(0, len(text), stride):
      found.append(Window(start, min(start + size, len(text)), scored))
      scored = found[-1].end
      if scored == len(text):
        break
    losses += _losses(lm, text, found, head)
  return losses


def end_to_end(lm, documents, length: int, stride: int, bos):
  stream = np.concatenate(documents)
  starts = range(0, max(len(stream) - length, 0) + 1, stride)
  whole = [Window(s, min(s + length, len(stream)), s + 1) for s in starts]
  return _losses(lm, stream, whole)


MODES = dict(
  press=(press, of_tokens),
  prefix=(prefix, of_windows),
  yarn_equal_window=(after_bos, of_windows),
  pose=(after_bos, of_tokens),
  longlora=(end_to_end, of_tokens),
)


def perplexity(
  mode: str, lm, documents, length: int, stride: int, bos=True
) -> float:
  """Of documents in a mode; see `table`."""
  losses, mean = MODES[mode]
  return mean(losses(lm, documents, length, stride, bos))


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
  return dict(length=[int(n) for n in lengths], stride=stride) | {
    mode: [
      perplexity(mode, lm, documents, n, min(stride, n - 1), bos)
      for n in lengths
    ]
    for mode in MODES
  }


def _losses(lm, tokens, found, head=()) -> list[np.ndarray]:
  """The losses that count, an array for each window, which begins with head."""
  head = np.asarray(head, int)
  rows = [np.concatenate([head, tokens[w.start : w.end]]) for w in found]
  first = [len(head) + w.scored - w.start - 1 for w in found]
  return [x[n:] for x, n in zip(row_losses(lm, rows), first)]


def check(setup: Setup, part: str):
  shortest, length = min(setup.options.lengths), setup.options.length
  if not 2 <= shortest <= length:
    raise InputError(
      f'perplexity needs eval.lengths from 2 to eval.length {length}, got '
      f'{tuple(setup.options.lengths)}'
    )


def run(lm, setup: Setup, part: str) -> dict:
  """Over windows of those eval.lengths that documents have."""
  most = setup.options.length
  lengths = [n for n in setup.options.lengths if n <= most]
  if longer := [f'{n:,}' for n in setup.options.lengths if n > most]:
    setup.log(
      f'  no windows of {", ".join(longer)} tokens: documents have eval.length '
      f'{most:,}'
    )
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
