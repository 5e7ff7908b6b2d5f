"""Dealing: which device computes which row of a step, in which micro-batch.

Devices wait for each other in every micro-batch, so the rows of one should
cost alike. Attention costs the sum over documents of length^2; the rows of a
step are sorted by it, as ProLong sorts (2410.02660, appendix A.3), and dealt.
Rows stay in their step, so its gradient is the same sum in another order.
"""

import numpy as np


def deal(costs, data: int, micro_batches: int) -> np.ndarray:
  """The row to put at each place of a batch.

  Row r of a batch is computed in micro-batch r % micro_batches, and the rows
  of a micro-batch lie on the devices of `data` in turn (program.gradients).

  Args:
    costs: of each row, in the order in which they were read.
    data: rings of devices.
    micro_batches: parts of a step.

  Returns:
    int64 [rows], numbers of the rows that were read.
  """
  costs = np.asarray(costs, np.float64)
  if data * micro_batches == 1:
    return np.arange(len(costs))
  rows = len(costs) // (data * micro_batches)  # of a ring in a micro-batch
  falling = np.argsort(-costs, kind='stable').reshape(micro_batches, -1)
  places = np.empty((data, rows, micro_batches), np.int64)
  for part, members in enumerate(falling):
    load, free = np.zeros(data), np.full(data, rows)
    for row in members:  # the costliest left, to the ring with least
      ring = int(np.lexsort((load, free == 0))[0])
      free[ring] -= 1
      places[ring, free[ring], part] = row
      load[ring] += costs[row]
  return places.reshape(-1)
