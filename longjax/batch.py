"""The six arrays through which every recipe speaks to the model.

A batch is made on the host and means the same whatever the mesh is: packing,
curricula, position skips, layouts and loss masks are all written here, so the
model needs no flag for any of them. numpy only.
"""

from typing import NamedTuple

import numpy as np


class Batch(NamedTuple):
  """All arrays are [batch, seq], int32 but for `weights`, float32."""

  tokens: np.ndarray  # what the model reads
  targets: np.ndarray  # the token to predict, shifted inside its document
  weights: np.ndarray  # weight of each target in the loss, 0 is no loss
  segments: np.ndarray  # document number within the row, 1.., 0 is padding
  positions: np.ndarray  # read by RoPE only
  index: np.ndarray  # order within the row, read by causality only


def one_document(tokens) -> Batch:
  """A batch whose rows are one whole document each.

  Args:
    tokens: [batch, seq] or [seq] token ids.

  Returns:
    A Batch in which the last token of a row has no target (weight 0).
  """
  tokens = np.atleast_2d(np.asarray(tokens, np.int32))
  order = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32),
                          tokens.shape)
  weights = np.ones(tokens.shape, np.float32)
  weights[:, -1] = 0
  targets = np.roll(tokens, -1, axis=1)
  targets[:, -1] = 0
  return Batch(tokens, targets, weights, np.ones_like(tokens), order, order)


def concatenate(batches) -> Batch:
  """Stacks the rows of several batches of one length."""
  return Batch(*(np.concatenate(arrays) for arrays in zip(*batches)))


def check(batch: Batch, vocab: int) -> Batch:
  """Returns `batch`; raises ValueError where a model must not train on it."""
  shapes = {name: np.shape(x) for name, x in batch._asdict().items()}
  if len(set(shapes.values())) > 1 or len(batch.tokens.shape) != 2:
    raise ValueError(f'a batch needs six [batch, seq] arrays, got {shapes}')
  for name in ('tokens', 'targets'):
    ids = getattr(batch, name)
    if ids.size and (ids.min() < 0 or ids.max() >= vocab):
      row = int(np.argwhere((ids < 0) | (ids >= vocab))[0][0])
      raise ValueError(
          f'{name} of row {row} go from {ids.min()} to {ids.max()}, '
          f'but the vocabulary has {vocab} entries')
  return batch
