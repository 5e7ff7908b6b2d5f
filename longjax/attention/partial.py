"""Softmax over part of the keys, in float32: what is carried from hop to hop.

Logits are in units of log 2, the exponential is 2 ** x: a multiplication less.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from longjax.attention import blocks

FLOOR = -1e30  # below any logit, and finite: 2 ** (-inf - FLOOR) is 0


class Partial(NamedTuple):
  """Blocks of queries [I, B, K, ..., R]; `out` is not yet over `total`."""

  out: jax.Array  # [I, B, K, H, R] sum of 2 ** (logit - peak) * v
  peak: jax.Array  # [I, B, K, 1, R] largest logit, at least FLOOR
  total: jax.Array  # [I, B, K, 1, R] sum of 2 ** (logit - peak)


def nothing(q) -> Partial:
  """The softmax over no keys, for q [I, B, K, R, H]."""
  # From q, so that it varies over the mesh as q does.
  out = jnp.zeros_like(q.swapaxes(3, 4), jnp.float32)
  return Partial(out, out[:, :, :, :1] + FLOOR, out[:, :, :, :1])


def merge(p: Partial, axis) -> Partial:
  """The softmax over the keys of all members of a mesh axis."""
  peak = jax.lax.pmax(p.peak, axis)
  weight = jnp.exp2(p.peak - peak)
  out, total = jax.lax.psum((p.out * weight, p.total * weight), axis)
  return Partial(out, peak, total)


def finish(p: Partial, q):
  """The softmax of q [B, T, N, H] over all its keys, out of blocks.

  Returns:
    out [B, T, N, H] and its log-sum-exp [B, T, N], float32; out is 0 for a
    query that sees nothing.
  """
  total = jnp.where(p.total > 0, p.total, 1)
  out = (p.out / total).swapaxes(3, 4)
  lse = (p.peak + jnp.log2(total))[:, :, :, 0] * math.log(2)
  whole = lambda x: blocks.to_queries(x, q.shape[2], q.shape[1])
  return whole(out), whole(lse)
