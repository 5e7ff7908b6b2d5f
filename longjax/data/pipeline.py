"""The pipeline: batch number i is a pure function of (store, config, seed, i).

Nothing is remembered between steps, so a resumed run asks for batch(step) and
gets what it would have got. Documents are put in a seeded order and packed;
the packs of each part of the mixture are shuffled anew in each epoch, and
Grain mixes the parts. What a row holds is known before a token is read, so a
host reads only the rows, and keeps only the columns, that its devices hold.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from longjax.batch import Batch
from longjax.data import curriculum, mixture, pack, positions
from longjax.data import deal as dealing
from longjax.data import layout as layouts
from longjax.errors import InputError

MANY_PACKS = 1 << 48  # more than any run reads
COUNTED = 4000  # groups of rows; the shares of more are taken from these
LOSSES = ('tokens', 'documents')
ALL = slice(None)


class Step(NamedTuple):
  """What a step reads, before it is read."""

  number: int
  plans: list[pack.Plan]  # of the rows, in the order of the mixture
  parts: list[int]  # which part of the mixture each of them is of
  places: np.ndarray  # places[r]: which of them is row r of the batch
  tokens: int  # of all rows, padding included

  def squares(self) -> float:
    """The sum of length^2 over the segments of all rows."""
    return sum(plan.squares() for plan in self.plans)


def check(config):
  """InputError if the section `data` cannot be meant; reads no file."""
  seq_len = config.train.seq_len
  rows = mixture.group(mixture.check(config), config)
  together = max(1, len(config.model.memory.rows))
  if rows % together:
    raise InputError(
      f'config.model.memory.rows needs packs of {together} rows, but those of '
      f'data.mix lie in {rows}; set length in data.mix to {together} x '
      f'train.seq_len = {together * seq_len}'
    )
  positions.check(config.data.positions, seq_len)
  curriculum.check(config.data.curriculum, seq_len)
  layouts.check(config.data.layout, seq_len, config.mesh.seq)
  if config.data.loss not in LOSSES:
    raise InputError(
      f'data.loss {config.data.loss!r} is none of {", ".join(LOSSES)}'
    )


class Pipeline:
  """Batches of packed rows.

  Attributes:
    parts: of the mixture, mixture.Part.
    digest: of everything that decides what is in which batch.
  """

  def __init__(self, store, config):
    """Packs the documents of a store as a config says; reads no token."""
    check(config)
    self._store, self._config = store, config
    self._seq_len, self._batch = config.train.seq_len, config.train.batch
    self.parts = mixture.parts(store, config)
    self._rows = mixture.group(mixture.check(config), config)
    self._groups = self._mixed()
    self.digest = self._digest()

  def batch(self, step: int) -> Batch:
    """Batch of a step, numpy [batch, seq_len] in the layout's order."""
    (whole,) = self.part(self.plan(step))
    return whole

  def plan(self, step: int) -> Step:
    """What is in which row of a step."""
    config, first = self._config, step * self._batch // self._rows
    plans, parts = [], []
    for number in range(first, first + self._batch // self._rows):
      part, packs = self._read(number)
      plans += self._group(self.parts[part], packs)
      parts += [part] * self._rows
    limit = curriculum.segment_length(
      config.data.curriculum, step, config.train.steps
    )
    if limit:
      plans = [pack.cut(plan, limit) for plan in plans]
    places = np.arange(self._batch)
    if self._rows == 1:  # else rows are consecutive for a reason
      costs = [plan.squares() for plan in plans]
      parts_of_step = config.train.micro_batches
      places = dealing.deal(costs, config.mesh.data, parts_of_step)
    return Step(step, plans, parts, places, self._batch * self._seq_len)

  def part(self, step: Step, rows=ALL, columns=(ALL,)) -> list[Batch]:
    """Some rows of a batch, in the layout's order, cut to some columns.

    Memory holds one row beside what is asked for.

    Args:
      step: what `plan` said.
      rows: slice of the batch.
      columns: slices of the rows.

    Returns:
      A Batch for each of `columns`.
    """
    places = step.places[rows].tolist()
    widths = [len(range(self._seq_len)[cut]) for cut in columns]
    made = [_empty(len(places), width) for width in widths]
    for here, row in enumerate(places):
      whole = self._row(step, row)
      order = self._order(whole.segments)
      for part, cut in zip(made, columns):
        for target, source in zip(part, whole):
          np.take(source, order[cut], out=target[here], mode='clip')
    return made

  def iterate(self, start_step: int = 0, held=((ALL, (ALL,)),)) -> Iterator:
    """Steps from one on without end, built ahead in two threads.

    Args:
      start_step: the first.
      held: (rows, columns) for `part`, as this host's devices hold them
        (sharding.local_slices).

    Returns:
      Yields (Step, [Batch, ...]), the parts of `held` one after another.
    """
    import grain

    def build(number):
      step = self.plan(number)
      return step, [x for where in held for x in self.part(step, *where)]

    # The default buffers 500 batches.
    ahead = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
    steps = grain.MapDataset.range(start_step, MANY_PACKS).map(build)
    return iter(steps.to_iter_dataset(ahead))

  def epochs(self, steps: int) -> dict[str, float]:
    """How often the packs of each part are read in so many steps."""
    rows = self.rows_read(steps)
    a_row = {part.name: self._seq_len / part.length for part in self.parts}
    return {
      part.name: rows[part.name] * a_row[part.name] / len(part.packs)
      for part in self.parts
    }

  def rows_read(self, steps: int) -> dict[str, int]:
    """Rows of each part in so many steps, counted."""
    counts = dict.fromkeys((part.name for part in self.parts), 0)
    if len(self.parts) == 1:
      return {self.parts[0].name: steps * self._batch}
    groups = steps * self._batch // self._rows
    for name in self._names(min(groups, COUNTED)):
      counts[name] += self._rows
    if groups > COUNTED:
      scale = groups / COUNTED
      counts = {name: round(n * scale) for name, n in counts.items()}
    return counts

  def summary(self, steps: int) -> str:
    """A line for each part: what so many steps read, and how often."""
    rows, epochs = self.rows_read(steps), self.epochs(steps)
    total, lines = max(1, sum(rows.values())), []
    for part in self.parts:
      name = part.name
      lines.append(
        f'{name}: {rows[name]:,} rows of {self._seq_len} '
        f'({rows[name] / total:.2%}, asked {part.weight:.2%}); '
        f'{len(part.packs):,} packs of {part.length} from {part.documents:,} '
        f'documents, {part.packs.dropped:,} tokens in none; {steps} steps '
        f'read {epochs[name]:.2f} epochs'
        + (': the data is repeated' if epochs[name] > 1 else '')
      )
    return '\n'.join(lines)

  def _mixed(self):
    """MapDataset of (part, numbers of packs): the rows that are read at once.

    Packs may straddle epochs, so none is left out.
    """
    import grain

    groups = []
    for number, part in enumerate(self.parts):
      size = self._rows * self._seq_len // part.length  # packs
      count = len(part.packs)
      # Without a number, `repeat` makes a length that does not fit an int.
      packs = grain.MapDataset.range(count).seed(self._config.seed + number)
      if part.by_step:
        packs = packs.repeat(size // np.gcd(size, count))
        packs = packs.batch(size, batch_fn=list).shuffle()
        packs = packs.repeat(MANY_PACKS // len(packs))
      else:
        packs = packs.shuffle().repeat(MANY_PACKS // count)
        packs = packs.batch(size, batch_fn=list)
      groups.append(packs.map(lambda these, number=number: (number, these)))
    return self._mix(groups)

  def _mix(self, groups):
    import grain

    weights = [part.weight for part in self.parts]
    return grain.MapDataset.mix(groups, weights) if groups[1:] else groups[0]

  def _names(self, count: int) -> Iterator[str]:
    """Of the parts that the first groups are of; draws no pack."""
    import grain

    names = (part.name for part in self.parts)
    groups = [grain.MapDataset.source([x]).repeat(MANY_PACKS) for x in names]
    mixed = self._mix(groups)
    return (str(mixed[number]) for number in range(count))

  def _read(self, number: int) -> tuple[int, list[int]]:
    """(part, its packs) of the rows that are read at once."""
    found = self._groups[number]
    assert found is not None  # grain's type for filtered elements
    return found

  def _group(self, part, packs) -> list[pack.Plan]:
    spans = [part.packs[i] for i in packs]
    return pack.rows(spans, part.length, self._seq_len, part.joined)

  def _row(self, step: Step, row: int) -> Batch:
    """Row `row` of the mixture, [seq_len] arrays in the order of the text."""
    config = self._config
    made = pack.row(self._store, step.plans[row], self._seq_len)
    if config.data.loss == 'documents':
      made = made._replace(weights=_by_document(made.weights, made.segments))
    place = positions.draw(
      config.data.positions, made.segments, made.weights,
      config.seed, step.number, row,
    )  # fmt: skip
    index = np.arange(self._seq_len, dtype=np.int32)
    return Batch(*made, place, index)

  def _order(self, segments) -> np.ndarray:
    """Which column of the text is where, [seq_len]."""
    config, layout = self._config, self._config.data.layout
    found = layouts.permutation(
      segments[None], layout, config.mesh.seq, config.model.block
    )
    return found.reshape(-1)

  def _digest(self) -> str:
    config = self._config
    keys = ('mix', 'positions', 'curriculum', 'loss')
    data = {key: config.data.to_dict()[key] for key in keys}
    steps = config.train.steps if data['curriculum'] else None
    whole = [self._store.digest, data, steps, config.seed]
    return hashlib.sha256(json.dumps(whole).encode()).hexdigest()


def _empty(rows: int, width: int) -> Batch:
  kinds = [np.float32 if f == 'weights' else np.int32 for f in Batch._fields]
  return Batch(*(np.empty((rows, width), kind) for kind in kinds))


def _by_document(weights, segments) -> np.ndarray:
  """Weights that sum to 1 over each segment (LongAlign, 2401.18058, 3.2).

  sum(weights x nll) / sum(weights) over a batch of M sequences with N_i targets
  and summed losses L_i then is 1/M sum L_i / N_i, however they are packed.
  """
  totals = np.bincount(segments, weights)
  return (weights / np.maximum(totals, 1e-9)[segments]).astype(np.float32)
