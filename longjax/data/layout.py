"""Layouts: which tokens of a row lie on which device of the ring.

A causal ring does even work only if every device holds early and late tokens.
The tokens of a row are permuted once, on the host; `index` goes with them and
tells the attention what came before what. Device i of n holds

  contiguous  chunk i of n
  zigzag      chunks i and 2n-1-i of 2n (Llama 3, arXiv:2407.21783, 3.3.2)
  striped     tokens i, i+n, i+2n, ... (Striped Attention, arXiv:2311.09431)
  balanced    one chunk of every n in a row, dealt by what its documents cost

The first three suit a row that is one document. Only `balanced` looks at the
documents; `work` counts what each layout comes to.
"""

import numpy as np

from longjax import errors, mask
from longjax.batch import Batch
from longjax.data import positions

LAYOUTS = ('contiguous', 'zigzag', 'striped', 'balanced')


def arrange(batch: Batch, layout: str, n: int, block: int) -> Batch:
  """All six arrays in the order of a layout.

  Args:
    batch: rows in the order of their text.
    layout: one of LAYOUTS.
    n: devices of the ring.
    block: queries and keys per attention block; only `balanced` asks.
  """
  return apply(batch, permutation(batch.segments, layout, n, block))


def permutation(segments, layout: str, n: int, block: int) -> np.ndarray:
  """The order of the columns, [seq] or, if rows differ, [rows, seq].

  Args:
    segments: [rows, seq] in the order of the text.
    layout, n, block: as in `arrange`.
  """
  if layout == 'balanced':
    return balanced(segments, n, block)
  return order(layout, segments.shape[1], n)


def check(layout: str, seq_len: int, n: int):
  """InputError if rows of seq_len tokens cannot be laid out over n devices."""
  if layout not in LAYOUTS:
    raise errors.InputError(
      f'layout {layout!r} is none of {", ".join(LAYOUTS)}'
    )
  chunks = 2 * n if layout == 'zigzag' else n
  if seq_len % chunks:
    raise errors.InputError(
      f'seq_len {seq_len} is not a multiple of {chunks}: layout={layout!r} on '
      f'a ring of {n} needs {chunks} equal parts; the nearest seq_len is '
      f'{max(1, round(seq_len / chunks)) * chunks}'
    )


def order(layout: str, seq_len: int, n: int) -> np.ndarray:
  """The permutation of every row: place p holds token order[p].

  Args:
    layout: one of LAYOUTS but `balanced`, which differs from row to row.
    seq_len: tokens of a row.
    n: devices of the ring.

  Returns:
    int64 [seq_len].
  """
  check(layout, seq_len, n)
  tokens = np.arange(seq_len)
  if layout == 'contiguous':
    return tokens
  if layout == 'striped':
    return tokens.reshape(-1, n).T.reshape(-1)
  assert layout == 'zigzag', layout
  parts = tokens.reshape(2 * n, -1)
  pairs = np.stack([parts[:n], parts[n:][::-1]], axis=1)  # [n, 2, chunk]
  return pairs.reshape(-1)


def balanced(segments, n: int, block: int) -> np.ndarray:
  """The permutation of each row that evens out its documents' attention.

  A row is cut in chunks as large as an attention block. Of n consecutive
  chunks, a fold, each device gets one, which keeps every hop of the ring as
  even as the row: the costliest goes to the device with the least work.
  Whole blocks move, so as many are skipped as in the row itself.

  Args:
    segments: [rows, seq] in the order of the text, 0 is padding.
    n: devices of the ring.
    block: queries and keys of an attention block.

  Returns:
    int64 [rows, seq].
  """
  check('balanced', segments.shape[1], n)
  chunk = _chunk(segments.shape[1] // n, block)
  dealt = np.stack([_deal(work, n) for work in _live(segments, chunk)])
  tokens = dealt[:, :, None] * chunk + np.arange(chunk)
  return tokens.reshape(segments.shape)


def apply(batch: Batch, order) -> Batch:
  """All six arrays with their columns permuted; order [seq] or [rows, seq]."""
  order = np.atleast_2d(order)
  return Batch(*(np.take_along_axis(x, order, axis=1) for x in batch))


def inverse(order) -> np.ndarray:
  """The permutation that brings a row back: x[order][inverse] is x."""
  return np.argsort(order)  # of the last axis


def work(segments, index, n: int, block: int) -> np.ndarray:
  """Blocks of attention that a ring executes, by row, member and hop.

  Member m holds the m-th of n parts of a row. At hop h its queries attend to
  the keys of member (m - h) mod n, in blocks of both, and a pair of blocks is
  executed where `mask.block_may_attend`. A member that has several rows
  executes a pair for all of them where it is live in any.

  Args:
    segments, index: [rows, seq] in the order of a layout.
    n: members of the ring; divides seq.
    block: queries and keys of a block; the last of a part may be smaller.

  Returns:
    int64 [rows, member, hop].
  """
  ids = mask.Ids(*(_parts(x, n, block) for x in (segments, index)))
  bounds = mask.block_bounds(ids)
  queries = mask.BlockBounds(*(x[:, :, None] for x in bounds))
  keys = mask.BlockBounds(*(x[:, None, :] for x in bounds))
  live = mask.block_may_attend(queries, keys)
  rows, blocks, _ = live.shape
  shape = rows, n, blocks // n, n, blocks // n
  pairs = live.reshape(shape).sum((2, 4), dtype=np.int64)
  member, hop = np.indices((n, n))
  return pairs[:, member, (member - hop) % n]


def needed(segments, block: int) -> float:
  """The least that `work` can come to: length^2 / 2 of each document.

  Args:
    segments: [rows, seq] in any order.
    block: queries and keys of a block.

  Returns:
    The sum over the documents of all rows, in pairs of blocks.
  """
  lengths = (np.bincount(row[row > 0]) for row in segments)
  squares = sum(float(np.square(x, dtype=np.float64).sum()) for x in lengths)
  return squares / 2 / block**2


def _chunk(part, block):
  """Tokens of a chunk: a block, or what divides a part into two or more."""
  if part % block == 0:
    return block
  most = max(1, min(block, part // 2))
  return max(size for size in range(1, most + 1) if part % size == 0)


def _live(segments, chunk):
  """int64 [rows, chunks]: key chunks that the queries of each chunk meet."""
  begins = np.arange(segments.shape[1]) - positions.plain(segments)
  begins = np.where(segments > 0, begins, segments.shape[1])  # none if padding
  first = begins.reshape(len(segments), -1, chunk).min(2) // chunk
  return np.maximum(np.arange(first.shape[1]) + 1 - first, 0)


def _deal(work, n):
  """[chunks] work -> [chunks]: those of device 0 in the order of the row, ...

  The most uneven folds come first, and the others make up for them.
  """
  folds, load = work.reshape(-1, n), np.zeros(n, work.dtype)
  dealt = np.empty_like(folds)
  for fold in np.argsort(-np.ptp(folds, axis=1), kind='stable'):
    heaviest = np.argsort(-folds[fold], kind='stable')
    freest = np.argsort(load, kind='stable')
    load[freest] += folds[fold, heaviest]
    dealt[fold, freest] = fold * n + heaviest
  return dealt.T.reshape(-1)


def _parts(ids, n, block):
  """[rows, seq] -> [rows, n * blocks of a part, block], zeros in the rest."""
  parts = ids.reshape(len(ids), n, -1)
  size = min(block, parts.shape[2])
  parts = np.pad(parts, ((0, 0), (0, 0), (0, -parts.shape[2] % size)))
  return parts.reshape(len(ids), -1, size)
