"""Cycles of the attention kernels as the TPU compiler schedules them.

  python tests/bench/kernel_cycles.py [v5p v5e v6e tpu7x] [--against tokamax]
  python tests/bench/kernel_cycles.py --tune v6e [--against tokamax]

Compiled ahead of time, not run on a TPU: needs `pip install libtpu`, no TPU.
A kernel has one branch for pairs of blocks that need no mask and one for those
that do. For each: static cycles of one pair, the share of the chip's peak that
this is, alone and with the cycles of a step of the grid outside the branches,
and how full the slots of its units are. --against tokamax compiles its splash
attention too, and reads it in the same way. --tune compiles candidates instead
and prints the row of longjax/attention/tiles.py (or tokamax_kernels.py) that is
best.
"""

import argparse
import collections
import glob
import importlib.util
import itertools
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import tokamax_kernels

from longjax.attention.tiles import TILES, Tiles
from longjax.slices import ENVIRONMENT

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Topology and bf16 FLOPs of a core in one cycle.
CHIPS = dict(
  v4=('v4:2x2x1', 131_072),
  v5p=('v5p:2x2x1', 131_072),
  v5e=('v5e:2x2', 131_072),
  v6e=('v6e:2x2', 524_288),
  tpu7x=('tpu7x:2x2x1', 524_288),
)
UNITS = ('MATMUL', 'VALU', 'EUP', 'VLOAD', 'VSTORE', 'VSTORE:SPILL')
PASSES = dict(forward=4, backward=10)  # FLOPs of a query, a key and a dim
LARGE = 2000  # bundles: branches that compute a pair have more
CANDIDATES = dict(rows=(1024, 2048), step=(256, 512))
MASKED = 1 / 8  # the share of pairs with a mask that --tune assumes


class Branch(NamedTuple):
  """A branch that computes a pair of blocks."""

  cycles: int
  outside: int  # of each step of the grid, outside the branches
  ideal: float  # cycles at the chip's peak
  use: dict  # {unit: share of its slots}

  @property
  def with_step(self) -> float:
    return self.ideal / (self.cycles + self.outside)


def compile_kernels(topology, shape, block, tiles: tuple | None):
  """Compiles forward and backward of one device's share; in a process."""
  import math

  import jax
  import jax.numpy as jnp
  import numpy as np
  from jax.experimental import topologies
  from jax.sharding import Mesh, NamedSharding
  from jax.sharding import PartitionSpec as P

  from longjax import attention

  if tiles is not None:
    TILES.update(dict.fromkeys(TILES, Tiles._make(tiles)))
  whole_chips = dict(chip_config_name='megacore') if 'v4' in topology else {}
  devices = topologies.get_topology_desc(
    platform='tpu', topology_name=topology, **whole_chips
  ).devices
  mesh = Mesh(np.array(devices).reshape(-1, 1), ('data', 'seq'))
  place = NamedSharding(mesh, P('data'))
  seq, heads, kv_heads, dim = shape
  array = lambda *rest, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(
    (len(devices), seq, *rest), dtype, sharding=place
  )
  q, k = array(heads, dim), array(kv_heads, dim)
  ids = attention.Ids(*[array(dtype=jnp.int32)] * 2)

  def step(q, k, v, ids, dout):
    run = lambda q, k, v: attention.attend(
      q, k, v, ids, ids, mesh=mesh, block=block, scale=math.log(2)
    )
    return jax.vjp(run, q, k, v)[1](dout)

  jax.jit(step).lower(q, k, k, ids, q).compile()


def regions(bundles: str):
  """[(first, last + 1)] bundles of the regions of a kernel."""
  starts, found = {}, []
  for line in pathlib.Path(bundles).read_text(errors='ignore').split('\n'):
    number = re.match(r'\s*(0x[0-9a-f]+|0)\s', line)
    if not number:
      continue
    at = int(number.group(1), 16)
    for name in re.findall(r'Start region (\d+)', line):
      starts[name] = at
    for name in re.findall(r'End region (\d+)', line):
      if name in starts:
        found.append((starts[name], at + 1))
  return found


class Utilization:
  """The compiler's table of what each bundle uses."""

  def __init__(self, file: str):
    head, table = pathlib.Path(file).read_text().split('== UTILIZATION:\n')
    self.names = [x.strip() for x in head.split('\n')[1].split(',')]
    self.slots = [int(x) for x in head.split('\n')[2].split()]
    lines = table.strip().split('\n')
    self.rows = [[int(x) for x in line.split()] for line in lines]

  def share(self, region, unit) -> float:
    column, (a, b) = self.names.index(unit), region
    used = sum(row[column] for row in self.rows[a:b])
    return used / (self.slots[column] * (b - a))


def branches(found, utilization):
  """(the regions that compute a pair, bundles of a step outside them)."""
  length = lambda region: region[1] - region[0]
  inside = lambda a, b: b[0] <= a[0] and a[1] <= b[1]
  products = lambda region: utilization.share(region, 'MATMUL') > 0.05
  # Rolled loops, of which markers repeat, and what is just round them.
  count = collections.Counter(found)
  rolled = [r for r, n in count.items() if n > 2 and length(r) > 300]
  kept = [
    r for r in count
    if not any(inside(x, r) and length(r) < length(x) + 100 for x in rolled)
  ]  # fmt: skip
  large = [r for r in kept if length(r) > LARGE and products(r)]
  inner = [r for r in large if not any(inside(x, r) and x != r for x in large)]
  # What copies, zeroes or scales accumulators: in the first or last step of a
  # row, or seldom.
  copies = [
    r for r in kept
    if length(r) >= 60 and not any(inside(r, x) or inside(x, r) for x in inner)
    and not products(r) and utilization.share(r, 'VSTORE') > 0.1
  ]  # fmt: skip
  copies = [
    r for r in copies if not any(inside(r, x) and x != r for x in copies)
  ]
  around = [r for r in count if all(inside(x, r) and x != r for x in inner)]
  body = min(map(length, around))
  other = sum(map(length, [*inner, *rolled, *copies]))
  return inner, body - other


def schedules(file: str, what: tuple, kernels: dict):
  """{name: (regions, utilization)} of kernels that are compiled in a process.

  Args:
    file: has `compile_kernels`, and `what` are its arguments.
    kernels: how the names of the kernels in the dump begin, or go on.
  """
  made = {}
  with tempfile.TemporaryDirectory() as dump:
    flags = dict(
      to=dump, llo_text='true', llo_pass_label_regex='.*(post-ra|pre-delay).*'
    )
    flags = ' '.join(f'--xla_jf_dump_{k}={v}' for k, v in flags.items())
    quiet = ENVIRONMENT | dict(PYTHONPATH=str(ROOT), LIBTPU_INIT_ARGS=flags)
    code = (
      'import runpy, sys; sys.path.insert(0, sys.argv[1]); '
      f'runpy.run_path({file!r})["compile_kernels"](*{what!r})'
    )
    command = [sys.executable, '-c', code, os.path.dirname(file)]
    subprocess.run(command, env=os.environ | quiet, check=True)
    for name, kernel in kernels.items():
      pattern = f'{dump}/*{kernel}*[0-9]-packed-bundles-post-ra.txt'
      bundles = sorted(glob.glob(pattern))[0]
      number = os.path.basename(bundles).split('-')[1]
      table = f'{dump}/*{number}*pre-delay_hlo-static-per-bundle-utilization*'
      use = Utilization(glob.glob(table)[0])
      made[name] = regions(bundles), use
  return made


def as_branches(schedule, ideal: float) -> list[Branch]:
  found, use = schedule
  inner, outside = branches(found, use)
  share = lambda region: {unit: use.share(region, unit) for unit in UNITS}
  return [Branch(b - a, outside, ideal, share((a, b))) for a, b in inner]


def shape(args):
  return args.seq, args.heads, args.kv_heads, args.dim


def report(chip: str, args, tiles=None) -> dict[str, list[Branch]]:
  """Prints the branches of both kernels on a chip, and returns them."""
  topology, flops = CHIPS[chip]
  sizes = tiles or TILES[chip]
  what = topology, shape(args), args.block, tiles and tuple(tiles)
  kernels = {name: f'attention_{name}' for name in PASSES}
  keys, made = min(args.block, sizes.keys), {}
  for name, schedule in schedules(__file__, what, kernels).items():
    rows = sizes.rows * 128 // max(args.dim, 128)  # as block_sizes
    ideal = PASSES[name] * rows * keys * args.dim / flops
    made[name] = as_branches(schedule, ideal)
    show(
      f'{chip:6} {name:8}', f'block {rows} x {keys} step '
      f'{sizes.step} {sizes.masked_step} {sizes.grad_step}', made[name],
    )  # fmt: skip
  return made


def report_tokamax(chip: str, args, tiles=None) -> dict[str, list[Branch]]:
  """As `report`, of tokamax; its blocks are of one query head."""
  topology, flops = CHIPS[chip]
  tiles = tiles or tokamax_kernels.TILES[chip]
  what = topology, shape(args), *map(tuple, tiles)
  file, made = tokamax_kernels.__file__, {}
  found = schedules(file, what, tokamax_kernels.NAMES)
  for (name, schedule), x in zip(found.items(), tiles):
    ideal = PASSES[name] * x.rows * x.keys * args.dim / flops
    made[name] = as_branches(schedule, ideal)
    how = f'block {x.rows} x {x.keys} step {x.step}' + ' LP' * x.lp
    show(f'{chip:6} tokamax {name:8}', how, made[name])
  return made


def show(name: str, sizes: str, found: list[Branch]):
  for branch, mask in zip(found, ('full', 'masked')):
    slots = ' '.join(f'{unit} {x:.2f}' for unit, x in branch.use.items())
    print(
      f'{name} {mask:6} {sizes}: {branch.cycles:6} cycles, '
      f'{branch.ideal / branch.cycles:.3f} of peak, {branch.with_step:.3f} '
      f'with the {branch.outside} of a step | {slots}',
      flush=True,
    )


def tune(chip: str, args):
  """Prints the best row of the table for a chip."""
  best = {}  # {field: (share of peak, value)}
  for rows, step in itertools.product(*CANDIDATES.values()):
    tiles = TILES[chip]._replace(
      rows=rows, step=step, masked_step=step, grad_step=step
    )
    try:
      made = report(chip, args, tiles)
    except subprocess.CalledProcessError:
      continue  # it needs more memory than the chip has
    forward, backward = mean(made['forward']), mean(made['backward'])
    full, masked = made['forward']
    # A pass of 1 : 2.5, as its FLOPs.
    all_ = 3.5 / (1 / forward + 2.5 / backward)
    for field, share, value in (
      ('rows', all_, rows), ('step', full.with_step, step),
      ('masked_step', masked.with_step, step), ('grad_step', backward, step),
    ):  # fmt: skip
      best[field] = max(best.get(field, (0, 0)), (round(share, 3), value))
  chosen = {field: value for field, (_, value) in best.items()}
  print(f'  {chip!r}: {TILES[chip]._replace(**chosen)},')


def mean(found: list[Branch]) -> float:
  """Share of the peak of pairs of which MASKED have a mask."""
  full, masked = (branch.with_step for branch in found)
  return 1 / ((1 - MASKED) / full + MASKED / masked)


def tune_tokamax(chip: str, args):
  """Prints the best sizes of tokamax's kernels for a chip."""
  best = {}  # {pass: (share of peak, sizes)}
  for tiles in tokamax_kernels.CANDIDATES:
    try:
      made = report_tokamax(chip, args, tiles)
    except subprocess.CalledProcessError:
      continue
    for (name, found), sizes in zip(made.items(), tiles):
      best[name] = max(best.get(name, (0,)), (mean(found), sizes))
  print(f'  {chip!r}: {tuple(sizes for _, sizes in best.values())},')


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('chips', nargs='*', default=['v5p', 'v6e'])
  parser.add_argument('--block', type=int, default=2048, help='keys')
  parser.add_argument('--seq', type=int, default=8192)
  parser.add_argument('--heads', type=int, default=32)
  parser.add_argument('--kv_heads', type=int, default=8)
  parser.add_argument('--dim', type=int, default=128, help='of a head')
  parser.add_argument('--tune', action='store_true')
  parser.add_argument('--tiles', type=int, nargs=6, help=str(Tiles._fields))
  parser.add_argument('--against', choices=['tokamax'])
  args = parser.parse_args()
  if args.against and not importlib.util.find_spec('tokamax'):
    parser.error('--against tokamax needs: pip install tokamax')
  for chip in args.chips:
    if args.tune and args.against:
      tune_tokamax(chip, args)
    elif args.tune:
      tune(chip, args)
    else:
      report(chip, args, args.tiles and Tiles(*args.tiles))
      if args.against:
        report_tokamax(chip, args)


if __name__ == '__main__':
  main()
