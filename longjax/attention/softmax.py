"""Online softmax, in float32: the state that a device keeps from one block of
keys to the next, its own or from the ring (arXiv:1805.02867, 2205.14135).

Logits are in units of log 2, the exponential is 2 ** x: a multiplication less.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from longjax.attention import blocks

FLOOR = -1e30  # below any logit, and finite: 2 ** (-inf - FLOOR) is 0


class SoftmaxState(NamedTuple):
  """Softmax over the keys so far, of blocks of queries (legend: blocks.py).

  The reference is any number near the largest logit: that itself, or what
  pallas.py keeps. FLOOR where there is no key yet.
  """

  acc: jax.Array  # [I, B, K, H, R] sum of 2 ** (logit - reference) * v
  stats: jax.Array  # [I, B, K, 2, R] reference, sum of 2 ** (logit - reference)

  @property
  def reference(self):
    return self.stats[..., :1, :]

  @property
  def sum(self):
    return self.stats[..., 1:, :]


def state_of(acc, reference, total) -> SoftmaxState:
  """The state of a reference and a sum [..., 1, R]."""
  return SoftmaxState(acc, jnp.concatenate([reference, total], -2))


def init(q, reference=None) -> SoftmaxState:
  """The softmax over no keys, for q [I, B, K, R, H].

  Args:
    q: blocks of queries.
    reference: [I, B, K, 1, R] to begin with, FLOOR where it is None.
  """
  # From q, so that it varies over the mesh as q does.
  acc = jnp.zeros_like(q.swapaxes(3, 4), jnp.float32)
  zero = acc[:, :, :, :1]
  return state_of(acc, zero + FLOOR if reference is None else reference, zero)


def merge(state: SoftmaxState, axis) -> SoftmaxState:
  """The softmax over the keys of all devices along a mesh axis."""
  largest = jax.lax.pmax(state.reference, axis)
  weight = jnp.exp2(state.reference - largest)
  acc, total = jax.lax.psum((state.acc * weight, state.sum * weight), axis)
  return state_of(acc, largest, total)


def finalize(state: SoftmaxState, q):
  """The attention of q [B, T, N, H] over the keys of `state`.

  Returns:
    out [B, T, N, H] and its log-sum-exp [B, T, N], float32; out is 0 for a
    query without keys.
  """
  total = jnp.where(state.sum > 0, state.sum, 1)
  out = (state.acc / total).swapaxes(3, 4)
  lse = (state.reference + jnp.log2(total))[:, :, :, 0] * math.log(2)
  unblock = lambda x: blocks.unblock_queries(x, q.shape[2], q.shape[1])
  return unblock(out), unblock(lse)
