"""Loss by position: does the model still predict, far into a document?

Mean negative log-likelihood over documents at least as long as the row, in
buckets of position (arXiv:2309.16039, figure 9; arXiv:2410.02660, section 2).
"""

import numpy as np

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
