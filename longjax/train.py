"""Training, from a config to a REPORT.md: one loop that reads as a story."""

import contextlib
import dataclasses
import functools
import json
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
  attention,
  checkpoint,
  cli,
  evals,
  flops,
  llama,
  metrics,
  optim,
  provenance,
  sharding,
  topology,
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
  lead: bool  # this process writes and speaks for all
  log: Callable  # called with lines for a person


def main(config, workdir, log=print) -> int:
  """Trains a config, from the newest checkpoint in workdir if there is one.

  Returns:
    The exit code: 0 done, 75 preempted.

  Raises:
    InputError: before anything is trained or overwritten.
  """
  model = check(config)
  mesh = sharding.make_mesh(config.mesh.data, config.mesh.seq)
  lead = jax.process_index() == 0
  log = log if lead else lambda _: None
  run = Run(config, model, mesh, pathlib.Path(workdir), lead, log)

  source = weights_file(run)
  tokenizer = prepare.find_tokenizer(config, log)
  data = training_data(run, tokenizer)
  evaluate = evaluation(run, tokenizer)
  log(describe(run))
  if rings := topology.describe(mesh):
    log(rings)
  log(data.summary(config.train.steps))

  step_fn, abstract = build(config, model, mesh)
  checkpoints = checkpoint.Checkpoints(
    run.workdir / 'checkpoints', config.checkpoint.keep, log
  )
  about = identity(run, tokenizer, data)
  state, released = restored(run, checkpoints, abstract, about), None
  if state is None:
    state, released = fresh(run, abstract, source)
  start = int(state['step'])
  if lead:
    provenance.write(run.workdir, config, tokenizer)

  with contextlib.closing(checkpoints), on_sigterm() as terminated:
    if start == 0 and released and released.rope != model.rope:
      as_released = evals.compute_as(released, model)
      evaluate('as released', state['params'], as_released)
    if start == 0 and not terminated:
      evaluate('recipe, untrained', state['params'], model.at_rest())
    if not terminated:
      save = functools.partial(checkpoints.save, about=about)
      state = loop(run, data, step_fn, state, save, terminated)
  if int(state['step']) < config.train.steps:
    log(f'SIGTERM after step {int(state["step"])}: run the same command again')
    return PREEMPTED

  last = f'recipe, {config.train.steps} steps'
  evaluate(
    last, state['params'], model.at_rest(), again=start < config.train.steps
  )
  if lead:
    log(f'wrote {report.write(run.workdir, config)}')
  return 0


def loop(run: Run, data, step_fn, state, save, terminated):
  """The state after the last step, or after the one in which we were asked
  to end. Either way it was saved."""
  config, start, steps = run.config, int(state['step']), run.config.train.steps
  if start == steps:
    return state
  batches, skipped = data.iterate(start), 0
  first = sharding.put(data.batch(start), run.mesh)
  step_fn = compile_step(step_fn, state, first, run.log)
  with contextlib.closing(writer(run, start)) as metric:
    for step in range(start + 1, steps + 1):
      began = time.monotonic()
      batch = next(batches)
      state, values = step_fn(state, sharding.put(batch, run.mesh))
      line = {k: float(v) for k, v in jax.device_get(values).items()}
      seconds = time.monotonic() - began
      line |= utilization(run, batch, seconds)
      metric.step(step, batch.tokens.size, seconds, line)
      skipped = skipped + 1 if line['skipped'] else 0
      if skipped > config.optim.max_skipped:
        raise InputError(
          f'steps {step - skipped + 1} to {step}: loss or gradient not finite; '
          'nothing of them was kept. Look at their batches, or lower '
          '--config.optim.learning_rate'
        )
      last = step == steps or bool(terminated)
      if last or step % config.checkpoint.every_steps == 0:
        save(state)
      if last:
        break
  return state


def writer(run: Run, start: int):
  """Where the lines of the steps go: on one process, to the run directory."""
  if run.lead:
    return metrics.Metrics(run.workdir, start, run.config.train.steps, run.log)
  return metrics.Silent()


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
    return llama.Llama(**fields)
  except (ValueError, TypeError, ArithmeticError) as error:
    raise InputError(f'config.model: {error}') from None


# Smallest value that a key may have.
LEAST = {
  'seed': 0,
  'mesh.data': 1,
  'mesh.seq': 1,
  'train.steps': 1,
  'train.batch': 1,
  'train.micro_batches': 1,
  'train.seq_len': 1,
  'train.loss_chunk': 1,
  'optim.learning_rate': 0,
  'optim.warmup_steps': 0,
  'optim.warmup_from': 0,
  'optim.min_ratio': 0,
  'optim.weight_decay': 0,
  'optim.clip': 1e-9,
  'optim.max_skipped': 0,
  'checkpoint.every_steps': 1,
  'checkpoint.keep': 1,
  'eval.documents': 1,
  'eval.length': 0,
  'eval.window': 0,
}


def check(config) -> llama.Llama:
  """Refuses what cannot work, before devices are touched; the model."""
  model, train, mesh = llama_config(config), config.train, config.mesh
  flat = cli.keys(config)
  for key, least in LEAST.items():
    if flat[key] < least:
      raise InputError(f'config.{key} must be at least {least}, is {flat[key]}')
  if train.batch % (train.micro_batches * mesh.data):
    raise InputError(
      f'config.train.batch {train.batch} is not a multiple of '
      f'train.micro_batches x mesh.data = {train.micro_batches * mesh.data}'
    )
  for length in (train.seq_len, config.eval.length):
    layout.check(config.data.layout, length, mesh.seq)
  if config.optim.schedule not in optim.SCHEDULES:
    raise InputError(
      f'config.optim.schedule {config.optim.schedule!r} is none of '
      f'{", ".join(optim.SCHEDULES)}'
    )
  if not all(0 <= depth <= 1 for depth in config.eval.passkey_depths):
    raise InputError(
      'config.eval.passkey_depths are shares from 0 to 1, got '
      f'{config.eval.passkey_depths}'
    )
  if mesh.seq > 1 and model.attention == 'blockwise':
    raise InputError(
      f'config.model.attention blockwise needs whole sequences, but mesh.seq '
      f'is {mesh.seq}; use ring or gather'
    )
  try:
    model.memory.check(train.batch // train.micro_batches)
  except ValueError as error:
    raise InputError(f'config.model.memory: {error}') from None
  if model.memory.rows and train.micro_batches > 1:
    raise InputError(
      'config.model.memory.rows are the rows of a batch one after the other, '
      'which train.micro_batches does not keep together: use 1'
    )
  heads = model.heads, model.kv_heads
  try:
    attention.exchange(model.attention, *heads, mesh.seq, model.ulysses)
  except ValueError as error:
    raise InputError(f'config.mesh.seq {mesh.seq}: {error}') from None
  return model


def weights_file(run: Run):
  """Where the weights are, fetched if need be; None is random weights."""
  if not run.config.weights:
    raise InputError(
      "config.weights is empty: name a checkpoint or a file, or 'random'"
    )
  if run.config.weights == 'random':
    return None
  return packages.locate(run.config.weights, run.log)


def identity(run: Run, tokenizer, data) -> dict:
  """What a checkpoint says of its run; a resumed run must say the same."""
  config = run.config
  return dict(
    # As it comes back from a file: lists for tuples.
    model=json.loads(json.dumps(dataclasses.asdict(run.model))),
    tokenizer=tokenizer.digest,
    data=data.digest,
    seed=config.seed,
    batch=config.train.batch,
    seq_len=config.train.seq_len,
  )


def restored(run: Run, checkpoints, abstract, about):
  """The state to go on from, or None; refuses that of another run."""
  found = checkpoints.restore(abstract)
  if found is None:
    return None
  state, before = found
  for key, now in about.items():
    if before.get(key) != now:
      raise InputError(
        f'{run.workdir} was trained with another {key}: {before.get(key)}, '
        f'now {now}; use another --workdir'
      )
  if int(state['step']) > run.config.train.steps:
    raise InputError(
      f'{run.workdir} is at step {int(state["step"])}, past config.train.steps '
      f'{run.config.train.steps}; use another --workdir'
    )
  run.log(f'resumed from step {int(state["step"])}')
  return state


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
    block=run.model.block,
  )


def evaluation(run: Run, tokenizer):
  """evaluate(name, params, model): what the report shows, once per name."""
  config, held_out = run.config, None
  if config.eval.length:
    held_out = prepare.held_out(config, tokenizer, run.log)
  evals.check(config, held_out, tokenizer)

  def evaluate(name, params, model, again=False):
    if not (config.eval.length or config.eval.passkey_lengths):
      return
    if report.has(run.workdir, name, config) and not again:
      return
    run.log(f'evaluating: {name}')
    began = time.monotonic()
    results = evals.evaluate(
      params, model, run.mesh, config, held_out, tokenizer, run.log
    )
    if run.lead:
      report.keep(run.workdir, name, config, results)
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
  param_shardings = sharding.params(params, mesh)
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
    return optim.update(config.optim, config.train.steps, state, grads, loss)

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

  # The sums live where the parameters do.
  zeros = jax.lax.with_sharding_constraint(
    jax.tree.map(jnp.zeros_like, params), sharding.params(params, mesh)
  )
  start = (jnp.zeros(()), zeros)
  return jax.lax.scan(add, start, Batch(*map(split, batch)))[0]


def fresh(run: Run, abstract, source):
  """(state at step 0, the model config of the weights or None)."""
  config, model = run.config, run.model
  shardings = jax.tree.map(lambda x: x.sharding, abstract)
  released = None
  if source:
    run.log(f'importing {source}')

    def place(found):
      for field in llama.ARCHITECTURE:
        mine, theirs = getattr(model, field), getattr(found, field)
        if mine != theirs:
          raise InputError(
            f'config.model.{field} is {mine}, but that of {source} is {theirs}'
          )
      return shardings['params']

    params, released = weights.load(source, dtype=model.dtype, place=place)
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
  chip = flops.chip(run.mesh.devices.flat[0].device_kind)
  if chip is None:
    return dict(mfu=None)
  squares = flops.squared_lengths(batch.segments)
  done = flops.train_step(run.model, batch.tokens.size, squares)
  return dict(mfu=done / (seconds * chip.peak * run.mesh.devices.size))


@contextlib.contextmanager
def on_sigterm():
  """A list that is empty until the process is asked to end."""
  asked, before = [], None
  with contextlib.suppress(ValueError):  # not the main thread: not our signal
    before = signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
  yield asked
  if before is not None:
    signal.signal(signal.SIGTERM, before)
