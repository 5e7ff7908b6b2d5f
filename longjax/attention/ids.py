"""What a query may see. The only place that decides it."""

from typing import Any, NamedTuple

import jax.numpy as jnp

ANY = -1  # as a key's segment: visible from every document (FoT memory)


class Ids(NamedTuple):
  """Who and when a token is; keys carry theirs along wherever they travel."""

  segment: Any  # [batch, seq] int32, document in the row, 0 is padding
  index: Any  # [batch, seq] int32, order in the row, -1 is before all


def visible(q: Ids, kv: Ids):
  """[batch, q_seq, kv_seq] bool: same document and not in the future.

  Padding (segment 0) sees nothing and is seen by nobody.
  """
  q_segment, kv_segment = q.segment[:, :, None], kv.segment[:, None, :]
  same = (q_segment == kv_segment) | (kv_segment == ANY)
  past = kv.index[:, None, :] <= q.index[:, :, None]
  return same & past & (q_segment > 0)


def meet(q: Ids, kv: Ids):
  """A bool: False only if `visible(q, kv)` has no True. Costs O(seq).

  Compares the ranges of segments and of index, row by row.
  """
  big = jnp.iinfo(jnp.int32).max
  q_real, kv_real = q.segment > 0, kv.segment != 0
  first_q = jnp.where(q_real, q.segment, big).min(1)
  last_q = q.segment.max(1)
  first_kv = jnp.where(kv_real, kv.segment, big).min(1)
  last_kv = kv.segment.max(1)
  same = (first_q <= last_kv) & (first_kv <= last_q)
  same |= (kv.segment == ANY).any(1) & (last_q > 0)
  first_key = jnp.where(kv_real, kv.index, big).min(1)
  last_query = jnp.where(q_real, q.index, -big).max(1)
  return (same & (first_key <= last_query)).any()
