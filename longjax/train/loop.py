"""Training, from a config to a REPORT.md: one loop that reads as a story."""

import contextlib
import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from longjax import (
  checkpoint,
  checks,
  evals,
  flops,
  llama,
  lora,
  mirror,
  progress,
  slices,
  storage,
  weights,
)
from longjax.data import downloads, pipeline, prepare
from longjax.errors import InputError
from longjax.evals import report
from longjax.parallel import processes, sharding, topology
from longjax.train import (
  goodput,
  lock,
  metrics,
  optimizer,
  preemption,
  preflight,
  profiler,
  provenance,
  resume,
)
from longjax.train import step as train_step

PREEMPTED = preemption.PREEMPTED  # exit code: run the same command again


class Run(NamedTuple):
  """What all parts of a run need to know."""

  config: Any  # ml_collections.ConfigDict, as configs/common.py describes it
  model: llama.Llama
  mesh: Any  # jax.sharding.Mesh
  workdir: Any  # epath.Path of the run directory, maybe gs://
  lead: bool  # this process writes and speaks for all
  log: Callable  # called with lines for a person
  clock: goodput.Clock  # where the time goes
  asked: preemption.Asked  # what signals ask for

  @property
  def local(self) -> pathlib.Path:
    """Where to write what is not written to a bucket directly."""
    return mirror.local(self.workdir)


class Inputs(NamedTuple):
  """What a run reads, found and checked before anything is written."""

  source: pathlib.Path | None  # of the weights; None is random weights
  tokenizer: Any
  data: pipeline.Pipeline
  evaluate: Callable


def main(config, workdir, log=print) -> int:
  """Trains a config, from the newest checkpoint in workdir if there is one.

  Returns:
    The exit code: 0 done, 75 preempted.

  Raises:
    InputError: before anything is trained or overwritten, or later, when
      training cannot go on: then from the newest checkpoint it can.
    SystemExit: with 75, if preempted while there was nothing to save.
  """
  model, lead = checks.check(config), processes.is_primary()
  log = quietly(log) if lead else lambda _: None
  mesh = sharding.make_mesh(config.mesh.data, config.mesh.seq)
  workdir, clock = storage.directory(workdir), goodput.Clock()
  with preemption.listening() as asked:
    run = Run(config, model, mesh, workdir, lead, log, clock, asked)
    preflight.same_everywhere(config, log)
    preflight.links(mesh)
    found = processes.raise_on_all(lambda: inputs(run))
    preflight.same('tokenizer', found.tokenizer.digest)
    preflight.same('data', found.data.digest)
    log(describe(run))
    if rings := topology.describe(mesh):
      log(rings)
    log(found.data.summary(config.train.steps))
    with locked(run) as before_save, contextlib.closing(clock):
      return train(run, found, before_save)


def quietly(log):
  """As log; a disk that is too full for it must not end training."""

  def said(line):
    with contextlib.suppress(OSError):
      log(line)

  return said


def train(run: Run, found: Inputs, before_save) -> int:
  """From the first look at the checkpoints to the report; the exit code."""
  config, model, steps = run.config, run.model, run.config.train.steps
  evaluate, about = found.evaluate, identity(run, found)
  step_fn, abstract = train_step.build(config, model, run.mesh)
  with contextlib.closing(checkpoints_of(run)) as checkpoints:
    if check_storage(checkpoints, abstract) < steps:
      step_fn = compile_step(run, step_fn, abstract)
    state, tokens = restored(run, checkpoints, abstract, about)
    released = None
    if state is None:
      state, released = fresh(run, abstract, found.source)
    start = int(state['step'])
    if run.lead:
      provenance.write(run.local, config, found.tokenizer)

    if start == 0 and released and released.rope != model.rope:
      as_released = evals.compute_as(released, model)
      evaluate('as released', None, state['params'], as_released)
    if start == 0:
      evaluate('recipe, untrained', 0, state['params'], model.at_rest())

    def save(state, tokens, wait):
      before_save()
      how = checkpoints.save_and_wait if wait else checkpoints.save
      with run.clock.spent('saving'):
        how(state, dict(about, tokens=tokens))

    def between(step, params):
      every = config.eval.every_steps
      if every and step % every == 0 and step < steps:
        evaluate(f'recipe, {step} steps', step, params, model.at_rest())

    with run.asked.unsaved():
      state = loop(
        run, found.data, step_fn, state, tokens, checkpoints, save, between
      )
    if int(state['step']) < steps:
      run.log(
        f'SIGTERM after step {int(state["step"])}, which is saved: run the '
        'same command again'
      )
      return PREEMPTED
    last = f'recipe, {steps} steps'
    evaluate(last, steps, state['params'], model.at_rest(), again=start < steps)
  run.clock.write()
  if run.lead:
    report.write(run.local, config)
    run.log(f'wrote {run.workdir / "REPORT.md"}')
  return 0


def loop(run: Run, data, step_fn, state, tokens, checkpoints, save, between):
  """The state after the last step, or after the one in which we were asked
  to end. Either way it was saved.

  Args:
    run: the run.
    data: batches by step.
    step_fn: compiled.
    state: to start from.
    tokens: that it was trained on.
    checkpoints: which say when a save that failed is to be tried again.
    save: (state, tokens, wait): saves, in the background or not.
    between: (step, params): what is done after a step, if anything.
  """
  config, start, steps = run.config, int(state['step']), run.config.train.steps
  if start == steps:
    return state
  skipped = int(state['guard']['skipped'])  # in a row
  batches = placed_batches(run, data, start)
  with (
    contextlib.closing(writer(run, start, tokens)) as metric,
    contextlib.closing(tracer(run)) as trace,
  ):
    run.clock.lose(metric.dropped_seconds)
    batch, placed = next(batches)
    for step in range(start + 1, steps + 1):
      trace.before(step)
      if step in config.data.skip_steps:
        run.log(f'step {step}: in data.skip_steps, its batch is passed over')
        state = dict(state, step=state['step'] + 1)
        batch, placed = next(batches)
      else:
        began = time.monotonic()
        state, values = step_fn(state, placed)
        (after, placed), waited = while_computing(batches, values)
        line = {k: float(v) for k, v in jax.device_get(values).items()}
        seconds = time.monotonic() - began
        line |= usage(run, batch, seconds, waited)
        metric.step(step, batch.tokens, seconds, line)
        batch = after
        skipped = skipped + 1 if line['skipped'] else 0
        if skipped > config.optim.max_skipped:
          raise InputError(too_many_skipped(step, skipped, checkpoints))
      trace.after(step)
      checkpoints.look()
      last = processes.any_process(run.asked.end, run.mesh) or step == steps
      due = step % config.checkpoint.every_steps == 0
      if last or due or step == checkpoints.retry_step:
        save(state, metric.tokens, wait=last)
      if last:
        break
      between(step, state['params'])
  return state


def placed_batches(run: Run, data, start: int):
  """(pipeline.BatchPlan, its Batch on the devices) from step `start` on."""
  shape = (run.config.train.batch, run.config.train.seq_len)
  for step, parts in data.iterate(
    start, sharding.local_slices(shape, run.mesh)
  ):
    yield step, sharding.make_global(parts, shape, run.mesh)


def while_computing(batches, values):
  """(the next of batches, seconds that the devices waited for it)."""
  began = time.monotonic()
  batch = next(batches)
  waited = values['loss'].is_ready()  # they were done first
  return batch, (time.monotonic() - began) * waited


def usage(run: Run, batch, seconds, waited) -> dict:
  """What a step took of chips and time; adds it to the clock."""
  run.clock.add('training', seconds - waited)
  run.clock.add('waiting for data', waited)
  line = utilization(run, batch, seconds)
  return line | dict(data_seconds=waited, goodput=run.clock.goodput())


def too_many_skipped(step, skipped, checkpoints) -> str:
  """Names the steps, which are the ids of their batches."""
  bad = tuple(range(step - skipped + 1, step + 1))
  newest = next(iter(checkpoint.steps(checkpoints.directory)), 0)
  return (
    f'steps {bad[0]} to {step}: loss or gradient not finite, or a spike; '
    f'nothing of them was kept. Step {newest} is saved; go on from there '
    f"without their batches, --config.data.skip_steps='{bad}', or lower "
    '--config.optim.learning_rate'
  )


def writer(run: Run, start: int, tokens: int):
  """Where the lines of the steps go: on one process, to the run directory."""
  if not run.lead:
    return metrics.Silent(tokens)
  steps = run.config.train.steps
  return metrics.Metrics(run.local, start, steps, run.log, tokens)


def tracer(run: Run) -> profiler.Profiler:
  """Traces the steps of train.profile_steps, or when asked."""
  return profiler.Profiler(
    run.local / 'profile', run.config.train.profile_steps, run.asked, run.log
  )


@contextlib.contextmanager
def locked(run: Run):
  """The run directory is ours; yields what to do before a save: a check that
  it still is, and a copy to the bucket, if it is in one."""
  taken = processes.raise_on_all(
    lambda: lock.Lock(run.workdir, run.log) if run.lead else None
  )
  if taken is None:
    yield lambda: None
    return
  with (
    contextlib.closing(taken),
    mirror.following(run.workdir, run.log) as push,
  ):
    run.clock.keep(run.local)
    yield lambda: (taken.check(), push())


def checkpoints_of(run: Run) -> checkpoint.Checkpoints:
  """As the section `checkpoint` of the config says."""
  ask = run.config.checkpoint
  # Why a save failed only the process knows where it did.
  log = run.log if run.lead else quietly(print)
  return checkpoint.Checkpoints(
    run.workdir / 'checkpoints', ask.keep, log,
    keep_every=ask.keep_every_steps, max_failed=ask.max_failed,
  )  # fmt: skip


def check_storage(checkpoints, abstract) -> int:
  """The newest step that is saved, or 0; refuses where nothing can be."""
  saved = processes.broadcast_from_primary(
    checkpoint.steps(checkpoints.directory)
  )
  # A new one is whole before the oldest of those kept is deleted.
  count = max(checkpoints.keep + 1 - len(saved), 1)
  processes.raise_on_all(
    lambda: preflight.storage(checkpoints.directory, abstract, count)
  )
  return max(saved, default=0)


def compile_step(run: Run, step_fn, abstract):
  """The compiled step; says how long it took and what it needs."""
  run.log('compiling the train step ...')
  began = time.monotonic()
  with run.clock.spent('compiling'):
    batch = train_step.abstract_batch(run.config, run.mesh)
    kind = run.mesh.devices.flat[0].device_kind
    compiled = preflight.compiled(step_fn.lower(abstract, batch), kind)
  seconds, memory = time.monotonic() - began, compiled.memory_analysis()
  run.log(
    f'compiled in {progress.duration(seconds)}: state '
    f'{memory.argument_size_in_bytes / 2**30:.2f} GiB and temporaries '
    f'{memory.temp_size_in_bytes / 2**30:.2f} GiB a device'
  )
  return compiled


def inputs(run: Run) -> Inputs:
  """Finds and checks what the run reads; no device is used."""
  source = weights_file(run)
  tokenizer = prepare.find_tokenizer(run.config, run.log)
  data = training_data(run, tokenizer)
  return Inputs(source, tokenizer, data, evaluation(run, tokenizer))


def weights_file(run: Run):
  """Where the weights are, fetched if need be; None is random weights."""
  if not run.config.weights:
    raise InputError(
      "config.weights is empty: name a checkpoint or a file, or 'random'"
    )
  if run.config.weights == 'random':
    return None
  found = downloads.locate(run.config.weights, run.log)
  refuse_other_model(run.model, found)  # before a tokenizer is sought
  return found


def refuse_other_model(model: llama.Llama, source):
  """InputError if weights are of another architecture than the config."""
  theirs = weights.config(source)
  other = [
    f'{field} {getattr(model, field)} (there {getattr(theirs, field)})'
    for field in llama.ARCHITECTURE
    if getattr(model, field) != getattr(theirs, field)
  ]
  if other:
    raise InputError(
      f'config.model is another than that of {source}: {", ".join(other)}; '
      'change these keys, as --config.model.KEY=VALUE'
    )


def identity(run: Run, found: Inputs) -> dict:
  """What a checkpoint says of its run, small and readable."""
  return dict(
    # As they come back from a file: lists for tuples.
    config=json.loads(json.dumps(run.config.to_dict())),
    model=json.loads(json.dumps(dataclasses.asdict(run.model))),
    tokenizer=found.tokenizer.digest,
    data=found.data.digest,
    versions=provenance.versions(),
    commit=provenance.commit(),
    mesh=dict(run.mesh.shape),
    processes=jax.process_count(),
  )


def restored(run: Run, checkpoints, abstract, about):
  """(the state to go on from, its tokens), or (None, 0).

  Refuses that of another run.
  """
  steps = run.config.train.steps

  def check(before):
    resume.check(before['config'], about['config'], run.workdir, run.log)
    for key in ('tokenizer', 'data'):
      if before.get(key) != about[key]:
        raise InputError(
          f'{run.workdir} was trained with another {key}, digest '
          f'{before.get(key)}, now {about[key]}; use another --workdir'
        )
    if before['step'] > steps:
      raise InputError(
        f'{run.workdir} is at step {before["step"]}, past config.train.steps '
        f'{steps}; use another --workdir'
      )

  with run.clock.spent('restoring'):
    found = checkpoints.restore(abstract, check)
  if found is None:
    return None, 0
  state, before = found
  run.log(f'resumed from step {int(state["step"])}')
  return state, before.get('tokens', 0)


def training_data(run: Run, tokenizer) -> pipeline.Pipeline:
  """The batches; refuses a tokenizer larger than the model."""
  config, model = run.config, run.model
  if tokenizer.vocab > model.vocab:
    raise InputError(
      f'the tokenizer has {tokenizer.vocab} ids, but config.model.vocab is '
      f'only {model.vocab}'
    )
  return pipeline.Pipeline(prepare.prepare(config, tokenizer, run.log), config)


def evaluation(run: Run, tokenizer):
  """evaluate(name, step, params, model): what the report shows, once per name,
  and TensorBoard if it is of a step."""
  config, held_out = run.config, None
  if evals.need_documents(evals.names(config.eval)):
    held_out = prepare.held_out(config, tokenizer, run.log)
  evals.check(config, held_out, tokenizer)

  def evaluate(name, step, params, model, again=False):
    if not evals.names(config.eval):
      return
    has = run.lead and report.has(run.local, name, config)
    if processes.broadcast_from_primary(has) and not again:
      return
    run.log(f'evaluating: {name}')
    began = time.monotonic()
    with run.clock.spent('evaluating'):
      results = evals.evaluate(
        whole(run, params), model, run.mesh, config, held_out, tokenizer,
        run.log,
      )  # fmt: skip
    keep(run, name, step, results)
    run.log(f'  done in {progress.duration(time.monotonic() - began)}')

  return evaluate


def whole(run: Run, params):
  """The params that the model reads, see `lora.merged`."""
  if 'lora' not in params:
    return params
  merge = functools.partial(
    lora.merged, alpha=run.config.lora.alpha, mesh=run.mesh
  )
  places = sharding.params(llama.abstract(run.model), run.mesh)
  return jax.jit(merge, out_shardings=places)(params)


def keep(run: Run, name: str, step: int | None, results: dict):
  """Stores an evaluation; a disk that is too full must not end training."""
  if not run.lead:
    return
  try:
    report.keep(run.local, name, run.config, results)
    if step is not None:
      metrics.evaluated(run.local, step, evals.scalars(results))
  except OSError as error:
    run.log(f'WARNING: not all of {name!r} could be kept: {error.strerror}')


def fresh(run: Run, abstract, source):
  """(state at step 0, the model config of the weights or None)."""
  params, released = first_weights(run, source)
  params |= first_factors(run, abstract['params'])
  opt = first_moments(run, abstract['opt'], params, source)
  rest = jax.jit(
    lambda: dict(
      guard=optimizer.guard_init(run.config.optim), step=jnp.int32(0)
    ),
    out_shardings={k: placed(abstract[k]) for k in ('guard', 'step')},
  )()
  return dict(params=params, opt=opt, **rest), released


def placed(abstract):
  """The shardings of a tree of ShapeDtypeStructs."""
  return jax.tree.map(lambda x: x.sharding, abstract)


def first_weights(run: Run, source):
  """(params without factors, the model config of the weights or None)."""
  model = run.model
  places = sharding.params(llama.abstract(model), run.mesh)
  if not source:
    init = jax.jit(functools.partial(llama.init, model), out_shardings=places)
    return init(jax.random.key(run.config.seed)), None
  run.log(f'importing {source}')
  return weights.load(source, dtype=model.dtype, place=lambda _: places)


def first_factors(run: Run, abstract) -> dict:
  """{'lora': factors} of `abstract` params; {} where none are asked for."""
  if not run.config.lora.rank:
    return {}
  init = functools.partial(lora.init, abstract, run.config.lora)
  # Another key than that of random weights.
  key = jax.random.key(run.config.seed + 1)
  places = dict(lora=placed(abstract['lora']))
  return jax.jit(init, out_shardings=places)(key)


def first_moments(run: Run, abstract, params, source):
  """The optimizer state: zeros, or with config.moments that of `source`."""
  config = run.config
  if config.moments:
    run.log(f'moments of {source}, their schedule restarted')
    return optimizer.restart_schedule(checkpoint.load_moments(source, abstract))
  tx = optimizer.adamw(config.optim, config.train.steps)
  learning, _ = lora.split(params, config.lora)
  return jax.jit(tx.init, out_shardings=placed(abstract))(learning)


def describe(run: Run) -> str:
  """The first line of a run: model, attention, devices, tokens a step."""
  size = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  params = train_step.abstract_params(run.config, run.model)
  learning, frozen = lora.split(params, run.config.lora)
  of_them = f', {size(learning):,} of them learn' if size(frozen) else ''
  devices, train = run.mesh.devices, run.config.train
  return (
    f'{run.config.name}: {size(params):,} parameters{of_them}, '
    f'{run.model.attention} attention '
    f'on {devices.size} x {devices.flat[0].device_kind} (data '
    f'{run.mesh.shape["data"]} x seq {run.mesh.shape["seq"]}), '
    f'{train.batch * train.seq_len:,} tokens a step'
  )


def utilization(run: Run, batch, seconds) -> dict:
  """{'mfu': model FLOPs utilization}; None for a chip we do not know."""
  chip = slices.chip(run.mesh.devices.flat[0].device_kind)
  if chip is None:
    return dict(mfu=None)
  shape = run.config.train.batch, run.config.train.seq_len
  seen = flops.seen_by_rows(run.model, *shape)
  frozen = lora.frozen_matmuls(llama.abstract(run.model), run.config.lora)
  done = flops.train_step(
    run.model, batch.tokens, batch.squares(), seen, frozen
  )
  return dict(mfu=done / (seconds * chip.peak * run.mesh.devices.size))
