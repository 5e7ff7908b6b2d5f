"""Fully sharded data parallelism by hand (ZeRO-3, arXiv:1910.02054).

`with_gathered_weights` runs the part of a layer that multiplies with weights on
each device's tokens. Weights are gathered in the dtype of the matmul, one mesh
axis at a time. Their gradients take the reverse path: rounded once on each
device to the dtype of the matmul, summed in float32 and scattered, so that each
device receives its shard. One axis at a time, because XLA for TPU turns a
collective over both axes into an all-reduce of the whole array.
"""

import functools

import jax
import jax.numpy as jnp

from longjax.parallel import sharding


def with_gathered_weights(function, activations, weights, *, dtype, mesh=None):
  """function(*activations, *weights) of each device's tokens.

  Args:
    function: of local arrays, without communication.
    activations: arrays [batch, seq, ...].
    weights: float32 parameters, sharded as `sharding.spec`; the function gets
      them gathered, in dtype.
    dtype: of the matmuls.
    mesh: shards batch and sequence; None is one device.

  Returns:
    What the function returns: arrays [batch, seq, ...].
  """
  weights = [w[...] for w in weights]
  if mesh is None:
    return function(*activations, *(w.astype(dtype) for w in weights))
  tokens = sharding.batch_spec(mesh, activations[0].shape[0])
  plans = [_gather_plan(w.shape, tokens, mesh) for w in weights]

  def on_device(activations, shards):
    gathered = [
      _gathered(shard, dtype, plan) for shard, plan in zip(shards, plans)
    ]
    return function(*activations, *gathered)

  specs = [sharding.spec(w.shape, mesh) for w in weights]
  return jax.shard_map(
    on_device, mesh=mesh, in_specs=(tokens, specs), out_specs=tokens
  )(list(activations), weights)


def _gather_plan(shape, tokens, mesh):
  """((mesh axis, dim that it shards or None, does it shard tokens), ...).

  In the order of gathering. `seq`, which shards outermost, comes last and moves
  the most: it is the ring, inside a slice and on the most links.
  """
  dims = sharding.sharded_dims(shape, mesh)
  shards_tokens = lambda axis: axis == 'seq' or tokens[0] is not None
  return tuple((a, dims.get(a), shards_tokens(a)) for a in mesh.axis_names)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gathered(shard, dtype, plan):
  """The weight in dtype; its gradient is the transpose, in float32."""
  return _gather(plan, shard.astype(dtype))


def _gather(plan, shard):
  """Its transpose sums over an axis that shards tokens; over another, on which
  all devices compute the same, it takes each device's share."""
  for axis, dim, sums in plan:
    if dim is not None:
      to = 'varying' if sums else 'invarying'
      shard = jax.lax.all_gather(shard, axis, axis=dim, tiled=True, to=to)
    elif sums:
      shard = jax.lax.pcast(shard, axis, to='varying')
  return shard


def _forward(shard, dtype, plan):
  return _gathered(shard, dtype, plan), shard


def _backward(dtype, plan, shard, gradient):
  del dtype
  transpose = jax.linear_transpose(functools.partial(_gather, plan), shard)
  return transpose(gradient.astype(jnp.float32))


_gathered.defvjp(_forward, _backward)
