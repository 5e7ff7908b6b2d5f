"""Crossbatch training of Focused Transformer, arXiv:2307.03170.

In a few memory layers a row sees, beside its own past, some other rows of the
batch whole: earlier chunks of its document (positives) and chunks of others
(negatives). Their keys are rotated as if they stood at the first position of
the local context and come before everything, so memory has no order; one
softmax goes over both, and gradients reach the other rows.
"""

import dataclasses

import jax
import jax.numpy as jnp

from longjax.attention import SHARED_SEGMENT, Ids
from longjax.parallel import sharding


@dataclasses.dataclass(frozen=True)
class Memory:
  """Which layers have a memory, and which rows fill it in training.

  A pack is `len(rows)` consecutive rows of the batch, the chunks of a document.
  Row i of each pack sees the rows `rows[i]` away: -1 is the row before. Where
  there is no such row it sees nothing, or with `wrap` counts on from the other
  end of the batch. `stepped` and `following` make rows.
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
        f'memory layers must rise from 0 on without repeating, got {layers}'
      )
    if rows and not layers:
      raise ValueError('memory rows need memory layers to be seen in')
    for i, row in enumerate(rows):
      if len(set(row)) < len(row) or any(0 <= o < len(rows) - i for o in row):
        raise ValueError(
          f'row {i} of a pack of {len(rows)} cannot see the rows {row} away: '
          'each other row at most once, and none of its own that comes later'
        )

  @property
  def offsets(self) -> tuple:
    """All that occur in `rows`."""
    return tuple(sorted({o for row in self.rows for o in row}))

  def check(self, batch: int):
    """ValueError where so many rows cannot be packs."""
    if not self.rows:
      return
    if batch % len(self.rows):
      raise ValueError(
        f'{batch} rows are no multiple of the {len(self.rows)} of a pack'
      )
    reach = max((0, *self.offsets)) - min((0, *self.offsets))
    if self.wrap and reach >= batch:
      raise ValueError(
        f'offsets {self.offsets} come round to the same of {batch} rows; '
        f'more than {reach} are needed'
      )


def stepped(pack: int, reach: int) -> tuple:
  """Memory.rows as the published code steps them.

  Of its own and `reach` rows before it, row i of a pack sees
  min(i * step + 1, reach + 1), step = ceil((reach + 1) / (pack - 1)).
  """
  step = -(-(reach + 1) // max(pack - 1, 1))
  return tuple(
    tuple(-o for o in range(1, min(i * step, reach) + 1)) for i in range(pack)
  )


def following(documents: int, previous: int = 1) -> tuple:
  """Memory.rows of the paper's general procedure; needs `wrap`.

  A pack holds `previous` contexts and the current one, which alone sees
  memory: the previous contexts of its document and of the next ones, modulo
  the batch, `documents` in all (the paper's d).
  """
  pack = previous + 1
  current = tuple(
    pack * document - p for document in range(documents) for p in range(1, pack)
  )
  return ((),) * previous + (current,)


def beside(k, v, far, ids: Ids, memory: Memory, mesh=None):
  """Each row's keys, and those of the rows that it sees.

  Args:
    k, v: [batch, seq, kv_heads, dim], k rotated for its row.
    far: as k, rotated as at the first position of a row.
    ids: Ids of [batch, seq].
    memory: the packs.
    mesh: shards rows and 'seq'; None is one device. Each device keeps its
      share of the sequence, so what travels is rows, along the other axes.

  Returns:
    (k, v, ids) of [batch, (1 + len(memory.offsets)) * seq, ...]; tokens of
    rows that are not seen are padding.
  """
  batch = k.shape[0]
  memory.check(batch)
  if mesh is None:
    return _beside(k, v, far, ids, memory, batch, ())
  spec = sharding.batch_spec(mesh, batch)

  def on_device(k, v, far, ids):
    return _beside(k, v, far, ids, memory, batch, spec[0] or ())

  return jax.shard_map(on_device, mesh=mesh, in_specs=spec, out_specs=spec)(
    k, v, far, ids
  )


def _beside(k, v, far, ids, memory, batch, axes):
  here = k.shape[0]
  row = jnp.arange(here) + (jax.lax.axis_index(axes) * here if axes else 0)
  parts = [(k, v, ids)]
  for offset in memory.offsets:
    source = row + offset
    sees = jnp.array([offset in seen for seen in memory.rows])
    sees = sees[row % len(memory.rows)]
    sees &= memory.wrap | ((source >= 0) & (source < batch))
    k_far, v_far, segment = _from(offset, (far, v, ids.segment), axes)
    shared = sees[:, None] & (segment != 0)
    segment = jnp.where(shared, SHARED_SEGMENT, 0)
    parts.append((k_far, v_far, Ids(segment, jnp.zeros_like(segment) - 1)))
  return jax.tree.map(lambda *x: jnp.concatenate(x, 1), *parts)


def _from(offset: int, tree, axes):
  """Each row's row `offset` further on, round the batch over mesh axes."""
  members = jax.lax.axis_size(axes) if axes else 1
  here = jax.tree.leaves(tree)[0].shape[0]
  hops, rest = divmod(offset, here)

  def send(x, hops):
    if hops % members == 0:
      return x
    turn = [(i, (i - hops) % members) for i in range(members)]
    return jax.lax.ppermute(x, axes, turn)

  def shift(x):
    if not rest:
      return send(x, hops)
    return jnp.concatenate([send(x[rest:], hops), send(x[:rest], hops + 1)])

  return jax.tree.map(shift, tree)
