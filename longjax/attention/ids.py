"""What a query may see. The only place that decides it."""

from typing import Any, NamedTuple

import jax.numpy as jnp

ANY = -1  # as a key's segment: visible from every document (FoT memory)


class Ids(NamedTuple):
  """Who and when a token is; keys carry theirs along wherever they travel."""

  segment: Any  # [batch, seq] int32, document in the row, 0 is padding
  index: Any  # [batch, seq] int32, order in the row, -1 is before all


def visible(q: Ids, kv: Ids, window: int = 0):
  """[..., q_seq, kv_seq] bool: `sees` for each query and key.

  Args:
    q, kv: Ids of [..., q_seq] and [..., kv_seq].
    window: as for `sees`.
  """
  column, row = (lambda x: x[..., :, None]), (lambda x: x[..., None, :])
  return sees(Ids(*map(column, q)), Ids(*map(row, kv)), window)


def sees(q: Ids, kv: Ids, window: int = 0):
  """Whether q sees kv, element by element: same document, not in the future.

  Padding (segment 0) sees nothing and is seen by nobody.

  Args:
    q, kv: Ids of any shapes that broadcast.
    window: how many tokens back a query sees, itself included; 0 is all.
      What is before everything (index -1) is seen all the same.
  """
  same = (q.segment == kv.segment) | (kv.segment == ANY)
  seen = same & (kv.index <= q.index) & (q.segment > 0)
  if window:
    seen &= (q.index - kv.index < window) | (kv.index < 0)
  return seen


def grouped(ids: Ids, group: int, shift: int = 0) -> Ids:
  """Ids under which a token sees its own group alone, as a document.

  Groups are `group` tokens of the row's order; the first is `shift` shorter.
  LongLoRA's shifted sparse attention (arXiv:2309.12307, section 3.2) is half
  of the heads with shift 0 and half with group / 2: the first and last half
  groups stand alone. Rolling instead, as one of its two codes does, lets the
  first tokens see the last.

  Args:
    ids: Ids of [..., seq], no memory among them.
    group, shift: tokens.
  """
  number = (ids.index + shift) // group
  most = ids.index.shape[-1] // group + 2
  segment = (ids.segment - 1) * most + number + 1
  return Ids(jnp.where(ids.segment > 0, segment, 0), ids.index)


class Span(NamedTuple):
  """What a block of tokens holds, so that blocks can be told apart in O(1)."""

  first: Any  # smallest document; padding and ANY do not count
  last: Any  # largest document
  low: Any  # smallest index of a token that is not padding
  high: Any  # largest index
  any: Any  # whether ANY is among the segments
  full: Any  # whether no token is padding


def span(ids: Ids) -> Span:
  """Span over the last axis: Ids [..., tokens] -> Span [...]."""
  big = jnp.iinfo(jnp.int32).max
  document, real = ids.segment > 0, ids.segment != 0
  return Span(
    jnp.where(document, ids.segment, big).min(-1),
    jnp.where(document, ids.segment, 0).max(-1),
    jnp.where(real, ids.index, big).min(-1),
    jnp.where(real, ids.index, -big).max(-1),
    (ids.segment == ANY).any(-1),
    real.all(-1),
  )


def meet(q: Span, kv: Span, window: int = 0):
  """False only if no query of the one block sees a key of the other."""
  seen = (q.first <= kv.last) & (kv.first <= q.last)
  seen |= kv.any & (q.last > 0)
  seen &= kv.low <= q.high
  if window:
    seen &= (q.low - kv.high < window) | (kv.low < 0)
  return seen


def whole(q: Span, kv: Span, window: int = 0):
  """True only if every query of the one block sees every key of the other."""
  seen = (q.first == q.last) & (kv.first == kv.last) & (q.first == kv.first)
  seen &= ~kv.any & q.full & kv.full & (kv.high <= q.low)
  if window:
    seen &= q.high - kv.low < window
  return seen
