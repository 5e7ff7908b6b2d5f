"""Batches: global batch i is a pure function of (store, config, seed, i).

No state is kept between steps, so a resumed run gets the same batch(step) as an
uninterrupted one. Read from the top: `plan` chooses the documents of
each row of a step, without reading a token; `read` makes the six arrays of some
rows and columns of that plan, those which the devices of a host hold.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from longjax.batch import Batch
from longjax.data import curriculum, layout, mixture, positions, row_plans
from longjax.errors import InputError

MAX_STEPS = 1 << 48  # more than any run has
ALL = slice(None)
CHUNK = 65_536  # of data.loss='64k'
# Of batches of sorted or joined packs, whose order changed in November 2026: a
# run that began with the old one is refused.
ORDER = 2


class BatchPlan(NamedTuple):
  """The documents in each row of a batch, before any token is read."""

  step: int
  rows: list[row_plans.RowPlan]  # in the order of the mixture
  components: list[int]  # of the mixture, for each of `rows`
  row_order: np.ndarray  # int64 [batch]; row r of the batch: rows[row_order[r]]
  tokens: int  # of all rows, without padding
  lengths: np.ndarray  # int64 [batch]; tokens that row r is computed at

  def squared_lengths(self, window: int = 0) -> float:
    """The sum of length^2 over the segments of all rows, see RowPlan."""
    return sum(row.squared_lengths(window) for row in self.rows)


def check(config):
  """Refuses a section `data` that cannot be; reads no file.

  Raises:
    InputError: names the key, its value and the bound.
  """
  seq_len = config.train.seq_len
  memory = max(1, len(config.model.memory.rows))
  for name, component in mixture.parse(config).items():
    if memory > 1 and component.length % (memory * seq_len):
      raise InputError(
        f'config.model.memory.rows needs packs of {memory} rows, but those of '
        f'data.mix.{name} have {component.length} tokens; set its length to '
        f'{memory} x train.seq_len = {memory * seq_len}'
      )
  positions.check(config.data.positions, seq_len)
  curriculum.check(config.data.curriculum, seq_len)
  for length in (seq_len, *config.train.lengths):
    layout.check(config.data.layout, length, config.mesh.seq)
  longest = max(config.train.lengths, default=0)
  if longest > seq_len:
    raise InputError(
      f'config.train.lengths has {longest}; it must be at most train.seq_len '
      f'{seq_len}'
    )
  if longest and (config.model.group or config.model.memory.rows):
    raise InputError(
      f'config.train.lengths is {tuple(config.train.lengths)}; it must be () '
      'with model.group or model.memory.rows, which need whole rows'
    )


class Pipeline:
  """Batches of packed rows.

  Attributes:
    components: of the mixture, a list of mixture.MixtureComponent.
    digest: of everything that decides what is in which batch.
  """

  def __init__(self, store, config):
    """Packs the documents of a store; reads no token.

    Args:
      store: a store.Store.
      config: one that `check` accepts.

    Raises:
      InputError: a component of the mixture without documents, or positions
        that its documents cannot have.
    """
    self._store, self._config = store, config
    self._seq_len, self._batch = config.train.seq_len, config.train.batch
    parsed = mixture.parse(config)
    self._pack_rows = mixture.pack_rows(parsed, config)
    self._group_rows = mixture.group_rows(parsed, config)
    self.components = mixture.build(parsed, store, config.seed)
    if config.data.positions.kind == 'skipalign':
      read = [component.packs.document for component in self.components]
      positions.check_turns(store, np.concatenate(read))
    self._groups = mixture.row_groups(
      self.components, self._group_rows * self._seq_len, config.seed
    )
    self.digest = self._digest()

  def batch(self, step: int) -> Batch:
    """Batch of a step, numpy [batch, seq_len] in the layout's order."""
    (batch,) = self.read(self.plan(step))
    return batch

  def plan(self, step: int) -> BatchPlan:
    """The documents in each row of a step."""
    config, rows, components = self._config, [], []
    groups = self._batch // self._group_rows
    for number in range(step * groups, (step + 1) * groups):
      # The mixture chooses packs, which fill rows.
      component, packs = self._groups[number]
      of = self.components[component]
      spans = [of.packs[i] for i in packs]
      rows += row_plans.of_packs(spans, of.length, self._seq_len, of.joined)
      components += [component] * self._group_rows
    # Early steps of a curriculum cut the rows into shorter segments.
    limit = curriculum.segment_length(
      config.data.curriculum, step, config.train.steps
    )
    if limit:
      rows = [row_plans.cut_segments(row, limit) for row in rows]
    # Rows of like cost share a micro-batch, unless packs take several rows.
    row_order = np.arange(self._batch)
    if self._pack_rows == 1:
      costs = [row.squared_lengths() for row in rows]
      row_order = layout.balance_rows(
        costs, config.mesh.data, config.train.micro_batches
      )
    tokens = sum(int(row.length.sum()) for row in rows)
    lengths = self._lengths([rows[number] for number in row_order])
    return BatchPlan(step, rows, components, row_order, tokens, lengths)

  def read(self, plan: BatchPlan, rows=ALL, columns=(ALL,)) -> list[Batch]:
    """Some rows of a batch, in the layout's order, cut to some columns.

    Memory holds one row beside what is asked for.

    Args:
      plan: of the step.
      rows: slice of the batch.
      columns: slices of the rows.

    Returns:
      A Batch for each of `columns`.
    """
    numbers = plan.row_order[rows].tolist()
    widths = [len(range(self._seq_len)[cut]) for cut in columns]
    kinds = [np.float32 if f == 'weights' else np.int32 for f in Batch._fields]
    batches = [
      Batch(*(np.empty((len(numbers), width), kind) for kind in kinds))
      for width in widths
    ]
    lengths = plan.lengths[rows].tolist()
    for i, (number, length) in enumerate(zip(numbers, lengths)):
      row = self._row(plan, number)
      order = self._column_order(row.segments, length)
      for batch, cut in zip(batches, columns):
        for target, source in zip(batch, row):
          np.take(source, order[cut], out=target[i], mode='clip')
    return batches

  def iterate(self, start_step: int = 0, slices=((ALL, (ALL,)),)) -> Iterator:
    """Steps without end, read ahead in two threads.

    Args:
      start_step: the first.
      slices: (rows, columns) for `read`, as this host's devices hold them
        (sharding.local_slices).

    Returns:
      Yields (BatchPlan, [Batch, ...]), the batches of `slices` in order.
    """
    import grain

    def read(step):
      plan = self.plan(step)
      return plan, [x for where in slices for x in self.read(plan, *where)]

    # The default buffers 500 batches.
    ahead = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
    steps = grain.MapDataset.range(start_step, MAX_STEPS).map(read)
    return iter(steps.to_iter_dataset(ahead))

  def summary(self, steps: int) -> str:
    """A line for each component: what so many steps read, and how often."""
    total, lines = steps * self._batch, []
    for component in self.components:
      packs, length = component.packs, component.length
      rows = component.weight * total  # as row_groups mixes them
      epochs = rows * self._seq_len / length / len(packs)
      lines.append(
        f'{component.name}: {round(rows):,} rows of {self._seq_len} '
        f'({component.weight:.2%}); {len(packs):,} packs of {length} from '
        f'{component.documents:,} documents, {packs.dropped:,} tokens in none; '
        f'{steps} steps read {epochs:.2f} epochs'
        + (': the data is repeated' if epochs > 1 else '')
      )
    return '\n'.join(lines)

  def _row(self, plan: BatchPlan, number: int) -> Batch:
    """One of plan.rows, six [seq_len] arrays in the order of its text."""
    config = self._config
    row = row_plans.read_row(self._store, plan.rows[number], self._seq_len)
    if config.data.loss != 'tokens':
      parts = np.arange(self._seq_len) // CHUNK
      if config.data.loss == 'documents':
        parts = row.segments
      row = row._replace(weights=_mean_weights(row.weights, parts))
    if config.data.positions.kind != 'plain':
      place = positions.draw(
        config.data.positions, row, plan.rows[number].jumps(),
        (config.seed, plan.step, number),
      )  # fmt: skip
      row = row._replace(positions=place)
    return row

  def _lengths(self, rows) -> np.ndarray:
    """BatchPlan.lengths: of a micro-batch, the shortest that holds its rows.

    train.step.dispatch_by_length finds the same on the devices.
    """
    train = self._config.train
    lengths = np.array(sorted({*train.lengths, train.seq_len}))
    ends = np.array([(row.column + row.length).max(initial=0) for row in rows])
    # Row r is computed in micro-batch r % micro_batches.
    longest = ends.reshape(-1, train.micro_batches).max(axis=0)
    of_parts = lengths[np.searchsorted(lengths, longest)]
    return np.tile(of_parts, len(rows) // train.micro_batches)

  def _column_order(self, segments, length: int) -> np.ndarray:
    """The columns of the text in the layout's order, [seq_len]."""
    config, members = self._config, self._config.mesh.seq
    order = layout.permutation(
      segments[None, :length], config.data.layout, members, config.model.block
    )
    return layout.lengthen(order.reshape(-1), self._seq_len, members)

  def _digest(self) -> str:
    config = self._config
    keys = ('mix', 'positions', 'curriculum', 'loss')
    data = {key: config.data.to_dict()[key] for key in keys}
    steps = config.train.steps if data['curriculum'] else None
    content = [self._store.digest, data, steps, config.seed]
    if any(c.joined or c.group > 1 for c in self.components):
      content.append(ORDER)
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _mean_weights(weights, parts) -> np.ndarray:
  """Weights that sum to 1 over each part of a row, given by its number.

  sum(weights x nll) / sum(weights) over a batch of M parts with N_i targets and
  summed losses L_i then is 1/M sum L_i / N_i: of segments, that of LongAlign
  (2401.18058, 3.2), however they are packed.
  """
  totals = np.bincount(parts, weights)
  return (weights / np.maximum(totals, 1e-9)[parts]).astype(np.float32)
