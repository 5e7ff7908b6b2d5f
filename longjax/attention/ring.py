"""Ring Attention, arXiv:2310.01889: keys travel once round the ring.

On n devices the keys, values and their ids hop n - 1 times; partial softmaxes
are merged in float32. The backward pass is written by hand, since a scan under
autodiff would keep every hop: it saves the output and the log-sum-exp, sends
the keys round again and their gradients with them, one hop further: home.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from longjax.attention import blockwise


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def ring(q, k, v, q_ids, kv_ids, axis, block):
  """Attention of local queries over the keys of all members of the ring.

  Args:
    q: [batch, local seq, heads, dim]; k, v: [batch, local seq, kv_heads, dim].
    q_ids, kv_ids: Ids of [batch, local seq].
    axis: name of the mesh axis that shards the sequence; None is no ring.
    block: queries and keys of a block.

  Returns:
    [batch, local seq, heads, dim] in q's dtype.
  """
  return _forward(q, k, v, q_ids, kv_ids, axis, block)[0]


def _forward(q, k, v, q_ids, kv_ids, axis, block):
  # Ties the ids to q: else, in a scan over layers, JAX computes every mask
  # once for all layers and keeps them, which is O(seq^2) (jax 0.10, 0.12).
  q, k, v, q_ids, kv_ids = jax.lax.optimization_barrier(
    (q, k, v, q_ids, kv_ids)
  )

  def add(acc, kv):
    k, v, kv_ids = kv
    here = blockwise.part(q, k, v, q_ids, kv_ids, block)
    return blockwise.merge(acc, here)

  def hop(carry, _):
    acc, kv = carry
    arriving = _shift(kv, axis)  # on its way while this hop computes
    return (add(acc, kv), arriving), None

  carry = (blockwise.nothing(q), (k, v, kv_ids))
  acc, kv = _repeat(hop, carry, _members(axis) - 1)
  out, lse = blockwise.finish(add(acc, kv), q.dtype)
  out, lse = checkpoint_name(out, 'attn_out'), checkpoint_name(lse, 'attn_lse')
  return out, (q, k, v, q_ids, kv_ids, out, lse)


def _backward(axis, block, saved, dout):
  q, k, v, q_ids, kv_ids, out, lse = saved
  delta = jnp.sum(out.astype(jnp.float32) * dout.astype(jnp.float32), -1)

  def add(dq, kv, dkv):
    k, v, kv_ids = kv
    grads = blockwise.part_grad(q, k, v, q_ids, kv_ids, lse, delta, dout, block)
    return dq + grads[0], (dkv[0] + grads[1], dkv[1] + grads[2])

  def hop(carry, _):
    dq, kv, dkv = carry
    dq, dkv = add(dq, kv, dkv)
    return (dq, *_shift((kv, dkv), axis)), None

  dq, dk, dv = (jnp.zeros_like(x, jnp.float32) for x in (q, k, v))
  carry = (dq, (k, v, kv_ids), (dk, dv))
  dq, kv, dkv = _repeat(hop, carry, _members(axis) - 1)
  dq, dkv = add(dq, kv, dkv)
  dk, dv = _shift(dkv, axis)
  return (
    dq.astype(q.dtype),
    dk.astype(k.dtype),
    dv.astype(v.dtype),
    _no_gradient(q_ids),
    _no_gradient(kv_ids),
  )


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
  return jax.lax.scan(hop, carry, length=times)[0] if times else carry


def _no_gradient(ids):
  """What a custom_vjp must return for integers."""
  return jax.tree.map(lambda x: np.zeros(x.shape, jax.dtypes.float0), ids)
