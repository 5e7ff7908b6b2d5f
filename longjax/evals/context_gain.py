"""What more context is worth: the gain curve, and a power law through it.

Llama 2 Long finds the loss to fall with the context c as
L(c) = (alpha / c) ** beta + gamma (arXiv:2309.16039, section 3.1, figure 1).
"""

import numpy as np

from longjax.batch import one_document
from longjax.errors import InputError
from longjax.evals import evaluation
from longjax.evals.evaluation import DOCUMENTS, Axis, Evaluation, Point, Setup
from longjax.evals.markdown import table

SCORED = 512  # tokens at the end of a document whose loss is measured
PARAMETERS = ('alpha', 'beta', 'gamma')
SHARE = 4  # scored tokens are at most one in so many
MIN_POINTS = 4  # points for a fit of three parameters and its error


def gain(lm, documents, contexts, scored=SCORED) -> dict:
  """The loss of the same last tokens, given more and more before them.

  Args:
    lm: language_model.LM.
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
  if len(context) < MIN_POINTS:
    raise InputError(
      f'a power law needs at least {MIN_POINTS} context lengths, got '
      f'{len(context)}'
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
    raise InputError(f'no power law fits these losses: {error}') from None
  residual = loss - curve(context, *best)
  if np.sqrt(np.mean(residual**2)) >= loss.std():
    raise InputError(
      'no power law fits these losses better than a constant, since they do '
      'not fall with the context'
    )
  deviation = np.sqrt(np.diag(covariance))
  reach = stats.t.ppf(0.975, max(len(context) - 3, 1)) * deviation
  low, high = best - reach, best + reach
  triples = np.stack([best, low, high], 1)
  triples[0] = np.exp(np.clip(triples[0], -700, 700))
  return dict(zip(PARAMETERS, triples.tolist())) | dict(
    residual=float(np.sqrt(np.mean(residual**2)))
  )


def run(lm, setup: Setup, part: str) -> dict:
  """The gain up to eval.length, and the fit or None."""
  length = setup.options.length
  scored = min(SCORED, length // SHARE)
  most = length - scored
  contexts = [2**k for k in range(4, most.bit_length()) if 2**k < most]
  result = gain(lm, setup.documents(), [*contexts, most], scored)
  try:
    result['fit'] = fit(result['context'], result['loss'])
  except InputError as error:
    result['fit'] = None
    setup.log(f'  {error}')
  return result


def scores(result: dict) -> dict:
  return {str(c): Point(x) for c, x in zip(result['context'], result['loss'])}


def text(gains: dict, options):
  """What is measured, and the fits."""
  fits = [
    [name, *(_interval(fit[key]) for key in PARAMETERS),
     f'{fit["residual"]:.4f}']
    for name, gain in gains.items() if (fit := gain['fit'])
  ]  # fmt: skip
  above = (
    f'Loss in nats of the same last {next(iter(gains.values()))["scored"]} '
    f'tokens of {evaluation.describe_documents(options)}, given so many tokens '
    'before them.'
  )
  if not fits:
    return [above], ['No power law fits these losses.']
  return [above], [
    'Fit of L(c) = (alpha / c)^beta + gamma with 95 % intervals:',
    table(['', *PARAMETERS, 'residual (nats)'], fits),
  ]


def _interval(values) -> str:
  best, low, high = values
  if high is None or high > 1e6 or low is None:
    return f'{best:.3g} (not determined)'
  return f'{best:.3g} ({low:.3g} to {high:.3g})'


EVALUATION = Evaluation(
  'context_gain', 'What more context is worth', DOCUMENTS, run, scores,
  ('context',),
  axis=Axis('context before the scored tokens (tokens)', 'loss (nats)'),
  text=text, least=SHARE,
)  # fmt: skip
