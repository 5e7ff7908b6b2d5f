"""The documents of a step's rows, and the attention that they take.

The compiled program is the same for all documents; how many blocks of attention
it executes, and which member of the ring executes most, depends on them.
"""

from typing import NamedTuple

import numpy as np

from longjax import flops
from longjax.attention import STRATEGIES, exchange_size
from longjax.batch import one_document
from longjax.data import layout
from longjax.errors import InputError


class Workload(NamedTuple):
  """The attention of a step: blocks are pairs of `block` tokens."""

  lengths: tuple[int, ...]  # of the documents of each row
  squared_lengths: float  # sum over documents of length^2
  needed: float  # blocks, could they be cut to the token
  executed: float  # blocks of all rows and members
  hops: tuple[float, ...]  # blocks of the busiest member, per micro-batch
  pairs: float  # blocks of a member in one hop, were all live
  block: int  # tokens
  # Blocks of a call of attention in the program's scope of that name, in parts
  # of what is counted above; '' is every other scope.
  special: dict[str, float]
  windowed: float  # `squared_lengths` within the window of the model

  def layers_saved_by_windows(self, model) -> float:
    """Layers' worth of attention that layers with a window do not do."""
    layers = sum(bool(model.kind(i).window) for i in range(model.layers))
    return layers * (1 - self.special.get('windowed_layers', 1.0))


def workload(config, documents: str = '') -> Workload:
  """The attention of one layer's forward pass in a step of this config.

  Args:
    config: with the mesh that it will have.
    documents: see `row_lengths`.

  Raises:
    InputError: documents that no row can hold.
  """
  step, model = config.train, config.model
  data, n = config.mesh.data, config.mesh.seq
  lengths = row_lengths(documents, step.batch, step.seq_len)
  # Each device that exchanges heads has a share of them, of a block as well.
  swap = exchange_size(
    model.attention, model.heads, model.kv_heads, n, model.ulysses
  )
  members = n // swap
  local = step.seq_len // members
  block = min(model.block, local)
  work = {x: _work(config, x, members) for x in set(lengths)}
  if STRATEGIES[model.attention].gathers_keys:
    work = {x: w.sum(1, keepdims=True) for x, w in work.items()}
  rows = np.stack([work[x] for x in lengths])  # [row, member, hop]
  costs = [_squares(x, step.seq_len) for x in lengths]
  # As data/pipeline does.
  rows = rows[layout.balance_rows(costs, data, step.micro_batches)]
  executed = float(rows.sum())
  pairs = (-(-local // block)) ** 2 * (members // rows.shape[2]) / swap
  return Workload(
    lengths=lengths,
    squared_lengths=sum(costs),
    needed=sum(costs) / 2 / block**2,
    executed=executed,
    hops=tuple(_busiest(rows / swap, step.micro_batches, data).tolist()),
    pairs=pairs * step.batch / (step.micro_batches * data),
    block=block,
    special=_special(config, lengths, members, block, executed),
    windowed=sum(_squares(x, step.seq_len, model.window) for x in lengths),
  )


def _special(config, lengths, members, block, executed) -> dict[str, float]:
  """Workload.special: what recipes do to attention besides documents."""
  step, model, found = config.train, config.model, {}
  cut = lambda size: (
    step.batch * _work(config, min(size, step.seq_len), members).sum()
  )
  if step.longce.gamma:
    size = step.longce.short + step.longce.stride
    found['longce'] = float(cut(size) / executed)
  if model.memory.rows:
    seen = flops.count_memory_pairs(model, step.batch, step.seq_len) / block**2
    found['memory_layers'] = 1 + seen / executed
  if model.window:
    work = {x: _work(config, x, members, model.window) for x in set(lengths)}
    inside = sum(work[x].sum() for x in lengths)
    found['windowed_layers'] = float(inside / executed)
  if model.group:  # a call for each half of the heads
    found[''] = float(cut(model.group) / executed / 2)
  return found


def row_lengths(documents: str, batch: int, seq_len: int) -> tuple[int, ...]:
  """How long the documents of each row are; all of one row are equal.

  Args:
    documents: '' is one document a row, '65536' documents of that length,
      '524288:0.23,65536:0.77' rows of each length by share.
    batch: rows, dealt in proportion, in an order drawn once.
    seq_len: tokens of a row.
  """
  mix = _mix(documents or str(seq_len), seq_len)
  exact = np.array([share for _, share in mix]) * batch
  count = np.floor(exact).astype(int)
  rest = np.argsort(count - exact, kind='stable')[: batch - count.sum()]
  count[rest] += 1
  rows = np.repeat([length for length, _ in mix], count)
  return tuple(np.random.default_rng(0).permutation(rows).tolist())


def _mix(documents: str, seq_len: int) -> list[tuple[int, float]]:
  """[(length, share)] with shares that add up to 1."""
  wrong = InputError(
    f'--documents {documents!r} is not a length (65536) or lengths by share '
    f'that add up to 1 (524288:0.23,65536:0.77), each from 1 to seq_len '
    f'{seq_len}'
  )
  try:
    parts = [x.partition(':') for x in documents.split(',')]
    mix = [(int(length), float(share or 1)) for length, _, share in parts]
  except ValueError:
    raise wrong from None
  total = sum(share for _, share in mix)
  fits = all(1 <= length <= seq_len and share > 0 for length, share in mix)
  if not fits or abs(total - 1) > 0.005:
    raise wrong
  return [(length, share / total) for length, share in mix]


def _squares(length: int, seq_len: int, window: int = 0) -> float:
  whole, rest = divmod(seq_len, length)
  return float(flops.within(np.array([length] * whole + [rest]), window))


def _work(config, length: int, members: int, window: int = 0) -> np.ndarray:
  """Blocks of a row of such documents, [member, hop]."""
  row = one_document(np.zeros(config.train.seq_len, np.int32))
  row = row._replace(segments=1 + row.index // length)
  block = config.model.block
  row = layout.arrange(row, config.data.layout, config.mesh.seq, block)
  ids = row.segments, row.index
  return layout.executed_blocks(*ids, members, block, window)[0]


def _busiest(rows: np.ndarray, micro_batches: int, data: int) -> np.ndarray:
  """Blocks by hop, of the member with most in the ring with most; the mean
  over micro-batches. Rows go to them as in train/step.py gradients."""
  rows = rows.reshape(data, -1, micro_batches, *rows.shape[1:])
  slowest = rows.sum(1).max(2)  # [ring, micro-batch, hop]
  ring = slowest.sum(2).argmax(0)
  return slowest[ring, np.arange(micro_batches)].mean(0)
