"""The mask rule: which keys a query may attend to.

The only place that decides it, for pairs of tokens and for pairs of blocks.
It serves numpy arrays (layouts, on the host), jax arrays and the insides of a
Pallas kernel alike. Which keys of other rows Focused Transformer shows to a
query is decided in crossbatch.py; they come with SHARED_SEGMENT.
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
  where = ids.segment.__array_namespace__().where  # numpy's or jax's
  document, real = ids.segment > 0, ids.segment != 0
  return BlockBounds(
    first=where(document, ids.segment, _MOST).min(-1),
    last=where(document, ids.segment, 0).max(-1),
    low=where(real, ids.index, _MOST).min(-1),
    high=where(real, ids.index, -_MOST).max(-1),
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
  same = (q.first == q.last) & (kv.first == kv.last) & (q.first == kv.first)
  same &= ~kv.shared
  if window:
    same &= q.high - kv.low < window
  memory = kv.shared & (kv.last == 0) & ~q.shared  # of SHARED_SEGMENT alone
  if window:
    memory &= kv.high < 0
  return (same | memory) & q.full & kv.full & (kv.high <= q.low)


# The rule in three integer operations, for most pairs of blocks. The code of a
# token is (segment << CODE_BITS) + index, the index counted from the least of
# its block, so rows may be of any length. All of it is modulo 2 ** 32.
CODE_BITS = 20
_REACH = 1 << 17  # indices of a block, and the bases of two, differ by less
_PADDING_QUERY, _PADDING_KEY = 3 << 18, 1 << 18  # codes that meet no other


def token_codes(ids: Ids, padding: int):
  """Ids of blocks [..., tokens] -> int32 codes of the same shape."""
  where = ids.segment.__array_namespace__().where
  low = block_bounds(ids).low[..., None]
  code = (ids.segment << CODE_BITS) + (ids.index - low)
  return where(ids.segment > 0, code, padding)


def query_codes(ids: Ids):
  """`token_codes` of queries, less 2 ** 31: see `may_attend_by_code`."""
  return token_codes(ids, _PADDING_QUERY) + np.iinfo(np.int32).min


def key_codes(ids: Ids):
  return token_codes(ids, _PADDING_KEY)


def block_code_offset(q: BlockBounds, kv: BlockBounds, window: int = 0):
  """(offset, exact): what to add to the codes of the queries of a pair of
  blocks, within +- 2 ** 17; whether codes then decide as `may_attend` does.

  Blocks farther apart count as 2 ** 17 apart: their order is what matters.
  """
  apart = q.low - kv.low
  near = (apart <= _REACH) & (apart >= -_REACH)
  exact = (q.high - q.low < _REACH) & (kv.high - kv.low < _REACH) & ~kv.shared
  where = apart.__array_namespace__().where
  last = where(q.last > kv.last, q.last, kv.last)
  first = where(q.first < kv.first, q.first, kv.first)
  exact &= last - first < (1 << (32 - CODE_BITS)) - 1
  if window:
    exact &= near
  return apart.clip(-_REACH, _REACH), exact


def may_attend_by_code(q_code, kv_code, window: int = 0):
  """`may_attend` where the offset of the pair is in `q_code`.

  A query attends to the keys at most 2 ** 18 tokens, or a window, below its
  own code. As unsigned numbers, which the 2 ** 31 in `query_codes` makes of
  signed ones.
  """
  reach = min(window or 2 * _REACH, 2 * _REACH)
  return q_code - kv_code < np.int32(reach + np.iinfo(np.int32).min)
