"""Layouts: which tokens of a row lie on which device of the ring.

A causal ring does even work only if every device holds early and late tokens.
The tokens of a row are permuted once, on the host; `index` goes with them and
tells the attention what came before what. Device i of n holds

  contiguous  chunk i of n
  zigzag      chunks i and 2n-1-i of 2n (Llama 3, arXiv:2407.21783, 3.3.2)
  striped     tokens i, i+n, i+2n, ... (Striped Attention, arXiv:2311.09431)
"""

import numpy as np

from longjax import errors
from longjax.batch import Batch

LAYOUTS = ('contiguous', 'zigzag', 'striped')


def order(layout: str, seq_len: int, n: int) -> np.ndarray:
  """The permutation of a row: place p holds token order[p].

  Args:
    layout: one of LAYOUTS.
    seq_len: tokens of a row.
    n: devices of the ring.

  Returns:
    int64 [seq_len].
  """
  if layout not in LAYOUTS:
    raise errors.InputError(f'layout {layout!r} is none of {LAYOUTS}')
  chunks = 2 * n if layout == 'zigzag' else n
  if seq_len % chunks:
    raise errors.InputError(
      f'seq_len {seq_len} is not a multiple of {chunks}: layout={layout!r} on '
      f'a ring of {n} needs {chunks} equal parts; the nearest seq_len is '
      f'{max(1, round(seq_len / chunks)) * chunks}'
    )
  tokens = np.arange(seq_len)
  if layout == 'contiguous':
    return tokens
  if layout == 'striped':
    return tokens.reshape(-1, n).T.reshape(-1)
  parts = tokens.reshape(2 * n, -1)
  pairs = np.stack([parts[:n], parts[n:][::-1]], axis=1)  # [n, 2, chunk]
  return pairs.reshape(-1)


def apply(batch: Batch, order) -> Batch:
  """All six arrays with their columns permuted."""
  return Batch(*(array[:, order] for array in batch))


def inverse(order) -> np.ndarray:
  """The permutation that brings a row back: x[order][inverse] is x."""
  return np.argsort(order)
