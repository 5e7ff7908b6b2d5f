"""Training, from a config to a REPORT.md: one loop that reads as a story."""

import dataclasses
import functools
import json
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from importlib import metadata

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from longjax import checkpoint, evals, flops, llama, optim, rope, sharding
from longjax import metrics as metrics_lib
from longjax import weights as weights_lib
from longjax.batch import Batch
from longjax.data import packages, pipeline, prepare
from longjax.errors import InputError
from longjax.evals import report

PREEMPTED = 75  # exit code: run the same command again


def main(config, workdir, log=print) -> int:
  """Trains a config, from the newest checkpoint in workdir if there is one.

  Args:
    config: an ml_collections.ConfigDict, as configs/common.py describes it.
    workdir: the run directory.
    log: called with lines for a person.

  Returns:
    The exit code: 0 done, 75 preempted.

  Raises:
    InputError: before anything is compiled or written.
  """
  workdir = pathlib.Path(workdir)
  model = llama_config(config)
  check(config, model)
  mesh = sharding.make_mesh(config.mesh.data, config.mesh.seq)
  source = packages.locate(config.weights, log) if config.weights else None
  tokens = prepare.find_tokenizer(config, log)
  data = make_pipeline(config, model, tokens, log)
  held_out = None
  if config.eval.length:
    held_out = prepare.held_out(config, tokens, log)
  log(describe(config, model, mesh))
  log(data.summary(config.train.steps))

  step_fn, abstract = build(config, model, mesh)
  checkpoints = checkpoint.Checkpoints(
    workdir / 'checkpoints', config.checkpoint.keep, log
  )
  restored = checkpoints.restore(abstract)
  if restored:
    state = restored[0]
    log(f'resumed from step {int(state["step"])}')
  else:
    state, released = fresh(config, model, mesh, abstract, source, log)
  write_setting(workdir, config, tokens)
  evaluate = functools.partial(
    stage, workdir, config, mesh, held_out, tokens, log
  )
  if not restored:
    if released and released.rope != model.rope:
      as_released = evals.compute_as(released, model)
      evaluate('as released', state['params'], as_released)
    evaluate('recipe, untrained', state['params'], model)

  about = dict(
    model=dataclasses.asdict(model), tokenizer=tokens.digest, name=config.name
  )
  state, code = loop(
    config, model, mesh, data, step_fn, state, checkpoints, about, workdir, log
  )
  checkpoints.close()
  if code:
    return code
  evaluate(f'recipe, {config.train.steps} steps', state['params'], model)
  log(f'wrote {report.write(workdir, config, stages(workdir))}')
  return 0


def loop(
  config, model, mesh, data, step_fn, state, checkpoints, about, workdir, log
):
  """(state, exit code) after the last step, or after SIGTERM."""
  start, steps = int(state['step']), config.train.steps
  metrics = metrics_lib.Metrics(workdir, start, steps, log)
  schedule = optim.schedule(config.optim, steps)
  terminated = on_sigterm()
  skipped = 0
  batches = data.iterate(start)
  if start < steps:
    batch = sharding.put(data.batch(start), mesh)
    step_fn = compile_step(step_fn, state, batch, log)
  began = time.monotonic()
  for step in range(start + 1, steps + 1):
    batch = next(batches)
    state, values = step_fn(state, sharding.put(batch, mesh))
    values = {k: float(v) for k, v in jax.device_get(values).items()}
    seconds, began = time.monotonic() - began, time.monotonic()
    values['lr'] = float(schedule(step - 1))
    values['mfu'] = utilization(model, batch, seconds, mesh)
    metrics.step(step, batch.tokens.size, seconds, values)
    skipped = skipped + 1 if values['skipped'] else 0
    if skipped > config.optim.max_skipped:
      raise InputError(
        f'steps {step - skipped + 1} to {step}: loss or gradient not finite; '
        'nothing of them was kept. Look at their batches, or lower '
        '--config.optim.learning_rate'
      )
    if step % config.checkpoint.every_steps == 0 or step == steps or terminated:
      checkpoints.save(state, about)
    if terminated and step < steps:
      log(f'SIGTERM: saved step {step}; run the same command again')
      return state, PREEMPTED
  metrics.close()
  return state, 0


def compile_step(step_fn, state, batch, log):
  """The compiled step; says how long it took and what it needs."""
  log('compiling the train step ...')
  began = time.monotonic()
  compiled = step_fn.lower(state, batch).compile()
  seconds, memory = time.monotonic() - began, compiled.memory_analysis()
  log(
    f'compiled in {metrics_lib.duration(seconds)}: state '
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
  train, mesh = config.train, config.mesh
  parts = train.micro_batches * mesh.data
  problems = {
    f'train.batch {train.batch} is not a multiple of micro_batches x '
    f'mesh.data = {parts}': train.batch % parts,
    f'train.seq_len {train.seq_len} is not a multiple of mesh.seq '
    f'{mesh.seq}': train.seq_len % mesh.seq,
    f'train.steps must be positive, is {train.steps}': train.steps < 1,
    f'checkpoint.every_steps and keep must be positive, are '
    f'{config.checkpoint.every_steps} and {config.checkpoint.keep}': (
      min(config.checkpoint.every_steps, config.checkpoint.keep) < 1
    ),
    f'optim.schedule {config.optim.schedule!r} is none of '
    f'{", ".join(optim.SCHEDULES)}': (
      config.optim.schedule not in optim.SCHEDULES
    ),
    f'model.attention {model.attention!r} cannot shard the sequence, but '
    f'mesh.seq is {mesh.seq}; use ring or gather': (
      mesh.seq > 1 and model.attention == 'blockwise'
    ),
  }
  for problem, wrong in problems.items():
    if wrong:
      raise InputError(f'config: {problem}')


def make_pipeline(config, model, tokens, log):
  """The training batches; refuses a tokenizer larger than the model."""
  if tokens.vocab > model.vocab:
    raise InputError(
      f'the tokenizer has {tokens.vocab} ids, but the model only '
      f'{model.vocab} (model.vocab)'
    )
  return pipeline.Pipeline(
    prepare.prepare(config, tokens, log),
    config.train.seq_len, config.train.batch, config.seed,
    layout=config.data.layout, ring=config.mesh.seq,
  )  # fmt: skip


def build(config, model, mesh):
  """The train step and the state it takes, without any memory.

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
    shapes, shardings,
  )  # fmt: skip

  def step(state, batch):
    loss, grads = gradients(
      state['params'], batch, model, mesh,
      parts=config.train.micro_batches, chunk=config.train.loss_chunk,
    )  # fmt: skip
    state, values = optim.update(tx, state, grads, loss)
    return state, dict(values, loss=loss)

  step = jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated))
  return step, abstract


def gradients(params, batch, model, mesh, *, parts, chunk):
  """Loss and gradients of sum(weights * nll) / sum(weights) of the batch.

  The batch is computed in `parts`; the result is that of the whole.
  """
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


def fresh(config, model, mesh, abstract, source, log):
  """(state at step 0, the model config of the weights or None)."""
  shardings = jax.tree.map(lambda x: x.sharding, abstract)
  released = None
  if source:
    log(f'importing {source}')
    params, released = weights_lib.load(source, dtype=model.dtype)
    for field in llama.ARCHITECTURE:
      mine, theirs = getattr(model, field), getattr(released, field)
      if mine != theirs:
        raise InputError(
          f'config.model.{field} is {mine}, but that of {source} is {theirs}'
        )
    params = jax.device_put(params, shardings['params'])
  else:
    init = jax.jit(
      functools.partial(llama.init, model), out_shardings=shardings['params']
    )
    params = init(jax.random.key(config.seed))
  tx = optim.adamw(config.optim, config.train.steps)
  opt = jax.jit(tx.init, out_shardings=shardings['opt'])(params)
  step = jax.device_put(jnp.zeros((), jnp.int32), shardings['step'])
  return dict(params=params, opt=opt, step=step), released


def stage(workdir, config, mesh, held_out, tokens, log, name, params, model):
  """Evaluates once; the result stays in workdir/evals/ for the report."""
  if not config.eval.length and not config.eval.passkey_lengths:
    return
  path = workdir / 'evals' / f'{name.replace(" ", "_").replace(",", "")}.json'
  if path.exists():
    return
  log(f'evaluating: {name}')
  began = time.monotonic()
  results = evals.evaluate(params, model, mesh, config, held_out, tokens, log)
  log(f'  done in {metrics_lib.duration(time.monotonic() - began)}')
  path.parent.mkdir(exist_ok=True)
  path.write_text(json.dumps(dict(name=name, **results), indent=1))


def stages(workdir) -> dict:
  """{name: results} of the evaluations of a run, in the order they ran."""
  files = sorted(
    (workdir / 'evals').glob('*.json'), key=lambda p: p.stat().st_mtime_ns
  )
  results = [json.loads(p.read_text()) for p in files]
  return {r.pop('name'): r for r in results}


def describe(config, model, mesh) -> str:
  count = sum(x.size for x in jax.tree.leaves(llama.abstract(model)))
  device = mesh.devices.flat[0]
  return (
    f'{config.name or "run"}: {count:,} parameters, {model.attention} attention'
    f' on {mesh.devices.size} x {device.device_kind} (data '
    f'{mesh.shape["data"]} x seq {mesh.shape["seq"]}), '
    f'{config.train.batch * config.train.seq_len:,} tokens a step'
  )


def utilization(model, batch, seconds, mesh):
  """Model FLOPs utilization, or None for a chip whose peak is not known."""
  peak = flops.PEAK.get(mesh.devices.flat[0].device_kind)
  if peak is None:
    return None
  squares = flops.squared_lengths(batch.segments)
  done = flops.train_step(model, batch.tokens.size, squares)
  return done / (seconds * peak * mesh.devices.size)


def on_sigterm() -> list:
  """A list that is empty until the process is asked to end."""
  asked = []
  try:
    signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
  except ValueError:
    pass  # not the main thread: whoever started it decides
  return asked


def write_setting(workdir, config, tokens):
  """config.json, code.json and tokenizer/: what ran, with which code."""
  workdir.mkdir(parents=True, exist_ok=True)
  tokens.save(workdir / 'tokenizer')
  text = json.dumps(config.to_dict(), indent=1)
  (workdir / 'config.json').write_text(text + '\n')
  code = dict(
    command=shlex.join(['python', *sys.argv]),
    commit=commit(),
    versions={
      p: metadata.version(p)
      for p in ('jax', 'flax', 'optax', 'orbax-checkpoint', 'grain')
    },
  )
  (workdir / 'code.json').write_text(json.dumps(code, indent=1) + '\n')


def commit() -> str:
  """The commit of this checkout, '+' if files differ from it."""
  root = pathlib.Path(__file__).parent

  def git(*arguments):
    return subprocess.run(
      ['git', '-C', str(root), *arguments],
      capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip

  try:
    dirty = git('status', '--porcelain', '--untracked-files=no')
    return git('rev-parse', 'HEAD') + ('+' if dirty else '')
  except (OSError, subprocess.CalledProcessError):
    return 'unknown'
