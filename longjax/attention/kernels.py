"""The table of attention kernels, and what each of them must have:

  block_sizes(q, k, options)                     -> (t, s) of its blocks
  init_state(queries, q, k, q_ids, kv_ids, options)  -> a SoftmaxState
  attend_block(state, queries, keys, options)    -> the next SoftmaxState
  attend_block_grad(dq, queries, keys, options)  -> dq with these keys, dk, dv

A strategy decides on which device and when queries attend to a block of keys;
a kernel computes it. Results of all kernels agree up to rounding.
"""

import jax.numpy as jnp

from longjax.attention import blocks, blockwise, pallas
from longjax.attention.blocks import AttentionOptions, Keys, Queries
from longjax.mask import Ids

# `interpret` is the Pallas kernel on a CPU, for tests.
KERNELS = dict(blockwise=blockwise, pallas=pallas, interpret=pallas)


def to_blocks(
  q, k, v, q_ids: Ids, kv_ids: Ids, options: AttentionOptions
) -> tuple[Queries, Keys]:
  """q [B, T, N, H], k and v [B, S, K, H] as blocks of the kernel's sizes."""
  kv_heads = k.shape[2]
  t, s = KERNELS[options.kernel].block_sizes(q, k, options)
  queries = Queries(
    blocks.block_queries(q, kv_heads, t), blocks.block_ids(q_ids, t)
  )
  ids = jnp.stack(blocks.block_ids(kv_ids, s), 2)
  return queries, Keys(blocks.block_keys(k, s), blocks.block_keys(v, s), ids)
