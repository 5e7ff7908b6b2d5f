"""Training, from a config to REPORT.md; `main` and `train` read in order."""

import contextlib
import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from longjax import (
  checkpoint,
  checks,
  flops,
  llama,
  lora,
  mirror,
  progress,
  slices,
  storage,
)
from longjax.errors import PREEMPTED, InputError
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
  run_report,
  watchdog,
)
from longjax.train import state as train_state
from longjax.train import step as train_step
from longjax.train.evaluator import Evaluator
from longjax.train.inputs import Inputs, find_inputs


class Run(NamedTuple):
  """What all parts of a run share."""

  config: Any  # ml_collections.ConfigDict
  model: llama.Llama
  mesh: Any  # jax.sharding.Mesh
  workdir: Any  # epath.Path of the run directory, maybe gs://
  log: Callable  # called with a line; prints on the primary process only
  clock: goodput.Clock
  request: preemption.StopRequest

  @property
  def local(self) -> pathlib.Path:
    """The directory of the files that are not written to a bucket directly."""
    return mirror.local(self.workdir)


def main(config, workdir, log=print, signals=None) -> int:
  """Trains a config, from the newest checkpoint in workdir if there is one.

  Args:
    config: the whole config.
    workdir: the run directory, maybe gs://.
    log: called with a line on the primary process.
    signals: of `preemption.stop_requests`, if the caller handles signals.

  Returns:
    The exit code: 0 done, 75 preempted.

  Raises:
    InputError: before anything is trained or overwritten; or later, where
      training cannot continue but can resume from the newest checkpoint.
    SystemExit: with 75, if preempted while there was nothing to save.
  """
  # 1. Config and devices.
  model = checks.check(config)
  log = without_os_errors(log) if processes.is_primary() else lambda _: None
  mesh = sharding.make_mesh(config.mesh.data, config.mesh.seq)
  workdir = processes.raise_on_all(lambda: storage.directory(workdir))
  clock = goodput.Clock()
  with (
    progress.with_heartbeat(log) as log,
    preemption.stop_requests(signals) as request,
  ):
    run = Run(config, model, mesh, workdir, log, clock, request)
    processes.from_primary(lambda: metrics.check(config))
    preflight.same_everywhere(config)
    preflight.check_collectives(mesh)
    # 2. Inputs: weights, tokenizer, batches, held-out documents.
    inputs = processes.raise_on_all(lambda: find_inputs(run))
    for what, digest in inputs.digests().items():
      processes.require_equal(what, digest)
    describe(run, inputs)
    with lock.hold(run) as directory, contextlib.closing(clock):
      project = config.metrics.wandb if processes.is_primary() else ''
      with metrics.weights_and_biases(project, config, workdir, run.local, log):
        return train(run, inputs, directory)


def train(run: Run, inputs: Inputs, directory: lock.RunDirectory) -> int:
  """Chapters 3 to 6, in a run directory that is locked; the exit code."""
  config, model, steps = run.config, run.model, run.config.train.steps
  # 3. State: a compiled step, and where it starts from.
  step_fn, abstract = train_step.build(config, model, run.mesh)
  with contextlib.closing(open_checkpoints(run)) as checkpoints:
    if check_storage(checkpoints, abstract) < steps:
      step_fn = compile_step(run, step_fn, abstract)
    metadata = run_metadata(run, inputs)
    start = train_state.initial(
      run, checkpoints, abstract, inputs.source, metadata
    )
    processes.from_primary(
      lambda: provenance.write(run.local, config, inputs.tokenizer)
    )
    # 4. Evaluations before training.
    evaluator = Evaluator(run, inputs)
    if start.step == 0:
      evaluator.before_training(start.state['params'], start.released_config)
    # 5. The loop.
    saver = Saver(run, directory, checkpoints, metadata)
    with run.request.deferred():
      state = loop(run, inputs.data, step_fn, start, saver, evaluator)
    if (last := int(state['step'])) < steps:
      run.log(
        f'SIGTERM after step {last}, which is saved: run the same command again'
      )
      return PREEMPTED
    evaluator.after_training(state['params'], again=start.step < steps)
  # 6. The report.
  run.clock.write()
  if processes.is_primary():
    run_report.write(run.local, config)
    run.log(f'wrote {run.workdir / "REPORT.md"}')
  return 0


def loop(run: Run, data, step_fn, start, saver, evaluator):
  """Trains to the last step, or to the one in which SIGTERM came.

  Args:
    run: the run.
    data: batches by step, a pipeline.Pipeline.
    step_fn: (state, Batch) -> (state, scalars), compiled.
    start: train_state.Start.
    saver: Saver.
    evaluator: Evaluator, for the evaluations while training.

  Returns:
    The state after that step; it was saved.
  """
  config, state, steps = run.config, start.state, run.config.train.steps
  if start.step == steps:
    return state
  tokens, skipped = start.tokens, int(state['guard']['skipped'])
  empty, failure = 0, None  # steps without targets; why there is no next batch
  bad = list(range(start.step + 1 - skipped, start.step + 1))  # in a row
  batches = placed_batches(run, data, start.step)
  with (
    open_metrics(run, start.step) as writer,
    contextlib.closing(open_profiler(run)) as trace,
    contextlib.closing(open_watchdog(run)) as watch,
  ):
    batch, placed = next(batches)
    for step in range(start.step + 1, steps + 1):
      trace.before(step)
      if step in config.data.skip_steps:
        run.log(f'step {step}: its batch is skipped (config.data.skip_steps)')
        state = dict(state, step=state['step'] + 1)
        batch, placed = next(batches)
      else:
        began = time.monotonic()
        state, scalars = step_fn(state, placed)
        (next_batch, placed), waited, failure = fetch_next(batches, scalars)
        line = {k: float(v) for k, v in jax.device_get(scalars).items()}
        seconds = time.monotonic() - began
        tokens += batch.tokens
        line |= usage(run, batch, seconds, waited) | dict(tokens=tokens)
        if writer:
          writer.step(step, batch.tokens, seconds, line)
        batch = next_batch
        empty += bool(line['empty'])
        if not line['empty']:
          bad = [*bad, step] if line['skipped'] else []
        if len(bad) > config.optim.max_skipped:
          raise InputError(too_many_skipped(bad, saver))
      trace.after(step)
      ends = run.request.stop or failure is not None
      stop = processes.any_process(ends, run.mesh)
      saver.after_step(state, step, tokens, last=stop or step == steps)
      watch.step_done()
      if stop:
        processes.raise_on_all(functools.partial(raise_failure, failure))
        break
      with watch.paused():
        evaluator.while_training(step, state['params'])
  if empty == steps:  # a resumed run may have learned before
    raise InputError(
      f'steps 1 to {steps} had no target with a nonzero loss weight, so '
      'nothing was learned: in chats only answers have one, and an answer '
      'cut off by config.train.seq_len has none'
    )
  return state


def placed_batches(run: Run, data, start: int):
  """(pipeline.BatchPlan, Batch on the devices) of the steps after `start`."""
  shape = (run.config.train.batch, run.config.train.seq_len)
  local = sharding.local_slices(shape, run.mesh)
  for step, parts in data.iterate(start, local):
    yield step, sharding.make_global(parts, shape, run.mesh)


def fetch_next(batches, scalars):
  """(the next of batches, seconds that the devices waited for it, None), or why
  it could not be read: on this process alone, where a shard is damaged."""
  began, failure = time.monotonic(), None
  batch: Any = (None, None)
  try:
    batch = next(batches)
  except Exception as error:
    failure = error
  waited = scalars['loss'].is_ready()  # the step ended first
  return batch, (time.monotonic() - began) * waited, failure


def raise_failure(failure: Exception | None):
  if failure is not None:
    raise failure


def usage(run: Run, batch, seconds, waited) -> dict:
  """The columns mfu, data_seconds, goodput and memory; counts the step's
  time."""
  run.clock.add('training', seconds - waited)
  run.clock.add('waiting for data', waited)
  return dict(
    mfu=utilization(run, batch, seconds),
    data_seconds=waited,
    goodput=run.clock.goodput(),
    memory=bytes_in_use(run.mesh.local_devices),
  )


def bytes_in_use(devices) -> int | None:
  """Bytes in use on the fullest device; None if devices report none."""
  told = [d.memory_stats() for d in devices]
  return max((x['bytes_in_use'] for x in told if x), default=None)


def utilization(run: Run, batch, seconds) -> float | None:
  """Model FLOPs utilization of a step; None for a chip that is not known."""
  chip = slices.chip(run.mesh.devices.flat[0].device_kind)
  if chip is None:
    return None
  shape = run.config.train.batch, run.config.train.seq_len
  seen = flops.count_memory_pairs(run.model, *shape)
  frozen = lora.frozen_matmuls(llama.abstract(run.model), run.config.lora)
  done = flops.train_step(
    run.model, batch.tokens, batch.squared_lengths(), seen, frozen,
    windowed=batch.squared_lengths(run.model.window),
  )  # fmt: skip
  return done / (seconds * chip.peak * run.mesh.devices.size)


def too_many_skipped(bad: list[int], saver) -> str:
  """Names the steps in a row that were not taken, and the cure."""
  newest = next(iter(checkpoint.steps(saver.checkpoints.directory)), 0)
  return (
    f'steps {bad[0]} to {bad[-1]}: loss or gradient not finite, or a spike; '
    f'none of them changed the weights. Step {newest} is saved; resume from it '
    f"without their batches, --config.data.skip_steps='{tuple(bad)}', or lower "
    '--config.optim.learning_rate'
  )


class Saver(NamedTuple):
  """Saves the state after the steps where it is due."""

  run: Run
  directory: lock.RunDirectory
  checkpoints: checkpoint.Checkpoints
  metadata: dict  # saved beside the arrays

  def after_step(self, state, step: int, tokens: int, last: bool):
    """Saves if this step is the last, due, or the retry of a failed save.

    Args:
      state: after the step.
      step: counted from 1.
      tokens: trained on so far.
      last: wait until it is saved.
    """
    self.checkpoints.poll()
    due = step % self.run.config.checkpoint.every_steps == 0
    if not (last or due or step == self.checkpoints.retry_step):
      return
    processes.raise_on_all(self.directory.before_save)
    save = self.checkpoints.save_and_wait if last else self.checkpoints.save
    with self.run.clock.timed('saving'):
      save(state, dict(self.metadata, tokens=tokens))


def open_checkpoints(run: Run) -> checkpoint.Checkpoints:
  """The checkpoints of the run, by the section `checkpoint` of the config."""
  section = run.config.checkpoint
  # The cause of a failed save is known only to the process where it failed.
  log = run.log if processes.is_primary() else without_os_errors(print)
  return checkpoint.Checkpoints(
    run.workdir / 'checkpoints', section.keep, log,
    keep_every=section.keep_every_steps, max_failed=section.max_failed,
  )  # fmt: skip


def check_storage(checkpoints, abstract) -> int:
  """The newest saved step, or 0; refuses a place that cannot take more."""
  saved = processes.from_primary(
    lambda: checkpoint.steps(checkpoints.directory)
  )
  # A new one is complete before the oldest of those kept is deleted.
  count = max(checkpoints.keep + 1 - len(saved), 1)
  processes.raise_on_all(
    lambda: preflight.storage(checkpoints.directory, abstract, count)
  )
  preflight.shared(checkpoints.directory)
  return max(saved, default=0)


@contextlib.contextmanager
def open_metrics(run: Run, start: int) -> Iterator[metrics.Metrics | None]:
  """The writer of the lines after step `start`; None on other processes."""
  steps, primary = run.config.train.steps, processes.is_primary()
  writer = processes.raise_on_all(
    lambda: primary and metrics.Metrics(run.local, start, steps, run.log)
  )
  if not writer:
    yield None
    return
  run.clock.add('lost to restarts', writer.dropped_seconds)
  with contextlib.closing(writer):
    config = json.dumps(run.config.to_dict(), indent=1)
    writer.text('config', config, start + 1)
    yield writer


def open_profiler(run: Run) -> profiler.Profiler:
  """For the steps of train.profile_steps, and SIGUSR1."""
  steps = run.config.train.profile_steps
  return profiler.Profiler(run.local / 'profile', steps, run.request, run.log)


def open_watchdog(run: Run) -> watchdog.Watchdog:
  """On every process, since any may be the one that still answers."""
  # Every process logs for itself, since the primary may be the one that hangs.
  return watchdog.Watchdog(
    run.config.train.hang_seconds, without_os_errors(print)
  )


def compile_step(run: Run, step_fn, abstract):
  """The compiled step; logs how long it took and what it needs."""
  run.log('compiling the train step ...')
  began = time.monotonic()
  with run.clock.timed('compiling'):
    batch = train_step.abstract_batch(run.config, run.mesh)
    kind = run.mesh.devices.flat[0].device_kind
    compiled = preflight.compiled(step_fn.lower(abstract, batch), kind)
  seconds, memory = time.monotonic() - began, compiled.memory_analysis()
  run.log(
    f'compiled in {progress.duration(seconds)}: state '
    f'{memory.argument_size_in_bytes / 2**30:.2f} GiB and temporaries '
    f'{memory.temp_size_in_bytes / 2**30:.2f} GiB per device'
  )
  return compiled


def run_metadata(run: Run, inputs: Inputs) -> dict:
  """Small JSON that is saved beside each checkpoint."""
  return dict(
    # As they come back from a file: lists for tuples.
    config=json.loads(json.dumps(run.config.to_dict())),
    model=json.loads(json.dumps(dataclasses.asdict(run.model))),
    tokenizer=inputs.tokenizer.digest,
    data=inputs.data.digest,
    versions=provenance.versions(),
    commit=provenance.commit(),
    mesh=dict(run.mesh.shape),
    processes=jax.process_count(),
    **inputs.released,
  )


def describe(run: Run, inputs: Inputs):
  """Logs model, attention, devices, tokens per step; rings; data."""
  size = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  params = train_step.abstract_params(run.config, run.model)
  trainable, frozen = lora.split(params, run.config.lora)
  of_them = f', {size(trainable):,} of them trained' if size(frozen) else ''
  devices, train = run.mesh.devices, run.config.train
  run.log(
    f'{run.config.name}: {size(params):,} parameters{of_them}, '
    f'{run.model.attention} attention '
    f'on {devices.size} x {devices.flat[0].device_kind} (data '
    f'{run.mesh.shape["data"]} x seq {run.mesh.shape["seq"]}), '
    f'{train.batch * train.seq_len:,} tokens per step'
  )
  if rings := topology.describe(run.mesh):
    run.log(rings)
  run.log(inputs.data.summary(train.steps))
  if line := optimizer.unfinished_warmup(run.config.optim, train.steps):
    run.log(line)


def without_os_errors(log):
  """As log; a full disk must not end training."""

  def logged(line):
    with contextlib.suppress(OSError):
      log(line)

  return logged
