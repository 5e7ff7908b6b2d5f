"""Ring Attention, arXiv:2310.01889: keys travel once round the ring.

On n devices the keys, values and their ids hop n - 1 times; each hop adds to a
float32 softmax. The backward pass is written by hand, since a scan under
autodiff would keep every hop: it saves the output and the log-sum-exp, sends
the keys round again and their gradients one hop behind them: home.

A hop's messages and its kernel do not need each other, so they run at once.
XLA's scheduler sends only after the kernel unless told that both are wanted
at the same time: that is what the `optimization_barrier` of each hop is for.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from longjax.attention import kernels, partial
from longjax.attention.blocks import How


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def ring(q, k, v, q_ids, kv_ids, axis, how: How):
  """Attention of local queries over the keys of all members of the ring.

  Args:
    q: [batch, local seq, heads, dim]; k, v: [batch, local seq, kv_heads, dim].
    q_ids, kv_ids: Ids of [batch, local seq].
    axis: name of the mesh axis that shards the sequence; None is no ring.
    how: kernel, block and window.

  Returns:
    [batch, local seq, heads, dim] in q's dtype.
  """
  return _forward(q, k, v, q_ids, kv_ids, axis, how)[0]


def _forward(q, k, v, q_ids, kv_ids, axis, how):
  # Ties the ids to q: else, in a scan over layers, JAX computes every mask
  # once for all layers and keeps them, which is O(seq^2) (jax 0.10, 0.12).
  q, k, v, q_ids, kv_ids = jax.lax.optimization_barrier(
    (q, k, v, q_ids, kv_ids)
  )
  queries, keys = kernels.cut(q, k, v, q_ids, kv_ids, how)

  def hop(carry, _):
    acc, keys = carry
    arriving = _shift(keys, axis)
    acc = kernels.part(acc, queries, keys, how)
    return jax.lax.optimization_barrier((acc, arriving)), None

  carry = (partial.nothing(queries.q), keys)
  acc, keys = _repeat(hop, carry, _members(axis) - 1)
  acc = kernels.part(acc, queries, keys, how)
  out, lse = partial.finish(acc, q)
  out = checkpoint_name(out.astype(q.dtype), 'attn_out')
  lse = checkpoint_name(lse, 'attn_lse')
  return out, (q, k, v, q_ids, kv_ids, out, lse)


def _backward(axis, how, saved, dout):
  q, k, v, q_ids, kv_ids, out, lse = saved
  queries, keys = kernels.cut(q, k, v, q_ids, kv_ids, how)
  queries = kernels.with_back(queries, out, lse, dout)

  def add(dq, keys, dkv, arriving):
    """A hop; dkv are gradients of the keys that were here one hop before."""
    dkv = _shift(dkv, axis)
    dq, *here = kernels.part_grad(dq, queries, keys, how)
    dq, here, arriving, dkv = jax.lax.optimization_barrier(
      (dq, here, arriving, dkv)
    )
    return dq, arriving, jax.tree.map(jnp.add, dkv, here)

  def hop(carry, _):
    return add(*carry, arriving=_shift(carry[1], axis)), None

  n, dq = _members(axis), partial.nothing(queries.q).out
  arriving = _shift(keys, axis)
  dq, *dkv = kernels.part_grad(dq, queries, keys, how)
  carry = jax.lax.optimization_barrier((dq, arriving, dkv))
  carry = _repeat(hop, carry, n - 2)
  dq, _, dkv = add(*carry, arriving=None) if n > 1 else carry
  grads = kernels.whole_grads(q, k, v, dq, *_shift(dkv, axis))
  return *grads, *map(kernels.no_gradient, (q_ids, kv_ids))


ring.defvjp(_forward, _backward)


def _members(axis) -> int:
  return 1 if axis is None else jax.lax.axis_size(axis)


def _shift(tree, axis):
  """Each member of the ring sends to the next."""
  n = _members(axis)
  if n == 1:
    return tree
  turn = [(i, (i + 1) % n) for i in range(n)]
  return jax.tree.map(lambda x: jax.lax.ppermute(x, axis, turn), tree)


def _repeat(hop, carry, times):
  return jax.lax.scan(hop, carry, length=times)[0] if times > 0 else carry
