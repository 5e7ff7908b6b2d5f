"""Few queries over many keys: each device attends to the keys that it holds.

For decoding with a KV cache sharded over the sequence: the queries are whole
on each device, the partial softmaxes are summed, and no key ever travels.
"""

import functools
import math

import jax
import jax.numpy as jnp

from longjax.attention import blocks, kernels, partial
from longjax.attention.blocks import How
from longjax.mask import attention_mask

FEW = 8  # queries whose logits over all local keys are held at once


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def combine(q, k, v, q_ids, kv_ids, axis, how: How):
  """Attention of queries that all have over keys that each has a part of.

  Args:
    q: [batch, seq, heads, dim], the same on all members of the axis.
    k, v: [batch, local kv seq, kv_heads, dim].
    q_ids, kv_ids: Ids of [batch, seq] and [batch, local kv seq].
    axis: name of the mesh axis that shards the keys; None is no mesh.
    how: kernel, block and window.

  Returns:
    [batch, seq, heads, dim] in q's dtype, the same on all members.
  """
  return _forward(q, k, v, q_ids, kv_ids, axis, how)[0]


def _forward(q, k, v, q_ids, kv_ids, axis, how):
  saved = (q, k, v, q_ids, kv_ids)
  q, q_ids = _local((q, q_ids), axis)
  if q.shape[1] <= FEW:
    acc = _at_once(q, k, v, attention_mask(q_ids, kv_ids, how.window))
  else:
    queries, keys = kernels.cut(q, k, v, q_ids, kv_ids, how)
    acc = kernels.part(partial.nothing(queries.q), queries, keys, how)
  acc = acc if axis is None else partial.merge(acc, axis)
  out, lse = partial.finish(acc, q)
  out = out.astype(q.dtype)
  return out, (*saved, out, lse)


def _backward(axis, how, saved, dout):
  if how.kernel == 'interpret' and axis is not None:
    # Without check_vma JAX would divide dk and dv by the members of the axis.
    raise NotImplementedError(
      'combine has no gradient over a mesh with the interpreted kernel; use '
      'kernel=None'
    )
  q, k, v, q_ids, kv_ids, *back = saved
  local_q, local_q_ids, *back = _local((q, q_ids, *back, dout), axis)
  queries, keys = kernels.cut(local_q, k, v, local_q_ids, kv_ids, how)
  queries = kernels.with_back(queries, *back)
  dq = partial.nothing(queries.q).out
  grads = kernels.part_grad(dq, queries, keys, how)
  dq, dk, dv = kernels.whole_grads(local_q, k, v, *grads)
  dq = dq if axis is None else jax.lax.psum(dq, axis)
  return dq, dk, dv, *map(kernels.no_gradient, (q_ids, kv_ids))


combine.defvjp(_forward, _backward)


def _at_once(q, k, v, seen):
  """The softmax over all these keys, read as they lie and not cut in blocks.

  A token decodes as fast as memory is read: blocks would be copies.

  Args:
    q, k, v: as of `combine`.
    seen: [batch, seq, local kv seq].
  """
  (rows,) = blocks.of_queries(q, k.shape[2], q.shape[1])
  seen = jnp.tile(seen, (1, q.shape[2] // k.shape[2], 1))[:, None]
  dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  k, v = (x.swapaxes(1, 2) for x in (k, v))  # as caches have them: no copy
  logits = dot('bkrh,bksh->bkrs', rows, k)
  logits *= math.log2(math.e) / math.sqrt(q.shape[-1])
  logits = jnp.where(seen, logits, -jnp.inf)
  peak = jnp.maximum(logits.max(-1, keepdims=True), partial.FLOOR)
  p = jnp.exp2(logits - peak)
  out = dot('bkrs,bksh->bkrh', p.astype(v.dtype), v)
  found = out, peak, p.sum(-1, keepdims=True)
  return partial.Partial(*(x.swapaxes(2, 3)[None] for x in found))


def _local(tree, axis):
  """Each member's copy of what all have."""
  if axis is None:
    return tree
  return jax.tree.map(lambda x: jax.lax.pcast(x, axis, to='varying'), tree)
