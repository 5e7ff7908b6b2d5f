"""Whether a long run grows: memory, files, threads, disk, seconds of a step.

  python tests/bench/soak.py [--steps 2000]

A small model trains, saves and evaluates; the process is looked at every
second. Prints for each quantity its first and last value, and the slope of its
second half with a 95 % interval: it is even where that contains 0.
"""

import argparse
import os
import pathlib
import re
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]

import jobs  # noqa: E402

from longjax.train import metrics  # noqa: E402

BLOCKS = 20  # the second half is averaged in; samples beside each other agree


def sample(pid: int, workdir: pathlib.Path) -> dict[str, float]:
  """What a process holds now."""
  status = pathlib.Path(f'/proc/{pid}/status').read_text()
  field = lambda name: float(re.search(rf'{name}:\s+(\d+)', status)[1])
  files = [p for p in workdir.rglob('*') if p.is_file()]
  return {
    'memory, MiB': field('VmRSS') / 1024,
    'open files': len(os.listdir(f'/proc/{pid}/fd')),
    'threads': field('Threads'),
    'checkpoints, MiB': sum(
      p.stat().st_size for p in files if 'checkpoints' in p.parts
    ) / 2**20,
  }  # fmt: skip


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


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--steps', type=int, default=2000)
  steps = parser.parse_args().steps
  with tempfile.TemporaryDirectory() as name:
    place, samples = pathlib.Path(name), []
    data, workdir = jobs.make_data(place / 'data'), place / 'run'
    job = jobs.Job(
      workdir, data, train__steps=steps, checkpoint__every_steps=20,
      eval__length=64, eval__every_steps=20,
    )  # fmt: skip
    with job:
      job.wait_for_step(1)
      while job.processes[0].poll() is None:
        try:
          samples.append(sample(job.processes[0].pid, workdir))
        except (FileNotFoundError, TypeError):  # ended, or a file is gone
          continue
        time.sleep(1)
      if job.wait() != [0]:
        raise RuntimeError(job.output())
    series = {k: [s[k] for s in samples] for k in samples[0]}
    lines = metrics.read(workdir)[1:]
    series['s of a step'] = [line['step_seconds'] for line in lines]
  print('| | first | last | slope of the second half | even |')
  print('|---|---|---|---|---|')
  for name, values in series.items():
    value, width = slope(values)
    unit = 'a step' if name == 's of a step' else 'a second'
    print(
      f'| {name} | {values[0]:.4g} | {values[-1]:.4g} | {value:.2g} '
      f'+- {width:.2g} {unit} | {abs(value) <= width} |'
    )


if __name__ == '__main__':
  main()
