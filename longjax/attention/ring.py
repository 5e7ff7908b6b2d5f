"""Ring Attention, arXiv:2310.01889: keys travel once round the ring.

On n devices the keys, values and their ids hop n - 1 times; each hop adds to a
float32 softmax. The backward pass is written by hand, since a scan under
autodiff would keep every hop: it saves the output and the log-sum-exp and runs
a second ring, in which K and V hop n - 1 times, dK and dV follow one hop later,
and a last hop returns them to the device that owns the keys.

The messages and the kernel of a hop are independent, so they run concurrently.
XLA's scheduler would start to send after the kernel; the `optimization_barrier`
of each hop prevents that.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from longjax.attention import blocks, softmax
from longjax.attention.blocks import AttentionOptions
from longjax.attention.kernels import KERNELS, to_blocks


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def ring(q, k, v, q_ids, kv_ids, axis, options: AttentionOptions):
  """Attention of local queries over the keys of all devices of the ring.

  Args:
    q: [batch, local seq, heads, dim]; k, v: [batch, local seq, kv_heads, dim].
    q_ids, kv_ids: Ids of [batch, local seq].
    axis: name of the mesh axis that shards the sequence; None is no ring.
    options: kernel, block and window.

  Returns:
    [batch, local seq, heads, dim] in q's dtype.
  """
  return _forward(q, k, v, q_ids, kv_ids, axis, options)[0]


def _forward(q, k, v, q_ids, kv_ids, axis, options):
  # Ties the ids to q: else, in a scan over layers, JAX computes every mask
  # once for all layers and keeps them, which is O(seq^2) (jax 0.10, 0.12).
  q, k, v, q_ids, kv_ids = jax.lax.optimization_barrier(
    (q, k, v, q_ids, kv_ids)
  )
  queries, keys = to_blocks(q, k, v, q_ids, kv_ids, options)
  kernel = KERNELS[options.kernel]

  def hop(carry, _):
    state, keys = carry
    arriving = _send_to_next(keys, axis)
    state = kernel.attend_block(state, queries, keys, options)
    return jax.lax.optimization_barrier((state, arriving)), None

  carry = (kernel.init_state(queries, q, k, q_ids, kv_ids, options), keys)
  state, keys = _repeat(hop, carry, _size(axis) - 1)
  state = kernel.attend_block(state, queries, keys, options)
  out, lse = softmax.finalize(state, q)
  out = checkpoint_name(out.astype(q.dtype), 'attn_out')
  lse = checkpoint_name(lse, 'attn_lse')
  return out, (q, k, v, q_ids, kv_ids, out, lse)


def _backward(axis, options, saved, dout):
  q, k, v, q_ids, kv_ids, out, lse = saved
  queries, keys = to_blocks(q, k, v, q_ids, kv_ids, options)
  queries = blocks.with_residuals(queries, out, lse, dout)
  kernel = KERNELS[options.kernel]

  def add(dq, keys, dkv, arriving):
    """A hop; dkv are gradients of the keys that were here one hop before."""
    dkv = _send_to_next(dkv, axis)
    dq, *here = kernel.attend_block_grad(dq, queries, keys, options)
    dq, here, arriving, dkv = jax.lax.optimization_barrier(
      (dq, here, arriving, dkv)
    )
    return dq, arriving, jax.tree.map(jnp.add, dkv, here)

  def hop(carry, _):
    return add(*carry, arriving=_send_to_next(carry[1], axis)), None

  n, dq = _size(axis), softmax.init(queries.q).acc
  arriving = _send_to_next(keys, axis)
  dq, *dkv = kernel.attend_block_grad(dq, queries, keys, options)
  carry = jax.lax.optimization_barrier((dq, arriving, dkv))
  carry = _repeat(hop, carry, n - 2)
  dq, _, dkv = add(*carry, arriving=None) if n > 1 else carry
  grads = dq, *_send_to_next(dkv, axis)
  grads = blocks.grads_from_blocks(q, k, v, grads, options)
  return *grads, *map(blocks.no_gradient, (q_ids, kv_ids))


ring.defvjp(_forward, _backward)


def _size(axis) -> int:
  return 1 if axis is None else jax.lax.axis_size(axis)


def _send_to_next(tree, axis):
  """Each device of the ring sends to the next."""
  n = _size(axis)
  if n == 1:
    return tree
  pairs = [(i, (i + 1) % n) for i in range(n)]
  return jax.tree.map(lambda x: jax.lax.ppermute(x, axis, pairs), tree)


def _repeat(hop, carry, times):
  return jax.lax.scan(hop, carry, length=times)[0] if times > 0 else carry
