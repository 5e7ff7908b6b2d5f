"""Layouts: permutations that give each device its tokens."""

import numpy as np
import pytest

from longjax import batch, errors
from longjax.attention.ids import ANY, Ids, meet
from longjax.data import layout


def test_small_orders_by_hand():
  assert layout.order('contiguous', 8, 2).tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
  assert layout.order('zigzag', 8, 2).tolist() == [0, 1, 6, 7, 2, 3, 4, 5]
  assert layout.order('striped', 8, 2).tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


@pytest.mark.parametrize('name', layout.LAYOUTS)
@pytest.mark.parametrize('n', [1, 2, 4, 8])
def test_every_layout_is_a_permutation_with_an_inverse(name, n):
  order = layout.order(name, 48, n) if n != 8 else layout.order(name, 64, n)
  assert sorted(order.tolist()) == list(range(len(order)))
  assert (order[layout.inverse(order)] == np.arange(len(order))).all()


@pytest.mark.parametrize('name', layout.LAYOUTS)
def test_one_device_has_all_tokens_in_order(name):
  assert (layout.order(name, 6, 1) == np.arange(6)).all()


def test_zigzag_devices_hold_an_early_and_a_late_half_of_equal_work():
  devices = layout.order('zigzag', 32, 4).reshape(4, 2, 4)  # chunks of 4
  for i, (early, late) in enumerate(devices):
    assert early.tolist() == list(range(4 * i, 4 * i + 4))
    assert late.tolist() == list(range(4 * (7 - i), 4 * (8 - i)))
  assert len({int(d.sum()) for d in devices}) == 1  # keys seen, causal


def test_striped_devices_hold_tokens_modulo_n():
  devices = layout.order('striped', 12, 4).reshape(4, 3)
  assert [set((d % 4).tolist()) for d in devices] == [{0}, {1}, {2}, {3}]


def test_apply_permutes_all_six_arrays_together():
  made = batch.one_document(np.arange(16).reshape(2, 8))
  order = layout.order('zigzag', 8, 2)
  moved = layout.apply(made, order)
  assert (moved.tokens == made.tokens[:, order]).all()
  assert (moved.index == order).all()
  for before, after in zip(made, layout.apply(moved, layout.inverse(order))):
    assert (before == after).all()


def test_lengths_that_do_not_divide_are_refused_with_the_nearest():
  with pytest.raises(errors.InputError, match=r'seq_len 10.*multiple of 4.*8'):
    layout.order('zigzag', 10, 2)
  with pytest.raises(errors.InputError, match='multiple of 2'):
    layout.order('striped', 9, 2)
  with pytest.raises(errors.InputError, match='zigzag'):
    layout.order('zig', 8, 2)


def packed(rng, rows, seq):
  """segments [rows, seq] of documents of odd lengths; the rest is padding."""
  segments = np.zeros((rows, seq), np.int32)
  for row in segments:
    ends = np.sort(rng.choice(np.arange(1, seq), 5, replace=False))
    for number, (a, b) in enumerate(zip([0, *ends], ends), 1):
      row[a:b] = number
  return segments


def blocks_that_meet(segments, index, n, block):
  """[rows, member, hop] as `work`, by asking `meet` of each pair of blocks."""
  rows, seq = segments.shape
  part = seq // n
  cut = lambda member: [
    slice(a, min(a + block, (member + 1) * part))
    for a in range(member * part, (member + 1) * part, block)
  ]
  ids = lambda row, where: Ids(
    *(x[row : row + 1, where] for x in (segments, index))
  )
  counts = np.zeros((rows, n, n), int)
  for row, member, hop in np.ndindex(counts.shape):
    counts[row, member, hop] = sum(
      bool(meet(ids(row, q), ids(row, kv)))
      for q in cut(member)
      for kv in cut((member - hop) % n)
    )
  return counts


@pytest.mark.parametrize('name', layout.LAYOUTS)
@pytest.mark.parametrize('n, block', [(1, 16), (4, 8), (2, 7), (4, 64)])
def test_work_counts_the_blocks_that_meet(name, n, block, rng):
  segments = packed(rng, 2, 64)
  segments[1, 5:9] = ANY
  index = np.tile(np.arange(64, dtype=np.int32), (2, 1))
  index[1, 5:9] = -1
  order = layout.order(name, 64, n)
  segments, index = segments[:, order], index[:, order]
  counts = layout.work(segments, index, n, block)
  assert (counts == blocks_that_meet(segments, index, n, block)).all()


def test_one_document_needs_half_of_the_square():
  whole = np.ones((1, 64), np.int32)
  assert layout.needed(whole, 8) == 8 * 8 / 2
  two = np.repeat([[1, 2, 0]], [16, 32, 16], axis=1)
  assert layout.needed(two, 8) == (2 * 2 + 4 * 4) / 2


def test_a_causal_ring_of_contiguous_parts_waits_for_its_last_member():
  index = np.arange(16)[None]
  counts = layout.work(np.ones((1, 16), int), index, 4, 4)
  assert counts.tolist() == [
    [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
  ]
