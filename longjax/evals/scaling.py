"""What more context is worth: the gain curve, and a power law through it.

Llama 2 Long finds the loss to fall with the context c as
L(c) = (alpha / c) ** beta + gamma (arXiv:2309.16039, section 3.1, figure 1).
"""

import numpy as np

from longjax.batch import one_document
from longjax.errors import InputError

SCORED = 512  # tokens at the end of a document whose loss is measured
LEAST = 4  # points for a fit of three parameters and its error


def gain(lm, documents, contexts, scored=SCORED) -> dict:
  """The loss of the same last tokens, given more and more before them.

  Args:
    lm: generate.LM.
    documents: list of [tokens] ids, at least max(contexts) + scored long; of
      longer ones the first so many are taken.
    contexts: tokens before the first that is scored, at least 1.
    scored: tokens that are scored.

  Returns:
    dict of context and loss (nats), lists, and how it was measured.
  """
  last = max(contexts) + scored
  contexts, losses = sorted(map(int, contexts)), []
  for context in contexts:
    # Place i predicts token i + 1: the last place has nothing to predict.
    rows = np.stack([d[last - scored - context : last] for d in documents])
    nll = np.asarray(lm.nll(one_document(rows)), np.float64)
    losses.append(float(nll[:, context - 1 : -1].mean()))
  return dict(
    context=contexts, loss=losses, scored=scored, documents=len(documents)
  )


def power_law(c, alpha, beta, gamma):
  """L(c) = (alpha / c) ** beta + gamma."""
  return (alpha / np.asarray(c, float)) ** beta + gamma


def fit(context, loss) -> dict:
  """The power law through points, with 95 % intervals of its parameters.

  Least squares from (20, 0.5, the least loss); alpha is fitted as its
  logarithm, in which its error is symmetric.

  Returns:
    {'alpha', 'beta', 'gamma'}: [value, low, high], and 'residual', the root
    mean square in nats.

  Raises:
    InputError: too few points, or none of the law's curves is near them.
  """
  from scipy import optimize, stats

  context, loss = np.asarray(context, float), np.asarray(loss, float)
  if len(context) < LEAST:
    raise InputError(
      f'a power law needs at least {LEAST} context lengths, got {len(context)}'
    )
  curve = lambda c, log_alpha, beta, gamma: (
    np.exp(beta * (log_alpha - np.log(c))) + gamma
  )
  start = (np.log(20.0), 0.5, loss.min())
  bounds = ([-30, 1e-3, 0], [30, 5, max(loss.max(), 1e-9)])
  try:
    best, covariance = optimize.curve_fit(
      curve, context, loss, start, bounds=bounds, max_nfev=20_000
    )
  except (RuntimeError, ValueError) as error:
    raise InputError(f'no power law through these losses: {error}') from None
  residual = loss - curve(context, *best)
  if np.sqrt(np.mean(residual**2)) >= loss.std():
    raise InputError(
      'no power law through these losses: a constant is as near; they do not '
      'fall with the context'
    )
  deviation = np.sqrt(np.diag(covariance))
  reach = stats.t.ppf(0.975, max(len(context) - 3, 1)) * deviation
  low, high = best - reach, best + reach
  triples = np.stack([best, low, high], 1)
  triples[0] = np.exp(np.clip(triples[0], -700, 700))
  names = ('alpha', 'beta', 'gamma')
  return dict(zip(names, triples.tolist())) | dict(
    residual=float(np.sqrt(np.mean(residual**2)))
  )
