"""The mesh, remat policy and micro-batches with which a config is fastest."""

import itertools
import math

import jax

from longjax import checks, flops, hbm, llama, lora, slices
from longjax.errors import InputError
from longjax.plan import calibration
from longjax.plan.compile import plan
from longjax.plan.workload import workload
from longjax.train import optimizer
from longjax.train import step as train_step

TRIES = 4  # compiled, at some minutes each


def search(config, target: slices.Slice, documents: str, log) -> list[dict]:
  """Reports on the most promising meshes, remat policies and micro-batches.

  Args:
    config, target, documents, log: as for `plan`.

  Returns:
    At most TRIES reports of `plan`, fastest first; those that do not fit last.
  """
  trials = candidates(config, target, documents)
  if not trials:
    raise InputError(
      f'no mesh of {target.name} divides train.batch {config.train.batch} '
      f'and train.seq_len {config.train.seq_len}'
    )
  reports = []
  for seconds, gib, trial in trials[:TRIES]:
    log(
      f'data {trial.mesh.data} x seq {trial.mesh.seq}, remat '
      f'{trial.model.remat}, micro_batches {trial.train.micro_batches}: about '
      f'{seconds:.3g} s and {gib:.1f} GiB'
    )
    reports.append(plan(trial, target, documents, log))
  late = lambda r: r['step']['seconds'] if r['fits'] else math.inf
  return sorted(reports, key=late)


def candidates(config, target: slices.Slice, documents: str) -> list:
  """[(seconds, GiB, config)] of what should fit, fastest first, estimated:
  for each mesh and remat policy the fewest micro-batches that fit."""
  found = []
  for seq, remat in itertools.product(ring_sizes(target), llama.REMAT):
    for trial in meshes(config, target, seq, remat):
      size = estimated_bytes(trial)
      if size < target.chip.usable:
        seconds = estimated_seconds(trial, target, documents)
        found.append((seconds, size / hbm.GIB, trial))
        break
  return sorted(found, key=lambda x: x[0])


def ring_sizes(target: slices.Slice) -> list[int]:
  """Products of whole axes of the torus, so that a ring has short hops."""
  axes = (*target.dims, target.chip.per_chip)
  subsets = itertools.chain.from_iterable(
    itertools.combinations(axes, k) for k in range(len(axes) + 1)
  )
  return sorted({math.prod(s) for s in subsets})


def meshes(config, target, seq: int, remat: str):
  """Valid configs with this ring, from few micro-batches to many."""
  data = target.devices // seq
  rows = config.train.batch // data
  for parts in (m for m in range(1, rows + 1) if rows % m == 0):
    trial = config.copy_and_resolve_references()
    trial.mesh.update(data=data, seq=seq)
    trial.model.remat = remat
    trial.train.micro_batches = parts
    try:
      checks.check(trial)
    except InputError:
      continue
    yield trial


def estimated_seconds(config, target, documents: str) -> float:
  """Seconds of a step without compiling, within about 20 % of schedule.py."""
  model, work = checks.llama_config(config), workload(config, documents)
  chip, tokens = target.chip, local_tokens(config)
  abstract = train_step.abstract_params(config, model)
  # Weights gathered forward and backward in bfloat16, gradients scattered in
  # float32.
  numbers = sum(x.size for x in jax.tree.leaves(abstract))
  weights = (2 + 2 + 4) * numbers / (2 * len(target.dims) * chip.link)
  layer = attention_seconds(model, work, chip, tokens)
  layers = model.layers - work.layers_saved_by_windows(model)
  seconds = layers * layer + weights + matmul_seconds(model, chip, tokens)
  return config.train.micro_batches * seconds


def estimated_bytes(config) -> float:
  """HBM of a device in a step without compiling, within about 20 %."""
  model, tokens = checks.llama_config(config), local_tokens(config)
  abstract = train_step.abstract_params(config, model)
  trainable = lora.split(abstract, config.lora)[0]
  tx = optimizer.transformation(config.optim, config.train.steps)
  held = [abstract, jax.eval_shape(tx.init, trainable)]
  if config.train.micro_batches > 1:
    held.append(trainable)  # the sum of their gradients
  return (
    sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(held))
    / (config.mesh.data * config.mesh.seq)
    + tokens * model.layers * saved(model)
    + working(model, tokens)
  )


def local_tokens(config) -> int:
  """Tokens of a device in a micro-batch."""
  step, devices = config.train, config.mesh.data * config.mesh.seq
  return step.batch * step.seq_len // (devices * step.micro_batches)


def attention_seconds(model, work, chip, tokens: int) -> float:
  """Seconds of a layer; a hop takes as long as its kernel or its messages."""
  each = 4 * work.block**2 * model.head_dim * model.heads
  forward, backward = calibration.kernel_seconds(
    chip,
    [each * blocks for blocks in work.hops],
    calibration.CALIBRATION[chip.name],
  )
  if len(work.hops) > 1:
    numbers = 2 * tokens * model.kv_heads * model.head_dim / chip.link
    forward = [max(hop, 2 * numbers) for hop in forward]
    backward = [max(hop, 6 * numbers) for hop in backward]  # dk, dv in float32
  return sum(forward) * (2 if model.remat == 'full' else 1) + sum(backward)


def matmul_seconds(model, chip, tokens: int) -> float:
  """Seconds of a micro-batch at 85 % of the peak, recomputation included."""
  passes = 6 if model.remat == 'none' else 8
  return flops.matmul_params(model) * tokens * passes / chip.peak / 0.85


def saved(model) -> int:
  """Bytes of HBM per token and layer that are saved for the backward pass."""
  width = model.heads * model.head_dim
  layer_in, attn_out, lse = 2 * model.embed, 2 * width, 4 * model.heads
  inside = 8 * model.mlp + 12 * model.embed + 4 * width
  return dict(
    none=layer_in + attn_out + lse + inside,
    attention=layer_in + attn_out + lse,
    full=layer_in,
    offload=lse,
  )[model.remat]


def working(model, tokens: int) -> int:
  """Bytes for the activations of one layer, and for embedding and head: two
  copies in bfloat16 and their gradients. Fitted to the 8B of the configs."""
  return 60 * model.embed * tokens + 10 * model.vocab * model.embed
