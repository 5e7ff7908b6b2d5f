"""LongCE: loss weights from long-context gain, arXiv:2410.23771.

  weight = min(exp(loss with a short context - loss with all of it), gamma)

with the model's own losses, and no gradient through the weight. The short
context is a window of `short + stride` tokens, one every `stride`; a window
serves the `stride` targets with at least `short` of its tokens before them, as
in the published code. A window is a document to the model: the row is computed
(short + stride) / stride times more, each time split into windows that do not
overlap, so no token moves, whatever the layout.
"""

import jax
import jax.numpy as jnp

from longjax.errors import InputError
from longjax.mask import Ids, split_in_groups


def check(options, seq_len: int):
  """InputError where the section `train.longce` of a config is invalid.

  Args:
    options: the section.
    seq_len: tokens of a row.
  """
  if options.short % options.stride:
    raise InputError(
      f'config.train.longce.short {options.short} is not a multiple of '
      f'longce.stride {options.stride}: the windows would not tile a row'
    )
  if options.gamma and options.short >= seq_len:
    raise InputError(
      f'config.train.longce.short is {options.short}; it must be below '
      f'train.seq_len {seq_len}, or no target has a longer context'
    )


def weights(losses, batch, nll, options):
  """The weight of each target, at least 0 and at most gamma.

  Args:
    losses: Batch -> [batch, seq] nats, without gradients.
    batch: Batch of jax arrays.
    nll: [batch, seq], losses(batch).
    options: the section `train.longce` of a config.

  Returns:
    [batch, seq] float32; 1 for the first targets of a row, whose context is no
    longer than the short one.
  """
  gain = short_losses(losses, batch, options.short, options.stride) - nll
  weight = jnp.minimum(jnp.exp(gain), options.gamma)
  first = batch.index + 1 < options.short
  return jax.lax.stop_gradient(jnp.where(first, 1.0, weight))


def short_losses(losses, batch, short: int, stride: int):
  """The loss of each target given its window alone, [batch, seq].

  Args:
    losses: Batch -> [batch, seq].
    batch: Batch of jax arrays.
    short, stride: tokens; stride divides short.
  """
  size = short + stride
  turns = size // stride  # passes until windows of all starts are computed
  window = (batch.index + 1 - short) // stride  # of each target

  def one(turn):
    ids = Ids(batch.segments, batch.index)
    ids = split_in_groups(ids, size, (size - turn * stride) % size)
    return losses(batch._replace(segments=ids.segment))

  by_turn = jax.lax.map(one, jnp.arange(turns, dtype=jnp.int32))
  return jnp.take_along_axis(by_turn, (window % turns)[None], 0)[0]
