"""Cycles of the attention kernels as the TPU compiler schedules them.

  python tests/bench/kernel_cycles.py [v5p v5e v6e tpu7x] [--block 2048]
  python tests/bench/kernel_cycles.py --tune v6e

Compiled ahead of time, not run on a TPU: needs `pip install libtpu`, no TPU.
A kernel has one branch for pairs of blocks that need no mask and one for those
that do. For each: static cycles of one pair, the share of the chip's peak that
this is, alone and with the cycles of a step of the grid outside the branches,
and how full the slots of its units are. --tune compiles candidates instead and
prints the row of longjax/attention/tiles.py that is best.
"""

import argparse
import collections
import glob
import itertools
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

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
# Each unmasked and masked; rows of the accumulators are copied, or zeroed.
CANDIDATES = dict(rows=(1024, 2048), step=(256, 512))


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
  # Rolled loops, of which markers repeat, and what is just round them.
  count = collections.Counter(found)
  rolled = [r for r, n in count.items() if n > 2 and length(r) > 300]
  kept = [
    r for r in count
    if not any(inside(x, r) and length(r) < length(x) + 100 for x in rolled)
  ]  # fmt: skip
  large = [r for r in kept if length(r) > LARGE]
  inner = [r for r in large if not any(inside(x, r) and x != r for x in large)]
  # What copies or zeroes accumulators: in the first step of a row, or seldom.
  copies = [
    r for r in kept
    if 60 <= length(r) <= LARGE and not any(inside(r, x) for x in inner)
    and utilization.share(r, 'VSTORE') > 0.25
  ]  # fmt: skip
  copies = [
    r for r in copies if not any(inside(r, x) and x != r for x in copies)
  ]
  around = [r for r in count if all(inside(x, r) and x != r for x in inner)]
  body = min(map(length, around))
  other = sum(map(length, [*inner, *rolled, *copies]))
  return inner, body - other


def measure(chip: str, args, tiles=None) -> dict[str, list[Branch]]:
  """Branches without and with a mask, of both passes."""
  topology, flops = CHIPS[chip]
  sizes = tiles or TILES[chip]
  shape = (args.seq, args.heads, args.kv_heads, args.dim)
  made = {}
  with tempfile.TemporaryDirectory() as dump:
    flags = dict(
      to=dump, llo_text='true', llo_pass_label_regex='.*(post-ra|pre-delay).*'
    )
    flags = ' '.join(f'--xla_jf_dump_{k}={v}' for k, v in flags.items())
    quiet = ENVIRONMENT | dict(PYTHONPATH=str(ROOT), LIBTPU_INIT_ARGS=flags)
    what = topology, shape, args.block, tiles and tuple(tiles)
    code = (
      f'import runpy; runpy.run_path({str(__file__)!r})'
      f'["compile_kernels"](*{what!r})'
    )
    command = [sys.executable, '-c', code]
    subprocess.run(command, env=os.environ | quiet, check=True)
    for name, per_element in PASSES.items():
      pattern = f'{dump}/*attention_{name}*[0-9]-packed-bundles-post-ra.txt'
      bundles = sorted(glob.glob(pattern))[0]
      number = os.path.basename(bundles).split('-')[1]
      table = f'{dump}/*{number}*pre-delay_hlo-static-per-bundle-utilization*'
      use = Utilization(glob.glob(table)[0])
      keys = min(args.block, sizes.keys)
      ideal = per_element * sizes.rows * keys * args.dim / flops
      inner, outside = branches(regions(bundles), use)
      made[name] = [
        Branch(b - a, outside, ideal, {u: use.share((a, b), u) for u in UNITS})
        for a, b in inner
      ]
  return made


def report(chip: str, args, tiles=None):
  """Prints the branches of both kernels on a chip, and returns them."""
  made = measure(chip, args, tiles)
  sizes = tiles or TILES[chip]
  block = f'block {sizes.rows} x {min(args.block, sizes.keys)}'
  for name, found in made.items():
    for branch, mask in zip(found, ('full', 'masked')):
      slots = ' '.join(f'{unit} {x:.2f}' for unit, x in branch.use.items())
      print(
        f'{chip:6} {name:8} {mask:6} {block} step {sizes.step} '
        f'{sizes.masked_step} {sizes.grad_step}: {branch.cycles:6} cycles, '
        f'{branch.ideal / branch.cycles:.3f} of peak, {branch.with_step:.3f} '
        f'with the {branch.outside} of a step | {slots}',
        flush=True,
      )
  return made


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
    (full, masked), (grad, _) = made['forward'], made['backward']
    # A pass of 1 : 2.5, as its FLOPs.
    all_ = 3.5 / (1 / full.with_step + 2.5 / grad.with_step)
    for field, share, value in (
      ('rows', all_, rows), ('step', full.with_step, step),
      ('masked_step', masked.with_step, step),
      ('grad_step', grad.with_step, step),
    ):  # fmt: skip
      best[field] = max(best.get(field, (0, 0)), (share, value))
  chosen = {field: value for field, (_, value) in best.items()}
  print(f'  {chip!r}: {TILES[chip]._replace(**chosen)},')


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('chips', nargs='*', default=['v5p', 'v6e'])
  parser.add_argument('--block', type=int, default=2048, help='keys')
  parser.add_argument('--seq', type=int, default=4096)
  parser.add_argument('--heads', type=int, default=32)
  parser.add_argument('--kv_heads', type=int, default=8)
  parser.add_argument('--dim', type=int, default=128, help='of a head')
  parser.add_argument('--tune', action='store_true')
  parser.add_argument('--tiles', type=int, nargs=6, help=str(Tiles._fields))
  args = parser.parse_args()
  for chip in args.chips:
    if args.tune:
      tune(chip, args)
    else:
      report(chip, args, args.tiles and Tiles(*args.tiles))


if __name__ == '__main__':
  main()
