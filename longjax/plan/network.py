"""The links between the chips of a slice, and the messages they carry.

Messages are routed axis by axis, the shorter way round where an axis closes.
"""

import collections
import math

from longjax.parallel import topology


class Network:
  """The links between the chips of a slice, and what messages make of them."""

  def __init__(self, devices):
    """devices: of the mesh, flat; those of the first slice are used, which a
    compiled program numbers 0, 1, ..."""
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
    """Links of a chip over which a collective along all axes of this group may
    arrive. The devices of a chip share them."""
    places = {self.places[i] for i in group}
    count = 0
    for axis, (size, closed) in enumerate(zip(self.sizes, self.closed)):
      length = len({place[axis] for place in places})
      both = closed and length == size > 2
      count += 0 if length == 1 else 2 if both else 1
    apart = self.per_chip * len(places) / len(group)
    return count / apart or math.inf  # devices of one chip need no link

  def ring_links(self, groups) -> float:
    """The same, where each group passes pieces round a ring, half of them each
    way, in the order of its members and all groups at once."""
    pairs = [(a, b) for g in groups for a, b in zip(g, (*g[1:], g[0]))]
    busiest = self.load(pairs + [(b, a) for a, b in pairs])
    return 2 / busiest if busiest else math.inf


def _way(distance: int, size: int, closed: bool) -> tuple[int, int]:
  """(direction, links) of the shorter way along one axis."""
  if not closed:
    return (1 if distance > 0 else -1), abs(distance)
  forward = distance % size
  return (1, forward) if forward <= size - forward else (-1, size - forward)
