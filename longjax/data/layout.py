"""Layouts: which tokens of a row lie on which device of the ring.

A causal ring does even work only if every device holds early and late tokens.
The tokens of a row are permuted once, on the host; `index` goes with them and
tells the attention what came before what. Device i of n holds

  contiguous  chunk i of n
  zigzag      chunks i and 2n-1-i of 2n (Llama 3, arXiv:2407.21783, 3.3.2)
  striped     tokens i, i+n, i+2n, ... (Striped Attention, arXiv:2311.09431)
"""

import numpy as np

from longjax import errors
from longjax.batch import Batch

LAYOUTS = ('contiguous', 'zigzag', 'striped')


def order(layout: str, seq_len: int, n: int) -> np.ndarray:
  """The permutation of a row: place p holds token order[p].

  Args:
    layout: one of LAYOUTS.
    seq_len: tokens of a row.
    n: devices of the ring.

  Returns:
    int64 [seq_len].
  """
  if layout not in LAYOUTS:
    raise errors.InputError(f'layout {layout!r} is none of {LAYOUTS}')
  chunks = 2 * n if layout == 'zigzag' else n
  if seq_len % chunks:
    raise errors.InputError(
      f'seq_len {seq_len} is not a multiple of {chunks}: layout={layout!r} on '
      f'a ring of {n} needs {chunks} equal parts; the nearest seq_len is '
      f'{max(1, round(seq_len / chunks)) * chunks}'
    )
  tokens = np.arange(seq_len)
  if layout == 'contiguous':
    return tokens
  if layout == 'striped':
    return tokens.reshape(-1, n).T.reshape(-1)
  parts = tokens.reshape(2 * n, -1)
  pairs = np.stack([parts[:n], parts[n:][::-1]], axis=1)  # [n, 2, chunk]
  return pairs.reshape(-1)


def apply(batch: Batch, order) -> Batch:
  """All six arrays with their columns permuted."""
  return Batch(*(array[:, order] for array in batch))


def inverse(order) -> np.ndarray:
  """The permutation that brings a row back: x[order][inverse] is x."""
  return np.argsort(order)


def work(segments, index, n: int, block: int) -> np.ndarray:
  """Blocks of attention that a ring executes, by row, member and hop.

  Member m holds the m-th of n parts of a row. At hop h its queries attend to
  the keys of member (m - h) mod n, in blocks of both, and a pair of blocks is
  executed where `longjax.attention.ids.meet` holds. A member that has several
  rows executes a pair for all of them where it is live in any.

  Args:
    segments, index: [rows, seq] in the order of a layout.
    n: members of the ring; divides seq.
    block: queries and keys of a block; the last of a part may be smaller.

  Returns:
    int64 [rows, member, hop].
  """
  live = _meet(_parts(segments, n, block), _parts(index, n, block))
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


def _parts(ids, n, block):
  """[rows, seq] -> [rows, n * blocks of a part, block], zeros in the rest."""
  parts = ids.reshape(len(ids), n, -1)
  size = min(block, parts.shape[2])
  parts = np.pad(parts, ((0, 0), (0, 0), (0, -parts.shape[2] % size)))
  return parts.reshape(len(ids), -1, size)


def _meet(segments, index):
  """bool [rows, query block, key block]; ids.meet of all blocks at once."""
  big = np.iinfo(np.int32).max
  query, key = segments > 0, segments != 0  # a key may be memory, ids.ANY
  first_query = np.where(query, segments, big).min(2)[:, :, None]
  first_key = np.where(key, segments, big).min(2)[:, None, :]
  last = segments.max(2)
  same = (first_query <= last[:, None, :]) & (first_key <= last[:, :, None])
  same |= (segments == -1).any(2)[:, None, :] & (last > 0)[:, :, None]
  earliest = np.where(key, index, big).min(2)[:, None, :]
  latest = np.where(query, index, -big).max(2)[:, :, None]
  return same & (earliest <= latest)
