"""How long a compiled TPU program takes: a model of its schedule.

The instructions of scheduled HLO run one after another; what a `-start` begins
runs beside them until its `-done`, where only the rest of its time is waited
for.

  fusions, copies  the compiler's `estimated_cycles` over the chip's clock;
                   where it gives none, bytes over the bandwidth of HBM
  loops            trips x body; a ring (a loop of attention with permutes)
                   is walked hop by hop, as its hops hold unequal work
  permutes         bytes x messages on the busiest link / bandwidth of a link;
                   messages of one pattern share their links, one after another
  other            bytes x (n - 1)/n (all-reduce: twice) over the links of a
  collectives      chip that the group's axes have, or round a ring, as the
                   compiler chose; they wait for all links
  copies to VMEM   bytes over the bandwidth of HBM, one after another
  kernels          not in the text: the caller gives the seconds of each hop
  branches         the slower one; of attention, the share that is live

Not modelled: transfers to the host and between slices, speed of SparseCores,
latencies of small messages, HBM shared by what overlaps. Link bandwidths are
public specifications. The model was not compared with a run on a TPU.
"""

import collections
import dataclasses
import re
from collections.abc import Mapping, Sequence

from longjax.plan import hlo
from longjax.plan.hlo import Instruction, Program
from longjax.plan.network import Network
from longjax.slices import Chip

# Names of the Pallas kernels of attention in the program.
FORWARD, BACKWARD = 'attention_forward', 'attention_backward'
_ATTENTION = '/attention/shard_map'  # in the op names of `attend`
GLUE = 'attention glue'  # attention other than blocks and kernels
BETWEEN = 'between slices'  # kind of what leaves a slice
HOST = 5  # memory space
# What the compiler writes at a collective along all axes of its group; it makes
# a ring of any other, and what a SparseCore does is taken for one.
_AXES = re.compile(r'"emitter":"[23]D|StrategyND\b')
# Take no time of their own.
_FREE = {
  'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast',
  'partition-id', 'replica-id', 'after-all', 'opt-barrier',
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Machine:
  """What is not in the program. Times are of one layer and micro-batch.

  forward, backward: seconds of the attention kernels by hop.
  live: share of the block pairs by hop, of the busiest member of the ring.
  special: times of kernels in scopes of these names, in parts of the others.
  """

  chip: Chip
  network: Network
  forward: Sequence[float]
  backward: Sequence[float]
  live: Sequence[float]
  special: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Collective:
  """All executions of one instruction in a step."""

  kind: str
  asynchronous: bool
  count: int = 0
  bytes: float = 0.0  # that each device sends, or for a group gathers
  seconds: float = 0.0
  exposed: float = 0.0
  over_attention: bool = False  # attention runs between its start and done
  pairs: tuple = ()  # of a permute
  ring: bool = False  # a message of the ring, not one that XLA made


@dataclasses.dataclass
class Schedule:
  """A step: seconds by part, which add up to it, and collectives by name."""

  parts: dict[str, float]
  collectives: dict[str, Collective]
  calls: collections.Counter  # of attention: kernels by name, branches

  @property
  def seconds(self) -> float:
    return sum(self.parts.values())

  @property
  def exposed(self) -> float:
    """Seconds in which only communication runs."""
    parts = ('exposed ring', 'exposed collectives')
    return sum(self.parts.get(part, 0.0) for part in parts)


def schedule(program: Program, machine: Machine) -> Schedule:
  """Walks the program once."""
  walk = _Walk(program, machine)
  walk.run(program.entry, 1, 'other')
  return Schedule(walk.parts, walk.collectives, walk.calls)


class _Links:
  """Until when the links of a chip are taken; seconds from a loop's start."""

  def __init__(self):
    self.free = collections.defaultdict(float)  # by pattern
    self.all = 0.0

  def send(self, pattern, now: float, seconds: float) -> float:
    """When a message that is sent now arrives."""
    end = max(now, self.free[pattern], self.all) + seconds
    self.free[pattern] = end
    return end

  def take(self, now: float, seconds: float) -> float:
    """When a collective over all links has ended."""
    self.all = max(now, self.all, *self.free.values(), 0.0) + seconds
    return self.all


@dataclasses.dataclass
class _Clock:
  """One execution of a computation."""

  times: int  # of it in a step
  where: str  # the part to which its work counts
  pieces: int  # executions that make up a hop of attention
  now: float = 0.0
  links: _Links = dataclasses.field(default_factory=_Links)
  memory: float = 0.0  # until when copies to VMEM hold the HBM
  in_flight: dict = dataclasses.field(default_factory=dict)  # key: arrival


class _Walk:
  def __init__(self, program: Program, machine: Machine):
    self.program, self.machine = program, machine
    self.parts = collections.defaultdict(float)
    self.collectives: dict[str, Collective] = {}
    self.offloads = {}  # by the name of its start: what a SparseCore executes
    self.calls = collections.Counter()
    self.hops = 0  # of attention so far

  def run(self, computation: str, times: int, where: str, pieces=1) -> float:
    """Seconds of one execution, of `times` in a step."""
    clock = _Clock(times, where, pieces)
    for instruction in self.program.computations[computation]:
      if instruction.op not in _FREE:
        self.step(instruction, clock)
    return clock.now

  def step(self, i: Instruction, clock: _Clock):
    """Moves the clock over one instruction."""
    attention = self.calls.total()
    if i.op == 'while':
      clock.now += self.loop(i, clock)
    elif i.op == 'conditional':
      clock.now += self.branch(i, clock)
    elif i.op in ('copy-start', 'copy-done'):
      self.copy(i, clock)
    elif i.op == 'send':
      self.send_to_slice(i, clock)
    elif i.op in ('async-start', 'async-update'):
      self.offload(i, clock)
    elif self.program.collective(i) or i.op.endswith('-done'):
      self.communicate(i, clock)
    elif 'tpu_custom_call' in i.text:
      self.kernel(i, clock)
    else:
      self.advance(self.work(i), self.part(i, clock), clock)
    if self.calls.total() > attention:
      for key in clock.in_flight:
        if key in self.collectives:
          self.collectives[key].over_attention = True

  def advance(self, seconds: float, part: str, clock: _Clock):
    """Moves the clock on and counts the time to a part."""
    clock.now += seconds
    self.parts[part] += seconds * clock.times

  def loop(self, i: Instruction, clock: _Clock) -> float:
    """A ring hop by hop, else one iteration for all."""
    trips, body = self.program.trips(i), i.called()['body']
    attention = _ATTENTION in i.op_name()
    inside = self.program.computations[body]
    if attention and any('collective-permute' in x.op for x in inside):
      return sum(self.run(body, clock.times, GLUE) for _ in range(trips))
    where = GLUE if attention else clock.where
    pieces = clock.pieces * trips if attention else 1
    return trips * self.run(body, clock.times * trips, where, pieces)

  def branch(self, i: Instruction, clock: _Clock) -> float:
    """The slower branch; in attention as often as blocks are live."""
    calls = self.calls.total()
    trials = [self.time_branch(name, clock) for name in i.branches()]
    fast, slow = (f(trials, key=lambda t: t[0]) for f in (min, max))
    kernels = self.calls.total() > calls  # their times count live blocks only
    if kernels or _ATTENTION not in i.op_name():
      for part, seconds in slow[1].items():
        self.parts[part] += seconds
      return slow[0]
    live = self.live()
    seconds = live * slow[0] + (1 - live) * fast[0]
    self.parts['attention'] += seconds * clock.times
    self.calls['blocks'] += clock.times
    return seconds

  def time_branch(self, computation: str, clock: _Clock):
    """(seconds, parts) of a branch, not counted to the step."""
    parts, self.parts = self.parts, collections.defaultdict(float)
    seconds = self.run(computation, clock.times, clock.where, clock.pieces)
    parts, self.parts = self.parts, parts
    return seconds, parts

  def live(self) -> float:
    """The share of live blocks in this hop; turns to the next."""
    live = self.machine.live[self.hops % len(self.machine.live)]
    self.hops += 1
    return live

  def kernel(self, i: Instruction, clock: _Clock):
    """A Pallas kernel: by hop if it is attention, else by its cost estimate."""
    name = i.name + i.op_name() + i.text
    for kernel, seconds in (
      (BACKWARD, self.machine.backward),
      (FORWARD, self.machine.forward),
    ):
      if kernel in name:
        hop = seconds[self.hops % len(seconds)] * self.special(i)
        self.advance(hop / clock.pieces, 'attention', clock)
        self.hops += 1
        self.calls[kernel] += clock.times
        return
    flops = i.number('flops') or 0
    self.advance(flops / self.machine.chip.peak, 'other kernels', clock)

  def special(self, i: Instruction) -> float:
    """Machine.special of the scope that the instruction is in."""
    special, name = self.machine.special, i.op_name()
    return next((s for scope, s in special.items() if scope in name), 1.0)

  def part(self, i: Instruction, clock: _Clock) -> str:
    """'matmul', GLUE, or the part of the computation."""
    inside = self.program.computations.get(i.called().get('calls', ''), [i])
    if any(x.op in ('convolution', 'dot') for x in inside):
      return 'matmul'
    return GLUE if _ATTENTION in i.op_name() else clock.where

  def work(self, i: Instruction) -> float:
    """Seconds of a fusion or a copy."""
    cycles = i.number('estimated_cycles')
    if cycles is not None:
      return cycles / self.machine.chip.clock
    if i.op in ('custom-call', 'custom-call-start', 'custom-call-update'):
      return 0.0  # buffers and SparseCore
    moved = sum(a.bytes for a in i.arrays() if a.space == 0)
    if i.op == 'dynamic-update-slice':  # in place: the update is not named
      moved = 0.0
    return 2 * moved / self.machine.chip.bandwidth

  def copy(self, i: Instruction, clock: _Clock):
    """Between HBM and VMEM, in the background."""
    if i.op == 'copy-start':
      first, second = i.arrays()[:2]
      seconds = first.bytes / self.machine.chip.bandwidth
      if HOST in (first.space, second.space):
        seconds = 0.0
      clock.memory = max(clock.now, clock.memory) + seconds
      clock.in_flight[i.name] = clock.memory
    else:
      self.arrive(
        clock.in_flight.pop(i.operands[0], 0.0), 'copies to VMEM', clock
      )

  def arrive(self, at: float, part: str, clock: _Clock) -> float:
    """Waits until `at`; returns the wait."""
    wait = max(0.0, at - clock.now)
    self.advance(wait, part, clock)
    return wait

  def communicate(self, i: Instruction, clock: _Clock):
    """A collective, its start, or its done."""
    inner = self.program.collective(i)
    started = i.op.endswith('-start') or 'collective-start' in i.name
    if i.op.endswith('-done') or 'collective-done' in i.name:
      key = _key(inner, i) if i.op == 'fusion' else i.operands[0]
      if key in self.collectives:
        self.wait_for(key, clock)
    elif inner and 'async_collective_fusion' in i.text:
      self.advance(self.work(i), 'matmul', clock)  # computes meanwhile
    elif inner:
      key = _key(inner, i) if i.op == 'fusion' else i.name
      self.collectives.setdefault(
        key, Collective(inner.op.removesuffix('-start'), started)
      )
      clock.in_flight[key] = self.send(key, inner, i, clock)
      if not started:
        self.wait_for(key, clock)

  def offload(self, i: Instruction, clock: _Clock):
    """A collective of a SparseCore: it begins when it gets its operand."""
    if i.op == 'async-start':
      self.offloads[i.name] = self.program.offloaded(i)
    elif inner := self.offloads.get(i.operands[0]):
      self.collectives.setdefault(i.name, Collective(inner.op, True))
      clock.in_flight[i.name] = self.send(i.name, inner, inner, clock)

  def send_to_slice(self, i: Instruction, clock: _Clock):
    """A message to another slice: counted, not timed."""
    record = self.collectives.setdefault(i.name, Collective(BETWEEN, True))
    record.count += clock.times
    record.bytes += i.arrays()[0].bytes * clock.times

  def wait_for(self, key: str, clock: _Clock):
    """Waits for the end of a collective."""
    record = self.collectives[key]
    ring = record.kind == 'collective-permute'
    part = 'exposed ring' if ring else 'exposed collectives'
    wait = self.arrive(clock.in_flight.pop(key, 0.0), part, clock)
    record.exposed += wait * clock.times

  def send(self, key, inner, i: Instruction, clock: _Clock) -> float:
    """When a collective that starts now will have ended."""
    record = self.collectives[key]
    scatter = inner is not i and 'all-reduce-scatter' in i.text
    kind = record.kind = 'reduce-scatter' if scatter else record.kind
    size, seconds = self.transfer(kind, inner, i if scatter else inner, record)
    record.count += clock.times
    record.bytes += size * clock.times
    record.seconds += seconds * clock.times
    if kind == 'collective-permute':
      return clock.links.send(record.pairs, clock.now, seconds)
    return clock.links.take(clock.now, seconds)

  def transfer(self, kind, inner, result, record) -> tuple[float, float]:
    """(bytes that a device sends, seconds) of one execution."""
    network, link = self.machine.network, self.machine.chip.link
    arrays = result.arrays()
    if kind == 'collective-permute':
      record.pairs = hlo.pairs(inner.text)
      record.ring = '/ppermute"' in inner.text  # by the name that JAX gave it
      size = arrays[0].bytes
      return size, size * network.load(record.pairs) / link
    groups = hlo.groups(inner.text, len(network.places))
    size = _size(kind, inner.op, arrays, len(groups[0]))
    axes = _AXES.search(inner.text) or _AXES.search(result.text)
    links = network.links(groups[0]) if axes else network.ring_links(groups)
    return size, size / links / link


def _key(inner: Instruction | None, i: Instruction) -> str:
  """The same for the fusions that start and end one collective."""
  channel = inner and inner.find(r'channel_id=(\d+)')
  return f'{inner.op}.{channel}' if inner and channel else i.name


def _size(kind: str, op: str, arrays, n: int) -> float:
  """Bytes that pass through a device of a group of n."""
  if op == 'all-gather-start':  # (operands, results)
    arrays = arrays[len(arrays) // 2 :]
  size = sum(a.bytes for a in arrays)
  if kind == 'reduce-scatter':
    return size * (n - 1)
  return size * (n - 1) / n * (2 if kind == 'all-reduce' else 1)
