"""Loss by position: does the model still predict, far into a document?

Mean negative log-likelihood over documents at least as long as the row, in
buckets of position (arXiv:2309.16039, figure 9; arXiv:2410.02660, section 2),
of all documents or of those of each source.
"""

import statistics

import numpy as np

from longjax.data import row_plans
from longjax.evals import evaluation
from longjax.evals.evaluation import DOCUMENTS, Axis, Evaluation, Point, Setup
from longjax.evals.markdown import number, table

BUCKETS = 16
# With fewer, the last bucket may be the last token, which has no target.
MIN_TOKENS = 2 * BUCKETS
LAST = 500  # tokens at the end, whose loss stands for all of the context


def curve(nll, batches, length: int) -> dict:
  """The mean loss of each of BUCKETS equal parts of the position axis.

  Args:
    nll: Batch -> [batch, seq] array of losses in nats, in the batch's layout.
    batches: of whole documents, any layout.
    length: tokens of a row.

  Returns:
    dict of lists: end (last position of the bucket + 1), loss (nats), tokens,
    each (the loss of each document in the bucket), last_500 (the loss of each
    document over its LAST tokens).
  """
  count = min(BUCKETS, length)
  total, tokens, each, ends = np.zeros(count), np.zeros(count), [], []
  for batch in batches:
    loss = np.asarray(nll(batch), np.float64)
    bucket = batch.index.astype(np.int64) * count // length
    np.add.at(total, bucket, loss * batch.weights)
    np.add.at(tokens, bucket, batch.weights)
    for row, at, weights in zip(loss, bucket, batch.weights):
      sums = (np.bincount(at, w, count) for w in (row * weights, weights))
      each.append(np.divide(*sums))
    late = batch.weights * (batch.index >= length - LAST)
    ends += ((loss * late).sum(1) / late.sum(1)).tolist()
  return dict(
    end=[int(-(-length * (i + 1) // count)) for i in range(count)],
    loss=list(total / np.maximum(tokens, 1e-9)),
    tokens=list(tokens),
    each=np.transpose(each).tolist(),
    last_500=ends,
  )


def mean(result: dict, start: int, end: int) -> float | None:
  """Mean loss of the buckets that lie within positions start .. end; None
  where there are none, or one is not finite."""
  begins = [0, *result['end'][:-1]]
  inside = [
    i for i, (a, b) in enumerate(zip(begins, result['end']))
    if a >= start and b <= end
  ]  # fmt: skip
  if not inside or any(result['loss'][i] is None for i in inside):
    return None
  weights = np.array(result['tokens'])[inside]
  return float(
    np.dot(np.array(result['loss'])[inside], weights) / weights.sum()
  )


def run(lm, setup: Setup, part: str) -> dict:
  return _curve(lm, setup, setup.rows())


def _curve(lm, setup: Setup, rows) -> dict:
  length = setup.options.length
  return curve(lm.nll, [row_plans.batch(setup.store, rows, length)], length)


def scores(result: dict) -> dict:
  each = result.get('each', [()] * len(result['end']))
  points = {
    str(end): Point(loss, each=tuple(of_documents))
    for end, loss, of_documents in zip(result['end'], result['loss'], each)
  }
  if ends := result.get('last_500'):
    known = None if None in ends else statistics.fmean(ends)
    points['last_500'] = Point(known, each=tuple(ends))
  return points


def _sources(setup: Setup) -> dict:
  """{name of a source: the rows of its documents}."""
  sources = setup.store.manifest['sources']
  return {source['name']: setup.rows(i) for i, source in enumerate(sources)}


def run_by_source(lm, setup: Setup, part: str) -> dict:
  """{name of a source: its curve}."""
  return {
    name: _curve(lm, setup, rows) for name, rows in _sources(setup).items()
  }


def scores_by_source(results: dict) -> dict:
  return {
    f'{name}/{key}': point
    for name, result in results.items()
    for key, point in scores(result).items()
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
  text=text, least=MIN_TOKENS,
)  # fmt: skip
BY_SOURCE = Evaluation(
  'source_loss', 'Loss by source and position', DOCUMENTS, run_by_source,
  scores_by_source, ('source', 'position'),
  check=lambda setup, part: _sources(setup) and None, least=MIN_TOKENS,
)  # fmt: skip
