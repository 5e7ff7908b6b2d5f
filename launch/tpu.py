"""Trains a config: on a TPU worker, or on a laptop with fake devices.

  python launch/tpu.py --config configs/C.py [--config.a.b=v ...] [--workdir D]

Fetches and prepares what the config names and is missing, resumes by itself
from the run directory, and leaves there metrics.jsonl, tb/, checkpoints/ and
REPORT.md. Exit code 0: done, 2: the config or a file is wrong, 75: preempted,
run the same command again.
"""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from longjax import cli  # noqa: E402


def main(config, workdir=''):
  from longjax import sharding, train

  sharding.start(config.mesh.data * config.mesh.seq)
  return train.main(config, workdir or ROOT / 'runs' / config.name)


if __name__ == '__main__':
  sys.exit(cli.run(
    main, __doc__, workdir='run directory, default: runs/<name of the config>'
  ))  # fmt: skip
