"""Jobs of one or several processes that train a small model: started, watched,
ended, and what they left. `train_here` does the same in this process."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import commands
import jax
import numpy as np

from configs import tiny
from longjax.data import store, tokenizer
from longjax.parallel import sharding
from longjax.train import loop, metrics

SMALL = {
  'model.layers': 1,
  'model.embed': 32,
  'model.mlp': 64,
  'model.heads': 4,
  'model.kv_heads': 2,
  'model.head_dim': 8,
  'model.block': 16,
  'mesh.data': 1,
  'mesh.seq': 2,
  'train.batch': 4,
  'train.seq_len': 64,
  'train.steps': 20,
  'train.loss_chunk': 32,
  'optim.warmup_steps': 0,
  'optim.spike_sigmas': 0.0,
  'checkpoint.every_steps': 3,
  'eval.length': 0,
}


def make_data(directory):
  """A store of seeded bytes, so that no run depends on files of ours."""
  tokens = tokenizer.load('bytes')
  rng = np.random.default_rng(0)
  ids = rng.integers(0, 256, (40, 300)).astype(np.int32)
  ids[:, 1::2] = ids[:, ::2]  # something to learn
  store.write(
    directory,
    [store.Entry(f'{i}', 'made', row, 300) for i, row in enumerate(ids)],
    vocab=tokens.vocab, tokenizer=tokens.digest, spec=[],
  )  # fmt: skip
  return directory


def changed(data, **changes) -> dict:
  """{key: value} of the config of a job; `a__b=1` changes the key a.b."""
  keys = SMALL | {'data.directory': data}
  return keys | {key.replace('__', '.'): v for key, v in changes.items()}


def arguments(workdir, data, **changes):
  """Of launch/tpu.py; for **changes see `changed`, `config` is another file."""
  config = changes.pop('config', 'configs/tiny.py')
  keys = changed(data, **changes)
  return [
    f'--config={config}', f'--workdir={workdir}',
    *(f'--config.{key}={value}' for key, value in keys.items()),
  ]  # fmt: skip


def train_here(monkeypatch, workdir, data, log=print, **changes) -> int:
  """Trains in this process, on as many devices as the mesh needs."""
  config = tiny.get_config()
  config.update_from_flattened_dict(changed(str(data), **changes))
  make_mesh = sharding.make_mesh
  cache = compilation_cache(data.parent / 'compiled')
  with monkeypatch.context() as patch, cache:
    patch.setattr(
      loop.sharding, 'make_mesh',
      lambda rows, seq: make_mesh(rows, seq, jax.devices()[: rows * seq]),
    )  # fmt: skip
    return loop.main(config, workdir, log)


@contextlib.contextmanager
def compilation_cache(directory):
  """Keeps compiled programs of this process in a directory, unless
  JAX_COMPILATION_CACHE_DIR names one."""
  settings = dict(
    jax_compilation_cache_dir=str(directory),
    jax_persistent_cache_min_compile_time_secs=0.05,
  )
  if os.environ.get('JAX_COMPILATION_CACHE_DIR'):
    settings = {}
  before = {name: getattr(jax.config, name) for name in settings}
  try:
    for name, value in settings.items():
      jax.config.update(name, value)
    yield
  finally:
    for name, value in before.items():
      jax.config.update(name, value)


class Job:
  """Processes that train together; their output is written to files."""

  def __init__(self, workdir, data, processes=1, last=(), **changes):
    """Starts them.

    Args:
      workdir: of the run.
      data: as `make_data` made it.
      processes: how many share the devices.
      last: further arguments of the last process.
      **changes: keys of the config, see `changed`.
    """
    self.logs = workdir.parent / f'{workdir.name}-logs-{time.time_ns()}'
    self.logs.mkdir()
    command = [sys.executable, 'launch/tpu.py']
    command += arguments(workdir, data, **changes)
    shared = dict(
      JAX_COMPILATION_CACHE_DIR=os.environ.get(
        'JAX_COMPILATION_CACHE_DIR', str(data.parent / 'compiled')
      ),
      JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0.05',
    )
    if processes > 1:
      shared |= dict(
        LONGJAX_COORDINATOR=f'127.0.0.1:{free_port()}',
        LONGJAX_PROCESSES=str(processes),
        LONGJAX_HEARTBEAT_SECONDS='10',
      )
    self.processes = []
    for number in range(processes):
      own = shared | dict(LONGJAX_PROCESS=str(number))
      more = last if number == processes - 1 else ()
      with (self.logs / str(number)).open('w') as file:
        self.processes.append(
          subprocess.Popen(
            [*command, *more], cwd=commands.ROOT, env=os.environ | own,
            stdout=file, stderr=subprocess.STDOUT,
          )
        )  # fmt: skip

  def output(self, number=0) -> str:
    return (self.logs / str(number)).read_text()

  def wait_for(self, text, seconds=300):
    """Returns when the first process has printed this."""
    until = time.monotonic() + seconds
    while text not in self.output():
      assert time.monotonic() < until, self.output()
      assert self.processes[0].poll() is None, self.output()
      time.sleep(0.01)

  def wait_for_step(self, step):
    """Returns when this step is done, or the job."""
    while self.processes[0].poll() is None:
      done = re.findall(r'^step (\d+)/', self.output(), re.MULTILINE)
      if done and int(done[-1]) >= step:
        return
      time.sleep(0.005)

  def send(self, number, to=(0,)):
    """A signal to some of the processes."""
    for i in to:
      self.processes[i].send_signal(number)

  def kill(self):
    """SIGKILL to all."""
    self.send(signal.SIGKILL, range(len(self.processes)))
    self.wait()

  def wait(self, seconds=600) -> list[int]:
    """The exit codes."""
    try:
      return [p.wait(seconds) for p in self.processes]
    finally:
      for process in self.processes:
        process.kill()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    for process in self.processes:
      process.kill()
      process.wait()


def finish(workdir, data, processes=1, expected=0, **changes) -> str:
  """Runs a job to its end; the output of the first process."""
  with Job(workdir, data, processes, **changes) as job:
    codes = job.wait()
    outputs = '\n'.join(job.output(i) for i in range(processes))
    assert codes == [expected] * processes, outputs
    return job.output()


def free_port() -> int:
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


def hexes(workdir) -> dict[int, str]:
  """{step: its loss, every bit}; each step once, in order."""
  lines = metrics.read(workdir)
  steps = [line['step'] for line in lines]
  assert steps == sorted(set(steps))
  return {line['step']: line['loss_hex'] for line in lines}


def losses(workdir) -> list[float]:
  return [line['loss'] for line in metrics.read(workdir)]


def metadata(workdir, step) -> dict:
  """What is saved beside the arrays of a checkpoint."""
  path = workdir / 'checkpoints' / str(step) / '_CHECKPOINT_METADATA'
  return json.loads(path.read_text())['custom_metadata']
