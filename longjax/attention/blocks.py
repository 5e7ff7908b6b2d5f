"""Queries and keys in blocks, and which pairs of blocks a kernel computes.

The query heads that share a kv head are rows of one matrix, so K and V are
never repeated: a block of queries is [R, H] with R = G * t rows, a block of
keys [s, H]. Blocks come first, so that a kernel picks one by its number.
Legend: I blocks of t queries, J blocks of s keys, B batch, K kv heads, G query
heads of a kv head, H dim.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from longjax.mask import (
  Ids,
  block_bounds,
  block_code_offset,
  block_fully_attends,
  block_may_attend,
)  # fmt: skip


class AttentionOptions(NamedTuple):
  """How attention is computed; static."""

  kernel: str = 'blockwise'  # a key of kernels.KERNELS
  block: int = 512  # keys of a block
  window: int = 0  # tokens back that a query attends to, 0 is all
  scale: float = 1.0  # of q . k, to logits in units of log 2
  chip: str = ''  # a key of tiles.TILES, '' is none


class Residuals(NamedTuple):
  """What the backward pass keeps of each query."""

  dout: Any  # [I, B, K, R, H]
  lse: Any  # [I, B, K, 1, R] float32, log2 of the softmax's denominator
  delta: Any  # [I, B, K, 1, R] float32, sum over dim of out * dout


class Queries(NamedTuple):
  """Blocks of queries."""

  q: Any  # [I, B, K, R, H]
  ids: Ids  # of [I, B, t]
  residuals: Residuals | None = None  # in the backward pass


class Keys(NamedTuple):
  """Blocks of keys: what travels round the ring."""

  k: Any  # [J, B, K, s, H]
  v: Any  # [J, B, K, s, H]
  ids: Any  # [J, B, 2, s] int32, segment and index: one message a hop


def block_queries(x, kv_heads: int, t: int):
  """[B, T, N, ...] -> [I, B, K, R, ...]; zeros fill the last block."""
  x = _padded(x, t)
  batch, seq, heads, *rest = x.shape
  x = x.reshape(batch, seq // t, t, kv_heads, heads // kv_heads, *rest)
  x = jnp.moveaxis(x, (1, 0, 3, 4, 2), (0, 1, 2, 3, 4))
  return x.reshape(*x.shape[:3], -1, *rest)


def unblock_queries(x, heads: int, seq: int):
  """[I, B, K, R, ...] -> [B, T, N, ...], undoing `block_queries`."""
  count, batch, kv_heads, rows, *rest = x.shape
  group = heads // kv_heads
  x = x.reshape(count, batch, kv_heads, group, rows // group, *rest)
  x = jnp.moveaxis(x, (0, 1, 2, 3, 4), (1, 0, 3, 4, 2))
  return x.reshape(batch, -1, heads, *rest)[:, :seq]


def block_keys(x, s: int):
  """[B, S, K, H] -> [J, B, K, s, H]; zeros fill the last block."""
  x = _padded(x, s)
  batch, seq, heads, dim = x.shape
  x = x.reshape(batch, seq // s, s, heads, dim)
  return jnp.moveaxis(x, (1, 0, 3, 2), (0, 1, 2, 3))


def unblock_keys(x, seq: int):
  """[J, B, K, s, H] -> [B, S, K, H], undoing `block_keys`."""
  count, batch, heads, s, dim = x.shape
  x = jnp.moveaxis(x, (0, 1, 2, 3), (1, 0, 3, 2))
  return x.reshape(batch, count * s, heads, dim)[:, :seq]


def block_ids(ids: Ids, size: int) -> Ids:
  """Ids of [B, seq] -> of [blocks, B, size]; segment 0 fills the last."""
  split = lambda x: _padded(x, size).reshape(x.shape[0], -1, size)
  return jax.tree.map(lambda x: jnp.moveaxis(split(x), 1, 0), ids)


def with_residuals(queries: Queries, out, lse, dout) -> Queries:
  """The queries with what their gradients need.

  Args:
    queries: blocks.
    out, dout: [B, T, N, H]; lse: [B, T, N] float32.
  """
  t = queries.ids.index.shape[-1]
  block = lambda x: block_queries(x, queries.q.shape[2], t)
  delta = jnp.sum(out.astype(jnp.float32) * dout.astype(jnp.float32), -1)
  row = lambda x: block(x)[:, :, :, None]
  residuals = Residuals(block(dout), row(lse * math.log2(math.e)), row(delta))
  return queries._replace(residuals=residuals)


def grads_from_blocks(q, k, v, grads, options: AttentionOptions):
  """Gradients of q [B, T, N, H], k and v [B, S, K, H] from those in blocks:
  dq [I, B, K, H, R], dk and dv [J, B, K, H, s]."""
  scale = options.scale * math.log(2)
  dq, dk, dv = (x.swapaxes(3, 4) for x in grads)
  dq = unblock_queries(dq, q.shape[2], q.shape[1]) * scale
  dk, dv = (unblock_keys(x, k.shape[1]) for x in (dk, dv))
  return dq.astype(q.dtype), (dk * scale).astype(k.dtype), dv.astype(v.dtype)


def no_gradient(ids: Ids):
  """What a custom_vjp must return for integers."""
  return jax.tree.map(lambda x: np.zeros(x.shape, jax.dtypes.float0), ids)


def key_ids(keys: Keys) -> Ids:
  """Ids of [J, B, s]."""
  return Ids(keys.ids[:, :, 0], keys.ids[:, :, 1])


def block_mask(queries: Queries, keys: Keys, window: int):
  """For each pair of blocks, [B, I, J] each:

  (live: whether to compute it; full: whether it needs no mask; and offset and
  exact of `mask.block_code_offset`)
  """
  q, kv = (block_bounds(x) for x in (queries.ids, key_ids(keys)))
  q = jax.tree.map(lambda x: x.T[:, :, None], q)
  kv = jax.tree.map(lambda x: x.T[:, None, :], kv)
  return (
    block_may_attend(q, kv, window),
    block_fully_attends(q, kv, window),
    *block_code_offset(q, kv, window),
  )


def live_pairs(live, *flags):
  """The block pairs to compute, in row-major order.

  Args:
    live: bool array of any shape.
    flags: arrays of the same shape.

  Returns:
    (an int32 index array [live.size] for each axis, the flags in that order,
    how many of them count)
  """
  number = jnp.arange(live.size, dtype=jnp.int32)
  flat = (x.reshape(-1) for x in (~live, *flags))
  # A sort instead of a gather, which is slow on a TPU.
  dead, *flags, order = jax.lax.sort((*flat, number), num_keys=1)
  count = live.size - dead.sum(dtype=jnp.int32)
  return jnp.unravel_index(order, live.shape), flags, count


def _padded(x, size: int):
  """[B, seq, ...] filled up with zeros to a multiple of `size`."""
  widths = [(0, 0)] * x.ndim
  widths[1] = (0, -x.shape[1] % size)
  return jnp.pad(x, widths)
