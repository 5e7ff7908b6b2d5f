"""The pipeline: batch number i is a pure function of (store, config, seed, i).

Nothing is remembered between steps, so a resumed run asks for batch(step) and
gets what it would have got. Documents are put in a seeded order and packed
into rows; the rows are shuffled anew in each epoch.
"""

import functools
from collections.abc import Iterator

import numpy as np

from longjax import errors
from longjax.batch import Batch
from longjax.data import layout as layouts
from longjax.data import pack

MANY_ROWS = 1 << 48  # more than any run reads


class Pipeline:
  """Batches of packed rows.

  Attributes:
    rows: rows in an epoch.
    tokens_per_epoch: tokens in those rows.
    dropped: tokens that fill no whole row, so are never read.
    digest: of the store that they come from.
  """

  def __init__(
    self,
    store,
    seq_len,
    batch,
    seed,
    *,
    layout='contiguous',
    ring=1,
    block=512,
  ):
    """Packs the documents of a store.

    Args:
      store: a store.Store.
      seq_len: tokens of a row.
      batch: rows of a batch.
      seed: of the order of documents and rows.
      layout: one of layout.LAYOUTS.
      ring: devices that share a row.
      block: of attention, which the layout may keep whole.
    """
    import grain

    self._store, self._seq_len, self._batch = store, seq_len, batch
    layouts.check(layout, seq_len, ring)
    self._arrange = functools.partial(
      layouts.arrange, layout=layout, n=ring, block=block
    )
    documents = np.random.default_rng(seed).permutation(len(store.lengths))
    self._packed = pack.concatenate(store.lengths, seq_len, documents)
    self.rows = len(self._packed)
    self.dropped = self._packed.dropped
    self.digest = store.digest
    self.tokens_per_epoch = self.rows * seq_len
    if not self.rows:
      raise errors.InputError(
        f'{store.directory}: {int(store.lengths.sum())} tokens do not fill '
        f'one row of {seq_len}; add documents or lower train.seq_len'
      )
    # Batches may straddle epochs: no row is left out.
    # Without a number, `repeat` makes a length that does not fit into an int.
    epochs = MANY_ROWS // self.rows
    numbers = grain.MapDataset.range(self.rows).seed(seed).shuffle()
    numbers = numbers.repeat(epochs)
    self._batches = numbers.batch(batch, batch_fn=list).map(self._build)
    # The default buffers 500 batches.
    self._reading = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)

  def batch(self, step: int) -> Batch:
    """Batch of a step, numpy [batch, seq_len] in the layout's order."""
    made = self._batches[step]
    assert made is not None  # grain's type for filtered elements
    return made

  def iterate(self, start_step: int = 0) -> Iterator[Batch]:
    """Batches from a step on without end, built ahead in two threads."""
    return iter(self._batches[start_step:].to_iter_dataset(self._reading))

  def epochs(self, steps: int) -> float:
    """How often the data is read in so many steps."""
    return steps * self._batch / self.rows

  def summary(self, steps: int) -> str:
    """A line that says what so many steps read, and whether data repeats."""
    epochs = self.epochs(steps)
    return (
      f'{self.rows} rows of {self._seq_len} tokens from '
      f'{len(self._store.lengths)} documents ({self.dropped} tokens fill no '
      f'row); {steps} steps read {epochs:.2f} epochs'
      + (': the data is repeated' if epochs > 1 else '')
    )

  def _build(self, numbers) -> Batch:
    rows = [self._packed[i] for i in numbers]
    return self._arrange(pack.batch(self._store, rows, self._seq_len))
