"""launch/plan.py: what it refuses, and real compiles for a small slice."""

import importlib.util
import json
import re
import types

import commands
import numpy as np
import pytest

from configs import tiny
from longjax import checks, hbm, slices
from longjax.errors import InputError
from longjax.plan import compile, contents, hlo, longest, search, workload
from longjax.plan.compile import check

TINY = '--config=configs/tiny.py'
aot = [
  pytest.mark.aot,
  pytest.mark.skipif(
    not importlib.util.find_spec('libtpu'), reason='needs libtpu'
  ),
]


def tiny_config(**changes):
  config = tiny.get_config()
  for key, value in changes.items():
    config.update_from_flattened_dict({key.replace('__', '.'): value})
  return config


@pytest.mark.parametrize('text, fact', [
  ('', 'v5p:4x4x8'),
  ('v5p', 'GENERATION:CHIPSxCHIPS'),
  ('v5x:4x4', "'v5x'"),
  ('v5p:4x4', 'nearest is v5p:4x4x1'),
  ('v5e:3x4', 'nearest is v5e:4x4'),
  ('v5e:4x32', 'nearest is v5e:4x16'),
  ('v6e:2x4x2', 'nearest is v6e:2x4'),
])  # fmt: skip
def test_a_topology_that_does_not_exist_is_refused(text, fact):
  with pytest.raises(InputError, match=re.escape(fact)):
    slices.parse(text)


@pytest.mark.parametrize('count, changes, fact', [
  (1, dict(train__micro_batches=4), 'train.batch is 4'),
  (1, dict(train__batch=3), 'mesh.data = 2'),
  (1, dict(model__heads=7), 'heads 7'),
  (1, dict(mesh__seq=3), '--config.mesh.data=4 --config.mesh.seq=2'),
  # A ring does not span slices.
  (2, dict(mesh__data=1, mesh__seq=16), '--config.mesh.seq=8'),
])  # fmt: skip
def test_a_config_that_cannot_work_is_refused_before_any_compile(
  count, changes, fact
):
  target = slices.parse('v5e:2x4', slices=count)
  with pytest.raises(InputError, match=re.escape(fact)):
    check(tiny_config(**changes), target, '', print)


def test_the_command_refuses_in_one_line():
  line = commands.refused('plan.py', TINY, '--topology=v5e:3x4')
  assert 'nearest is v5e:4x4' in line


@pytest.mark.skipif(
  bool(importlib.util.find_spec('libtpu')), reason='libtpu is here'
)
def test_without_the_compiler_its_package_is_named():
  line = commands.refused('plan.py', TINY, '--topology=v5e:2x4')
  assert 'pip install libtpu' in line


def test_a_ring_is_kept_and_data_takes_the_rest_of_the_devices():
  config, said = tiny.get_config(), []
  check(config, slices.parse('v5e:2x4'), '', said.append)
  assert dict(config.mesh) == dict(data=2, seq=4)
  assert not said
  config.train.batch = 8
  check(config, slices.parse('v5e:2x4', slices=2), '', said.append)
  assert dict(config.mesh) == dict(data=4, seq=4)
  assert 'data 4 x seq 4' in said[0]


@pytest.mark.parametrize('text, chips, devices', [
  ('v5p:4x4x8', 128, 128), ('v5e:16x16', 256, 256), ('7x:4x4x4', 64, 128),
  ('v7x:2x2x1', 4, 8), ('v4:4x4x4', 64, 64), ('v6e:4x8', 32, 32),
])  # fmt: skip
def test_topologies_have_their_chips_and_devices(text, chips, devices):
  topology = slices.parse(text)
  assert topology.chips == chips
  assert topology.devices == devices


@pytest.mark.parametrize('message, needed', [
  ('RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, '
   'the total memory required for HLO temporaries (358.76G) exceeds available '
   'HBM (15.75G).', 358.76),
  ('RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 512.00M '
   'of 15.75G hbm.', 0.5),
])  # fmt: skip
def test_the_need_is_read_from_the_message_of_the_compiler(message, needed):
  found = hbm.out_of_memory(RuntimeError(message), slices.CHIPS['v5e'])
  assert found['needed_gib'] == needed
  assert found['limit_gib'] == 15.75


def test_the_buffers_of_the_largest_loop_are_known_by_their_shapes():
  small, large = 'f32[1024,512]', 'bf16[32,2,4096,1024]{3,2,1,0:T(8,128)(2,1)}'
  text = f"""HloModule m
ENTRY %main (x: {small}) -> {small} {{
  %a = (s32[], {small}, {small}) while(%x), condition=%c, body=%b
  %b = ({small}, {large}, {large}, f32[999,512]{{1,0:S(5)}}) while(%x), body=%b
}}
"""
  names = {(32, 2, 4096, 1024): 'layer_in of all layers, saved'}
  saved, other = contents.loop_buffers(hlo.parse(text), names)
  assert saved['what'] == 'layer_in of all layers, saved'
  assert saved['gib'] == 2 * 0.5
  assert (other['what'], other['gib']) == ('temporary', 2**21 / 2**30)


def test_another_refusal_of_the_compiler_is_one_line():
  with pytest.raises(InputError, match='INTERNAL: a b'):
    hbm.out_of_memory(RuntimeError('INTERNAL: a\nb'), slices.CHIPS['v5e'])


def test_rings_go_over_whole_axes_of_the_torus():
  assert search.ring_sizes(slices.parse('v5p:4x4x8')) == [1, 4, 8, 16, 32, 128]
  assert search.ring_sizes(slices.parse('7x:2x2x1')) == [1, 2, 4, 8]


def test_candidates_are_valid_fit_by_the_estimate_and_come_cheapest_first():
  config = tiny.get_config()
  found = search.candidates(config, slices.parse('v5e:2x4'), '')
  times = [seconds for seconds, _, _ in found]
  assert times == sorted(times)
  for _, gib, trial in found:
    assert trial.mesh.data * trial.mesh.seq == 8
    assert gib < 15.75
  assert {t.model.remat for *_, t in found} > {'attention', 'full'}


@pytest.mark.parametrize('limit', [1, 9, 70, 5000])
def test_the_longest_rows_that_fit_are_found(limit, monkeypatch):
  """Of a chip that holds `limit` units of 2 * 4 * 64 tokens."""
  unit, tried = 2 * 4 * 64, []

  def plan(config, *_):
    tried.append(config.train.seq_len)
    return dict(fits=tried[-1] <= limit * unit, seq_len=tried[-1])

  monkeypatch.setattr(longest, 'plan', plan)
  # The estimate is a fifth too small.
  slope = slices.CHIPS['v5e'].usable / (limit * unit) / 1.2
  monkeypatch.setattr(
    longest, 'estimated_bytes', lambda config: slope * config.train.seq_len
  )
  best, *others = longest.longest(
    tiny.get_config(), slices.parse('v5e:2x4'), '', lambda line: None
  )
  assert best['fits']
  assert limit * (1 - 1 / 16) * unit <= best['seq_len'] <= limit * unit
  assert len(others) < 7
  assert len({*tried}) == len(tried) == 1 + len(others)


def test_rows_of_which_none_fits_are_reported_with_the_shortest(monkeypatch):
  plan = lambda config, *_: dict(fits=False, seq_len=config.train.seq_len)
  monkeypatch.setattr(longest, 'plan', plan)
  target, quiet = slices.parse('v5e:2x4'), lambda line: None
  best, *_ = longest.longest(tiny.get_config(), target, '', quiet)
  assert best == dict(fits=False, seq_len=2 * 4 * 64)


def test_short_documents_need_less_attention():
  """Of the reports on one compiled step, which does not depend on them."""
  config = tiny_config(data__layout='contiguous')
  schedule = types.SimpleNamespace(seconds=1.0, parts={})
  mesh = types.SimpleNamespace(devices=np.empty((2, 4)))
  target, model = slices.parse('v5e:2x4'), checks.check(config)

  def reports(documents):
    work = workload.workload(config, documents)
    job = compile.Job(config, model, target, mesh, work)
    return compile.attention(job), compile.speed(job, schedule, schedule)

  work, step = reports('64')
  whole, whole_step = reports('')
  assert work['needed_flops'] == whole['needed_flops'] / 4
  # A document on each device, in blocks as long as it is: 1 of 4 * 5 / 2.
  assert work['executed_flops'] == whole['executed_flops'] * 4 / 10
  assert work['busiest_over_mean'] == 1
  assert step['mfu_documents'] < step['mfu_causal']
  assert whole_step['mfu_documents'] == whole_step['mfu_causal']


def compiled(*arguments, code=0):
  # libtpu knows none of the flags for the CPU that conftest.py sets.
  done = commands.run('plan.py', TINY, *arguments, '--json', XLA_FLAGS='')
  assert done.returncode == code, done.stderr
  return json.loads(done.stdout)


@pytest.fixture(scope='module')
def planned():
  return compiled('--topology=v5e:2x4')


class TestCompiled:
  pytestmark = aot

  def test_a_small_config_fits_and_its_parts_add_up(self, planned):
    assert planned['fits']
    assert planned['caveat'] == 'compiled, not run on a TPU'
    hbm, step = planned['hbm'], planned['step']
    assert 0 < hbm['arguments_gib'] < hbm['peak_gib'] < hbm['limit_gib']
    assert sum(step['parts_seconds'].values()) == pytest.approx(step['seconds'])
    assert 0 < step['mfu_causal'] == step['mfu_documents'] < 1

  def test_its_ring_is_asynchronous_and_as_long_as_the_config_says(
    self, planned
  ):
    ring = planned['communication']['ring']
    assert ring['all_asynchronous']
    # In each of 4 layers k, v and ids go 3 hops forward and 3 backward, dk
    # and dv 4: home.
    assert ring['executed'] == 4 * (2 * 3 * 3 + 2 * 4)
    assert planned['attention']['busiest_over_mean'] == 1

  def test_what_does_not_fit_is_reported_with_its_need(self):
    found = compiled(
      '--topology=v5e:2x2', '--config.mesh.seq=4',
      '--config.train.seq_len=1048576', '--config.train.batch=64',
      '--config.train.loss_chunk=1024', '--config.model.block=1024', code=1,
    )  # fmt: skip
    assert not found['fits']
    assert found['hbm']['needed_gib'] > found['hbm']['limit_gib'] == 15.75
