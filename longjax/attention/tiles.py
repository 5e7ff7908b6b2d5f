"""Sizes of the TPU kernel's blocks and steps, by generation of the chip.

`python tests/bench/kernel_cycles.py --tune` compiles the candidates and prints
the table: the least cycles of a pair with and without a mask, and of a step of
the grid, of what compiles.
"""

from typing import NamedTuple


class Tiles(NamedTuple):
  """How a kernel cuts its work."""

  # Of a block of queries: queries x heads of a kv head, of up to 128 dims.
  rows: int = 1024
  keys: int = 2048  # of a block of keys, at most; `block` may ask for fewer
  step: int = 512  # keys of one matmul of a pair without a mask
  masked_step: int = 512  # of one with a mask
  grad_step: int = 512  # of the backward pass
  # Whether the softmax sums p as rounded to bf16, so that the rounding of a
  # large p cancels; not where the vector unit is the limit (docs/kernel.md).
  sum_rounded: bool = True


TILES = {
  '': Tiles(),  # interpreted
  'v4': Tiles(keys=1024),
  'v5e': Tiles(rows=2048),
  'v5p': Tiles(rows=2048),
  'v6e': Tiles(rows=2048, grad_step=256, sum_rounded=False),
  'tpu7x': Tiles(rows=2048, sum_rounded=False),
}
