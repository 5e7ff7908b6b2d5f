"""Trains a config: on a TPU worker, or on simulated devices of a CPU.

  python launch/tpu.py --config configs/C.py [--config.a.b=v ...] [--workdir D]

Downloads and prepares whatever is missing, resumes by itself from the run
directory, and leaves there metrics.jsonl, tb/, checkpoints/ and
REPORT.md. Exit code 0: done; 2: the config or a file is wrong; 75: preempted,
run the same command again.
"""

import functools
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from longjax import cache, cli
from longjax.train import preemption


def main(request, config, workdir=''):
  """Trains; returns the exit code."""
  from longjax.parallel import sharding
  from longjax.train import loop

  devices = config.mesh.data * config.mesh.seq
  sharding.start(devices, cache.compiled(workdir))
  request.joined = True
  workdir = workdir or pathlib.Path('runs') / config.name
  return loop.main(config, workdir, signals=request)


if __name__ == '__main__':
  with (
    preemption.stop_requests() as request,
    preemption.ending_together(request),
  ):
    train = functools.partial(main, request)
    where = 'run directory, default: runs/NAME'
    sys.exit(cli.run(train, __doc__, workdir=where))
