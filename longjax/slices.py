"""The TPU slices that exist, and the table of chips.

A slice is named by its generation and the chips along each axis of its torus:
v5p:4x4x8 is 128 chips of v5p. Google's own names, v5p-256 and v6e-64, are read
too. No import of jax: training, planning and pod.py all read this. To add a
generation: here, and in plan/calibration.py, attention/tiles.py,
parallel/topology.py (CUBE), pod/queued.py and pod/request.py (TYPES, IMAGES).
"""

import math
import re
from typing import NamedTuple

from longjax import errors
from longjax.errors import InputError

GIB = 2**30
EXAMPLE = 'v5p:4x4x8'
ALIASES = {'7x': 'tpu7x', 'v7x': 'tpu7x', 'v5litepod': 'v5e'}
# What Google's names of slices count for each chip: chips, or TensorCores.
UNITS = dict(v4=2, v5e=1, v5p=2, v6e=1, tpu7x=2)
# The shapes that a count stands for; docs.cloud.google.com/tpu/docs, Nov 2026.
SHAPES = {
  2: ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16)),
  3: ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4), (4, 4, 8),
      (4, 8, 8), (8, 8, 8), (8, 8, 16), (8, 16, 16), (16, 16, 16),
      (16, 16, 24)),
}  # fmt: skip
# A quiet libtpu on a machine without a TPU, beside other processes that use it.
ENVIRONMENT = dict(
  JAX_PLATFORMS='cpu',
  TPU_SKIP_MDS_QUERY='1',
  TPU_ACCELERATOR_TYPE='v5p-8',
  TPU_WORKER_HOSTNAMES='localhost',
  ALLOW_MULTIPLE_LIBTPU_LOAD='true',
)
# The share of HBM that a train step must leave free: the next batch, programs
# of evaluations and digests, pieces of a checkpoint on their way to the host,
# and fragmentation. A margin, not measured on a TPU.
HBM_MARGIN = 0.08


class Chip(NamedTuple):
  """One jax device of a generation. A TPU7x chip is two, the others one."""

  name: str  # the generation, as in the names of slices
  peak: float  # bf16 FLOP/s
  hbm: float  # bytes that the compiler may use
  bandwidth: float  # of HBM, bytes/s
  link: float  # of one ICI link in one direction, bytes/s
  clock: float  # of the cycles that the compiler estimates, Hz
  axes: int = 2  # of the torus of chips
  per_chip: int = 1  # jax devices of a chip

  @property
  def usable(self) -> float:
    """Bytes of HBM that a train step may need: all but HBM_MARGIN."""
    return (1 - HBM_MARGIN) * self.hbm


# Peaks, bandwidths: public specifications; HBM: the limit in the compiler's
# message when a program does not fit (libtpu 0.0.52); clocks: modelled.
CHIPS = dict(
  v4=Chip('v4', 275e12, 30.75 * GIB, 1.23e12, 45e9, 1.05e9, 3),
  v5e=Chip('v5e', 197e12, 15.75 * GIB, 0.81e12, 45e9, 1.5e9),
  v5p=Chip('v5p', 459e12, 95.73 * GIB, 2.77e12, 90e9, 1.75e9, 3),
  v6e=Chip('v6e', 918e12, 31.24 * GIB, 1.64e12, 90e9, 1.75e9),
  tpu7x=Chip('tpu7x', 1153.5e12, 94.74 * GIB, 3.69e12, 90e9, 2.2e9, 3, 2),
)
# jax's `device_kind` to the generation.
KINDS = {
  'TPU v4': 'v4',
  'TPU v5 lite': 'v5e',
  'TPU v5e': 'v5e',
  'TPU v5': 'v5p',
  'TPU v5p': 'v5p',
  'TPU v6 lite': 'v6e',
  'TPU v6e': 'v6e',
  'TPU7x': 'tpu7x',
}


def chip(device_kind: str) -> Chip | None:
  """The chip of a jax `device_kind`; None if it is not in the table."""
  return CHIPS.get(KINDS.get(device_kind, ''))


class Slice(NamedTuple):
  """One slice, or several equal ones joined by a datacenter network."""

  generation: str
  dims: tuple[int, ...]  # chips along each axis of one slice
  slices: int

  @property
  def name(self) -> str:
    return f'{self.generation}:{"x".join(map(str, self.dims))}'

  @property
  def chip(self) -> Chip:
    return CHIPS[self.generation]

  @property
  def google(self) -> str:
    """Google's name of one slice, v5litepod-16; '' if it has none."""
    kind = 'v5litepod' if self.generation == 'v5e' else self.generation
    count = UNITS[self.generation] * self.size
    return f'{kind}-{count}' if self.dims in SHAPES[self.chip.axes] else ''

  @property
  def size(self) -> int:
    """Chips of one slice."""
    return math.prod(self.dims)

  @property
  def chips(self) -> int:
    """Chips of all slices."""
    return self.slices * self.size

  @property
  def devices(self) -> int:
    """jax devices of all slices."""
    return self.chips * self.chip.per_chip


def parse(text: str, slices: int = 1) -> Slice:
  """`v5p:4x4x8`, or `v5p-256` as Google writes it.

  Raises:
    InputError: there is no such slice; it names the nearest.
  """
  found = re.fullmatch(r'(\w+)(?::(\d+(?:x\d+)*)|-(\d+))', text)
  if not found:
    raise InputError(
      f'--topology {text!r} is not GENERATION:CHIPSxCHIPS..., as {EXAMPLE}'
    )
  generation = ALIASES.get(found[1], found[1])
  if generation not in CHIPS:
    raise InputError(
      f'--topology {text}: no TPU generation {found[1]!r}; known are '
      f'{", ".join(CHIPS)}; nearest is {errors.nearest(found[1], CHIPS)!r}'
    )
  if count := found[3]:
    made = Slice(generation, shape_of(generation, int(count)), slices)
    exists, also = made.google.endswith(f'-{count}'), f' ({made.google})'
  else:
    dims, also = tuple(int(n) for n in found[2].split('x')), ''
    made = Slice(generation, nearest_dims(generation, dims), slices)
    exists = dims == made.dims
  if not exists:
    raise InputError(
      f'--topology {text} does not exist; nearest is {made.name}{also}'
    )
  if slices < 1:
    raise InputError(f'--slices must be at least 1, is {slices}')
  return made


def shape_of(generation: str, count: int) -> tuple[int, ...]:
  """The dims of the slice that Google names by this count, or the nearest."""
  chips = max(count, 1) / UNITS[generation]
  shapes = SHAPES[CHIPS[generation].axes]
  return min(shapes, key=lambda s: abs(math.log(math.prod(s) / chips)))


def meaning(text: str) -> str:
  """What a name of Google's counts, in words; '' for a name of ours."""
  if ':' in text:
    return ''
  found = parse(text)
  unit = 'chips' if UNITS[found.generation] == 1 else 'TensorCores, two a chip'
  return f'{text} counts {unit}: {found.name}, {found.size} chips'


def nearest_dims(generation: str, dims) -> tuple[int, ...]:
  """The nearest dims that a slice of this generation can have.

  Two axes are even up to 16, or a single chip. Of three, a host has 2 x 2 x 1
  chips, and no axis exceeds 28.
  """
  axes = CHIPS[generation].axes
  dims = (*dims, 1, 1)[:axes]
  even = lambda n, most: min(max(2 * round(n / 2), 2), most)
  if axes == 2 and dims == (1, 1):
    return dims
  if axes == 2:
    return tuple(even(n, 16) for n in dims)
  return even(dims[0], 28), even(dims[1], 28), min(max(dims[2], 1), 28)
