"""Weights whole where they are used, gradients back where they live.

Fully sharded data parallelism (ZeRO-3, arXiv:1910.02054) by hand: `local` runs
the part of a layer that multiplies with weights on each device's tokens. The
weights are gathered in the dtype of the matmul, one mesh axis at a time, and
their gradients take the same way back: rounded once on each device, to the
dtype of the matmul, they are summed in float32 and each device receives the
share that it keeps. One axis at a time because XLA for TPU turns a collective
over both into an all-reduce of the whole array.
"""

import functools

import jax
import jax.numpy as jnp

from longjax import sharding


def local(function, activations, weights, *, dtype, mesh=None):
  """function(*activations, *weights) of each device's tokens.

  Args:
    function: of local arrays, without communication.
    activations: arrays [batch, seq, ...].
    weights: float32 parameters, cut as `sharding.spec` says; the function gets
      them whole, in dtype.
    dtype: of the matmuls.
    mesh: shards batch and sequence; None is one device.

  Returns:
    What the function returns: arrays [batch, seq, ...].
  """
  weights = [w[...] for w in weights]
  if mesh is None:
    return function(*activations, *(w.astype(dtype) for w in weights))
  tokens = sharding.batch_spec(mesh, activations[0].shape[0])
  ways = [_way(w.shape, tokens, mesh) for w in weights]

  def on_device(activations, shards):
    whole = [_whole(shard, dtype, way) for shard, way in zip(shards, ways)]
    return function(*activations, *whole)

  specs = [sharding.spec(w.shape, mesh) for w in weights]
  return jax.shard_map(
    on_device, mesh=mesh, in_specs=(tokens, specs), out_specs=tokens
  )(list(activations), weights)


def _way(shape, tokens, mesh):
  """((mesh axis, dim that it cuts or None, does it shard tokens), ...).

  In the order of gathering. `seq`, which cuts outermost, comes last and moves
  the most: it is the ring, inside a slice and on the most links.
  """
  dims = sharding.cuts(shape, mesh)
  shards_tokens = lambda axis: axis == 'seq' or tokens[0] is not None
  return tuple((a, dims.get(a), shards_tokens(a)) for a in mesh.axis_names)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _whole(shard, dtype, way):
  """The weight in dtype; its gradient is the transpose, in float32."""
  return _gather(way, shard.astype(dtype))


def _gather(way, shard):
  """Its transpose sums over an axis that shards tokens; over another, on which
  all devices compute the same, it takes each device's share."""
  for axis, dim, sums in way:
    if dim is not None:
      to = 'varying' if sums else 'invarying'
      shard = jax.lax.all_gather(shard, axis, axis=dim, tiled=True, to=to)
    elif sums:
      shard = jax.lax.pcast(shard, axis, to='varying')
  return shard


def _forward(shard, dtype, way):
  return _whole(shard, dtype, way), shard


def _backward(dtype, way, shard, gradient):
  del dtype
  transpose = jax.linear_transpose(functools.partial(_gather, way), shard)
  return transpose(gradient.astype(jnp.float32))


_whole.defvjp(_forward, _backward)
