"""The mask rule: which keys a query may attend to.

The only place that decides it, for pairs of tokens and for pairs of blocks.
Operators only, so it serves numpy arrays (layouts, on the host), jax arrays and
the insides of a Pallas kernel alike.
"""

from typing import Any, NamedTuple

import numpy as np

SHARED_SEGMENT = -1  # of a key that every document may attend to (FoT memory)
_MOST = np.iinfo(np.int32).max


class Ids(NamedTuple):
  """Document and order of each token; they travel with the keys."""

  segment: Any  # [batch, seq] int32, document in the row, 0 is padding
  index: Any  # [batch, seq] int32, order in the row, -1 is before all


def may_attend(q: Ids, kv: Ids, window: int = 0):
  """Whether q may attend to kv: same document, and not in the future.

  Padding (segment 0) attends to nothing, and nothing attends to it.

  Args:
    q, kv: Ids of any shapes that broadcast.
    window: tokens back that a query attends to, itself included; 0 is all.
      A key before everything (index -1) is always inside.

  Returns:
    bool, element by element.
  """
  same = (q.segment == kv.segment) | (kv.segment == SHARED_SEGMENT)
  allowed = same & (kv.index <= q.index) & (q.segment > 0)
  if window:
    allowed &= (q.index - kv.index < window) | (kv.index < 0)
  return allowed


def attention_mask(q: Ids, kv: Ids, window: int = 0):
  """`may_attend` for each query and key.

  Args:
    q, kv: Ids of [..., q_seq] and [..., kv_seq].
    window: as for `may_attend`.

  Returns:
    [..., q_seq, kv_seq] bool.
  """
  column, row = (lambda x: x[..., :, None]), (lambda x: x[..., None, :])
  return may_attend(Ids(*map(column, q)), Ids(*map(row, kv)), window)


def split_in_groups(ids: Ids, group: int, shift: int = 0) -> Ids:
  """Ids of which each group of tokens is a document of its own.

  Groups are `group` tokens of the row's order; the first is `shift` shorter.
  LongLoRA's shifted sparse attention (arXiv:2309.12307, section 3.2) is half
  of the heads with shift 0 and half with group / 2: the first and last half
  groups stand alone. Rolling instead, as one of its two codes does, lets the
  first tokens attend to the last.

  Args:
    ids: Ids of [..., seq], none of them SHARED_SEGMENT.
    group, shift: tokens.
  """
  number = (ids.index + shift) // group
  most = ids.index.shape[-1] // group + 2
  segment = (ids.segment - 1) * most + number + 1
  real = (ids.segment > 0).astype(segment.dtype)
  return Ids(real * segment, ids.index)


class BlockBounds(NamedTuple):
  """What a block of tokens holds, enough to compare two blocks in O(1)."""

  first: Any  # smallest document; padding and SHARED_SEGMENT do not count
  last: Any  # largest document
  low: Any  # smallest index of a token that is not padding
  high: Any  # largest index
  shared: Any  # whether SHARED_SEGMENT is among the segments
  full: Any  # whether no token is padding


def block_bounds(ids: Ids) -> BlockBounds:
  """Bounds over the last axis: Ids [..., tokens] -> BlockBounds [...]."""
  document, real = ids.segment > 0, ids.segment != 0
  least = lambda x, where: x.min(-1, where=where, initial=_MOST)
  largest = lambda x, where, low: x.max(-1, where=where, initial=low)
  return BlockBounds(
    first=least(ids.segment, document),
    last=largest(ids.segment, document, 0),
    low=least(ids.index, real),
    high=largest(ids.index, real, -_MOST),
    shared=(ids.segment == SHARED_SEGMENT).any(-1),
    full=real.all(-1),
  )


def block_may_attend(q: BlockBounds, kv: BlockBounds, window: int = 0):
  """False only if no query of one block may attend to a key of the other."""
  allowed = (q.first <= kv.last) & (kv.first <= q.last)
  allowed |= kv.shared & (q.last > 0)
  allowed &= kv.low <= q.high
  if window:
    allowed &= (q.low - kv.high < window) | (kv.low < 0)
  return allowed


def block_fully_attends(q: BlockBounds, kv: BlockBounds, window: int = 0):
  """True only if every query of one block may attend to all keys of the other,
  so that the pair needs no mask."""
  full = (q.first == q.last) & (kv.first == kv.last) & (q.first == kv.first)
  full &= ~kv.shared & q.full & kv.full & (kv.high <= q.low)
  if window:
    full &= q.high - kv.low < window
  return full
