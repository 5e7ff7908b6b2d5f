"""Ulysses, arXiv:2309.14509: devices exchange tokens for heads.

Between two all-to-alls each device has all tokens of its group, but only some
heads. Groups of such devices may form a ring outside (USP, arXiv:2405.07719):
fewer and larger hops than a ring of all.
"""

import math

import jax
import jax.numpy as jnp

from longjax.attention.blocks import AttentionOptions
from longjax.attention.ring import ring
from longjax.mask import Ids


def ulysses(q, k, v, q_ids, kv_ids, axis, options: AttentionOptions):
  """Attention with heads exchanged inside, and a ring outside.

  Args:
    q: [batch, local seq, heads, dim]; k, v: [batch, local seq, kv_heads, dim].
    q_ids, kv_ids: Ids of [batch, local seq].
    axis: names of two mesh axes, the ring's and the exchange's; None is none.
    options: kernel, block and window.

  Returns:
    [batch, local seq, heads, dim] in q's dtype.
  """
  if axis is None:
    return ring(q, k, v, q_ids, kv_ids, None, options)
  outside, inside = axis
  devices = jax.lax.axis_size(inside)
  k, v = (_repeat_kv(x, devices) for x in (k, v))
  q, k, v = (_swap(x, inside, 2, 1) for x in (q, k, v))
  q_ids, kv_ids = (
    Ids(*(jax.lax.all_gather(x, inside, axis=1, tiled=True) for x in ids))
    for ids in (q_ids, kv_ids)
  )
  out = ring(q, k, v, q_ids, kv_ids, outside, options)
  return _swap(out, inside, 1, 2)


def exchange_size(
  strategy: str, heads: int, kv_heads: int, devices: int, size: int
) -> int:
  """Devices that exchange heads: 1 for a strategy that exchanges none.

  Args:
    strategy: a key of attention.STRATEGIES.
    heads, kv_heads: of the model.
    devices: devices that share a sequence.
    size: for hybrid; 0 is the most that repeats no kv head.

  Raises:
    ValueError: heads or devices are not a multiple of it.
  """
  if strategy not in ('ulysses', 'hybrid'):
    return 1
  if strategy == 'ulysses':
    size = devices
  size = size or math.gcd(kv_heads, devices)
  if devices % size or heads % size:
    raise ValueError(
      f'attention {strategy} exchanges heads among {size} devices, which must '
      f'divide the {heads} heads and the {devices} devices of the sequence; '
      'use hybrid with another `ulysses`, or ring'
    )
  return size


def _swap(x, axis, split, join):
  return jax.lax.all_to_all(x, axis, split, join, tiled=True)


def _repeat_kv(x, devices):
  """Repeats kv heads [batch, seq, kv_heads, dim] until each device gets one."""
  return jnp.repeat(x, devices // math.gcd(x.shape[2], devices), axis=2)
