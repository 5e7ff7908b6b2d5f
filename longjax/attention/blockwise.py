"""The kernel in plain JAX: softmax over some of the keys, and its gradient.

Loops over the pairs of a block of queries and one of keys (arXiv:2112.05682,
2205.14135) that are not fully masked: causality, documents and padding save
their share of the work. Memory is linear in the sequence. The Pallas kernel
behind the same seam (pallas.py) is tested against this one.
"""

import jax
import jax.numpy as jnp

from longjax.attention import blocks, softmax
from longjax.attention.blocks import AttentionOptions, Keys, Queries
from longjax.attention.softmax import SoftmaxState
from longjax.mask import Ids, attention_mask


def block_sizes(q, k, options: AttentionOptions):
  """(t, s): queries and keys of a block."""
  return min(options.block, q.shape[1]), min(options.block, k.shape[1])


def init_state(queries: Queries, q, k, q_ids, kv_ids, options) -> SoftmaxState:
  """The softmax over no keys."""
  del q, k, q_ids, kv_ids, options
  return softmax.init(queries.q)


def attend_block(
  state: SoftmaxState, queries: Queries, keys: Keys, options: AttentionOptions
) -> SoftmaxState:
  """Adds these keys to the softmax over other keys."""

  def add(state, i, j, mask):
    q, k, v = _pick(queries.q, i), *_pick((keys.k, keys.v), j)
    before = _pick(state, i)
    logits = _logits(q, k, mask, options.scale)
    largest = jnp.maximum(before.reference, logits.max(1, keepdims=True))
    p, shrink = jnp.exp2(logits - largest), jnp.exp2(before.reference - largest)
    out = _dot('bhs,bsr->bhr', _transposed(v), p.astype(v.dtype))
    total = before.sum * shrink + p.sum(1, keepdims=True)
    after = softmax.state_of(before.acc * shrink + out, largest, total)
    return _put(state, after, i)

  return _loop_over_pairs(add, state, queries, keys, options.window)


def attend_block_grad(
  dq, queries: Queries, keys: Keys, options: AttentionOptions
):
  """Gradients through these keys, all but the factor of the logits.

  Args:
    dq: [I, B, K, H, R] float32, the gradient through other keys.
    queries: with residuals.
    keys: blocks of keys.
    options: window and scale.

  Returns:
    (dq with these keys, dk, dv [J, B, K, H, s] float32 of these alone)
  """

  def add(grads, i, j, mask):
    k, v = _pick((keys.k, keys.v), j)
    q, (dout, lse, delta) = _pick((queries.q, queries.residuals), i)
    dq, dk, dv = _pick(grads[0], i), *_pick(grads[1:], j)
    p = jnp.exp2(_logits(q, k, mask, options.scale) - lse)
    dv += _dot('bsr,brh->bsh', p.astype(v.dtype), dout)
    ds = p * (_dot('bsh,brh->bsr', v, dout) - delta)
    ds = ds.astype(q.dtype)
    dk += _dot('bsr,brh->bsh', ds, q)
    dq += _dot('bhs,bsr->bhr', _transposed(k), ds)
    return _put(grads[0], dq, i), *_put(grads[1:], (dk, dv), j)

  zeros = [jnp.zeros_like(x, jnp.float32) for x in (keys.k, keys.v)]
  dq, *grads = _loop_over_pairs(
    add, (dq, *zeros), queries, keys, options.window
  )
  return dq, *(x.swapaxes(3, 4) for x in grads)


def _loop_over_pairs(add, carry, queries: Queries, keys: Keys, window: int):
  """add(carry, i, j, mask) for each pair of blocks to compute, and kv head.

  i and j are (block, head) of the queries and the keys, mask is [B, s, R]. The
  rows of a batch go together: a pair is computed if one row needs it. One head
  at a time, its logits stay in the cache of a CPU.
  """
  live, *_ = blocks.block_mask(queries, keys, window)
  (rows, columns), _, count = blocks.live_pairs(live.any(0))
  group = queries.q.shape[3] // queries.ids.index.shape[2]

  def pair(n, carry):
    i, j = rows[n], columns[n]
    q_ids = Ids(*(x[i] for x in queries.ids))
    kv_ids = Ids(keys.ids[j, :, 0], keys.ids[j, :, 1])
    mask = attention_mask(q_ids, kv_ids, window)
    mask = jnp.tile(mask.swapaxes(1, 2), (1, 1, group))
    add_head = lambda head, carry: add(carry, (i, head), (j, head), mask)
    return jax.lax.fori_loop(0, keys.k.shape[2], add_head, carry)

  return jax.lax.fori_loop(0, count, pair, carry)


def _logits(q, k, mask, scale):
  """[B, s, R] float32 in units of log 2, -inf where masked."""
  return jnp.where(mask, _dot('bsh,brh->bsr', k, q) * scale, -jnp.inf)


def _transposed(x):
  """[B, s, H] -> [B, H, s], which XLA would leave to a slower product."""
  return jax.lax.optimization_barrier(x.swapaxes(1, 2))


def _dot(equation, a, b):
  return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def _pick(tree, at):
  """[B, ...] at (block, head) of each array [blocks, B, heads, ...]."""
  return jax.tree.map(lambda x: x[at[0], :, at[1]], tree)


def _put(tree, values, at):
  def put(x, y):
    where = map(jnp.int32, (at[0], 0, at[1], 0, 0))  # alike with x64 too
    return jax.lax.dynamic_update_slice(x, y[None, :, None], tuple(where))

  return jax.tree.map(put, tree, values)
