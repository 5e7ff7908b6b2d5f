"""The kernel in plain JAX: softmax over part of the keys, and its gradient.

Walks over the pairs of a block of queries and one of keys (arXiv:2112.05682,
2205.14135) in which somebody sees somebody: causality, documents and padding
save their share of the work. Memory is linear in the sequence. The Pallas
kernel behind the same seam (pallas.py) is held equal to this one.
"""

import math

import jax
import jax.numpy as jnp

from longjax.attention import blocks, ids
from longjax.attention.blocks import How, Keys, Queries
from longjax.attention.ids import Ids
from longjax.attention.partial import Partial


def sizes(queries: int, keys: int, group: int, block: int):
  """(t, s): queries and keys of a block."""
  del group
  return min(block, queries), min(block, keys)


def part(acc: Partial, queries: Queries, keys: Keys, how: How) -> Partial:
  """Adds these keys to the softmax `acc` over other keys."""
  (rows, columns), _, count = _pairs(queries, keys, how)

  def add(n, acc):
    i, j = rows[n], columns[n]
    k, v, kv_ids = _pick(keys, j)
    before = _pick(acc, i)
    logits = _logits(_pick(queries.q, i), k, _pick(queries.ids, i), kv_ids, how)
    peak = jnp.maximum(before.peak, logits.max(2, keepdims=True))
    p, shrink = jnp.exp2(logits - peak), jnp.exp2(before.peak - peak)
    out = before.out * shrink + _dot('bksh,bksr->bkhr', v, p.astype(v.dtype))
    total = before.total * shrink + p.sum(2, keepdims=True)
    return _put(acc, Partial(out, peak, total), i)

  return jax.lax.fori_loop(0, count, add, acc)


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
  (rows, columns), _, count = _pairs(queries, keys, how)

  def add(n, grads):
    i, j = rows[n], columns[n]
    k, v, kv_ids = _pick(keys, j)
    q, q_ids, (dout, lse, delta) = _pick(queries, i)
    dq, dk, dv = _pick(grads[0], i), *_pick(grads[1:], j)
    p = jnp.exp2(_logits(q, k, q_ids, kv_ids, how) - lse)
    dv += _dot('bksr,bkrh->bksh', p.astype(v.dtype), dout)
    ds = p * (_dot('bksh,bkrh->bksr', v, dout) - delta)
    ds = ds.astype(q.dtype)
    dk += _dot('bksr,bkrh->bksh', ds, q)
    dq += _dot('bksh,bksr->bkhr', k, ds)
    return _put(grads[0], dq, i), *_put(grads[1:], (dk, dv), j)

  zeros = [jnp.zeros_like(x, jnp.float32) for x in (keys.k, keys.v)]
  return jax.lax.fori_loop(0, count, add, (dq, *zeros))


def _pairs(queries, keys, how):
  """The rows of a batch go together: a pair counts if one row needs it."""
  live, _ = blocks.sight(queries, keys, how.window)
  return blocks.pairs(live.any(0))


def _logits(q, k, q_ids, kv_ids, how):
  """[B, K, s, R] float32 in units of log 2, -inf where nobody may look."""
  scale = math.log2(math.e) / math.sqrt(q.shape[-1])
  logits = _dot('bksh,bkrh->bksr', k, q) * scale
  kv_ids = Ids(kv_ids[:, 0], kv_ids[:, 1])
  seen = ids.visible(q_ids, kv_ids, how.window).swapaxes(1, 2)
  seen = jnp.tile(seen, (1, 1, q.shape[2] // seen.shape[2]))
  return jnp.where(seen[:, None], logits, -jnp.inf)


def _dot(how, a, b):
  return jnp.einsum(how, a, b, preferred_element_type=jnp.float32)


def _pick(tree, i):
  """Block i of each array."""
  pick = lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False)
  return jax.tree.map(pick, tree)


def _put(tree, block, i):
  put = lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y, i, 0)
  return jax.tree.map(put, tree, block)
