"""Loss by position: does the model still predict, far into a document?

Mean negative log-likelihood over documents at least as long as the row, in
buckets of position (arXiv:2309.16039, figure 9; arXiv:2410.02660, section 2).
"""

import numpy as np

from longjax.data import pack
from longjax.evals import evaluation
from longjax.evals.evaluation import DOCUMENTS, Axis, Evaluation, Point, Setup
from longjax.evals.markdown import number, table

BUCKETS = 16


def curve(nll, batches, length: int) -> dict:
  """The mean loss of each of BUCKETS equal parts of the position axis.

  Args:
    nll: Batch -> [batch, seq] array of losses in nats, in the batch's layout.
    batches: of whole documents, any layout.
    length: tokens of a row.

  Returns:
    dict of lists: end (last position of the bucket + 1), loss (nats), tokens,
    each (the loss of each document in the bucket).
  """
  count = min(BUCKETS, length)
  total, tokens, each = np.zeros(count), np.zeros(count), []
  for batch in batches:
    loss = np.asarray(nll(batch), np.float64)
    bucket = batch.index.astype(np.int64) * count // length
    np.add.at(total, bucket, loss * batch.weights)
    np.add.at(tokens, bucket, batch.weights)
    for row, at, weights in zip(loss, bucket, batch.weights):
      sums = (np.bincount(at, w, count) for w in (row * weights, weights))
      each.append(np.divide(*sums))
  return dict(
    end=[int(-(-length * (i + 1) // count)) for i in range(count)],
    loss=list(total / np.maximum(tokens, 1e-9)),
    tokens=list(tokens),
    each=np.transpose(each).tolist(),
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
  each = result.get('each', [()] * len(result['end']))
  return {
    str(end): Point(loss, each=tuple(of_documents))
    for end, loss, of_documents in zip(result['end'], result['loss'], each)
  }


def text(curves: dict, options):
  """What is measured, and means inside and past the trained window."""
  end = next(iter(curves.values()))['end'][-1]
  window, spans = options.window, [(0, end)]
  if 0 < window < end:
    spans = [(0, window), (window, end), (end - end // 4, end)]
  rows = [
    [f'{a:,} - {b:,}', *(number(mean(c, a, b)) for c in curves.values())]
    for a, b in spans
  ]
  above = (
    'Mean negative log-likelihood in nats on '
    f'{evaluation.describe_documents(options)} of {end:,} tokens, up to each '
    'position.'
  )
  return [above], [table(['positions', *curves], rows)]


EVALUATION = Evaluation(
  'position_loss', 'Loss by position', DOCUMENTS, run, scores, ('position',),
  axis=Axis('position in the document (tokens)', 'loss (nats)', False),
  text=text,
)  # fmt: skip
