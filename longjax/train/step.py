"""The program of a train step: loss, gradients, update, and their shapes."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from longjax import llama, longce, lora
from longjax.batch import Batch
from longjax.parallel import sharding
from longjax.train import optimizer


def build(config, model, mesh):
  """The train step and the state it takes, without using any memory.

  Returns:
    step: (state, Batch of jax arrays) -> (state, dict of scalars), jitted.
    abstract: {'params', 'opt', 'guard', 'step'} as ShapeDtypeStructs with
      shardings.
  """
  tx = optimizer.adamw(config.optim, config.train.steps)
  params = abstract_params(config, model)
  param_shardings = sharding.params(params, mesh)
  learning, _ = lora.split(params, config.lora)
  places, _ = lora.split(param_shardings, config.lora)
  replicated = NamedSharding(mesh, P())
  shapes = dict(
    params=params,
    opt=jax.eval_shape(tx.init, learning),
    guard=jax.eval_shape(lambda: optimizer.guard_init(config.optim)),
    step=jax.ShapeDtypeStruct((), jnp.int32),
  )
  shardings = dict(
    params=param_shardings,
    opt=optimizer.shardings(tx, learning, places, mesh),
    guard=jax.tree.map(lambda _: replicated, shapes['guard']),
    step=replicated,
  )
  abstract = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    shardings,
  )

  def step(state, batch):
    loss, grads = gradients(config, state['params'], batch, model, mesh)
    learning, frozen = lora.split(state['params'], config.lora)
    state, values = optimizer.update(
      config.optim, config.train.steps, dict(state, params=learning), grads,
      loss,
    )  # fmt: skip
    return dict(state, params=lora.join(state['params'], frozen)), values

  step = jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated))
  return step, abstract


def abstract_params(config, model):
  """The params of a run as ShapeDtypeStructs, factors of LoRA among them."""
  params = llama.abstract(model)
  init = lambda: lora.init(params, config.lora, jax.random.key(0))
  return params | jax.eval_shape(init)


def abstract_batch(config, mesh) -> Batch:
  """A batch of shapes, placed as `sharding.put` places one."""
  shape = (config.train.batch, config.train.seq_len)
  spec = NamedSharding(mesh, sharding.batch_spec(mesh, shape[0]))

  def array(field):
    dtype = jnp.float32 if field == 'weights' else jnp.int32
    return jax.ShapeDtypeStruct(shape, dtype, sharding=spec)

  return Batch(*(array(field) for field in Batch._fields))


def gradients(config, params, batch, model, mesh):
  """Loss and gradients of sum(weights * nll) / sum(weights) of the batch.

  The batch is computed in train.micro_batches parts; the result is that of
  the whole. LongCE changes weights, not their sum; what LoRA freezes has None
  for a gradient.
  """
  parts, chunk = config.train.micro_batches, config.train.loss_chunk
  total = jnp.maximum(batch.weights.sum(), 1e-9)
  learning, frozen = lora.split(params, config.lora)

  def loss(learning, part):
    params = lora.merged(lora.join(learning, frozen), config.lora.alpha, mesh)
    nll = llama.nll(params, model, part, chunk=chunk, mesh=mesh)
    weights = part.weights
    if config.train.longce.gamma:
      weights *= influence(config, params, part, nll, model, mesh)
    return (weights * nll).sum() / total

  if parts == 1:
    return jax.value_and_grad(loss)(learning, batch)

  def add(so_far, part):
    here = jax.value_and_grad(loss)(learning, part)
    return jax.tree.map(jnp.add, so_far, here), None

  def split(x):  # each part takes rows from every device
    x = x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)
    spec = P(None, *sharding.batch_spec(mesh, x.shape[1]))
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

  # The sums live where the parameters do.
  zeros = jax.lax.with_sharding_constraint(
    jax.tree.map(jnp.zeros_like, learning), sharding.params(learning, mesh)
  )
  start = (jnp.zeros(()), zeros)
  return jax.lax.scan(add, start, Batch(*map(split, batch)))[0]


def influence(config, params, batch, nll, model, mesh):
  """LongCE's weight of each target, see `longce.weights`."""
  params = jax.lax.stop_gradient(params)
  losses = functools.partial(
    llama.nll, params, model.at_rest(), chunk=config.train.loss_chunk, mesh=mesh
  )
  with jax.named_scope('longce'):
    return longce.weights(losses, batch, nll, config.train.longce)
