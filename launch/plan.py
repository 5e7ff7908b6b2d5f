"""Whether a config fits a TPU slice, and how fast it would be.

  python launch/plan.py --config configs/llama3_8b_512k.py --topology v5p:4x4x4

Compiles the real train step for that slice on any machine with Linux and
`pip install libtpu`; nothing is run. docs/plan.md states the model behind the
predicted time. Exit code 0: it fits; 1: it does not; 2: the config, the
topology or the mesh is wrong.
"""

import functools
import json
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from longjax import cli
from longjax.errors import InputError
from longjax.slices import ENVIRONMENT, EXAMPLE, HBM_MARGIN, parse


def main(config, topology, slices, documents, json, search, longest):
  """Compiles and prints; returns the exit code."""
  target = parse(topology, cli.number('slices', slices, 1, 1))
  from longjax.plan import compile as planner
  from longjax.plan import longest as by_length
  from longjax.plan import search as by_mesh

  if search and longest:
    raise InputError('--search and --longest are mutually exclusive')
  log = functools.partial(print, file=sys.stderr)
  if search:
    reports = by_mesh.search(config, target, documents, log)
  elif longest:
    reports = by_length.longest(config, target, documents, log)
  else:
    planner.check(config, target, documents, log)
    reports = [planner.plan(config, target, documents, log)]
  if json:
    print(as_json(reports, search, longest))
  else:
    print(describe(reports[0]))
    if search or longest:
      print('\n' + table(reports))
  return 0 if reports[0]['fits'] else 1


def as_json(reports, search: bool, longest: bool) -> str:
  """One object: the report, or {'search': all} or {'longest': all} of them."""
  several = dict(search=reports) if search else dict(longest=reports)
  return json.dumps(several if search or longest else reports[0])


def time(seconds: float) -> str:
  """Right-aligned, in s or ms."""
  return f'{seconds:8.2f} s ' if seconds >= 0.1 else f'{seconds * 1e3:8.2f} ms'


def describe(r: dict) -> str:
  """A report as text."""
  mesh = r['mesh']
  lines = [
    f'{r["config"]} on {r["slices"]} x {r["topology"]}, {r["chips"]} chips: '
    f'data {mesh["data"]} x seq {mesh["seq"]}, {r["batch"]} rows of '
    f'{r["seq_len"]:,} tokens in {r["micro_batches"]} micro-batches, remat '
    f'{r["remat"]} ({r["caveat"]})'
  ]
  if not r['fits']:
    hbm = r['hbm']
    lines += [
      f'fits: no. needs {hbm["needed_gib"]:.1f} GiB of HBM, a device has '
      f'{hbm["limit_gib"]:.2f}, of which {HBM_MARGIN:.0%} must stay free; try '
      '--search'
    ]
  if 'step' in r:
    lines += [*hbm_lines(r), *step_lines(r), *ring_lines(r)]
  c = r['compile']
  return '\n'.join([
    *lines,
    f'compiled in {c["cpu_seconds"]:.0f} CPU-s ({c["wall_seconds"]:.0f} s), '
    f'{c["peak_rss_gib"]:.1f} GiB of memory',
  ])  # fmt: skip


def hbm_lines(r: dict) -> list[str]:
  """HBM in total, and by what it holds."""
  hbm, yes = r['hbm'], 'fits: yes. ' if r['fits'] else ''
  return [
    f'{yes}HBM of a device, GiB: peak {hbm["peak_gib"]:.2f} of '
    f'{hbm["limit_gib"]:.2f} ({hbm["spare_share"]:.0%} spare): arguments '
    f'{hbm["arguments_gib"]:.2f}, temporaries {hbm["temporaries_gib"]:.2f}, '
    f'code {hbm["code_gib"]:.2f}; on the host '
    f'{hbm["host_temporaries_gib"]:.2f}',
    *(
      f'  {h["gib"]:8.2f}  {h["what"]}'
      + (f'  {h["count"]} x {h["shape"]}' if 'shape' in h else '')
      for h in hbm['holds']
    ),
  ]


def step_lines(r: dict) -> list[str]:
  """Predicted time and speed."""
  step, work = r['step'], r['attention']
  static = step['static']
  return [
    f'step: {time(step["seconds"]).strip()} predicted '
    f'({time(static["seconds"]).strip()} with kernels at their static speed); '
    f'{step["tokens_per_second_per_chip"]:,.0f} tokens/s a chip; MFU '
    f'{step["mfu_causal"]:.1%} counting rows as one causal document '
    f'({static["mfu_causal"]:.1%} static), {step["mfu_documents"]:.1%} '
    f'counting the documents',
    *(
      f'{time(seconds)}  {part}'
      for part, seconds in step['parts_seconds'].items()
    ),
    f'kernels at {step["calibration"]["forward"]:.0%} (forward) and '
    f'{step["calibration"]["backward"]:.0%} (backward) of their static speed: '
    f'{step["calibration"]["source"]}',
    f'attention: {work["executed_flops"]:.3g} FLOPs executed, '
    f'{work["needed_flops"]:.3g} needed ({work["executed_over_needed"]:.2f}); '
    f'the busiest device has {work["busiest_over_mean"]:.2f} of the mean',
  ]


def ring_lines(r: dict) -> list[str]:
  """Communication."""
  talk = r['communication']
  ring = talk['ring']
  return [
    f'exposed communication: {time(talk["exposed_seconds"]).strip()} '
    f'({talk["exposed_share"]:.1%} of the step)',
    *(
      f'  {kind}: {c["asynchronous"]} asynchronous, {c["synchronous"]} '
      f'synchronous; {c["executed"]} executed, {c["gib"]:.1f} GiB per device'
      for kind, c in talk['collectives'].items()
    ),
    f'ring: {ring["permutes"]} permutes, '
    f'{"all" if ring["all_asynchronous"] else "NOT all"} asynchronous, '
    f'{ring["over_attention"]} with attention between start and done; '
    f'{ring["hidden_share"]:.1%} of {time(ring["seconds"]).strip()} hidden; '
    f'hops by links {ring["links_per_hop"]}',
  ]


def table(reports: list[dict]) -> str:
  """A line for each that was compiled."""
  lines = [
    'data   seq  remat      parts      tokens   GiB        step    MFU  exposed'
  ]
  for r in reports:
    start = (
      f'{r["mesh"]["data"]:4} {r["mesh"]["seq"]:5}  {r["remat"]:10} '
      f'{r["micro_batches"]:5} {r["seq_len"]:11,}'
    )
    if not r['fits']:
      lines.append(f'{start} {r["hbm"]["needed_gib"]:5.1f}  does not fit')
      continue
    lines.append(
      f'{start} {r["hbm"]["peak_gib"]:5.1f} {time(r["step"]["seconds"])} '
      f'{r["step"]["mfu_causal"]:6.1%} '
      f'{r["communication"]["exposed_share"]:7.1%}'
    )
  return '\n'.join(lines)


if __name__ == '__main__':
  os.environ.update(ENVIRONMENT)  # before jax is imported
  sys.exit(
    cli.run(
      main,
      __doc__,
      switches=('json', 'search', 'longest'),
      topology=f'slice to compile for: {EXAMPLE}, v5e:16x16, tpu7x:4x4x4',
      slices='number of such slices, default: 1',
      documents='lengths of documents: 65536, or by share of the rows '
      '524288:0.23,65536:0.77; default: one a row',
      json='print one JSON object',
      search='try meshes, remat policies and micro-batches',
      longest='find the longest rows that fit, by several compiles',
    )
  )
