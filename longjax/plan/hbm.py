"""What the memory of a device holds while a compiled step runs."""

import collections
import math
import re

import jax

from longjax.errors import InputError
from longjax.flops import Chip
from longjax.plan import hlo

GIB = 2**30


def out_of_memory(error, chip: Chip) -> dict:
  """What the compiler needs, from its message; else InputError."""
  text = ' '.join(str(error).split())
  found = re.search(r'HLO temporaries \(([\d.]+)([KMG])\)', text)
  found = found or re.search(r'Used ([\d.]+)([KMG]) of [\d.]+\w hbm', text)
  if 'RESOURCE_EXHAUSTED' not in text or not found:
    raise InputError(f'the TPU compiler refuses the step: {text[:400]}')
  needed = float(found[1]) / dict(K=2**20, M=2**10, G=1)[found[2]]
  return dict(needed_gib=needed, limit_gib=chip.hbm / GIB, message=text[:300])


def memory(stats, chip: Chip) -> dict:
  """HBM of a device in GiB, as the compiler lays it out.

  Args:
    stats: `compiled.memory_analysis()`.
    chip: one device.

  Returns:
    Parts; `peak_gib`, their sum; the compiler's `limit_gib`; of that
    `usable_gib`, see `fits`; and `spare_share`.
  """
  sizes = dict(
    arguments=stats.argument_size_in_bytes,
    temporaries=stats.temp_size_in_bytes,
    outputs=stats.output_size_in_bytes - stats.alias_size_in_bytes,
    code=stats.generated_code_size_in_bytes,
  )
  peak = sum(sizes.values())
  return {f'{k}_gib': v / GIB for k, v in sizes.items()} | dict(
    host_temporaries_gib=stats.host_temp_size_in_bytes / GIB,
    peak_gib=peak / GIB,
    limit_gib=chip.hbm / GIB,
    usable_gib=chip.usable / GIB,
    spare_share=1 - peak / chip.hbm,
  )


def fits(peak_gib: float, chip: Chip) -> bool:
  """Whether a step may run; for the planner and for the start of a run."""
  return peak_gib * GIB <= chip.usable


def holds(program: hlo.Program, state, batch, names) -> list[dict]:
  """What the arguments are, and the large temporaries.

  Args:
    program: the compiled step.
    state, batch: its arguments as ShapeDtypeStructs with shardings.
    names: {dims on a device: what has them}, see `known_shapes`.

  Returns:
    [{what, gib}], of temporaries also shape and count.
  """
  return [
    dict(what='params', gib=held(state['params'])),
    dict(what='optimizer moments', gib=held(state['opt'])),
    dict(what='batch', gib=held(batch)),
    *carried(program, names),
  ]


def held(tree) -> float:
  """GiB of a tree of ShapeDtypeStructs on one device."""
  shapes = (
    (x.sharding.shard_shape(x.shape), x.dtype.itemsize)
    for x in jax.tree.leaves(tree)
  )
  return sum(math.prod(shape) * size for shape, size in shapes) / GIB


def carried(program: hlo.Program, names) -> list[dict]:
  """The large buffers that live through the loop with the largest ones:
  what is saved for the backward pass, gradients, and copies of weights."""
  loops = [
    collections.Counter(
      a for a in i.arrays() if a.space == 0 and a.bytes >= 2**20
    )
    for computation in program.computations.values()
    for i in computation
    if i.op == 'while'
  ]
  size = lambda loop: sum(a.bytes * n for a, n in loop.items())
  largest = max(loops, key=size, default=collections.Counter())
  buffers = sorted(largest.items(), key=lambda x: -x[0].bytes * x[1])
  return [
    dict(
      what=names.get(array.dims, 'temporary'),
      shape=f'{array.dtype}{list(array.dims)}',
      count=count,
      gib=array.bytes * count / GIB,
    )
    for array, count in buffers[:8]
  ]


def known_shapes(config, model, mesh, params) -> dict[tuple, str]:
  """{dims on a device: what has them}: weights, and what remat may save.

  Args:
    config: its section `train` is read.
    model: llama.Llama.
    mesh: the devices.
    params: tree of ShapeDtypeStructs with shardings.
  """
  step, names = config.train, {}
  for path, leaf in jax.tree.leaves_with_path(params):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    shape = leaf.sharding.shard_shape(leaf.shape)
    names[shape] = f'{names[shape]}, {name}' if shape in names else name
  names = {k: f'weights or gradients of {v}' for k, v in names.items()}
  rows = step.batch // step.micro_batches // mesh.shape['data']
  local = (rows, step.seq_len // mesh.shape['seq'])
  saved = dict(
    attn_out=(model.heads, model.head_dim),
    attn_lse=(model.heads,),
    layer_in=(model.embed,),
  )
  for name, rest in saved.items():
    names[model.layers, *local, *rest] = f'{name} of all layers, saved'
  return names
