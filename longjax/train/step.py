"""The train step: loss, gradients, update, and the shapes of its state."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from longjax import attention, llama, longce, lora
from longjax.batch import Batch
from longjax.parallel import sharding
from longjax.train import optimizer

# What SparseCores do with `train.sparse_core`, and those of TPU 7x always. Else
# the computation waits for it (docs/plan.md).
SPARSE_CORE = (
  'all_gather', '2d_all_gather', '3d_all_gather',
  'reduce_scatter', 'nd_reduce_scatter',
)  # fmt: skip


def build(config, model, mesh):
  """The train step and the shapes of its state; allocates nothing.

  Returns:
    step: (state, Batch of jax arrays) -> (state, dict of scalars), jitted.
    abstract: {'params', 'opt', 'guard', 'step'} as ShapeDtypeStructs with
      shardings.
  """
  tx = optimizer.transformation(config.optim, config.train.steps)
  params = abstract_params(config, model)
  param_shardings = sharding.params(params, mesh)
  trainable, _ = lora.split(params, config.lora)
  trainable_shardings, _ = lora.split(param_shardings, config.lora)
  replicated = NamedSharding(mesh, P())
  shapes = dict(
    params=params,
    opt=jax.eval_shape(tx.init, trainable),
    guard=jax.eval_shape(lambda: optimizer.guard_init(config.optim)),
    step=jax.ShapeDtypeStruct((), jnp.int32),
  )
  shardings = dict(
    params=param_shardings,
    opt=optimizer.shardings(tx, trainable, trainable_shardings, mesh),
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
    trainable, frozen = lora.split(state['params'], config.lora)
    state, values = optimizer.update(
      config.optim, config.train.steps, dict(state, params=trainable), grads,
      loss, batch.weights.sum(),
    )  # fmt: skip
    return dict(state, params=lora.join(state['params'], frozen)), values

  step = jax.jit(
    step, donate_argnums=0, out_shardings=(shardings, replicated),
    compiler_options=compiler_options(config, attention.platform(mesh)[0]),
  )  # fmt: skip
  return step, abstract


def compiler_options(config, platform: str) -> dict[str, str]:
  """Options of the compiler: of a TPU, if its SparseCores are to be used."""
  kinds = SPARSE_CORE if config.train.sparse_core and platform == 'tpu' else ()
  name = 'xla_tpu_enable_sparse_core_collective_offload_'
  return {name + kind: 'true' for kind in kinds}


def abstract_params(config, model):
  """The params of a run as ShapeDtypeStructs, with the factors of LoRA."""
  params = llama.abstract(model)
  init = lambda: lora.init(params, config.lora, jax.random.key(0))
  return params | jax.eval_shape(init)


def abstract_batch(config, mesh) -> Batch:
  """A batch as ShapeDtypeStructs, sharded as `sharding.put` shards one."""
  shape = (config.train.batch, config.train.seq_len)
  spec = NamedSharding(mesh, sharding.batch_spec(mesh, shape[0]))

  def array(field):
    dtype = jnp.float32 if field == 'weights' else jnp.int32
    return jax.ShapeDtypeStruct(shape, dtype, sharding=spec)

  return Batch(*(array(field) for field in Batch._fields))


def gradients(config, params, batch, model, mesh):
  """Loss and gradients of sum(weights * nll) / sum(weights) of a batch.

  LongCE changes the weights, not their sum.

  Args:
    config: of the run; `train` and `lora` are read.
    params: sharded over the mesh.
    batch: Batch of jax arrays [batch, seq].
    model: llama.Llama.
    mesh: the devices.

  Returns:
    (scalar float32, tree as params with None for what LoRA freezes)
  """
  total = jnp.maximum(batch.weights.sum(), 1e-9)
  trainable, frozen = lora.split(params, config.lora)
  chunk = config.train.loss_chunk

  def loss(trainable, part):
    params = lora.merged(lora.join(trainable, frozen), config.lora.alpha, mesh)
    nll = llama.nll(params, model, part, chunk=chunk, mesh=mesh)
    weights = part.weights
    if config.train.longce.gamma:
      weights *= longce_weights(config, params, part, nll, model, mesh)
    return (weights * nll).sum() / total

  loss_and_grads = jax.value_and_grad(loss)
  if config.train.lengths:
    lengths = sorted({*config.train.lengths, config.train.seq_len})
    loss_and_grads = dispatch_by_length(loss_and_grads, lengths, mesh)
  if config.train.micro_batches == 1:
    return loss_and_grads(trainable, batch)
  parts = micro_batches(batch, config.train.micro_batches, mesh)
  # The sums are sharded as the parameters are.
  zeros = jax.lax.with_sharding_constraint(
    jax.tree.map(jnp.zeros_like, trainable), sharding.params(trainable, mesh)
  )

  def add(sums, part):
    return jax.tree.map(jnp.add, sums, loss_and_grads(trainable, part)), None

  return jax.lax.scan(add, (jnp.zeros(()), zeros), parts)[0]


def dispatch_by_length(compute, lengths, mesh):
  """`compute` at the shortest of some lengths that holds a batch.

  All are in one program, of which a step executes a branch for each
  micro-batch. layout.lengthen puts the text first on each device.

  Args:
    compute: (params, Batch) -> any.
    lengths: tokens of a row, rising; the last is that of the batch.
    mesh: the devices.
  """

  def shorter(x, length):
    parts = x.reshape(len(x), mesh.shape['seq'], -1)
    parts = parts[:, :, : length // mesh.shape['seq']]
    spec = NamedSharding(mesh, sharding.batch_spec(mesh, len(x)))
    return jax.lax.with_sharding_constraint(parts.reshape(-1, length), spec)

  def at(length, params, batch):
    return compute(params, Batch(*(shorter(x, length) for x in batch)))

  branches = [functools.partial(at, length) for length in lengths]

  def computed(params, batch):
    ends = jnp.where(batch.segments > 0, batch.index + 1, 0)
    number = jnp.searchsorted(jnp.array(lengths), ends.max())
    return jax.lax.switch(number, branches, params, batch)

  return computed


def micro_batches(batch, count: int, mesh) -> Batch:
  """[batch, seq] to [count, batch / count, seq]; each has rows of every
  device."""

  def split(x):
    x = x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1)
    spec = P(None, *sharding.batch_spec(mesh, x.shape[1]))
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

  return Batch(*map(split, batch))


def longce_weights(config, params, batch, nll, model, mesh):
  """LongCE's weight of each target [batch, seq], see `longce.weights`."""
  params = jax.lax.stop_gradient(params)
  losses = functools.partial(
    llama.nll,
    params,
    model.for_inference(),
    chunk=config.train.loss_chunk,
    mesh=mesh,
  )
  with jax.named_scope('longce'):
    return longce.weights(losses, batch, nll, config.train.longce)
