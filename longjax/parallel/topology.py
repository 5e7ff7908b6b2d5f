"""The order of devices in a ring: where possible, each hop is one link.

The chips of a TPU slice are a grid of 2 or 3 axes, each linked to its
neighbours, some axes closed to rings; the cores of a chip are one axis more.
A ring is a cycle through a box of the grid, and boxes tile the slice. The
order that jax gives a mesh has hops of up to three links on a torus and more
on a grid, which cost latency and share links.

Devices are known by `coords`, `core_on_chip`, `device_kind` and, where there
is more than one slice, `slice_index`. Which axes close: Cloud TPU's pages on
v4, v5p, v5e, v6e. The attributes of a device do not show whether the torus is
twisted; on one that is, rings along a single axis have longer hops than counted
here. The order of tokens over the ring is that of data/layout.py.
"""

import collections
import itertools
import math
from typing import NamedTuple

import numpy as np

from longjax.errors import InputError

CUBE = ('TPU v4', 'TPU v5', 'TPU v5p', 'TPU7x')  # tori of cubes of 4x4x4 chips
POD = 16  # chips on an axis that closes, of the other kinds


class Torus(NamedTuple):
  """A slice as a grid of devices: axes x, y, z and cores of a chip."""

  sizes: tuple[int, ...]
  closed: tuple[bool, ...]  # has links from the last to the first

  def links(self, a, b) -> int:
    """Links on the shortest path between two places."""
    steps = (abs(i - j) for i, j in zip(a, b))
    return sum(
      min(step, size - step) if closed else step
      for step, size, closed in zip(steps, self.sizes, self.closed)
    )

  def hops(self, ring) -> list[int]:
    """Links of each hop of a ring of places, the last back to the first."""
    return [self.links(a, b) for a, b in zip(ring, [*ring[1:], ring[0]])]


def ring_order(devices, data: int, seq: int) -> np.ndarray:
  """Devices so that neighbours in a row are neighbours on the chip's links.

  Each row is a cycle of single links wherever the slice has a box of `seq`
  devices with one; a line that cannot close has hops of two. Devices without
  coordinates (CPU), or that are not a whole grid, keep their order.

  Args:
    devices: data * seq of them.
    data: rings; those of the first slice come first.
    seq: devices of a ring, which stays within a slice.

  Returns:
    object [data, seq].

  Raises:
    InputError: a slice is not a whole number of rings.
  """
  slices = _slices(devices)
  for each in slices:
    if len(each) % seq:
      raise InputError(
        f'mesh seq {seq} does not divide the {len(each)} devices of a slice, '
        'but a ring must lie within one; set --config.mesh.data and '
        '--config.mesh.seq'
      )
  order = np.empty((data, seq), object)
  rings = (_rings(each, seq) for each in slices)
  for i, ring in enumerate(itertools.chain.from_iterable(rings)):
    order[i] = ring
  return order


def hops(rings) -> dict[int, int]:
  """{links: hops of so many links} over all rings [data, seq] of a mesh.

  Empty if the devices have no coordinates, or are alone in their rings.
  """
  torus = grid(_slices(rings.flat)[0])
  if torus is None or rings.shape[1] == 1:
    return {}
  rows = ([_place(device) for device in ring] for ring in rings)
  lengths = collections.Counter(n for row in rows for n in torus.hops(row))
  return dict(sorted(lengths.items()))


def describe(mesh) -> str:
  """Such as `4 rings of 16: 64 hops of 1 link`, '' without coordinates."""
  data, seq = mesh.devices.shape
  plural = lambda n, noun: f'{n} {noun}' if n == 1 else f'{n} {noun}s'
  counts = [
    f'{count} hops of {plural(links, "link")}'
    for links, count in hops(mesh.devices).items()
  ]
  rings = f'{plural(data, "ring")} of {seq}'
  return f'{rings}: {", ".join(counts)}' if counts else ''


def _slices(devices) -> list[list]:
  """The devices of each slice, in the order of the slices."""
  slices = collections.defaultdict(list)
  for device in devices:
    slices[getattr(device, 'slice_index', 0)].append(device)
  return [slices[number] for number in sorted(slices)]


def _place(device) -> tuple[int, ...]:
  return (*device.coords, device.core_on_chip)


def grid(devices) -> Torus | None:
  """The grid that the devices of a slice fill; None if they fill none."""
  if not all(hasattr(device, 'coords') for device in devices):
    return None
  places = {_place(device) for device in devices}
  sizes = tuple(max(along) + 1 for along in zip(*places))
  if len(places) != math.prod(sizes):
    return None
  *chips, _ = sizes
  if devices[0].device_kind in CUBE:
    closed = [all(size % 4 == 0 for size in chips)] * len(chips)
  else:
    closed = [size == POD for size in chips]
  return Torus(sizes, (*closed, False))


def _rings(devices, seq) -> list[list]:
  """The devices of a slice in rings of seq."""
  torus = grid(devices)
  if torus is None:
    return [devices[i : i + seq] for i in range(0, len(devices), seq)]
  at = {_place(device): device for device in devices}
  box = _box(torus, seq)
  cycle = _cycle(box, torus)
  corners = itertools.product(
    *(range(0, size, side) for size, side in zip(torus.sizes, box))
  )
  move = lambda corner, place: tuple(i + j for i, j in zip(corner, place))
  return [[at[move(corner, place)] for place in cycle] for corner in corners]


def _box(torus, seq) -> tuple[int, ...]:
  """Sides of the best box of seq devices that tiles a torus.

  Both cores of a chip first, since they share its links; then the shortest
  hops; then whole axes, which leaves whole axes to the other collectives.
  """
  sides = ([d for d in range(1, n + 1) if n % d == 0] for n in torus.sizes)
  boxes = [box for box in itertools.product(*sides) if math.prod(box) == seq]

  def rank(box):
    partial = sum(1 < side < size for side, size in zip(box, torus.sizes))
    return -box[-1], max(torus.hops(_cycle(box, torus))), partial, box

  return min(boxes, key=rank)


def _cycle(box, torus) -> list[tuple[int, ...]]:
  """All places of a box, each a link from the next where that is possible."""
  even = [axis for axis, side in enumerate(box) if side % 2 == 0]
  if even and sum(side > 1 for side in box) > 1:
    return _comb(box, even[-1])
  path = _snake(box)
  closes = torus.links(path[-1], path[0]) <= 1
  return path if closes else path[::2] + path[1::2][::-1]


def _comb(box, axis) -> list[tuple[int, ...]]:
  """A cycle through a grid that needs no closed axis.

  The box is the even `axis` times a path through the others. Back and forth
  over all of the path but its first place, and back along the first places:

    > > > v
    ^ v < <    each row is the path, each column the axis
    ^ > > v
    ^ < < <
  """
  first, *path = _snake((*box[:axis], 1, *box[axis + 1 :]))
  on = lambda row, place: (*place[:axis], row, *place[axis + 1 :])
  cycle = [on(0, first)]
  for row in range(box[axis]):
    cycle += [on(row, place) for place in path[:: -1 if row % 2 else 1]]
  return cycle + [on(row, first) for row in range(box[axis] - 1, 0, -1)]


def _snake(box) -> list[tuple[int, ...]]:
  """A path through all places of a grid, back and forth, a link at a time."""
  if not box:
    return [()]
  rest = _snake(box[1:])
  return [
    (i, *place)
    for i in range(box[0])
    for place in (rest[::-1] if i % 2 else rest)
  ]
