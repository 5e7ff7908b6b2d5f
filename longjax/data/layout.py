"""Layouts: the order of the tokens and rows of a batch over the devices.

The order of the devices in a ring is that of parallel/topology.py.

A causal ring does even work only if every device holds early and late tokens.
The tokens of a row are permuted once, on the host; `index` moves with them and
gives the attention their order. Device i of n holds

  contiguous  chunk i of n
  zigzag      chunks i and 2n-1-i of 2n (Llama 3, arXiv:2407.21783, 3.3.2)
  striped     tokens i, i+n, i+2n, ... (Striped Attention, arXiv:2311.09431)
  balanced    one of every n consecutive chunks, chosen by what its documents
              cost

zigzag and striped give all devices the same work on rows of one document,
balanced on any; contiguous does not. `executed_blocks` counts the work that a
layout makes. Rows of a step are spread over rings and micro-batches by
`balance_rows`.
"""

import numpy as np

from longjax import config, errors, mask
from longjax.batch import Batch
from longjax.data import positions

LAYOUTS = config.KEYS['data.layout'].choices


def check(layout: str, seq_len: int, n: int):
  """InputError if rows of seq_len tokens cannot be laid out over n devices."""
  chunks = 2 * n if layout == 'zigzag' else n
  if seq_len % chunks:
    raise errors.InputError(
      f'seq_len {seq_len} is not a multiple of {chunks}: layout={layout!r} on '
      f'a ring of {n} needs {chunks} equal parts; the nearest seq_len is '
      f'{max(1, round(seq_len / chunks)) * chunks}'
    )


def arrange(batch: Batch, layout: str, n: int, block: int) -> Batch:
  """All six arrays of a batch in the order of a layout.

  Args:
    batch: rows in the order of their text.
    layout: one of LAYOUTS.
    n: devices of the ring.
    block: queries and keys of an attention block; only `balanced` reads it.
  """
  order = np.atleast_2d(permutation(batch.segments, layout, n, block))
  return Batch(*(np.take_along_axis(x, order, axis=1) for x in batch))


def permutation(segments, layout: str, n: int, block: int) -> np.ndarray:
  """The order of the columns: place p holds token order[p] of the text.

  Args:
    segments: [rows, seq] in the order of the text, 0 is padding.
    layout, n, block: as in `arrange`.

  Returns:
    int64 [seq], or [rows, seq] of the layout `balanced`.
  """
  if layout == 'balanced':
    return _balanced(segments, n, block)
  return order(layout, segments.shape[1], n)


def order(layout: str, seq_len: int, n: int) -> np.ndarray:
  """`permutation` of a layout that is the same for every row, [seq_len]."""
  tokens = np.arange(seq_len)
  if layout == 'striped':
    return tokens.reshape(-1, n).T.reshape(-1)
  if layout == 'zigzag':
    chunks = tokens.reshape(2 * n, -1)
    pairs = np.stack([chunks[:n], chunks[n:][::-1]], axis=1)  # [n, 2, chunk]
    return pairs.reshape(-1)
  assert layout == 'contiguous', layout
  return tokens


def lengthen(shorter: np.ndarray, seq_len: int, n: int) -> np.ndarray:
  """The order of a row of which only the first columns hold text.

  They lie first on each device, so that all can leave out the rest.

  Args:
    shorter: [length] `permutation` of the columns with text.
    seq_len: tokens of the row.
    n: devices of the ring.
  """
  padding = np.arange(len(shorter), seq_len)
  parts = shorter.reshape(n, -1), padding.reshape(n, -1)
  return np.concatenate(parts, axis=1).reshape(-1)


def executed_blocks(segments, index, n: int, block: int, window=0):
  """Blocks of attention that a ring executes, by row, member and hop.

  Member m holds the m-th of n parts of a row. At hop h its queries attend to
  the keys of member (m - h) mod n, in blocks of both, and a pair of blocks is
  executed where `mask.block_may_attend`. A member that has several rows
  executes a pair for all of them where it is live in any.

  Args:
    segments, index: [rows, seq] in the order of a layout.
    n: members of the ring; divides seq.
    block: queries and keys of a block; the last of a part may be smaller.
    window: as for `mask.may_attend`.

  Returns:
    int64 [rows, member, hop].
  """
  ids = mask.Ids(*(_to_blocks(x, n, block) for x in (segments, index)))
  bounds = mask.block_bounds(ids)
  queries = mask.BlockBounds(*(x[:, :, None] for x in bounds))
  keys = mask.BlockBounds(*(x[:, None, :] for x in bounds))
  live = mask.block_may_attend(queries, keys, window)
  rows, blocks, _ = live.shape
  shape = rows, n, blocks // n, n, blocks // n
  pairs = live.reshape(shape).sum((2, 4), dtype=np.int64)
  member, hop = np.indices((n, n))
  return pairs[:, member, (member - hop) % n]


def balance_rows(costs, rings: int, micro_batches: int) -> np.ndarray:
  """Spreads the rows of a step so that rings do not wait for each other.

  Devices wait for each other in every micro-batch, so its rows should cost
  alike, and the rings should have equal sums. The rows of a step are sorted by
  cost, as ProLong sorts them (2410.02660, appendix A.3), and split into
  micro-batches; in each, the costliest row goes to the ring with the least.
  The gradient of the step is the same sum in another order.

  Args:
    costs: of each row, in the order in which they were read.
    rings: of devices, the size of the mesh's axis `data`.
    micro_batches: of a step.

  Returns:
    int64 [rows], the row to put at each place of the batch: row r is computed
    in micro-batch r % micro_batches, the rows of which lie on the rings in turn
    (train.step.gradients).
  """
  costs = np.asarray(costs, np.float64)
  if rings * micro_batches == 1:
    return np.arange(len(costs))
  size = len(costs) // (rings * micro_batches)  # rows of a ring
  falling = np.argsort(-costs, kind='stable').reshape(micro_batches, -1)
  row_order = np.empty((rings, size, micro_batches), np.int64)
  for micro_batch, rows in enumerate(falling):
    load, free = np.zeros(rings), np.full(rings, size)
    for row in rows:
      ring = int(np.lexsort((load, free == 0))[0])
      free[ring] -= 1
      row_order[ring, free[ring], micro_batch] = row
      load[ring] += costs[row]
  return row_order.reshape(-1)


def _balanced(segments, n, block):
  """int64 [rows, seq]: evens out what the documents of each row cost.

  A row is cut into chunks as large as an attention block. Of n consecutive
  chunks, a group, each device gets one, which keeps every hop of the ring as
  even as the row: the costliest goes to the device with the least work. Whole
  blocks move, so as many are skipped as in the row itself.
  """
  chunk = _chunk_size(segments.shape[1] // n, block)
  costs = _chunk_costs(segments, chunk)
  chunks = np.stack([_balance_chunks(row, n) for row in costs])
  tokens = chunks[:, :, None] * chunk + np.arange(chunk)
  return tokens.reshape(segments.shape)


def _chunk_size(part, block):
  """Tokens of a chunk: a block, or a divisor of the part below half of it."""
  if part % block == 0:
    return block
  most = max(1, min(block, part // 2))
  return max(size for size in range(1, most + 1) if part % size == 0)


def _chunk_costs(segments, chunk):
  """int64 [rows, chunks]: key chunks that the queries of a chunk attend to."""
  begins = np.arange(segments.shape[1]) - positions.plain(segments)
  begins = np.where(segments > 0, begins, segments.shape[1])  # none if padding
  first = begins.reshape(len(segments), -1, chunk).min(2) // chunk
  return np.maximum(np.arange(first.shape[1]) + 1 - first, 0)


def _balance_chunks(costs, n):
  """[chunks] costs -> [chunks]: those of device 0 in the row's order, of 1, ...

  The most uneven groups come first, and the others make up for them.
  """
  groups, load = costs.reshape(-1, n), np.zeros(n, costs.dtype)
  chunks = np.empty_like(groups)
  for group in np.argsort(-np.ptp(groups, axis=1), kind='stable'):
    costliest = np.argsort(-groups[group], kind='stable')
    least_loaded = np.argsort(load, kind='stable')
    load[least_loaded] += groups[group, costliest]
    chunks[group, least_loaded] = group * n + costliest
  return chunks.T.reshape(-1)


def _to_blocks(ids, n, block):
  """[rows, seq] -> [rows, n * blocks of a part, block], padded with 0."""
  parts = ids.reshape(len(ids), n, -1)
  size = min(block, parts.shape[2])
  parts = np.pad(parts, ((0, 0), (0, 0), (0, -parts.shape[2] % size)))
  return parts.reshape(len(ids), -1, size)
