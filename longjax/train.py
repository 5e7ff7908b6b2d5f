"""Training, from a config to a REPORT.md: one loop that reads as a story."""

import contextlib
import dataclasses
import functools
import pathlib
import signal
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from longjax import (
  checkpoint,
  evals,
  flops,
  llama,
  metrics,
  optim,
  provenance,
  rope,
  sharding,
  weights,
)
from longjax.batch import Batch
from longjax.data import layout, packages, pipeline, prepare
from longjax.errors import InputError
from longjax.evals import report

PREEMPTED = 75  # exit code: run the same command again


class Run(NamedTuple):
  """What all parts of a run need to know."""

  config: Any  # ml_collections.ConfigDict, as configs/common.py describes it
  model: llama.Llama
  mesh: Any  # jax.sharding.Mesh
  workdir: pathlib.Path
  log: Callable  # called with lines for a person


def main(config, workdir, log=print) -> int:
  """Trains a config, from the newest checkpoint in workdir if there is one.

  Returns:
    The exit code: 0 done, 75 preempted.

  Raises:
    InputError: before anything is trained or overwritten.
  """
  model = llama_config(config)
  check(config, model)
  mesh = sharding.make_mesh(config.mesh.data, config.mesh.seq)
  run = Run(config, model, mesh, pathlib.Path(workdir), log)

  random = config.weights == 'random'
  source = None if random else packages.locate(config.weights, log)
  tokenizer = prepare.find_tokenizer(config, log)
  data = training_data(run, tokenizer)
  evaluate = evaluation(run, tokenizer)
  log(describe(run))
  log(data.summary(config.train.steps))

  step_fn, abstract = build(config, model, mesh)
  checkpoints = checkpoint.Checkpoints(
    run.workdir / 'checkpoints', config.checkpoint.keep, log
  )
  state, released = checkpoints.restore(abstract), None
  if state:
    log(f'resumed from step {int(state["step"])}')
  else:
    state, released = fresh(run, abstract, source)
  provenance.write(run.workdir, config, tokenizer)
  if int(state['step']) == 0:
    if released and released.rope != model.rope:
      as_released = evals.compute_as(released, model)
      evaluate('as released', state['params'], as_released)
    evaluate('recipe, untrained', state['params'], model)

  about = dict(
    name=config.name,
    model=dataclasses.asdict(model),
    tokenizer=tokenizer.digest,
    data=data.digest,
  )
  save = functools.partial(checkpoints.save, about=about)
  state, code = loop(run, data, step_fn, state, save)
  checkpoints.close()
  if code:
    return code
  evaluate(f'recipe, {config.train.steps} steps', state['params'], model)
  log(f'wrote {report.write(run.workdir, config)}')
  return 0


def loop(run: Run, data, step_fn, state, save):
  """(state, exit code) after the last step, or after SIGTERM."""
  config, start, steps = run.config, int(state['step']), run.config.train.steps
  writer = metrics.Metrics(run.workdir, start, steps, run.log)
  schedule = optim.schedule(config.optim, steps)
  terminated, skipped = on_sigterm(), 0
  batches = data.iterate(start)
  if start < steps:
    first = sharding.put(data.batch(start), run.mesh)
    step_fn = compile_step(step_fn, state, first, run.log)

  for step in range(start + 1, steps + 1):
    began = time.monotonic()
    batch = next(batches)
    state, values = step_fn(state, sharding.put(batch, run.mesh))
    line = {k: float(v) for k, v in jax.device_get(values).items()}
    seconds = time.monotonic() - began
    line['lr'] = float(jnp.asarray(schedule(step - 1)))
    writer.step(
      step, batch.tokens.size, seconds, line | utilization(run, batch, seconds)
    )
    skipped = skipped + 1 if line['skipped'] else 0
    if skipped > config.optim.max_skipped:
      raise InputError(
        f'steps {step - skipped + 1} to {step}: loss or gradient not finite; '
        'nothing of them was kept. Look at their batches, or lower '
        '--config.optim.learning_rate'
      )
    if step % config.checkpoint.every_steps == 0 or step == steps or terminated:
      save(state)
    if terminated and step < steps:
      run.log(f'SIGTERM: saved step {step}; run the same command again')
      return state, PREEMPTED
  writer.close()
  return state, 0


def compile_step(step_fn, state, batch, log):
  """The compiled step; says how long it took and what it needs."""
  log('compiling the train step ...')
  began = time.monotonic()
  compiled = step_fn.lower(state, batch).compile()
  seconds, memory = time.monotonic() - began, compiled.memory_analysis()
  log(
    f'compiled in {metrics.duration(seconds)}: state '
    f'{memory.argument_size_in_bytes / 2**30:.2f} GiB and temporaries '
    f'{memory.temp_size_in_bytes / 2**30:.2f} GiB a device'
  )
  return compiled


def llama_config(config) -> llama.Llama:
  """The section `model` of a config, or InputError."""
  fields = config.model.to_dict()
  try:
    return llama.Llama(**fields | dict(rope=rope.Rope(**fields['rope'])))
  except ValueError as error:
    raise InputError(f'config.model: {error}') from None


def check(config, model):
  """Refuses what cannot work, before anything is fetched or compiled."""
  train, mesh, saved = config.train, config.mesh, config.checkpoint
  positive = dict(
    train_steps=train.steps,
    train_micro_batches=train.micro_batches,
    train_loss_chunk=train.loss_chunk,
    mesh_data=mesh.data,
    mesh_seq=mesh.seq,
    model_block=model.block,
    checkpoint_every_steps=saved.every_steps,
    checkpoint_keep=saved.keep,
  )
  for name, value in positive.items():
    if value < 1:
      key = name.replace('_', '.', 1)
      raise InputError(f'config.{key} must be at least 1, is {value}')
  parts = train.micro_batches * mesh.data
  if train.batch < 1 or train.batch % parts:
    raise InputError(
      f'config.train.batch {train.batch} is not a multiple of '
      f'train.micro_batches x mesh.data = {parts}'
    )
  for length in (train.seq_len, config.eval.length):
    layout.order(config.data.layout, length, mesh.seq)
  if config.optim.schedule not in optim.SCHEDULES:
    raise InputError(
      f'config.optim.schedule {config.optim.schedule!r} is none of '
      f'{", ".join(optim.SCHEDULES)}'
    )
  if not config.weights:
    raise InputError(
      "config.weights is empty: name a checkpoint or a file, or 'random'"
    )
  if mesh.seq > 1 and model.attention == 'blockwise':
    raise InputError(
      f'config.model.attention blockwise needs whole sequences, but mesh.seq '
      f'is {mesh.seq}; use ring or gather'
    )


def training_data(run: Run, tokenizer) -> pipeline.Pipeline:
  """The batches; refuses a tokenizer larger than the model."""
  config, model = run.config, run.model
  if tokenizer.vocab > model.vocab:
    raise InputError(
      f'the tokenizer has {tokenizer.vocab} ids, but config.model.vocab is '
      f'only {model.vocab}'
    )
  return pipeline.Pipeline(
    prepare.prepare(config, tokenizer, run.log),
    config.train.seq_len,
    config.train.batch,
    config.seed,
    layout=config.data.layout,
    ring=config.mesh.seq,
  )


def evaluation(run: Run, tokenizer):
  """evaluate(name, params, model): once per name; what the report shows."""
  held_out = None
  if run.config.eval.length:
    held_out = prepare.held_out(run.config, tokenizer, run.log)

  def evaluate(name, params, model):
    if report.has(run.workdir, name, run.config) or not evals.asked(run.config):
      return
    run.log(f'evaluating: {name}')
    began = time.monotonic()
    results = evals.evaluate(
      params, model, run.mesh, run.config, held_out, tokenizer, run.log
    )
    report.keep(run.workdir, name, run.config, results)
    run.log(f'  done in {metrics.duration(time.monotonic() - began)}')

  return evaluate


def build(config, model, mesh):
  """The train step and the state it takes, without using any memory.

  Returns:
    step: (state, Batch of jax arrays) -> (state, dict of scalars), jitted.
    abstract: {'params', 'opt', 'step'} as ShapeDtypeStructs with shardings.
  """
  tx = optim.adamw(config.optim, config.train.steps)
  params = llama.abstract(model)
  param_shardings = sharding.params(llama.axes(model), params, mesh)
  replicated = NamedSharding(mesh, P())
  shardings = dict(
    params=param_shardings,
    opt=optim.shardings(tx, params, param_shardings, mesh),
    step=replicated,
  )
  shapes = dict(
    params=params,
    opt=jax.eval_shape(tx.init, params),
    step=jax.ShapeDtypeStruct((), jnp.int32),
  )
  abstract = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    shardings,
  )

  def step(state, batch):
    loss, grads = gradients(config, state['params'], batch, model, mesh)
    state, values = optim.update(tx, state, grads, loss)
    return state, dict(values, loss=loss)

  step = jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated))
  return step, abstract


def gradients(config, params, batch, model, mesh):
  """Loss and gradients of sum(weights * nll) / sum(weights) of the batch.

  The batch is computed in train.micro_batches parts; the result is that of
  the whole.
  """
  parts, chunk = config.train.micro_batches, config.train.loss_chunk
  total = jnp.maximum(batch.weights.sum(), 1e-9)

  def loss(params, part):
    nll = llama.nll(params, model, part, chunk=chunk, mesh=mesh)
    return (part.weights * nll).sum() / total

  if parts == 1:
    return jax.value_and_grad(loss)(params, batch)

  def add(so_far, part):
    here = jax.value_and_grad(loss)(params, part)
    return jax.tree.map(jnp.add, so_far, here), None

  def split(x):  # each part takes rows from every device
    x = x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)
    spec = P(None, *sharding.batch_spec(mesh, x.shape[1]))
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

  zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
  return jax.lax.scan(add, zeros, Batch(*map(split, batch)))[0]


def fresh(run: Run, abstract, source):
  """(state at step 0, the model config of the weights or None)."""
  config, model = run.config, run.model
  shardings = jax.tree.map(lambda x: x.sharding, abstract)
  released = None
  if source:
    run.log(f'importing {source}')
    params, released = weights.load(source, dtype=model.dtype)
    for field in llama.ARCHITECTURE:
      mine, theirs = getattr(model, field), getattr(released, field)
      if mine != theirs:
        raise InputError(
          f'config.model.{field} is {mine}, but that of {source} is {theirs}'
        )
    params = jax.device_put(params, shardings['params'])
  else:
    init = functools.partial(llama.init, model)
    params = jax.jit(init, out_shardings=shardings['params'])(
      jax.random.key(config.seed)
    )
  tx = optim.adamw(config.optim, config.train.steps)
  opt = jax.jit(tx.init, out_shardings=shardings['opt'])(params)
  step = jax.device_put(jnp.zeros((), jnp.int32), shardings['step'])
  return dict(params=params, opt=opt, step=step), released


def describe(run: Run) -> str:
  """The first line of a run: model, attention, devices, tokens a step."""
  count = sum(x.size for x in jax.tree.leaves(llama.abstract(run.model)))
  devices, train = run.mesh.devices, run.config.train
  return (
    f'{run.config.name}: {count:,} parameters, {run.model.attention} attention '
    f'on {devices.size} x {devices.flat[0].device_kind} (data '
    f'{run.mesh.shape["data"]} x seq {run.mesh.shape["seq"]}), '
    f'{train.batch * train.seq_len:,} tokens a step'
  )


def utilization(run: Run, batch, seconds) -> dict:
  """{'mfu': model FLOPs utilization}; None for a chip we do not know."""
  peak = flops.PEAK.get(run.mesh.devices.flat[0].device_kind)
  if peak is None:
    return dict(mfu=None)
  squares = flops.squared_lengths(batch.segments)
  done = flops.train_step(run.model, batch.tokens.size, squares)
  return dict(mfu=done / (seconds * peak * run.mesh.devices.size))


def on_sigterm() -> list:
  """A list that is empty until the process is asked to end."""
  asked = []
  with contextlib.suppress(ValueError):  # not the main thread: not our signal
    signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
  return asked
