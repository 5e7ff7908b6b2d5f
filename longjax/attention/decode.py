"""Few queries over many keys: each device attends to the keys that it holds.

For decoding with a KV cache sharded over the sequence: the queries are whole
on each device, the partial softmaxes are summed, and no key ever travels.
"""

import functools

import jax
import jax.numpy as jnp

from longjax.attention import blocks, softmax
from longjax.attention.blocks import AttentionOptions
from longjax.attention.kernels import KERNELS, to_blocks
from longjax.mask import attention_mask

FEW = 8  # queries whose logits over all local keys are held at once


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def decode(q, k, v, q_ids, kv_ids, axis, options: AttentionOptions):
  """Attention of replicated queries over sharded keys.

  Args:
    q: [batch, seq, heads, dim], the same on all devices of the axis.
    k, v: [batch, local kv seq, kv_heads, dim].
    q_ids, kv_ids: Ids of [batch, seq] and [batch, local kv seq].
    axis: name of the mesh axis that shards the keys; None is no mesh.
    options: kernel, block and window.

  Returns:
    [batch, seq, heads, dim] in q's dtype, the same on all devices.
  """
  return _forward(q, k, v, q_ids, kv_ids, axis, options)[0]


def _forward(q, k, v, q_ids, kv_ids, axis, options):
  saved = (q, k, v, q_ids, kv_ids)
  q, q_ids = _varying((q, q_ids), axis)
  if q.shape[1] <= FEW:
    mask = attention_mask(q_ids, kv_ids, options.window)
    state = _attend_at_once(q, k, v, mask, options.scale)
  else:
    queries, keys = to_blocks(q, k, v, q_ids, kv_ids, options)
    kernel = KERNELS[options.kernel]
    state = kernel.init_state(queries, q, k, q_ids, kv_ids, options)
    state = kernel.attend_block(state, queries, keys, options)
  state = state if axis is None else softmax.merge(state, axis)
  out, lse = softmax.finalize(state, q)
  out = out.astype(q.dtype)
  return out, (*saved, out, lse)


def _backward(axis, options, saved, dout):
  if options.kernel == 'interpret' and axis is not None:
    # Without check_vma JAX would divide dk and dv by the size of the axis.
    raise NotImplementedError(
      'decode has no gradient over a mesh with the interpreted kernel; use '
      'kernel=None'
    )
  q, k, v, q_ids, kv_ids, out, lse = saved
  local_q, local_q_ids, *rest = _varying((q, q_ids, out, lse, dout), axis)
  queries, keys = to_blocks(local_q, k, v, local_q_ids, kv_ids, options)
  queries = blocks.with_residuals(queries, *rest)
  dq = softmax.init(queries.q).acc
  grads = KERNELS[options.kernel].attend_block_grad(dq, queries, keys, options)
  dq, dk, dv = blocks.grads_from_blocks(local_q, k, v, grads, options)
  dq = dq if axis is None else jax.lax.psum(dq, axis)
  return dq, dk, dv, *map(blocks.no_gradient, (q_ids, kv_ids))


decode.defvjp(_forward, _backward)


def _attend_at_once(q, k, v, mask, scale) -> softmax.SoftmaxState:
  """The softmax over all these keys, read as they lie and not in blocks.

  A token decodes as fast as memory is read: blocks would be copies.

  Args:
    q, k, v: as of `decode`.
    mask: [batch, seq, local kv seq].
    scale: of AttentionOptions.
  """
  (rows,) = blocks.block_queries(q, k.shape[2], q.shape[1])
  mask = jnp.tile(mask, (1, q.shape[2] // k.shape[2], 1))[:, None]
  dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  k, v = (x.swapaxes(1, 2) for x in (k, v))  # as caches have them: no copy
  logits = dot('bkrh,bksh->bkrs', rows, k) * scale
  logits = jnp.where(mask, logits, -jnp.inf)
  largest = jnp.maximum(logits.max(-1, keepdims=True), softmax.FLOOR)
  p = jnp.exp2(logits - largest)
  out = dot('bkrs,bksh->bkrh', p.astype(v.dtype), v)
  state = out, largest, p.sum(-1, keepdims=True)
  return softmax.state_of(*(x.swapaxes(2, 3)[None] for x in state))


def _varying(tree, axis):
  """Each device's copy of what all have."""
  if axis is None:
    return tree
  return jax.tree.map(lambda x: jax.lax.pcast(x, axis, to='varying'), tree)
