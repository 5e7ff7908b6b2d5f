"""The seam behind which kernels live.

  cut(q, k, v, q_ids, kv_ids, how)  -> Queries, Keys
  part(acc, queries, keys, how)     -> acc, a float32 softmax, with these keys
  part_grad(dq, queries, keys, how) -> dq with these keys, their dk and dv

A strategy decides which keys meet which queries and when; a kernel computes
it. All kernels give the same up to rounding.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from longjax.attention import blocks, blockwise, pallas
from longjax.attention.blocks import Back, How, Keys, Queries
from longjax.mask import Ids

KERNELS = dict(
  blockwise=blockwise, pallas=pallas.compiled, interpret=pallas.interpreted
)


def part(acc, queries: Queries, keys: Keys, how: How):
  """Adds keys to a partial.Partial; see blockwise.part."""
  return KERNELS[how.kernel].part(acc, queries, keys, how)


def part_grad(dq, queries: Queries, keys: Keys, how: How):
  """Gradients through some keys; see blockwise.part_grad."""
  return KERNELS[how.kernel].part_grad(dq, queries, keys, how)


def cut(q, k, v, q_ids: Ids, kv_ids: Ids, how: How) -> tuple[Queries, Keys]:
  """q [B, T, N, H], k and v [B, S, K, H] as blocks of the kernel's sizes."""
  group = q.shape[2] // k.shape[2]
  t, s = KERNELS[how.kernel].sizes(q.shape[1], k.shape[1], group, how.block)
  queries = Queries(
    blocks.of_queries(q, k.shape[2], t), blocks.of_ids(q_ids, t)
  )
  ids = jnp.stack(blocks.of_ids(kv_ids, s), 2)
  return queries, Keys(blocks.of_keys(k, s), blocks.of_keys(v, s), ids)


def with_back(queries: Queries, out, lse, dout) -> Queries:
  """The queries with what their gradients need.

  Args:
    queries: as `cut` gives them.
    out, dout: [B, T, N, H]; lse: [B, T, N] float32.
  """
  cut = lambda x: blocks.of_queries(x, queries.q.shape[2], t)
  t = queries.ids.index.shape[-1]
  delta = jnp.sum(out.astype(jnp.float32) * dout.astype(jnp.float32), -1)
  row = lambda x: cut(x)[:, :, :, None]
  back = Back(cut(dout), row(lse * math.log2(math.e)), row(delta))
  return queries._replace(back=back)


def whole_grads(q, k, v, dq, dk, dv):
  """Gradients in blocks as those of q [B, T, N, H], k and v [B, S, K, H]."""
  scale = 1 / math.sqrt(q.shape[-1])
  dq = blocks.to_queries(dq.swapaxes(3, 4), q.shape[2], q.shape[1]) * scale
  dk, dv = (blocks.to_keys(x, k.shape[1]) for x in (dk, dv))
  return dq.astype(q.dtype), (dk * scale).astype(k.dtype), dv.astype(v.dtype)


def no_gradient(ids: Ids):
  """What a custom_vjp must return for integers."""
  return jax.tree.map(lambda x: np.zeros(x.shape, jax.dtypes.float0), ids)
