"""The model of the schedule against times worked out by hand.

The chip of these tests does 1000 cycles in a second, moves 100 bytes/s in HBM
and 10 bytes/s over a link.
"""

import pytest

from longjax.plan import hlo, schedule
from longjax.plan.calibration import (
  CALIBRATION,
  EFFICIENCY,
  STATIC,
  Calibration,
  kernel_seconds,
)
from longjax.plan.network import Network
from longjax.slices import CHIPS, Chip

CHIP = Chip('v5e', peak=1e3, hbm=1e6, bandwidth=100, link=10, clock=1000)


class Device:
  """A chip at a place of a v5e slice."""

  device_kind, core_on_chip = 'TPU v5 lite', 0

  def __init__(self, *coords, slice_index=0):
    self.coords, self.slice_index = coords, slice_index


def line_of(count):
  """Chips (0, 0), (1, 0), ...: 16 of them are a ring."""
  return Network([Device(i, 0, 0) for i in range(count)])


def scheduled(
  text, network=None, forward=(0.0,), backward=(0.0,), live=(1.0,), special=()
):
  network = network or line_of(4)
  machine = schedule.Machine(
    CHIP, network, forward, backward, live, dict(special)
  )
  return schedule.schedule(hlo.parse(text), machine)


def fusion(name, cycles, operand='x'):
  config = f'backend_config={{"estimated_cycles":"{cycles}"}}'
  return f'%{name} = f32[8]{{0}} fusion(%{operand}), calls=%inside, {config}'


def program(*lines, more=''):
  """A module with these instructions as its entry."""
  body = '\n'.join(f'  {line}' for line in lines)
  return f"""HloModule m, is_scheduled=true
%inside (p: f32[8]) -> f32[8] {{
  ROOT %negate = f32[8]{{0}} negate(%p)
}}
%condition (c: (s32[], f32[8])) -> pred[] {{
  %c = (s32[]{{:T(128)}}, f32[8]{{0}}) parameter(0)
  %limit = s32[]{{:T(128)}} constant(3)
  ROOT %lt = pred[] compare(%counter, %limit), direction=LT
}}
{more}
ENTRY %main (x: f32[8]) -> f32[8] {{
  %x = f32[8]{{0:T(8)}} parameter(0)
{body}
}}
"""


def permute(name, size, pairs='{{0,1},{1,2},{2,3}}'):
  """(start, done) of a permute of `size` bytes."""
  shape = f'u8[{size}]{{0}}'
  return (
    f'%{name} = ({shape}, {shape}, u32[]{{:S(2)}}) '
    f'collective-permute-start(%x), channel_id=1, source_target_pairs={pairs}',
    f'%{name}-done = {shape} collective-permute-done(%{name})',
  )


LOOP = '%loop = (s32[], f32[8]) while(%x), condition=%condition, body=%body'
NAME = ', metadata={op_name="jit(step)/attention/shard_map/x"}'
RING = LOOP + NAME


def body(*lines):
  inside = '\n'.join(f'  {line}' for line in lines)
  return f'%body (b: (s32[], f32[8])) -> (s32[], f32[8]) {{\n{inside}\n}}'


def test_a_loop_costs_its_body_as_often_as_its_condition_says():
  text = program(fusion('a', 500), LOOP, more=body(fusion('b', 2000)))
  assert scheduled(text).seconds == pytest.approx(0.5 + 3 * 2.0)


def test_a_branch_that_is_not_attention_costs_the_slower_one():
  branches = '\n'.join(
    f'%{n} (p: f32[8]) -> f32[8] {{\n  {fusion(n + "f", c)}\n}}'
    for n, c in (('no', 100), ('yes', 3000))
  )
  branch = '%if = f32[8] conditional(%x), branch_computations={%no, %yes}'
  assert scheduled(program(branch, more=branches)).seconds == pytest.approx(3)
  inside = branch + NAME
  found = scheduled(program(inside, more=branches), live=(0.5,))
  assert found.seconds == pytest.approx((3 + 0.1) / 2)
  assert found.parts['attention'] == pytest.approx(found.seconds)


def test_work_between_start_and_done_hides_a_permute():
  start, done = permute('p', 20)  # 2 seconds
  hidden = scheduled(program(start, fusion('a', 5000), done))
  assert (hidden.seconds, hidden.exposed) == (pytest.approx(5), 0)
  part = scheduled(program(start, fusion('a', 500), done))
  assert part.seconds == pytest.approx(2)
  assert part.exposed == pytest.approx(1.5)
  after = scheduled(program(fusion('a', 5000), start, done))
  assert after.seconds == pytest.approx(7)
  assert after.exposed == pytest.approx(2)


def test_messages_of_one_pattern_share_their_links():
  (k, k_done), (v, v_done) = permute('k', 20), permute('v', 30)
  same = scheduled(program(k, v, k_done, v_done))
  assert same.seconds == pytest.approx(2 + 3)
  (back, back_done) = permute('b', 30, '{{1,0},{2,1},{3,2}}')
  other = scheduled(program(k, back, k_done, back_done))
  assert other.seconds == pytest.approx(3)


def test_a_ring_on_a_line_returns_over_the_idle_direction():
  assert line_of(4).load(((0, 1), (1, 2), (2, 3), (3, 0))) == 1
  assert len(line_of(4).route(3, 0)) == 3
  assert len(line_of(16).route(15, 0)) == 1


def test_messages_that_cross_a_link_together_take_as_long_as_both():
  start, done = permute('p', 20, '{{0,2},{1,3}}')
  assert scheduled(program(start, done)).seconds == pytest.approx(4)


def test_a_synchronous_permute_is_exposed():
  line = (
    '%p = u8[20]{0} collective-permute(%x), channel_id=1, '
    'source_target_pairs={{0,1},{1,0}}'
  )
  found = scheduled(program(line))
  assert found.exposed == found.seconds == pytest.approx(2)
  assert not found.collectives['p'].asynchronous


@pytest.mark.parametrize('op, shape, seconds', [
  ('all-gather', 'u8[40]', 3.0),  # 30 bytes come over the one link of an end
  ('all-reduce', 'u8[40]', 6.0),
  ('reduce-scatter', 'u8[10]', 3.0),
  ('all-reduce', '(u8[20], u8[20])', 6.0),
])  # fmt: skip
def test_collectives_of_four_on_a_line(op, shape, seconds):
  line = f'%c = {shape} {op}(%x), channel_id=1, replica_groups=[1,4]<=[4]'
  found = scheduled(program(line))
  assert found.exposed == pytest.approx(seconds)


def test_a_group_on_a_ring_has_the_links_of_both_directions():
  line = '%c = u8[160] all-gather(%x), channel_id=1, replica_groups={}'
  assert scheduled(program(line), line_of(16)).seconds == pytest.approx(7.5)


@pytest.mark.parametrize('count, groups, seconds', [
  (16, '{}', 7.5),  # both directions of a closed axis
  (4, '{}', 12),  # the way back takes the links of the way there
  (4, '{{0,1},{2,3}}', 8),
  (4, '{{0,2},{1,3}}', 16),  # four messages of 40 bytes on the middle link
])  # fmt: skip
def test_groups_that_are_rings_to_the_compiler_share_links(
  count, groups, seconds
):
  line = (
    f'%c = u8[160] all-gather(%x), channel_id=1, replica_groups={groups}, '
    'backend_config={"emitter":"1DAllGatherNonMajorDimImbalanced"}'
  )
  found = scheduled(program(line), line_of(count))
  assert found.seconds == pytest.approx(seconds)


@pytest.mark.parametrize('text, groups', [
  ("replica_groups=mesh['data'=2,'seq'=4] {'data'}, x",
   ((0, 4), (1, 5), (2, 6), (3, 7))),
  ("replica_groups=mesh['data'=2,'seq'=4] {'data','seq'}", (tuple(range(8)),)),
  ('replica_groups=[4,2]<=[2,4]T(1,0)', ((0, 4), (1, 5), (2, 6), (3, 7))),
  ('replica_groups=[2,4]<=[8]', ((0, 1, 2, 3), (4, 5, 6, 7))),
  ('replica_groups={{0,3},{1,2}}', ((0, 3), (1, 2))),
  ('replica_groups={}', (tuple(range(8)),)),
])  # fmt: skip
def test_groups_of_devices_in_all_their_notations(text, groups):
  assert hlo.groups(text, 8) == groups


KERNEL = (
  '%k.{n} = f32[8] custom-call(%x), custom_call_target="tpu_custom_call", '
  'metadata={{op_name="jit(step)/attention_{way}\n" source="a\n"}}'
)


def test_kernels_take_the_time_of_their_hop():
  start, done = permute('p', 40)  # 4 seconds
  kernel = KERNEL.format(n=1, way='forward')
  text = program(
    RING, KERNEL.format(n=2, way='forward'), KERNEL.format(n=3, way='backward'),
    more=body(start, kernel, done),
  )  # fmt: skip
  found = scheduled(text, forward=(1, 2, 5, 6), backward=(9, 0, 0, 0))
  assert found.seconds == pytest.approx(4 + 4 + 5 + 6 + 9)
  assert found.parts['attention'] == pytest.approx(1 + 2 + 5 + 6 + 9)
  assert found.parts['exposed ring'] == pytest.approx(3 + 2 + 0)
  (record,) = found.collectives.values()
  assert record.over_attention
  assert record.count == 3
  late = body(kernel, start, done)
  (record,) = scheduled(program(RING, more=late)).collectives.values()
  assert not record.over_attention


def test_a_kernel_that_does_its_hop_in_pieces_takes_the_time_of_one():
  kernel = KERNEL.format(n=1, way='backward')
  found = scheduled(program(RING, more=body(kernel)), backward=(6,))
  assert found.seconds == pytest.approx(6)
  assert found.calls == {schedule.BACKWARD: 3}


def test_kernels_in_a_special_scope_take_their_share():
  inside = KERNEL.format(n=1, way='forward').replace('step', 'step)/(memory')
  text = program(inside, KERNEL.format(n=2, way='forward'))
  found = scheduled(text, forward=(6,), special={'memory': 2.5, '': 0.5})
  assert found.seconds == pytest.approx(6 * 2.5 + 6 * 0.5)


def test_a_gather_that_fusions_start_and_end_runs_between_them():
  gather = '%g = u8[40] all-gather(%q), channel_id=7, replica_groups=[1,4]<=[4]'
  computation = lambda n: f'%{n} (q: u8[10]) -> u8[40] {{\n  {gather}\n}}'
  text = program(
    '%async-collective-start = u8[40] fusion(%x), calls=%begin',
    fusion('a', 1000),
    '%async-collective-done = u8[40] fusion(%x), calls=%end',
    more=computation('begin') + '\n' + computation('end'),
  )
  found = scheduled(text)
  assert found.seconds == pytest.approx(3)
  assert found.exposed == pytest.approx(2)


def test_a_collective_of_a_sparse_core_runs_from_its_operand_to_its_done():
  thread = 'async_execution_thread="sparsecore"'
  text = program(
    f'%s = ((), ()) async-start(), {thread}, calls=%offload',
    fusion('a', 500),
    '%u = ((u8[40]), u8[160]) async-update(%s, %a)',
    fusion('b', 1000),
    '%d = u8[160] async-done(%u)',
    more="""%offload (p: u8[40]) -> u8[160] {
  ROOT %c = u8[160] custom-call(%p), called_computations={%gather}
}
%gather (p: u8[40]) -> u8[160] {
  ROOT %g = u8[160] all-gather(%p), channel_id=1, replica_groups={}
}""",
  )
  found = scheduled(text)
  assert found.seconds == pytest.approx(0.5 + 12)
  assert found.exposed == pytest.approx(11)
  assert found.collectives['u'].asynchronous


def test_copies_to_vmem_run_in_the_background_one_after_another():
  copy = lambda n: (
    f'%c{n} = (u8[100]{{0:S(1)}}, u8[100]{{0}}, u32[]) copy-start(%x)',
    f'%d{n} = u8[100]{{0:S(1)}} copy-done(%c{n})',
  )
  (a, a_done), (b, b_done) = copy(1), copy(2)
  found = scheduled(program(a, b, fusion('f', 500), a_done, b_done))
  assert found.seconds == pytest.approx(2)
  assert found.parts['copies to VMEM'] == pytest.approx(1.5)
  assert found.exposed == 0


def test_what_has_no_estimate_costs_its_bytes_in_hbm_twice():
  text = program('%c = u8[50]{0} copy(%x)', '%v = u8[50]{0:S(1)} copy(%x)')
  assert scheduled(text).seconds == pytest.approx(1)


def test_messages_between_slices_are_counted_and_not_timed():
  line = '%s = (u8[40], u32[], token[]) send(%x, %t), channel_id=26'
  found = scheduled(program(line))
  assert found.seconds == 0
  assert found.collectives['s'].bytes == 40


def test_a_program_numbers_the_devices_of_one_slice():
  devices = [Device(i, 0, 0, slice_index=s) for s in (0, 1) for i in (0, 1, 2)]
  line = '%c = u8[30] all-reduce(%x), channel_id=1, replica_groups={}'
  found = scheduled(program(line), Network(devices))
  assert found.seconds == pytest.approx(2 * 20 / 10)


def test_kernels_by_hand(monkeypatch):
  """459e12 FLOP/s at 77 % and 99 %, the backward pass 2.5 times as many."""
  monkeypatch.setitem(EFFICIENCY, 'v5p', (0.77, 0.99))
  chip = Chip('v5p', 459e12, 1, 1, 1, 1)
  flops = [459e12, 0]
  forward, backward = kernel_seconds(chip, flops, STATIC)
  assert forward == pytest.approx([1 / 0.77, 0])
  assert backward == pytest.approx([2.5 / 0.99, 0])
  half = Calibration(0.5, 0.25, '')
  forward, backward = kernel_seconds(chip, flops, half)
  assert forward == pytest.approx([2 / 0.77, 0])
  assert backward == pytest.approx([10 / 0.99, 0])


def test_each_generation_has_calibrations_with_their_source():
  assert CALIBRATION.keys() == EFFICIENCY.keys() == {*CHIPS}
  for forward, backward, source in CALIBRATION.values():
    assert 0.5 < backward <= forward <= 1  # none is faster than its schedule
    assert 'tokamax' in source or 'assumed' in source
  # Measured over static share of the peak, as the sources have them.
  assert CALIBRATION['v6e'].forward == pytest.approx(0.36 / 0.40)
  assert CALIBRATION['tpu7x'].forward == pytest.approx(0.348 / 0.39, abs=0.005)
  assert 0.37 / 0.48 < CALIBRATION['tpu7x'].backward < 0.39 / 0.48
