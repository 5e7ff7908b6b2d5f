"""Loss by position: does the model still predict, far into a document?

Mean negative log-likelihood over documents at least as long as the row, in
buckets of position (arXiv:2309.16039, figure 9; arXiv:2410.02660, section 2).
"""

import itertools

import numpy as np

from longjax.data import pack
from longjax.evals import evaluation, figures
from longjax.evals.evaluation import DOCUMENTS, Evaluation, Setup
from longjax.evals.markdown import figure, number, section, side_by_side, table

BUCKETS = 16


def curve(nll, batches, length: int) -> dict:
  """The mean loss of each of BUCKETS equal parts of the position axis.

  Args:
    nll: Batch -> [batch, seq] array of losses in nats, in the batch's layout.
    batches: of whole documents, any layout.
    length: tokens of a row.

  Returns:
    dict of lists: end (last position of the bucket + 1), loss (nats), tokens.
  """
  count = min(BUCKETS, length)
  total, tokens = np.zeros(count), np.zeros(count)
  for batch in batches:
    loss = np.asarray(nll(batch), np.float64)
    bucket = batch.index.astype(np.int64) * count // length
    np.add.at(total, bucket, loss * batch.weights)
    np.add.at(tokens, bucket, batch.weights)
  return dict(
    end=[int(-(-length * (i + 1) // count)) for i in range(count)],
    loss=list(total / np.maximum(tokens, 1e-9)),
    tokens=list(tokens),
  )


def mean(result: dict, start: int, end: int) -> float:
  """Mean loss of the buckets that lie within positions start .. end."""
  begins = [0, *result['end'][:-1]]
  inside = [
    i for i, (a, b) in enumerate(zip(begins, result['end']))
    if a >= start and b <= end
  ]  # fmt: skip
  weights = np.array(result['tokens'])[inside]
  return float(
    np.dot(np.array(result['loss'])[inside], weights) / weights.sum()
  )


def run(lm, setup: Setup, part: str) -> dict:
  length = setup.options.length
  batch = pack.batch(setup.store, setup.rows(), length)
  return curve(lm.nll, [batch], length)


def scores(result: dict) -> dict:
  return dict(zip(map(str, result['end']), result['loss']))


def render(curves: dict, options, plots) -> str:
  ends = next(iter(curves.values()))['end']
  window = options.window if options.window < ends[-1] else 0
  draw(plots / 'loss_by_position.png', curves, window)
  keys = [
    [f'{start:,} - {end:,}' + (' *' if window and start >= window else '')]
    for start, end in zip([0, *ends], ends)
  ]
  return section(
    'Loss by position',
    'Mean negative log-likelihood in nats on '
    f'{evaluation.describe_documents(options)} of {ends[-1]:,} tokens.',
    side_by_side(
      ['position'], keys, curves, lambda curve, i: number(curve['loss'][i])
    ),
    f'\\* past the trained window of {window:,} tokens.' if window else '',
    figure('loss by position', 'loss_by_position.png'),
    changes(curves, options.window) if len(curves) > 1 else '',
  )


def changes(curves: dict, window: int) -> str:
  """What each model adds to the one before, inside and past the window."""
  names, end = list(curves), next(iter(curves.values()))['end'][-1]
  spans = [(0, end)]
  if 0 < window < end:
    spans = [(0, window), (window, end), (end - end // 4, end)]
  rows, last = [], ''
  for start, stop in spans:
    means = [mean(c, start, stop) for c in curves.values()]
    steps = [f'{b - a:+.3f}' for a, b in itertools.pairwise(means)]
    cells = [f'{b:.3f} ({step})' for b, step in zip(means[1:], steps)]
    last = ', '.join(f'{step} by {n}' for n, step in zip(names[1:], steps))
    rows.append([f'{start:,} - {stop:,}', f'{means[0]:.3f}', *cells])
  return (
    '### What each part contributes\n\n'
    'In brackets: the change against the column before.\n\n'
    + table(['position', *names], rows)
    + f'\n\nAt positions {rows[-1][0]}: {last}.'
  )


def draw(path, curves: dict, window: int):
  """Lines of loss over position; the old window is marked."""
  with figures.figure(path) as (_, axes):
    for name, curve in curves.items():
      starts = [0, *curve['end'][:-1]]
      middle = [(a + b) / 2 for a, b in zip(starts, curve['end'])]
      axes.plot(middle, curve['loss'], marker='o', markersize=3, label=name)
    if window:
      axes.axvline(window, color='grey', linestyle='--')
      axes.text(
        window, axes.get_ylim()[1], ' trained window', va='top', color='grey'
      )
    figures.finish(
      axes, 'position in the document (tokens)', 'loss (nats per token)'
    )


EVALUATION = Evaluation('position_loss', DOCUMENTS, run, render, scores)
