"""Whether a long run grows: memory, files, threads, disk, seconds of a step.

  python tests/bench/soak.py [--steps 2000] [--generations 500]

A small model trains, saves every 20 steps and evaluates every 4; the process is
looked at every half second. Then another generates from prompts of random
lengths, so many times. Prints for each quantity its first and last value, and
the slope of its second half with a 95 % interval: it grows
where all of that is above 0.
"""

import argparse
import os
import pathlib
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]

import jobs  # noqa: E402

from longjax.train import metrics  # noqa: E402

BLOCKS = 20  # the second half is averaged in; samples beside each other agree
LONGEST = 400  # tokens of a prompt


def held(pid: int) -> dict[str, float]:
  """What a process holds now."""
  status = pathlib.Path(f'/proc/{pid}/status').read_text()
  field = lambda name: float(re.search(rf'{name}:\s+(\d+)', status)[1])
  return {
    'memory, MiB': field('VmRSS') / 1024,
    'open files': len(os.listdir(f'/proc/{pid}/fd')),
    'threads': field('Threads'),
  }


def disk(workdir: pathlib.Path) -> dict[str, float]:
  """MiB of a run's checkpoints."""
  files = [p for p in workdir.glob('checkpoints/**/*') if p.is_file()]
  return {'checkpoints, MiB': sum(p.stat().st_size for p in files) / 2**20}


def slope(values) -> tuple[float, float]:
  """(slope, half of its 95 % interval) of the second half, per sample."""
  half = np.asarray(values[len(values) // 2 :], float)
  blocks = min(BLOCKS, len(half))
  means = np.array([part.mean() for part in np.array_split(half, blocks)])
  x = np.arange(blocks) * len(half) / blocks
  x = x - x.mean()
  fitted = (x @ means) / (x @ x)
  left = means - means.mean() - fitted * x
  error = np.sqrt(left @ left / max(blocks - 2, 1) / (x @ x))
  return fitted, 2.1 * error  # Student's t of 18 degrees of freedom


def train(steps: int) -> dict[str, list]:
  """{quantity: its values over the seconds, or steps, of a training run}."""
  with tempfile.TemporaryDirectory() as name:
    place, samples = pathlib.Path(name), []
    data, workdir = jobs.make_data(place / 'data'), place / 'run'
    job = jobs.Job(
      workdir, data, train__steps=steps, checkpoint__every_steps=20,
      eval__length=64, eval__every_steps=4,
    )  # fmt: skip
    with job:
      job.wait_for_step(1)
      while job.processes[0].poll() is None:
        try:
          samples.append(held(job.processes[0].pid) | disk(workdir))
        except (FileNotFoundError, TypeError):  # ended, or a file is gone
          continue
        time.sleep(0.5)
      if job.wait() != [0]:
        raise RuntimeError(job.output())
    # The last ones are of a process that ends.
    series = {k: [s[k] for s in samples[:-4]] for k in samples[0]}
    series['s of a step'] = [
      line['step_seconds'] for line in metrics.read(workdir)[1:]
    ]
  return series


def generate(count: int) -> dict[str, np.ndarray]:
  """{quantity: its values over so many generations} in this process."""
  import jax

  from longjax import llama
  from longjax.inference import generate, prefix

  config = llama.Llama(
    vocab=384, layers=1, embed=32, mlp=64, heads=4, kv_heads=2, head_dim=8,
    block=16,
  )  # fmt: skip
  params = llama.init(config, jax.random.key(0))
  options, rng = generate.Options(chunk=64), np.random.default_rng(0)
  programs = (prefix._empty, generate.prefill, generate.decode)
  names = [*held(os.getpid()), 'compiled programs', 's of one']
  samples = np.ones((count, len(names)))  # written now: no memory later
  for i in range(count):
    lengths = rng.integers(1, LONGEST, rng.integers(1, 3))
    prompts = [rng.integers(0, 384, n) for n in lengths]
    began = time.perf_counter()
    generate.generate(
      params, config, prompts, int(rng.integers(1, 64)), options
    )
    spent = time.perf_counter() - began
    compiled = sum(p._cache_size() for p in programs)
    samples[i] = *held(os.getpid()).values(), compiled, spent
  return dict(zip(names, samples.T))


def show(what: str, unit: str, series: Mapping[str, Sequence | np.ndarray]):
  for name, values in series.items():
    value, width = slope(values)
    per = 'a step' if name == 's of a step' else unit
    grows = 'yes' if value > width + 1e-12 else 'no'
    print(
      f'| {what} | {name} | {values[0]:.4g} | {values[-1]:.4g} | {value:.2g} '
      f'+- {width:.2g} {per} | {grows} |',
      flush=True,
    )


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--steps', type=int, default=2000)
  parser.add_argument('--generations', type=int, default=500)
  flags = parser.parse_args()
  print('| | | first | last | slope of the second half | grows |')
  print('|---|---|---|---|---|---|')
  show('training', 'half a second', train(flags.steps))
  show('generation', 'a generation', generate(flags.generations))


if __name__ == '__main__':
  main()
