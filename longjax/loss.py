"""Chunked cross-entropy: [batch, seq, vocab] never exists.

ProLong does the same in blocks of 2,048 tokens (arXiv:2410.02660, appendix).
"""

import functools

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from longjax import sharding


def nll(x, head, targets, *, chunk, mesh=None):
  """Negative log-likelihood of the targets.

  Args:
    x: [batch, seq, embed] hidden states.
    head: [embed, vocab], in the dtype of the matmul.
    targets: [batch, seq] int32.
    chunk: tokens of a row whose logits exist at once, on each device.
    mesh: shards the rows and 'seq'; None is one device.

  Returns:
    [batch, seq] float32, in nats.
  """
  # float32 outside, cast again inside: over the chunks the gradient of the
  # head adds up in float32. XLA removes the pair of casts.
  head32 = head.astype(jnp.float32)
  local = functools.partial(_local, dtype=head.dtype, chunk=chunk)
  if mesh is None:
    return local(x, head32, jnp.asarray(targets))
  tokens = sharding.batch_spec(mesh, x.shape[0])
  return jax.shard_map(
    local, mesh=mesh, in_specs=(tokens, P(), tokens), out_specs=tokens
  )(x, head32, targets)


def _local(x, head, targets, *, dtype, chunk):
  """Chunk by chunk along the sequence; logits are recomputed in backward."""
  batch, seq, _ = x.shape
  size = min(chunk, seq)
  count = -(-seq // size)

  def split(x):  # [batch, seq, ...] -> [count, batch, size, ...]
    widths = [(0, 0), (0, count * size - seq)] + [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, widths).reshape(batch, count, size, *x.shape[2:])
    return jnp.moveaxis(x, 1, 0)

  @jax.checkpoint
  def one(x, targets):
    logits = jnp.einsum(
      'btd,dv->btv', x, head.astype(dtype), preferred_element_type=jnp.float32
    )
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets)

  losses = jax.lax.map(lambda c: one(*c), (split(x), split(targets)))
  return jnp.moveaxis(losses, 0, 1).reshape(batch, -1)[:, :seq]
