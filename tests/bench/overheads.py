"""What fault tolerance costs, at 135M parameters (SmolLM2's shape, random).

  python tests/bench/overheads.py [--seq-len 2048] [--layers 30]
      [--part starts | steps] [--latency 50]

starts: the time to the first step, a short one, of a resumed run and of a fresh
one, and where the resumed one spent it (goodput.json); compiled programs are
kept from one start to the next. With --latency the run directory answers as a
bucket does: each open and each read waits so many milliseconds.
steps: beside a plain step of the same process (no guard, no metrics, no save),
the step with guard, its line of metrics, how long an asynchronous save blocks
the loop, and the step that computes while the save is written.

The guard costs less than the difference of two runs of a step. So its update is
also timed beside the plain one, without gradients, as a share of the step.
"""

import argparse
import collections
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import jax
import jax.numpy as jnp
import jobs
import numpy as np
import optax
import slow_store

from configs import common
from longjax import checkpoint, checks, digest, llama
from longjax.batch import one_document
from longjax.data import pipeline
from longjax.parallel import sharding
from longjax.train import goodput, loop, metrics, optimizer, preemption
from longjax.train import step as train_step

RUNS = 2
UPDATES = 10


def config_of(seq_len, layers):
  config = common.base('smollm2_135m')
  config.model.update(dtype='float32', layers=layers)
  config.train.update(batch=1, seq_len=seq_len, loss_chunk=256)
  config.optim.update(spike_window=128)
  return config


def compiled(config, mesh):
  """{name: program} of the steps and of their updates alone, compiled; the
  state they take."""
  model = checks.llama_config(config)
  guarded, abstract = train_step.build(config, model, mesh)
  tx = optimizer.transformation(config.optim, config.train.steps)

  def plain_update(state, grads):
    updates, opt = tx.update(grads, state['opt'], state['params'])
    params = optax.apply_updates(state['params'], updates)
    return state | dict(params=params, opt=opt, step=state['step'] + 1)

  def plain(state, batch):
    loss, grads = train_step.gradients(
      config, state['params'], batch, model, mesh
    )
    return plain_update(state, grads), loss

  def update(state, grads):
    steps = config.train.steps
    loss, weight = jnp.float32(3), jnp.float32(1)
    return optimizer.update(config.optim, steps, state, grads, loss, weight)[0]

  batch, grads = train_step.abstract_batch(config, mesh), abstract['params']
  programs = {
    name: step.lower(abstract, taken).compile()
    for name, step, taken in (
      ('plain', jax.jit(plain, donate_argnums=0), batch),
      ('guarded', guarded, batch),
      ('plain update', jax.jit(plain_update, donate_argnums=0), grads),
      ('guarded update', jax.jit(update, donate_argnums=0), grads),
    )
  }
  init = jax.jit(
    lambda key: dict(
      params=(p := llama.init(model, key)),
      opt=tx.init(p),
      guard=optimizer.guard_init(config.optim),
      step=jnp.int32(0),
    ),
    out_shardings=jax.tree.map(lambda x: x.sharding, abstract),
  )
  return programs, init(jax.random.key(0))


def timed(action):
  """(result, CPU seconds, seconds)."""
  clocks = lambda: np.array([time.process_time(), time.perf_counter()])
  began = clocks()
  result = jax.block_until_ready(action())
  return result, *(clocks() - began)


def compare_steps(config, mesh, directory):
  """Prints what the parts of a step cost, run in turn."""
  programs, state = compiled(config, mesh)
  shape = config.train.batch, config.train.seq_len
  host = one_document(np.random.default_rng(0).integers(0, 49_152, shape))
  batch = sharding.put(host, mesh)
  run = loop.Run(
    config, checks.llama_config(config), mesh, directory,
    lambda _: None, goodput.Clock(), preemption.StopRequest(),
  )  # fmt: skip
  run.clock.attach(directory)
  writer = metrics.Metrics(directory, 0, RUNS, run.log)
  checkpoints = checkpoint.Checkpoints(directory / 'checkpoints', 1)
  digest.of_tree(state)  # compiles
  spent = collections.defaultdict(list)

  def step(name, by):
    nonlocal state
    (state, values), *cost = timed(lambda: programs[by](state, batch))
    spent[name].append(cost)
    return values

  state, _ = programs['plain'](state, batch)  # touches its memory
  for number in range(1, RUNS + 1):
    step('plain step', 'plain')
    values = step('with guard', 'guarded')
    _, *written = timed(lambda: write_line(run, writer, number, values))  # noqa: B023
    _, *saved = timed(lambda: checkpoints.save(state, {}))
    spent['its line of metrics'].append(written)
    spent['a save blocks the loop'].append(saved)
    step('with guard, disk written', 'guarded')
    checkpoints._wait()  # so that the next step has the machine to itself
  checkpoints.close()
  writer.close()
  least = {name: np.min(costs, axis=0) for name, costs in spent.items()}
  for name, cost in least.items():
    show(name, cost, least['plain step'])
  guard = compare_updates(programs, state)
  show('guard in the update', guard, least['plain step'])


def compare_updates(programs, state):
  """[CPU seconds, seconds] that the guarded update takes more."""
  grads = jax.tree.map(jnp.ones_like, state['params'])
  spent = collections.defaultdict(list)
  for _ in range(UPDATES):
    for name in ('plain update', 'guarded update'):
      state, *cost = timed(lambda: programs[name](state, grads))  # noqa: B023
      spent[name].append(cost)
  plain, guarded = (np.min(spent[name], axis=0) for name in spent)
  return guarded - plain


def write_line(run, writer, step, values):
  """Writes the metrics of a step, as the loop does."""
  line = {k: float(v) for k, v in jax.device_get(values).items()}
  tokens = run.config.train.batch * run.config.train.seq_len
  batch = pipeline.BatchPlan(step, [], [], np.arange(0), tokens, np.arange(0))
  line |= loop.usage(run, batch, 1.0, 0.0) | dict(tokens=tokens)
  writer.step(step, tokens, 1.0, line)


def show(name, cost, base):
  print(
    f'{name:25} {cost[0]:8.3f} CPU s {cost[1]:8.3f} s, of a plain step '
    f'{cost[0] / base[0]:8.2%} {cost[1] / base[1]:8.2%}'
  )


def first_step(workdir, data, steps, layers, variables):
  """Seconds from the start of the command to its first step.

  Args:
    workdir, data: directories.
    steps: to train to.
    layers: of the model.
    variables: of the environment.
  """
  shape = common.SIZES['smollm2_135m'] | dict(layers=layers)
  asks = {f'model__{key}': value for key, value in shape.items()}
  asks |= dict(train__steps=steps, train__batch=1, mesh__seq=1)
  command = [sys.executable, 'launch/tpu.py']
  command += jobs.arguments(workdir, data, **asks)
  began = time.perf_counter()
  seconds = None
  with subprocess.Popen(
    command, stdout=subprocess.PIPE, text=True, env=os.environ | variables
  ) as process:
    for line in process.stdout or ():
      if line.startswith('step ') and seconds is None:
        seconds = time.perf_counter() - began
  assert process.returncode == 0 and seconds is not None
  return seconds


def compare_starts(layers, latency, directory):
  """Prints fresh start and resume, in turn, programs compiled before."""
  data = jobs.make_data(directory / 'data')
  fresh, resumed, parts = [], [], []
  variables = (
    slow_store.environment(directory, directory / 'runs', latency)
    if latency else {}
  )  # fmt: skip
  for i in range(RUNS + 1):
    run = directory / 'runs' / f'{i}'
    spent = [first_step(run, data, n, layers, variables) for n in (2, 4)]
    parts = json.loads((run / 'goodput.json').read_text())
    shutil.rmtree(run)
    if i:  # the first compiles
      fresh.append(spent[0])
      resumed.append(spent[1])
  print(f'fresh, to first step   {min(fresh):8.2f} s')
  ratio = min(resumed) / min(fresh)
  print(f'resumed, to first step {min(resumed):8.2f} s      {ratio:.2f}x')
  print(json.dumps(parts, indent=1))


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--seq-len', type=int, default=2048)
  parser.add_argument('--layers', type=int, default=30)
  parser.add_argument('--part', choices=('starts', 'steps'))
  parser.add_argument('--latency', type=float, default=0, help='ms')
  flags = parser.parse_args()
  with tempfile.TemporaryDirectory() as directory:
    if flags.part != 'steps':
      compare_starts(flags.layers, flags.latency, pathlib.Path(directory))
    if flags.part != 'starts':
      sharding.start(1)
      mesh = sharding.make_mesh(1, 1)
      config = config_of(flags.seq_len, flags.layers)
      compare_steps(config, mesh, pathlib.Path(directory))


if __name__ == '__main__':
  main()
