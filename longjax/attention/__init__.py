"""Causal attention over packed documents, with the sequence sharded or not.

`attend` is the interface. To add a strategy: write a function of local shards,
run inside `shard_map`, and list it in STRATEGIES below:

  (q, k, v, q_ids, kv_ids, axis, options) -> out

It calls `ring`, or names its output attn_out and the log-sum-exp attn_lse by
`checkpoint_name`, for the remat policies. `options.scale` is in units of log 2.

`Ids` travel with the keys and `mask.may_attend` alone decides what a query may
attend to, so strategies are independent of documents, layouts and caches.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax._src.mesh import get_concrete_mesh
from jax.sharding import AbstractMesh, AxisType, Mesh
from jax.sharding import PartitionSpec as P

from longjax import errors, slices
from longjax.attention.blocks import AttentionOptions
from longjax.attention.decode import decode
from longjax.attention.kernels import KERNELS
from longjax.attention.ring import ring
from longjax.attention.ulysses import exchange_size, ulysses
from longjax.mask import SHARED_SEGMENT, Ids, attention_mask

__all__ = [
  'SHARED_SEGMENT', 'STRATEGIES', 'Ids', 'attend', 'exchange_size', 'platform',
]  # fmt: skip


def reference(q, k, v, q_ids, kv_ids, axis, options):
  """Dense attention as in textbooks: O(seq^2) memory, for tests."""
  k, v, kv_ids = _all_gather((k, v, kv_ids), axis)
  B, T, N, H = q.shape
  K = k.shape[2]
  q = q.reshape(B, T, K, N // K, H)
  logits = jnp.einsum(
    'btkgh,bskh->bkgts', q, k, preferred_element_type=jnp.float32
  ) * (options.scale * LN_2)
  mask = attention_mask(q_ids, kv_ids, options.window)[:, None, None]
  logits = jnp.where(mask, logits, -1e30)
  p = jnp.where(mask, jax.nn.softmax(logits, -1), 0).astype(v.dtype)
  return jnp.einsum('bkgts,bskh->btkgh', p, v).reshape(B, T, N, H)


def gather(q, k, v, q_ids, kv_ids, axis, options):
  """Each device gathers all the keys, as Llama 3 was trained."""
  k, v, kv_ids = _all_gather((k, v, kv_ids), axis)
  return ring(q, k, v, q_ids, kv_ids, None, options)


def blockwise(q, k, v, q_ids, kv_ids, axis, options):
  """No communication: for a sequence that is whole on its device."""
  if axis is not None and jax.lax.axis_size(axis) > 1:
    raise ValueError(
      f'attention blockwise needs the whole sequence on each device, but mesh '
      f'axis {axis!r} has {jax.lax.axis_size(axis)}; use ring or gather'
    )
  return ring(q, k, v, q_ids, kv_ids, None, options)


class Strategy(NamedTuple):
  """A function of local shards, and what `attend` must know to call it."""

  function: Callable
  exchanges_heads: bool = False  # its axis is two: ring and exchange
  replicates_queries: bool = False  # only the keys are sharded
  gathers_keys: bool = False  # all at once: no hops of a ring
  whole_rows: bool = False  # its axis must have one device


STRATEGIES = dict(
  reference=Strategy(reference, gathers_keys=True),
  blockwise=Strategy(blockwise, whole_rows=True),
  gather=Strategy(gather, gathers_keys=True),
  ring=Strategy(ring),
  ulysses=Strategy(ulysses, exchanges_heads=True),
  hybrid=Strategy(ulysses, exchanges_heads=True),
  decode=Strategy(decode, replicates_queries=True),
)
LN_2 = math.log(2)
RING, HEADS = 'ring', 'heads'  # the mesh axes that Ulysses splits `axis` into


def attend(
  q, k, v, q_ids, kv_ids, *, strategy='ring', mesh=None, axis='seq', block=512,
  window=0, ulysses=0, kernel=None, scale=None,
):  # fmt: skip
  """Exact attention.

  Args:
    q: [batch, seq, heads, dim].
    k, v: [batch, kv_seq, kv_heads, dim]; heads is a multiple of kv_heads.
    q_ids, kv_ids: Ids of [batch, seq] and [batch, kv_seq].
    strategy: a key of STRATEGIES.
    mesh: devices over which `axis` shards both sequences and the other axes
      the batch (where it divides). None is the mesh of `jax.set_mesh` where
      that has `axis`, else one device. `decode` shards only the keys.
    axis: mesh axis of the sequence.
    block: keys per block of the computation.
    window: tokens back that a query attends to, itself included; 0 is all.
    ulysses: devices of `axis` that exchange heads in hybrid; 0 is the most
      that repeats no kv head.
    kernel: a key of kernels.KERNELS; None is pallas on a TPU, else blockwise.
    scale: logits are q . k times it; None is 1 / sqrt(dim). If q is already
      multiplied by log2(e) / sqrt(dim), pass math.log(2): no kernel multiplies.

  Returns:
    [batch, seq, heads, dim] in q's dtype; 0 for a query without keys.

  Raises:
    ValueError: unknown strategy or kernel, or shapes that do not fit.
  """
  q_ids, kv_ids = Ids(*q_ids), Ids(*kv_ids)
  context = jax.sharding.get_abstract_mesh()
  mesh = _context_mesh(context, axis) if mesh is None else mesh
  _check_shapes(q, k, v, q_ids, kv_ids)
  scale = (1 / math.sqrt(q.shape[-1]) if scale is None else scale) / LN_2
  device_platform, chip = platform(mesh)
  kernel = kernel or ('pallas' if device_platform == 'tpu' else 'blockwise')
  options = AttentionOptions(kernel, block, window, scale, chip)
  _check_options(strategy, options)
  chosen = STRATEGIES[strategy]
  # By position: custom_vjp takes its static arguments so.
  run = lambda *arrays, axis=None: chosen.function(*arrays, axis, options)
  if mesh is None:
    return run(q, k, v, q_ids, kv_ids)
  if axis not in mesh.axis_names:
    raise ValueError(f'mesh has axes {mesh.axis_names}, none is {axis!r}')
  seq, n, rows = q.shape[1], mesh.shape[axis], _row_axes(mesh, axis, q.shape[0])
  if chosen.exchanges_heads:
    size = exchange_size(strategy, q.shape[2], k.shape[2], n, ulysses)
    mesh, axis = _split_axis(mesh, axis, size), (RING, HEADS)
  kv_spec = P(rows, axis)
  q_spec = P(rows) if chosen.replicates_queries else kv_spec
  q, q_ids = (q, q_ids) if chosen.replicates_queries else _padded((q, q_ids), n)
  k, v, kv_ids = _padded((k, v, kv_ids), n)
  mesh = _with_auto_axes(mesh)
  sharded = jax.shard_map(
    functools.partial(run, axis=axis),
    mesh=mesh,
    in_specs=(q_spec, kv_spec, kv_spec, q_spec, kv_spec),
    out_specs=q_spec,
    # JAX cannot check what varies inside an interpreted kernel (0.10, 0.12).
    check_vma=options.kernel != 'interpret',
  )
  if not context.empty:
    sharded = _within(mesh, sharded, context)
  out = sharded(q, k, v, q_ids, kv_ids)
  return out[:, :seq]


def _context_mesh(context, axis):
  """The mesh of `jax.set_mesh`, or None inside a caller's shard_map."""
  if axis not in context.axis_names or context.manual_axes:
    return None
  # jax.sharding.get_mesh refuses to answer while a caller is traced (0.10).
  mesh = get_concrete_mesh()
  return context if mesh.empty else mesh


def _within(mesh, function, context) -> Callable:
  """The function, which is of a mesh that need not be that of the context.

  JAX wants the two to be the same, also where only names or types of the axes
  differ: those that `exchange_size` splits, and those that are Explicit.
  """
  abstract = mesh if isinstance(mesh, AbstractMesh) else mesh.abstract_mesh

  def call(*arrays):
    with jax.sharding.use_abstract_mesh(abstract):
      return function(*arrays)

  if not context.explicit_axes:
    return call
  return lambda q, *rest: jax.sharding.auto_axes(
    call, out_sharding=jax.typeof(q).sharding.spec
  )(q, *rest)


def platform(mesh) -> tuple[str, str]:
  """(platform, generation of TPU or '') of the devices, also of those that we
  only compile for."""
  real = isinstance(mesh, Mesh)
  device = mesh.devices.flat[0] if real else jax.devices()[0]
  return device.platform, slices.KINDS.get(device.device_kind, '')


def _row_axes(mesh, axis, batch):
  """The mesh axes that shard the batch: all others, or none."""
  rows = tuple(a for a in mesh.axis_names if a != axis)
  divides = batch % math.prod(mesh.shape[a] for a in rows) == 0
  return rows if rows and divides else None


def _split_axis(mesh, axis, size):
  """The mesh with `axis` as two: a ring of groups of `size` neighbours."""
  at = mesh.axis_names.index(axis)
  sizes, names = list(mesh.axis_sizes), list(mesh.axis_names)
  sizes[at : at + 1] = sizes[at] // size, size
  names[at : at + 1] = RING, HEADS
  if isinstance(mesh, AbstractMesh):
    return _auto_mesh(mesh, sizes, names)
  return Mesh(mesh.devices.reshape(sizes), names)


def _check_options(strategy, options):
  errors.check_choice('attention strategy', strategy, STRATEGIES)
  if options.kernel not in KERNELS or options.block < 1 or options.window < 0:
    raise ValueError(
      f'attend needs a kernel of {", ".join(KERNELS)}, block >= 1 and window '
      f'>= 0; got {options.kernel!r}, {options.block} and {options.window}'
    )


def _check_shapes(q, k, v, q_ids, kv_ids):
  fits = (
    q.ndim == k.ndim == 4
    and 0 not in (*q.shape, *k.shape)
    and k.shape == v.shape
    and (q.shape[0], q.shape[3]) == (k.shape[0], k.shape[3])
    and q.shape[2] % k.shape[2] == 0
    and all(x.shape == q.shape[:2] for x in q_ids)
    and all(x.shape == k.shape[:2] for x in kv_ids)
  )
  if not fits:
    shapes = [tuple(x.shape) for x in (q, k, v, *q_ids, *kv_ids)]
    raise ValueError(
      'attend needs q [batch, seq, heads, dim], k and v [batch, kv_seq, '
      'kv_heads, dim], nothing empty, heads a multiple of kv_heads, and Ids of '
      f'[batch, seq] and [batch, kv_seq]; got q, k, v, ids {shapes}'
    )


def _all_gather(tree, axis):
  if axis is None:
    return tree
  return jax.lax.all_gather(tree, axis, axis=1, tiled=True)


def _padded(tree, n):
  """To a multiple of n tokens; zeros as ids are padding."""

  def pad(x):
    missing = -x.shape[1] % n
    widths = [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2)
    return jnp.pad(x, widths) if missing else x

  return jax.tree.map(pad, tree)


def _with_auto_axes(mesh):
  """The same mesh with automatic axes, which reshard what does not fit."""
  if all(t == AxisType.Auto for t in mesh.axis_types):
    return mesh
  if isinstance(mesh, AbstractMesh):
    return _auto_mesh(mesh, mesh.axis_sizes, mesh.axis_names)
  return Mesh(mesh.devices, mesh.axis_names)


def _auto_mesh(mesh, sizes, names) -> AbstractMesh:
  """The devices of an abstract mesh by other axes, all automatic."""
  return AbstractMesh(
    tuple(sizes), tuple(names), (AxisType.Auto,) * len(names),
    abstract_device=mesh.abstract_device,
  )  # fmt: skip
