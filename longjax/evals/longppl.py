"""LongPPL, arXiv:2410.23771: perplexity of the tokens that need long context.

A token is a key token if an evaluator predicts it, and does so much better
with the whole text before it than with the last few thousand tokens.
"""

import math

import numpy as np

from longjax.batch import one_document
from longjax.evals.evaluation import DOCUMENTS, Evaluation, Point, Setup

SHORT = 4096  # tokens of the short context
STRIDE = 1024  # tokens scored with one short context
SHARE = 4  # the short context is at most one in so many tokens
GAIN = 2.0  # alpha: nats that the long context must bring
KNOWN = 2.0  # -beta: the most nats that a key token costs


def long_losses(lm, tokens) -> np.ndarray:
  """[tokens] nats of each token given all before it; the first is 0."""
  nll = np.asarray(lm.nll(one_document(tokens)), np.float64)[0]
  return np.concatenate([[0.0], nll[:-1]])


def short_losses(lm, tokens, short=SHORT, stride=STRIDE) -> np.ndarray:
  """The same given only the `short` to `short + stride` tokens before.

  The first `short` tokens have no shorter context: -infinity, never key.
  """
  tokens = np.asarray(tokens)
  losses = np.full(len(tokens), -np.inf)
  starts = range(0, max(len(tokens) - short, 0), stride)
  rows = [tokens[s : s + short + stride] for s in starts]
  if not rows:
    return losses
  width = short + stride
  padded = np.stack([np.pad(r, (0, width - len(r))) for r in rows])
  nll = np.asarray(lm.nll(one_document(padded)), np.float64)
  for start, row, loss in zip(starts, rows, nll):
    end = start + len(row)
    losses[start + short : end] = loss[short - 1 : len(row) - 1]
  return losses


def keys(long, short) -> np.ndarray:
  """Which tokens are key tokens, of an evaluator's losses [tokens]."""
  return (short - long > GAIN) & (long < KNOWN)


def longppl(lm, evaluator, documents, short=SHORT, stride=STRIDE) -> dict:
  """LongPPL, the perplexity of all tokens, and how many were key tokens.

  Args:
    lm: the LM that is measured.
    evaluator: the LM that finds the key tokens, with the same
      tokenizer; the paper takes a strong one.
    documents: list of [tokens] ids.
    short, stride: tokens.
  """
  losses, chosen = [], []
  for document in documents:
    own = long_losses(lm, document)
    theirs = own if evaluator is lm else long_losses(evaluator, document)
    window = short_losses(evaluator, document, short, stride)
    losses.append(own[1:])
    chosen.append(keys(theirs, window)[1:])
  losses, chosen = np.concatenate(losses), np.concatenate(chosen)
  key = float(losses[chosen].mean()) if chosen.any() else math.nan
  return dict(
    longppl=math.exp(key) if chosen.any() else None,
    perplexity=math.exp(losses.mean()),
    key_tokens=int(chosen.sum()),
    tokens=len(losses),
    short=short,
    stride=stride,
  )


def run(lm, setup: Setup, part: str) -> dict:
  """The model is its own evaluator, which favours no other."""
  short = min(SHORT, setup.options.length // SHARE)
  stride = min(STRIDE, max(short // 4, 1))
  return longppl(lm, lm, setup.documents(), short, stride)


def scores(result: dict) -> dict:
  return {key: Point(result[key]) for key in ('longppl', 'perplexity')}


def text(results: dict, options):
  first = next(iter(results.values()))
  above = (
    'Each model finds its own key tokens (the paper takes a strong one), with '
    f'a short context of {first["short"]:,} tokens and steps of '
    f'{first["stride"]:,}.'
  )
  found = (
    f'{r["key_tokens"]:,} of {r["tokens"]:,} by {n}' for n, r in results.items()
  )
  return [above], [f'Key tokens: {", ".join(found)}.']


EVALUATION = Evaluation(
  'longppl', 'LongPPL', DOCUMENTS, run, scores, ('perplexity of',), text=text,
  least=SHARE,
)  # fmt: skip
