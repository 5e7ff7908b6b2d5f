"""What surviving costs, at 135M parameters (SmolLM2's shape, random weights).

  python tests/bench/overheads.py [--seq-len 2048] [--layers 30]

Prints, beside a plain step of the same process (no guard, no metrics, no
save): the step with guard and metrics, what an asynchronous save takes from
the loop, and the time to the first step of a resumed run beside a fresh one.
"""

import argparse
import os
import pathlib
import statistics
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

from configs import common
from longjax import checkpoint, metrics, optim, sharding, train
from longjax.batch import one_document

RUNS = 3


def config_of(seq_len, layers):
  config = common.base('smollm2_135m')
  config.model.update(dtype='float32', layers=layers)
  config.train.update(batch=1, seq_len=seq_len, loss_chunk=256)
  config.optim.update(spike_window=128)
  return config


def steps_of(config, mesh):
  """(plain step, guarded step, the state they take), compiled."""
  model = train.llama_config(config)
  guarded, abstract = train.build(config, model, mesh)
  tx = optim.adamw(config.optim, config.train.steps)

  def plain(state, batch):
    loss, grads = train.gradients(config, state['params'], batch, model, mesh)
    updates, opt = tx.update(grads, state['opt'], state['params'])
    params = optax.apply_updates(state['params'], updates)
    return state | dict(params=params, opt=opt, step=state['step'] + 1), loss

  batch = train.abstract_batch(config, mesh)
  plain = jax.jit(plain, donate_argnums=0).lower(abstract, batch).compile()
  guarded = guarded.lower(abstract, batch).compile()
  init = jax.jit(
    lambda key: dict(
      params=(p := train.llama.init(model, key)),
      opt=tx.init(p),
      guard=optim.guard_init(config.optim),
      step=jnp.int32(0),
    ),
    out_shardings=jax.tree.map(lambda x: x.sharding, abstract),
  )
  return plain, guarded, init(jax.random.key(0))


def timed(action):
  """(result, CPU seconds, seconds)."""
  clocks = lambda: np.array([time.process_time(), time.perf_counter()])
  began = clocks()
  result = jax.block_until_ready(action())
  return result, *(clocks() - began)


def compare_steps(config, mesh, directory):
  """Prints step and guarded step, and a save, in turn."""
  plain, guarded, state = steps_of(config, mesh)
  seq = config.train.seq_len
  tokens = np.random.default_rng(0).integers(0, 49_152, (1, seq)).astype('i4')
  host = one_document(tokens)
  batch = sharding.put(host, mesh)
  writer = metrics.Metrics(directory, 0, 10_000, lambda _: None)
  checkpoints = checkpoint.Checkpoints(directory / 'checkpoints', 1)
  spent = dict(plain=[], guarded=[], told=[], save=[])
  for i in range(RUNS + 1):
    (state, _), *plainly = timed(lambda: plain(state, batch))  # noqa: B023
    (state, values), *guardedly = timed(lambda: guarded(state, batch))  # noqa: B023
    began = time.process_time()
    line = {k: float(v) for k, v in jax.device_get(values).items()}
    writer.step(i + 1, host.tokens.size, 1.0, line)
    told = time.process_time() - began
    began = time.perf_counter()
    checkpoints.save(state, {})
    save = time.perf_counter() - began
    checkpoints._wait()  # so that the next step has the machine to itself
    if i:  # the first compiles the digest and opens files
      for name, value in zip(spent, (plainly, guardedly, told, save)):
        spent[name].append(value)
  least = lambda name, clock: min(x[clock] for x in spent[name])
  base_cpu, base = least('plain', 0), least('plain', 1)
  print(f'plain step             {base_cpu:8.2f} CPU s {base:8.2f} s')
  guard = least('guarded', 0)
  print(f'with guard             {guard:8.2f} CPU s  {guard / base_cpu:.4f}x')
  told = statistics.median(spent['told'])
  print(f'its line of metrics    {told:8.4f} CPU s  {told / base_cpu:.4f}x')
  save = min(spent['save'])
  print(f'a save blocks the loop {save:8.2f} s      {save / base:.4f}x')
  checkpoints.close()
  writer.close()


def first_step(workdir, data, steps):
  """Seconds from the start of the command to its first step."""
  command = [sys.executable, 'launch/tpu.py']
  command += jobs.arguments(workdir, data, train__steps=steps)
  began = time.perf_counter()
  seconds = None
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
    for line in process.stdout or ():
      if line.startswith('step ') and seconds is None:
        seconds = time.perf_counter() - began
  assert process.returncode == 0 and seconds is not None
  return seconds


def compare_starts(directory):
  """Prints fresh start and resume, in turn, programs compiled before."""
  data = jobs.make_data(directory / 'data')
  first_step(directory / 'warm', data, 2)
  fresh, resumed = [], []
  for i in range(RUNS):
    fresh.append(first_step(directory / f'{i}', data, 2))
    resumed.append(first_step(directory / f'{i}', data, 4))
  print(f'fresh, to first step   {min(fresh):8.2f} s')
  ratio = min(resumed) / min(fresh)
  print(f'resumed, to first step {min(resumed):8.2f} s      {ratio:.2f}x')


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--seq-len', type=int, default=2048)
  parser.add_argument('--layers', type=int, default=30)
  asked = parser.parse_args()
  os.environ['JAX_PLATFORMS'] = 'cpu'
  with tempfile.TemporaryDirectory() as directory:
    compare_starts(pathlib.Path(directory))
    mesh = sharding.make_mesh(1, 1, jax.devices()[:1])
    config = config_of(asked.seq_len, asked.layers)
    compare_steps(config, mesh, pathlib.Path(directory))


if __name__ == '__main__':
  main()
