"""How fast the attention kernels are: static schedules, and calibration."""

from typing import NamedTuple

from longjax.slices import Chip

# Share of the peak that our kernels reach by their static schedules, forward
# and backward, where no mask is needed, with what a step of the grid costs,
# blocks of 2048 keys (v4: 1024) and heads of 128: tests/bench/kernel_cycles.py.
EFFICIENCY = dict(
  v4=(0.75, 0.87),
  v5e=(0.97, 0.99),
  v5p=(0.97, 0.98),
  v6e=(0.61, 0.61),
  tpu7x=(0.58, 0.61),
)


class Calibration(NamedTuple):
  """Real over static speed of attention kernels, and where that is from."""

  forward: float
  backward: float
  source: str


STATIC = Calibration(1.0, 1.0, 'static schedules')
# From the speeds of tokamax's kernels at heads of 128, as shares of the peak:
# measured on the chip (its tuning data at 16,384 tokens, its microbenchmarks)
# over compiled for it (static). None is a measurement of our kernels. Where
# nothing is published, the lowest ratio that is: tpu7x backward.
CALIBRATION = dict(
  v4=Calibration(0.80, 0.80, 'assumed: no figures are published'),
  v5e=Calibration(0.80, 0.80, 'assumed: no figures are published'),
  v5p=Calibration(
    0.96, 0.80, 'tokamax: forward 0.892 measured, 0.93 static; backward assumed'
  ),
  v6e=Calibration(
    0.90, 0.80, 'tokamax: forward 0.360 measured, 0.40 static; backward assumed'
  ),
  tpu7x=Calibration(
    0.89, 0.80,
    'tokamax: forward 0.348 measured, 0.39 static; backward 0.37 to 0.39, 0.48',
  ),
)  # fmt: skip


def kernel_seconds(chip: Chip, flops, calibration: Calibration):
  """(forward, backward): seconds of the attention kernels by hop.

  Args:
    chip: one device.
    flops: of the forward pass by hop, of the busiest member of the ring.
    calibration: STATIC, or that of the chip's generation.
  """
  forward, backward = EFFICIENCY[chip.name]
  pace = lambda share: [f / chip.peak / share for f in flops]
  ahead = [s / forward for s in pace(calibration.forward)]
  # Five matmuls where the forward pass has two.
  back = [2.5 * s / backward for s in pace(calibration.backward)]
  return ahead, back
