"""Trains a config: on a TPU worker, or on simulated devices of a CPU.

  python launch/tpu.py --config configs/C.py [--config.a.b=v ...] [--workdir D]

Downloads and prepares whatever is missing, resumes by itself from the run
directory, and leaves there metrics.jsonl, tb/, checkpoints/ and
REPORT.md. Exit code 0: done; 2: the config or a file is wrong; 75: preempted,
run the same command again.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from longjax import cache, cli


def main(config, workdir=''):
  """Trains; returns the exit code."""
  from longjax.parallel import sharding
  from longjax.train import loop

  devices = config.mesh.data * config.mesh.seq
  sharding.start(devices, cache.compiled(workdir))
  return loop.main(config, workdir or pathlib.Path('runs') / config.name)


if __name__ == '__main__':
  sys.exit(cli.run(main, __doc__, workdir='run directory, default: runs/NAME'))
