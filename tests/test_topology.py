"""Rings of devices: cycles along the links of slices that are made up."""

import itertools
import types
from typing import NamedTuple

import numpy as np
import pytest

from longjax import errors
from longjax.parallel import sharding, topology


class Device(NamedTuple):
  """The attributes of a TPU's jax device."""

  coords: tuple
  core_on_chip: int
  device_kind: str
  slice_index: int


KINDS = dict(
  v4='TPU v4', v5p='TPU v5', v5e='TPU v5 lite', v6e='TPU v6 lite', v7='TPU7x'
)


def devices(kind, sizes, cores=1, slices=1):
  """Those of slices of x, y(, z) chips, in jax's order: x runs fastest."""
  x, y, z = (*sizes, 1)[:3]
  return [
    Device((i, j, k), core, KINDS[kind], number)
    for number in range(slices)
    for k, j, i, core in itertools.product(*map(range, (z, y, x, cores)))
  ]


def linked(a, b, sizes, closed):
  """Whether two devices are cores of a chip, or their chips have a link."""
  if a.coords == b.coords:
    return a.core_on_chip != b.core_on_chip
  (axis, *more) = [i for i in range(3) if a.coords[i] != b.coords[i]]
  step = abs(a.coords[axis] - b.coords[axis])
  around = closed and step == sizes[axis] - 1
  return not more and a.core_on_chip == b.core_on_chip and (step == 1 or around)


SINGLE = [
  *[('v5p', (4, 4, 4), 1, seq, True) for seq in (2, 4, 8, 16, 32, 64)],
  *[('v5p', (4, 8, 8), 1, seq, True) for seq in (4, 8, 16, 32, 64, 128, 256)],
  *[('v5p', (8, 8, 8), 1, seq, True) for seq in (8, 16, 32, 64, 512)],
  *[('v5p', (2, 2, 1), 1, seq, False) for seq in (2, 4)],
  *[('v5e', (16, 16), 1, seq, True) for seq in (16, 32, 64, 256)],
  *[('v6e', (16, 16), 1, seq, True) for seq in (16, 32, 64, 256)],
  *[('v6e', (8, 8), 1, seq, False) for seq in (4, 8, 16, 64)],
  *[('v5e', (2, 4), 1, 8, False), ('v5p', (4, 4, 12), 1, 48, True)],
  *[('v7', (4, 4, 4), 2, seq, True) for seq in (2, 4, 8, 16, 32, 64, 128)],
]


@pytest.mark.parametrize('kind, sizes, cores, seq, closed', SINGLE)
def test_each_hop_is_one_link(kind, sizes, cores, seq, closed):
  chips = devices(kind, sizes, cores)
  rings = topology.ring_order(chips, len(chips) // seq, seq)
  assert rings.shape == (len(chips) // seq, seq)
  assert sorted(rings.flat) == sorted(chips)
  for ring in rings:
    for a, b in zip(ring, np.roll(np.arange(seq), -1)):
      assert linked(a, ring[b], sizes, closed)
  assert topology.hops(rings) == {1: len(chips)}


@pytest.mark.parametrize(
  'kind, sizes, seq',
  [('v6e', (8, 1), 8), ('v5p', (4, 4, 12), 3), ('v5e', (1, 4), 4)],
)
def test_a_line_that_cannot_close_has_hops_of_two_links(kind, sizes, seq):
  """And of one at its two ends, so nothing travels further."""
  chips = devices(kind, sizes)
  rings = topology.ring_order(chips, len(chips) // seq, seq)
  assert sorted(rings.flat) == sorted(chips)
  count = len(rings)
  assert topology.hops(rings) == {1: 2 * count, 2: (seq - 2) * count}


def test_orders_by_hand():
  places = lambda order: [[d.coords[:2] for d in ring] for ring in order]
  square = devices('v5e', (2, 2))
  assert places(topology.ring_order(square, 1, 4)) == [
    [(0, 0), (1, 0), (1, 1), (0, 1)]
  ]
  line = devices('v6e', (6, 1))
  along = [d.coords[0] for d in topology.ring_order(line, 1, 6)[0]]
  assert along == [0, 2, 4, 5, 3, 1]
  axis = devices('v5e', (16, 16))
  assert places(topology.ring_order(axis, 16, 16))[3] == [
    (3, y) for y in range(16)
  ]


def test_the_two_cores_of_a_chip_are_in_one_ring():
  """Two rings over the same chips would share their links."""
  rings = topology.ring_order(devices('v7', (4, 4, 4), 2), 16, 8)
  for ring in rings:
    assert len({d.coords for d in ring}) == 4


def test_a_slice_of_less_than_a_cube_is_not_closed():
  line = np.empty((1, 4), object)
  line[0] = devices('v5p', (1, 1, 4))
  assert topology.hops(line) == {1: 3, 3: 1}


def test_rings_stay_within_a_slice():
  chips = devices('v5p', (4, 4, 4), slices=2)
  rings = topology.ring_order(chips, 8, 16)
  numbers = [{d.slice_index for d in ring} for ring in rings]
  assert numbers == [{0}] * 4 + [{1}] * 4
  assert topology.hops(rings) == {1: 128}
  with pytest.raises(errors.InputError, match=r'seq 128 .* the 64 devices'):
    topology.ring_order(chips, 1, 128)


def test_devices_that_are_no_whole_grid_keep_their_order():
  part = devices('v5p', (4, 4, 4))[:60]
  order = topology.ring_order(part, 5, 12)
  assert ([*order.flat], topology.hops(order)) == (part, {})


def test_devices_without_coordinates_keep_their_order(make_mesh):
  mesh = sharding.make_mesh(2, 4)
  assert (mesh.devices == make_mesh(2, 4).devices).all()
  assert topology.describe(mesh) == ''
  some = sharding.make_mesh(1, 4, [*mesh.devices[1]])
  assert (some.devices == mesh.devices[1:]).all()


@pytest.mark.parametrize(
  'kind, sizes, data, seq, said',
  [
    ('v5p', (4, 4, 4), 4, 16, '4 rings of 16: 64 hops of 1 link'),
    ('v6e', (8, 1), 1, 8, '1 ring of 8: 2 hops of 1 link, 6 hops of 2 links'),
    ('v5e', (2, 2), 4, 1, ''),
  ],
)
def test_the_hops_of_a_mesh_are_described(kind, sizes, data, seq, said):
  rings = topology.ring_order(devices(kind, sizes), data, seq)
  mesh = types.SimpleNamespace(devices=rings)  # jax's wants real devices
  assert topology.describe(mesh) == said
