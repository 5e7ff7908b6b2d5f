"""The kernel in plain JAX: softmax over part of the keys, and its gradient.

Walks over the pairs of a block of queries and one of keys (arXiv:2112.05682,
2205.14135) in which somebody sees somebody: causality, documents and padding
save their share of the work. Memory is linear in the sequence. The Pallas
kernel behind the same seam (pallas.py) is held equal to this one.
"""

import math

import jax
import jax.numpy as jnp

from longjax.attention import blocks
from longjax.attention.blocks import How, Keys, Queries
from longjax.attention.partial import Partial
from longjax.mask import Ids, attention_mask


def sizes(queries: int, keys: int, group: int, block: int):
  """(t, s): queries and keys of a block."""
  del group
  return min(block, queries), min(block, keys)


def part(acc: Partial, queries: Queries, keys: Keys, how: How) -> Partial:
  """Adds these keys to the softmax `acc` over other keys."""

  def add(acc, i, j, seen):
    q, k, v = _pick(queries.q, i), *_pick((keys.k, keys.v), j)
    before = _pick(acc, i)
    logits = _logits(q, k, seen)
    peak = jnp.maximum(before.peak, logits.max(1, keepdims=True))
    p, shrink = jnp.exp2(logits - peak), jnp.exp2(before.peak - peak)
    out = _dot('bhs,bsr->bhr', _turned(v), p.astype(v.dtype))
    total = before.total * shrink + p.sum(1, keepdims=True)
    return _put(acc, Partial(before.out * shrink + out, peak, total), i)

  return _walk(add, acc, queries, keys, how.window)


def part_grad(dq, queries: Queries, keys: Keys, how: How):
  """Gradients through these keys, all but the factor 1 / sqrt(dim).

  Args:
    dq: [I, B, K, H, R] float32, what other keys gave.
    queries: with what the backward pass knows of them.
    keys: blocks of keys.
    how: block and window.

  Returns:
    (dq with these keys, dk, dv [J, B, K, s, H] float32 of these alone)
  """

  def add(grads, i, j, seen):
    k, v = _pick((keys.k, keys.v), j)
    q, (dout, lse, delta) = _pick((queries.q, queries.back), i)
    dq, dk, dv = _pick(grads[0], i), *_pick(grads[1:], j)
    p = jnp.exp2(_logits(q, k, seen) - lse)
    dv += _dot('bsr,brh->bsh', p.astype(v.dtype), dout)
    ds = p * (_dot('bsh,brh->bsr', v, dout) - delta)
    ds = ds.astype(q.dtype)
    dk += _dot('bsr,brh->bsh', ds, q)
    dq += _dot('bhs,bsr->bhr', _turned(k), ds)
    return _put(grads[0], dq, i), *_put(grads[1:], (dk, dv), j)

  zeros = [jnp.zeros_like(x, jnp.float32) for x in (keys.k, keys.v)]
  return _walk(add, (dq, *zeros), queries, keys, how.window)


def _walk(add, carry, queries: Queries, keys: Keys, window: int):
  """add(carry, i, j, seen) for all pairs of blocks to compute, and kv heads.

  i and j are (block, head) of the queries and the keys, seen [B, s, R] is what
  they see. The rows of a batch go together: a pair counts if one row needs it.
  One head at a time, its logits stay in the cache of a CPU.
  """
  live, _ = blocks.sight(queries, keys, window)
  (rows, columns), _, count = blocks.pairs(live.any(0))
  group = queries.q.shape[3] // queries.ids.index.shape[2]

  def pair(n, carry):
    i, j = rows[n], columns[n]
    q_ids = Ids(*(x[i] for x in queries.ids))
    kv_ids = Ids(keys.ids[j, :, 0], keys.ids[j, :, 1])
    seen = attention_mask(q_ids, kv_ids, window)
    seen = jnp.tile(seen.swapaxes(1, 2), (1, 1, group))
    one = lambda head, carry: add(carry, (i, head), (j, head), seen)
    return jax.lax.fori_loop(0, keys.k.shape[2], one, carry)

  return jax.lax.fori_loop(0, count, pair, carry)


def _logits(q, k, seen):
  """[B, s, R] float32 in units of log 2, -inf where nobody may look."""
  scale = math.log2(math.e) / math.sqrt(q.shape[-1])
  return jnp.where(seen, _dot('bsh,brh->bsr', k, q) * scale, -jnp.inf)


def _turned(x):
  """[B, s, H] -> [B, H, s], which XLA would leave to a slower product."""
  return jax.lax.optimization_barrier(x.swapaxes(1, 2))


def _dot(how, a, b):
  return jnp.einsum(how, a, b, preferred_element_type=jnp.float32)


def _pick(tree, at):
  """[B, ...] at (block, head) of each array [blocks, B, heads, ...]."""
  return jax.tree.map(lambda x: x[at[0], :, at[1]], tree)


def _put(tree, values, at):
  def put(x, y):
    where = map(jnp.int32, (at[0], 0, at[1], 0, 0))  # alike with x64 too
    return jax.lax.dynamic_update_slice(x, y[None, :, None], tuple(where))

  return jax.tree.map(put, tree, values)
