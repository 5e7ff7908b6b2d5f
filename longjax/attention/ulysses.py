"""Ulysses, arXiv:2309.14509: devices swap a share of the sequence for heads.

Between two all-to-alls each device has all tokens of its group, but only some
heads. Groups of such devices may form a ring outside (USP, arXiv:2405.07719):
fewer and larger hops than a ring of all.
"""

import math

import jax
import jax.numpy as jnp

from longjax.attention.blocks import How
from longjax.attention.ring import ring
from longjax.mask import Ids


def ulysses(q, k, v, q_ids, kv_ids, axis, how: How):
  """Attention with heads exchanged inside, and a ring outside.

  Args:
    q: [batch, local seq, heads, dim]; k, v: [batch, local seq, kv_heads, dim].
    q_ids, kv_ids: Ids of [batch, local seq].
    axis: names of two mesh axes, the ring's and the exchange's; None is none.
    how: kernel, block and window.

  Returns:
    [batch, local seq, heads, dim] in q's dtype.
  """
  if axis is None:
    return ring(q, k, v, q_ids, kv_ids, None, how)
  outside, inside = axis
  members = jax.lax.axis_size(inside)
  k, v = (_enough(x, members) for x in (k, v))
  q, k, v = (_swap(x, inside, 2, 1) for x in (q, k, v))
  q_ids, kv_ids = (
    Ids(*(jax.lax.all_gather(x, inside, axis=1, tiled=True) for x in ids))
    for ids in (q_ids, kv_ids)
  )
  out = ring(q, k, v, q_ids, kv_ids, outside, how)
  return _swap(out, inside, 1, 2)


def exchange(strategy: str, heads: int, kv_heads: int, members: int, size: int):
  """How many devices exchange heads: all, some, or with a ring alone one.

  Args:
    strategy: a key of attention.STRATEGIES.
    heads, kv_heads: of the model.
    members: devices that share a sequence.
    size: what hybrid is asked for; 0 is the most that repeats no kv head.

  Raises:
    ValueError: if heads or members are not a multiple of it.
  """
  if strategy not in ('ulysses', 'hybrid'):
    return 1
  if strategy == 'ulysses':
    size = members
  size = size or math.gcd(kv_heads, members)
  if members % size or heads % size:
    raise ValueError(
      f'attention {strategy} exchanges heads among {size} devices, which must '
      f'divide the {heads} heads and the {members} devices of the sequence; '
      'use hybrid with another `ulysses`, or ring'
    )
  return size


def _swap(x, axis, split, join):
  return jax.lax.all_to_all(x, axis, split, join, tiled=True)


def _enough(x, members):
  """Repeats kv heads [batch, seq, kv_heads, dim] until all members get one."""
  return jnp.repeat(x, members // math.gcd(x.shape[2], members), axis=2)
