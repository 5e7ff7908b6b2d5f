"""The six arrays that carry everything a recipe does to context.

A batch is made on the host: packing, curricula, position skips, the layout of
a row over the ring and loss masks are all in it, so the model needs no flag for
any of them. Its rows are the same for any mesh; their order, and the layout,
depend on the sizes of the axes. numpy only.
"""

from typing import Any, NamedTuple

import numpy as np

Array = Any  # numpy on the host, jax.Array on devices


class Batch(NamedTuple):
  """All arrays are [batch, seq], int32 but for `weights`, float32."""

  tokens: Array  # what the model reads
  targets: Array  # the token to predict, shifted inside its document
  weights: Array  # weight of each target in the loss, 0 is no loss
  segments: Array  # document number within the row, 1.., 0 is padding
  positions: Array  # read by RoPE only
  index: Array  # order within the row, read by the mask: causality, windows


def one_document(tokens) -> Batch:
  """A batch whose rows are one whole document each.

  Args:
    tokens: [batch, seq] or [seq] token ids.

  Returns:
    A Batch in which the last token of a row has no target (weight 0).

  Raises:
    ValueError: not ids; indexing would read a negative one from the end of the
      vocabulary.
  """
  given = np.atleast_2d(np.asarray(tokens))
  numbers = given.ndim == 2 and given.dtype.kind in 'iuf'
  tokens = given.astype(np.int32) if numbers else np.zeros((1, 0), np.int32)
  if not tokens.size or (tokens != given).any() or tokens.min() < 0:
    raise ValueError(
      'tokens are ids, whole numbers from 0, [batch, seq] or [seq], at least '
      f'one; got {given.dtype} {list(given.shape)}'
    )
  order = np.broadcast_to(
    np.arange(tokens.shape[1], dtype=np.int32), tokens.shape
  )
  weights = np.ones(tokens.shape, np.float32)
  weights[:, -1] = 0
  targets = np.roll(tokens, -1, axis=1)
  targets[:, -1] = 0
  return Batch(tokens, targets, weights, np.ones_like(tokens), order, order)
