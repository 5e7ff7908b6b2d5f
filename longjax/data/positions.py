"""Positions, which RoPE reads. Pure numpy."""

import numpy as np


def plain(segments) -> np.ndarray:
  """0, 1, 2, ... from the start of each segment.

  Args:
    segments: [..., seq] document numbers in contiguous order.

  Returns:
    int32 [..., seq].
  """
  segments = np.asarray(segments)
  order = np.broadcast_to(
    np.arange(segments.shape[-1], dtype=np.int32), segments.shape
  )
  fresh = np.ones(segments.shape, bool)
  fresh[..., 1:] = segments[..., 1:] != segments[..., :-1]
  starts = np.maximum.accumulate(np.where(fresh, order, 0), axis=-1)
  return order - starts
