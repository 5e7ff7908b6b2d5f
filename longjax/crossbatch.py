"""Crossbatch training of Focused Transformer, arXiv:2307.03170.

In a few memory layers a row attends, besides its own past, to all of some other
rows of the batch: earlier chunks of its document (positives) and chunks of
others (negatives). Their keys are rotated as at the first position of the local
context and come before everything, so memory has no order; one softmax goes
over both, and gradients reach the other rows.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from longjax.attention import SHARED_SEGMENT, Ids
from longjax.parallel import sharding


@dataclasses.dataclass(frozen=True)
class Memory:
  """Which layers have a memory, and which rows fill it in training.

  A pack is `len(rows)` consecutive rows of the batch, the chunks of a document.
  Row i of each pack attends to the rows `rows[i]` away: -1 is the row before.
  Offsets past an end of the batch are left out, or with `wrap` counted on from
  its other end.
  """

  layers: tuple = ()  # numbers of the memory layers, from 0; () is no memory
  rows: tuple = ()  # for each row of a pack, offsets; () is plain training
  wrap: bool = False

  def __post_init__(self):
    try:
      layers = tuple(int(x) for x in self.layers)
      rows = tuple(tuple(int(x) for x in row) for row in self.rows)
    except TypeError:
      raise ValueError(
        'memory layers are numbers and memory rows a tuple of offsets for each '
        f'row of a pack; got {self.layers!r} and {self.rows!r}'
      ) from None
    object.__setattr__(self, 'layers', layers)
    object.__setattr__(self, 'rows', rows)
    if list(layers) != sorted({x for x in layers if x >= 0}):
      raise ValueError(
        f'memory layers must be distinct, ascending, at least 0; got {layers}'
      )
    if rows and not layers:
      raise ValueError('memory rows need memory layers, which attend to them')
    for i, row in enumerate(rows):
      if len(set(row)) < len(row) or any(0 <= o < len(rows) - i for o in row):
        raise ValueError(
          f'row {i} of a pack of {len(rows)} cannot attend to rows {row} away: '
          'each other row at most once, and none of its own that comes later'
        )

  @property
  def offsets(self) -> tuple:
    """All offsets in `rows`."""
    return tuple(sorted({o for row in self.rows for o in row}))

  def check(self, batch: int):
    """ValueError if a batch of so many rows is not whole packs."""
    if not self.rows:
      return
    if batch % len(self.rows):
      raise ValueError(
        f'a batch of {batch} rows must be a multiple of a pack of '
        f'{len(self.rows)}'
      )
    reach = max((0, *self.offsets)) - min((0, *self.offsets))
    if self.wrap and reach >= batch:
      raise ValueError(
        f'with wrap, two of the offsets {self.offsets} reach the same row of a '
        f'batch of {batch}; the batch needs more than {reach} rows'
      )


def with_memory(k, v, k_at_origin, ids: Ids, memory: Memory, mesh=None):
  """Each row's keys, and those of the rows that it attends to.

  Args:
    k, v: [batch, seq, kv_heads, dim], k rotated for its row.
    k_at_origin: as k, rotated as at the first position of a row.
    ids: Ids of [batch, seq].
    memory: the packs.
    mesh: shards rows and 'seq'; None is one device. Each device keeps its
      share of the sequence, so rows travel, along the other axes.

  Returns:
    (k, v, ids) of [batch, (1 + len(memory.offsets)) * seq, ...]; tokens of
    rows that a row does not attend to are padding.
  """
  batch = k.shape[0]
  memory.check(batch)
  if mesh is None:
    return _with_memory(memory, batch, (), k, v, k_at_origin, ids)
  spec = sharding.batch_spec(mesh, batch)
  on_device = functools.partial(_with_memory, memory, batch, spec[0] or ())
  return jax.shard_map(on_device, mesh=mesh, in_specs=spec, out_specs=spec)(
    k, v, k_at_origin, ids
  )


def _with_memory(memory, batch, axes, k, v, k_at_origin, ids):
  """`with_memory` of a device's rows, of `batch` sharded over mesh axes."""
  rows = k.shape[0]
  row = jnp.arange(rows) + (jax.lax.axis_index(axes) * rows if axes else 0)
  parts = [(k, v, ids)]
  for offset in memory.offsets:
    source = row + offset
    attends = jnp.array([offset in offsets for offsets in memory.rows])
    attends = attends[row % len(memory.rows)]
    attends &= memory.wrap | ((source >= 0) & (source < batch))
    other_k, other_v, segment = _rows_at_offset(
      offset, (k_at_origin, v, ids.segment), axes
    )
    shared = attends[:, None] & (segment != 0)
    segment = jnp.where(shared, SHARED_SEGMENT, 0)
    parts.append((other_k, other_v, Ids(segment, jnp.zeros_like(segment) - 1)))
  return jax.tree.map(lambda *x: jnp.concatenate(x, 1), *parts)


def _rows_at_offset(offset: int, tree, axes):
  """For each row the row `offset` further on, round the batch over axes."""
  devices = jax.lax.axis_size(axes) if axes else 1
  hops, rest = divmod(offset, jax.tree.leaves(tree)[0].shape[0])

  def send(x, hops):
    if hops % devices == 0:
      return x
    pairs = [(i, (i - hops) % devices) for i in range(devices)]
    return jax.lax.ppermute(x, axes, pairs)

  def shift(x):
    if not rest:
      return send(x, hops)
    return jnp.concatenate([send(x[rest:], hops), send(x[:rest], hops + 1)])

  return jax.tree.map(shift, tree)
