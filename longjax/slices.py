"""TPU slices by name, on a machine that has none: v5p:4x4x8.

A name is a generation and the chips along each axis of its torus. The devices
that `Slice.devices` gives can be compiled for, not run on. Messages are routed
axis by axis, the shorter way round where an axis closes.
"""

import collections
import importlib.util
import math
import re
from typing import NamedTuple

from longjax import cli
from longjax.errors import InputError
from longjax.parallel import topology

# By generation: axes of the torus, jax devices of a chip.
GENERATIONS = dict(v4=(3, 1), v5e=(2, 1), v5p=(3, 1), v6e=(2, 1), tpu7x=(3, 2))
ALIASES = {'7x': 'tpu7x', 'v7x': 'tpu7x', 'v5litepod': 'v5e'}
EXAMPLE = 'v5p:4x4x8'
# A quiet libtpu on a machine without a TPU, beside others of its kind.
ENVIRONMENT = dict(
  JAX_PLATFORMS='cpu',
  TPU_SKIP_MDS_QUERY='1',
  TPU_ACCELERATOR_TYPE='v5p-8',
  TPU_WORKER_HOSTNAMES='localhost',
  ALLOW_MULTIPLE_LIBTPU_LOAD='true',
)


class Slice(NamedTuple):
  """One slice, or several equal ones joined by a datacenter network."""

  generation: str
  dims: tuple[int, ...]  # chips along each axis of one slice
  slices: int

  @property
  def name(self) -> str:
    return f'{self.generation}:{"x".join(map(str, self.dims))}'

  @property
  def size(self) -> int:
    """Chips of one slice."""
    return math.prod(self.dims)

  @property
  def chips(self) -> int:
    return self.slices * self.size

  @property
  def per_chip(self) -> int:
    return GENERATIONS[self.generation][1]

  def devices(self) -> list:
    """Devices to compile for. Raises InputError if libtpu is not here."""
    if not importlib.util.find_spec('libtpu'):
      raise InputError(
        'compiling for a TPU needs its compiler: pip install libtpu'
      )
    from jax.experimental import topologies

    options: dict = dict(num_slices=self.slices) if self.slices > 1 else {}
    if self.generation == 'v4':  # else a chip is two devices
      options['chip_config_name'] = 'megacore'
    try:
      return topologies.get_topology_desc(
        platform='tpu', topology_name=self.name, **options
      ).devices
    except RuntimeError as error:
      raise InputError(f'libtpu knows no {self.name}: {error}') from None


def parse(text: str, slices: int = 1) -> Slice:
  """`v5p:4x4x8`, or InputError that names the nearest valid one."""
  found = re.fullmatch(r'(\w+):(\d+(?:x\d+)*)', text)
  if not found:
    raise InputError(
      f'--topology {text!r} is not GENERATION:CHIPSxCHIPS..., as {EXAMPLE}'
    )
  generation = ALIASES.get(found[1], found[1])
  if generation not in GENERATIONS:
    raise InputError(
      f'--topology {text}: no TPU generation {found[1]!r}; known are '
      f'{", ".join(GENERATIONS)}{cli.nearest(found[1], GENERATIONS)}'
    )
  dims = tuple(int(n) for n in found[2].split('x'))
  near = nearest(generation, dims)
  if dims != near:
    name = Slice(generation, near, 1).name
    raise InputError(f'--topology {text} does not exist; nearest is {name}')
  if slices < 1:
    raise InputError(f'--slices must be at least 1, is {slices}')
  return Slice(generation, dims, slices)


def nearest(generation: str, dims) -> tuple[int, ...]:
  """The axes that a slice of this generation may have: even ones up to 16 in
  two dimensions, or a single chip; in three a host has 2 x 2 x 1 chips, no
  axis exceeds 28."""
  axes = GENERATIONS[generation][0]
  dims = (*dims, 1, 1)[:axes]
  even = lambda n, most: min(max(2 * round(n / 2), 2), most)
  if axes == 2 and dims == (1, 1):
    return dims
  if axes == 2:
    return tuple(even(n, 16) for n in dims)
  return even(dims[0], 28), even(dims[1], 28), min(max(dims[2], 1), 28)


class Network:
  """The links between the chips of a slice, and what messages make of them."""

  def __init__(self, devices):
    """devices: of the mesh, flat; in the program of a slice, all there are
    have the numbers 0, 1, ... of the first slice."""
    first = getattr(devices[0], 'slice_index', 0)
    devices = [d for d in devices if getattr(d, 'slice_index', 0) == first]
    torus = topology.grid(devices)
    assert torus, 'not the devices of a TPU slice'
    *self.sizes, self.per_chip = torus.sizes
    self.closed = torus.closed[:-1]
    self.places = [tuple(d.coords) for d in devices]

  def route(self, a: int, b: int) -> list:
    """The directed links (chip, axis, direction) from device a to b."""
    here, there, links = list(self.places[a]), self.places[b], []
    for axis, (size, closed) in enumerate(zip(self.sizes, self.closed)):
      step, count = _way(there[axis] - here[axis], size, closed)
      for _ in range(count):
        links.append((*here, axis, step))
        here[axis] = (here[axis] + step) % size
    return links

  def load(self, pairs) -> int:
    """Messages over the busiest link if all pairs send at once."""
    links = collections.Counter(x for a, b in pairs for x in self.route(a, b))
    return max(links.values(), default=0)

  def links(self, group) -> float:
    """Links of a chip over which a collective of this group may arrive. The
    devices of a chip share them."""
    places = {self.places[i] for i in group}
    count = 0
    for axis, (size, closed) in enumerate(zip(self.sizes, self.closed)):
      length = len({place[axis] for place in places})
      both = closed and length == size > 2
      count += 0 if length == 1 else 2 if both else 1
    apart = self.per_chip * len(places) / len(group)
    return count / apart or math.inf  # devices of one chip need no link


def _way(distance: int, size: int, closed: bool) -> tuple[int, int]:
  """(direction, links) of the shorter way along one axis."""
  if not closed:
    return (1 if distance > 0 else -1), abs(distance)
  forward = distance % size
  return (1, forward) if forward <= size - forward else (-1, size - forward)
