"""The attention of a step by its documents, against counting."""

import numpy as np
import pytest

from configs import tiny
from longjax.errors import InputError
from longjax.plan.workload import row_lengths, workload


def config_of(**changes):
  config = tiny.get_config()
  changes = dict(mesh__seq=4, mesh__data=1, train__seq_len=1024) | changes
  for key, value in changes.items():
    config.update_from_flattened_dict({key.replace('__', '.'): value})
  return config


def test_one_document_a_row_needs_half_the_square():
  work = workload(config_of(train__batch=2))
  assert work.lengths == (1024, 1024)
  assert work.squared_lengths == 2 * 1024**2
  assert work.needed == 2 * (1024 / 64) ** 2 / 2
  # zigzag, whole blocks: the triangle with its diagonal
  assert work.executed == 2 * 16 * 17 / 2


def test_in_zigzag_each_hop_but_the_first_holds_half_of_the_pairs():
  work = workload(config_of(train__batch=1))
  assert work.pairs == (256 / 64) ** 2
  assert work.hops[1:] == (8, 8, 8)
  assert work.hops[0] == 10


def test_documents_that_end_at_the_borders_of_a_member_need_no_later_hop():
  work = workload(config_of(train__batch=1, data__layout='contiguous'), '256')
  assert work.hops == (4 * 5 / 2, 0, 0, 0)
  assert work.squared_lengths == 4 * 256**2


def test_rows_are_shared_out_and_counted_by_the_slowest_ring():
  mix = '1024:0.5,64:0.5'
  rows = row_lengths(mix, 8, 1024)
  assert sorted(rows) == [64] * 4 + [1024] * 4
  one, two = config_of(train__batch=8), config_of(train__batch=8, mesh__data=2)
  assert workload(one, mix).executed == workload(two, mix).executed
  assert sum(workload(two, mix).hops) * 2 >= sum(workload(one, mix).hops)


def test_micro_batches_share_the_work_of_a_row_group():
  whole = workload(config_of(train__batch=4))
  parts = workload(config_of(train__batch=4, train__micro_batches=2))
  np.testing.assert_allclose(parts.hops, np.array(whole.hops) / 2)
  assert (parts.pairs, parts.executed) == (whole.pairs / 2, whole.executed)


def test_gathered_keys_are_one_hop():
  ring = workload(config_of(train__batch=1))
  work = workload(config_of(train__batch=1, model__attention='gather'))
  assert work.hops == (sum(ring.hops),)
  assert work.pairs == 4 * ring.pairs
  assert work.executed == ring.executed


@pytest.mark.parametrize('strategy, swap', [('ulysses', 8), ('hybrid', 4)])
def test_a_ring_that_swaps_heads_is_smaller_and_has_a_share_of_them(
  strategy, swap
):
  at = dict(train__batch=1, mesh__seq=8)
  ring = workload(config_of(**at))
  work = workload(config_of(**at, model__attention=strategy))
  assert len(work.hops) == 8 // swap
  assert work.executed == ring.executed
  assert sum(work.hops) == pytest.approx(work.executed / 8)


@pytest.mark.parametrize('documents', [
  'long', '0', '2048', '1024:0.5', '1024:0.5,64:-0.5,32:1', '64:x', '64,32',
])  # fmt: skip
def test_documents_that_no_row_can_hold_are_refused(documents):
  with pytest.raises(InputError, match='--documents'):
    workload(config_of(), documents)


def test_rows_that_attend_to_others_have_their_blocks_in_memory_layers():
  memory = dict(layers=(1,), rows=((), (-1,), (-1, -2), (-1, -2, -3)))
  config = config_of(mesh__seq=1, train__batch=4, data__layout='contiguous')
  config.model.memory.update(memory)
  work = workload(config)
  own, seen = 4 * 16 * 17 / 2, 6 * 16 * 16  # blocks of 64 in rows of 1,024
  assert work.executed == own
  assert work.special == {'memory_layers': pytest.approx(1 + seen / own)}


def test_windows_and_groups_hold_the_blocks_of_their_tokens():
  config = config_of(mesh__seq=1, train__batch=1, data__layout='contiguous')
  config.model.group = 256
  config.train.longce.update(gamma=5.0, short=192, stride=64)
  whole, cut = 16 * 17 / 2, 4 * 4 * 5 / 2
  assert workload(config).special == {
    'longce': pytest.approx(cut / whole),
    '': pytest.approx(cut / whole / 2),  # of half of the heads
  }
