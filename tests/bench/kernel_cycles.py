"""Cycles of the attention kernels as the TPU compiler schedules them.

  python tests/bench/kernel_cycles.py [v5p v5e v6e tpu7x] [--block 2048]

Compiled ahead of time, not run on a TPU: needs `pip install libtpu`, no TPU.
A kernel has one branch for pairs of blocks that need no mask and one for those
that do. For each: static cycles of one pair, the share of the chip's peak that
this is, and how full the slots of its units are. Real kernels reach about 0.82
of the static figure (measured on TPU7x for another kernel).
"""

import argparse
import glob
import os
import pathlib
import re
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from longjax.slices import ENVIRONMENT

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Topology and bf16 FLOPs of a core in one cycle.
CHIPS = dict(
  v5p=('v5p:2x2x1', 131_072),
  v5e=('v5e:2x2', 131_072),
  v6e=('v6e:2x2', 524_288),
  tpu7x=('tpu7x:2x2x1', 524_288),
)
SEQ, HEADS, KV_HEADS, DIM = 32_768, 32, 8, 128
UNITS = ('MATMUL', 'VALU', 'EUP', 'VLOAD', 'VSTORE', 'VSTORE:SPILL')


def compile_kernels(topology: str, block: int):
  """Compiles forward and backward of one device's share; in a process."""
  import jax
  import jax.numpy as jnp
  import numpy as np
  from jax.experimental import topologies
  from jax.sharding import Mesh, NamedSharding
  from jax.sharding import PartitionSpec as P

  from longjax import attention

  devices = topologies.get_topology_desc(
    platform='tpu', topology_name=topology
  ).devices
  mesh = Mesh(np.array(devices).reshape(-1, 1), ('data', 'seq'))
  place = NamedSharding(mesh, P('data'))
  array = lambda *shape, dtype: jax.ShapeDtypeStruct(
    (len(devices), SEQ, *shape), dtype, sharding=place
  )
  q = array(HEADS, DIM, dtype=jnp.bfloat16)
  k = array(KV_HEADS, DIM, dtype=jnp.bfloat16)
  ids = attention.Ids(*[array(dtype=jnp.int32)] * 2)

  def step(q, k, v, ids, dout):
    run = lambda *qkv: attention.attend(*qkv, ids, ids, mesh=mesh, block=block)
    return jax.vjp(run, q, k, v)[1](dout)

  jax.jit(step).lower(q, k, k, ids, q).compile()


def branches(bundles: str, utilization: str):
  """[(cycles, {unit: share of its slots})] of the kernel's large branches."""
  starts, regions = {}, []
  for line in pathlib.Path(bundles).read_text(errors='ignore').split('\n'):
    found = re.match(r'\s*(0x[0-9a-f]+|0)\s', line)
    if not found:
      continue
    at = int(found.group(1), 16)
    for name in re.findall(r'Start region (\d+)', line):
      starts[name] = at
    for name in re.findall(r'End region (\d+)', line):
      if name in starts:
        regions.append((starts[name], at + 1))
  inner = [
    (a, b)
    for a, b in regions
    if b - a > 2000 and not any(a <= c and d <= b and (a, b) != (c, d)
                                and d - c > 2000 for c, d in regions)
  ]  # fmt: skip
  head, table = pathlib.Path(utilization).read_text().split('== UTILIZATION:\n')
  names = [x.strip() for x in head.split('\n')[1].split(',')]
  slots = [int(x) for x in head.split('\n')[2].split()]
  rows = [[int(x) for x in line.split()] for line in table.strip().split('\n')]

  def share(a, b, unit):
    column = names.index(unit)
    used = sum(row[column] for row in rows[a:b])
    return used / (slots[column] * (b - a))

  return [(b - a, {u: share(a, b, u) for u in UNITS}) for a, b in inner]


def report(chip: str, block: int):
  """Prints the branches of both kernels on a chip."""
  topology, flops = CHIPS[chip]
  with tempfile.TemporaryDirectory() as dump:
    flags = f'--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true'
    quiet = ENVIRONMENT | dict(PYTHONPATH=str(ROOT), LIBTPU_INIT_ARGS=flags)
    code = (
      f'import runpy; runpy.run_path({str(__file__)!r})'
      f'["compile_kernels"]({topology!r}, {block})'
    )
    command = [sys.executable, '-c', code]
    subprocess.run(command, env=os.environ | quiet, check=True)
    for name, per_element in (('forward', 4), ('backward', 10)):
      pattern = f'{dump}/*attention_{name}*[0-9]-packed-bundles-post-ra.txt'
      bundles = sorted(glob.glob(pattern))[0]
      number = os.path.basename(bundles).split('-')[1]
      tables = f'{dump}/*{number}*pre-delay_hlo-static-per-bundle-utilization*'
      ideal = per_element * 1024 * block * DIM / flops
      for cycles, use in branches(bundles, glob.glob(tables)[0]):
        slots = ' '.join(f'{unit} {value:.2f}' for unit, value in use.items())
        print(
          f'{chip:6} {name:8} block {block} {cycles:6} cycles, '
          f'{ideal / cycles:.3f} of peak | {slots}',
          flush=True,
        )


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('chips', nargs='*', default=['v5p', 'v6e'])
  parser.add_argument('--block', type=int, default=2048)
  args = parser.parse_args()
  for chip in args.chips:
    report(chip, args.block)


if __name__ == '__main__':
  main()
