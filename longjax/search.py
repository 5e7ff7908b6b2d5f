"""The mesh, remat policy and micro-batches with which a config is fastest."""

import itertools
import math

import jax

from longjax import flops, hbm, llama, plan, schedule, tpu, train
from longjax.errors import InputError
from longjax.workload import workload

TRIES = 4  # compiled, at some minutes each


def search(config, where: tpu.Slice, documents: str, log) -> list[dict]:
  """Reports on the most promising meshes, remat policies and micro-batches.

  Args:
    config, where, documents, log: as for `plan`.

  Returns:
    At most TRIES of plan.plan, best first; those that do not fit last.
  """
  trials = candidates(config, where, documents)
  if not trials:
    raise InputError(
      f'no mesh of {where.name} divides train.batch {config.train.batch} '
      f'and train.seq_len {config.train.seq_len}'
    )
  reports = []
  for seconds, gib, trial in trials[:TRIES]:
    log(
      f'data {trial.mesh.data} x seq {trial.mesh.seq}, remat '
      f'{trial.model.remat}, micro_batches {trial.train.micro_batches}: about '
      f'{seconds:.3g} s and {gib:.1f} GiB'
    )
    reports.append(plan.plan(trial, where, documents, log))
  late = lambda r: r['step']['seconds'] if r['fits'] else math.inf
  return sorted(reports, key=late)


def candidates(config, where: tpu.Slice, documents: str) -> list:
  """[(seconds, GiB, config)], by the estimate, of what should fit; for each
  mesh and policy the fewest micro-batches that do."""
  chip = flops.CHIPS[where.generation]
  found = []
  for seq, remat in itertools.product(ring_sizes(where), llama.REMAT):
    for trial in meshes(config, where, seq, remat):
      seconds, size = estimate(trial, where, chip, documents)
      if size < 0.97 * chip.hbm:
        found.append((seconds, size / hbm.GIB, trial))
        break
  return sorted(found, key=lambda x: x[0])


def ring_sizes(where: tpu.Slice) -> list[int]:
  """Products of whole axes of the torus, so that a ring has short hops."""
  axes = (*where.dims, where.per_chip)
  subsets = itertools.chain.from_iterable(
    itertools.combinations(axes, k) for k in range(len(axes) + 1)
  )
  return sorted({math.prod(s) for s in subsets})


def meshes(config, where, seq: int, remat: str):
  """Valid configs with this ring, from few micro-batches to many."""
  data = where.chips * where.per_chip // seq
  rows = config.train.batch // data
  for parts in (m for m in range(1, rows + 1) if rows % m == 0):
    trial = config.copy_and_resolve_references()
    trial.mesh.update(data=data, seq=seq)
    trial.model.remat = remat
    trial.train.micro_batches = parts
    try:
      train.check(trial)
    except InputError:
      continue
    yield trial


def estimate(config, where, chip, documents) -> tuple[float, float]:
  """(seconds, bytes of HBM) of a step, without compiling.

  Bytes: masters, moments and, with micro-batches, gradients, 4 each; what
  the policy saves; and 0.26 MB of working memory for a token of a device at
  a width of 4096. Seconds: the kernels, matmuls at 85 % of the peak, weights
  gathered twice and scattered once in each micro-batch.
  """
  model, work = train.llama_config(config), workload(config, documents)
  parts, devices = config.train.micro_batches, math.prod(config.mesh.values())
  tokens = config.train.batch * config.train.seq_len / devices
  count = sum(x.size for x in jax.tree.leaves(llama.abstract(model)))
  again = dict(none=0, full=4).get(model.remat, 2)
  each = 4 * work.block**2 * model.head_dim * model.heads
  forward, backward = schedule.kernel_seconds(
    chip, [each * sum(work.hops)], schedule.CALIBRATION
  )
  kernels = forward[0] * (2 if model.remat == 'full' else 1) + backward[0]
  matmul = flops.matmul_params(model) * tokens * (6 + again) / chip.peak / 0.85
  weights = 3 * 2 * count / (2 * len(where.dims) * chip.link)
  seconds = parts * (model.layers * kernels + weights) + matmul
  state = count / devices * (16 if parts > 1 else 12)
  width = model.heads * model.head_dim
  kept = model.embed * 2 + (
    0 if model.remat == 'full' else 2 * width + 4 * model.heads
  )
  if model.remat == 'none':
    kept += 2 * (4 * model.mlp + 6 * model.embed + 2 * width)
  if model.remat == 'offload':
    kept = 4 * model.heads
  working = 64 * model.embed
  here = tokens / parts * (model.layers * kept + working)
  return seconds, state + here
