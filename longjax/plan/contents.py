"""The contents of the HBM of a device while a compiled step runs."""

import collections
import math

import jax

from longjax.hbm import GIB
from longjax.plan import hlo


def report(program: hlo.Program, state, batch, names) -> list[dict]:
  """Sizes of the arguments and of the large temporaries.

  Args:
    program: the compiled step.
    state, batch: its arguments as ShapeDtypeStructs with shardings.
    names: {dims on a device: description}, see `known_shapes`.

  Returns:
    [{what, gib}], of temporaries also shape and count.
  """
  return [
    dict(what='params', gib=gib_per_device(state['params'])),
    dict(what='optimizer moments', gib=gib_per_device(state['opt'])),
    dict(what='batch', gib=gib_per_device(batch)),
    *loop_buffers(program, names),
  ]


def gib_per_device(tree) -> float:
  """GiB of a tree of ShapeDtypeStructs on one device."""
  shapes = (
    (x.sharding.shard_shape(x.shape), x.dtype.itemsize)
    for x in jax.tree.leaves(tree)
  )
  return sum(math.prod(shape) * size for shape, size in shapes) / GIB


def loop_buffers(program: hlo.Program, names) -> list[dict]:
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
  """{dims on a device: description}: weights, and what remat may save.

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
  for group in model.layer_groups():
    for name, rest in saved.items():
      layers = (group.stop - group.start) // len(group.kinds)
      names[layers, *local, *rest] = f'{name} of {layers} layers, saved'
  return names
