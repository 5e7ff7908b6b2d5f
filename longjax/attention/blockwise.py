"""Exact attention in blocks: softmax over part of the keys, and its gradient.

This is the seam behind which kernels live:

  part(q, k, v, q_ids, kv_ids)  -> Partial(out, peak, total)
  part_grad(..., lse, delta, dout) -> dq, dk, dv

Both walk over blocks of queries and keys (arXiv:2112.05682, 2205.14135); a
block pair in which nobody sees anybody is skipped, so causality, documents
and padding save their share of the work. Memory is linear in the sequence.
Legend: B batch, T queries, S keys, N heads, K kv heads, G = N/K, H dim.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from longjax.attention.ids import Ids, meet, visible

FLOOR = -1e30  # below any logit, and finite: exp(-inf - FLOOR) is 0


class Partial(NamedTuple):
  """Softmax over part of the keys, float32; `out` not yet over `total`."""

  out: jax.Array  # [B, T, N, H] sum of exp(logit - peak) * v
  peak: jax.Array  # [B, T, N] largest logit, at least FLOOR
  total: jax.Array  # [B, T, N] sum of exp(logit - peak)


def merge(a: Partial, b: Partial) -> Partial:
  """The softmax over the keys of both."""
  peak = jnp.maximum(a.peak, b.peak)
  wa, wb = jnp.exp(a.peak - peak), jnp.exp(b.peak - peak)
  return Partial(
    a.out * wa[..., None] + b.out * wb[..., None],
    peak,
    a.total * wa + b.total * wb,
  )


def nothing(q) -> Partial:
  """The softmax over no keys. zeros_like: varies over the mesh as q does."""
  out = jnp.zeros_like(q, jnp.float32)
  return Partial(out, out[..., 0] + FLOOR, out[..., 0])


def finish(p: Partial, dtype):
  """(out [B, T, N, H], log-sum-exp [B, T, N] float32); 0 if nothing seen."""
  total = jnp.where(p.total > 0, p.total, 1)
  return (p.out / total[..., None]).astype(dtype), p.peak + jnp.log(total)


def part(q, k, v, q_ids: Ids, kv_ids: Ids, block: int) -> Partial:
  """Attention of q over these keys only.

  Args:
    q: [B, T, N, H]; k, v: [B, S, K, H].
    q_ids, kv_ids: Ids of [B, T] and [B, S].
    block: queries and keys of a block.
  """
  group = q.shape[2] // k.shape[2]
  k, v, kv_ids = (_blocks(x, block) for x in (k, v, kv_ids))

  def row(q_block):
    q, q_ids = q_block
    heads = _by_kv_head(q, group)

    def add(kv_block, acc):
      k, v, kv_ids = kv_block
      logits = _logits(heads, k, q_ids, kv_ids)
      peak = jnp.maximum(acc.peak, logits.max(-1))
      p, shrink = jnp.exp(logits - peak[..., None]), jnp.exp(acc.peak - peak)
      out = _dot('bkgts,bskh->bkgth', p.astype(v.dtype), v)
      out += acc.out * shrink[..., None]
      return Partial(out, peak, acc.total * shrink + p.sum(-1))

    def step(acc, kv_block):
      seen = meet(q_ids, kv_block[2])
      return jax.lax.cond(seen, add, lambda _, acc: acc, kv_block, acc), None

    acc, _ = jax.lax.scan(step, nothing(heads), (k, v, kv_ids))
    return Partial(*(_by_head(x) for x in acc))

  rows = jax.lax.map(row, (_blocks(q, block), _blocks(q_ids, block)))
  return Partial(*(_whole(x, q.shape[1]) for x in rows))


def part_grad(q, k, v, q_ids, kv_ids, lse, delta, dout, block):
  """Gradients of q, k, v through these keys only, float32.

  Args:
    q, k, v, q_ids, kv_ids, block: as for `part`.
    lse: [B, T, N] log-sum-exp over all the keys there are.
    delta: [B, T, N] sum over dim of out * dout.
    dout: [B, T, N, H].
  """
  group = q.shape[2] // k.shape[2]
  queries = tuple(_blocks(x, block) for x in (q, q_ids, lse, delta, dout))

  def column(dq, kv_block):
    k, v, kv_ids = kv_block
    scale = 1 / math.sqrt(q.shape[-1])

    def add(q_block, dk, dv):
      q, q_ids, lse, delta, dout = q_block
      q, lse, delta, dout = (
        _by_kv_head(x, group) for x in (q, lse, delta, dout)
      )
      p = jnp.exp(_logits(q, k, q_ids, kv_ids) - lse[..., None])
      dv += _dot('bkgts,bkgth->bskh', p.astype(v.dtype), dout)
      dp = _dot('bkgth,bskh->bkgts', dout, v)
      ds = (p * (dp - delta[..., None]) * scale).astype(q.dtype)
      dk += _dot('bkgts,bkgth->bskh', ds, q)
      return _by_head(_dot('bkgts,bskh->bkgth', ds, k)), dk, dv

    def skip(q_block, dk, dv):
      return jnp.zeros_like(q_block[0], jnp.float32), dk, dv

    def step(grads, q_block):
      seen = meet(q_block[1], kv_ids)
      dq, dk, dv = jax.lax.cond(seen, add, skip, q_block, *grads)
      return (dk, dv), dq

    zeros = tuple(jnp.zeros_like(x, jnp.float32) for x in (k, v))
    grads, dq_column = jax.lax.scan(step, zeros, queries)
    return dq + dq_column, grads

  dq = jnp.zeros_like(queries[0], jnp.float32)
  blocks = tuple(_blocks(x, block) for x in (k, v, kv_ids))
  dq, (dk, dv) = jax.lax.scan(column, dq, blocks)
  return (
    _whole(dq, q.shape[1]),
    _whole(dk, k.shape[1]),
    _whole(dv, k.shape[1]),
  )


def _logits(q, k, q_ids, kv_ids):
  """[B, K, G, t, s] float32, -inf where a query may not look."""
  logits = _dot('bkgth,bskh->bkgts', q, k) / math.sqrt(q.shape[-1])
  seen = visible(q_ids, kv_ids)[:, None, None]
  return jnp.where(seen, logits, -jnp.inf)


def _dot(how, a, b):
  return jnp.einsum(how, a, b, preferred_element_type=jnp.float32)


def _by_kv_head(x, group):
  """[B, t, N, ...] -> [B, K, G, t, ...]: the queries of each kv head."""
  x = x.reshape(*x.shape[:2], -1, group, *x.shape[3:])
  return jnp.moveaxis(x, 1, 3)


def _by_head(x):
  """[B, K, G, t, ...] -> [B, t, N, ...]."""
  x = jnp.moveaxis(x, 3, 1)
  return x.reshape(*x.shape[:2], -1, *x.shape[4:])


def _blocks(tree, block):
  """[B, seq, ...] -> [blocks, B, block, ...], padded with zeros (segment 0)."""

  def split(x):
    size = min(block, x.shape[1])
    count = -(-x.shape[1] // size)
    padding = [(0, 0)] * x.ndim
    padding[1] = (0, count * size - x.shape[1])
    x = jnp.pad(x, padding).reshape(x.shape[0], count, size, *x.shape[2:])
    return jnp.moveaxis(x, 1, 0)

  return jax.tree.map(split, tree)


def _whole(x, seq):
  """[blocks, B, block, ...] -> [B, seq, ...], the padding dropped."""
  x = jnp.moveaxis(x, 0, 1)
  return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :seq]
