"""Layouts: permutations that give each device its tokens."""

import numpy as np
import pytest
from bench import balance

from longjax import batch, errors
from longjax.data import layout
from longjax.mask import SHARED_SEGMENT, Ids, block_bounds, block_may_attend

FIXED = ('contiguous', 'zigzag', 'striped')


@pytest.mark.parametrize('n', [1, 2, 8])
def test_every_layout_is_a_permutation(n):
  for name in FIXED:
    assert sorted(layout.order(name, 64, n).tolist()) == list(range(64))


def test_small_orders_by_hand():
  assert layout.order('contiguous', 8, 2).tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
  assert layout.order('zigzag', 8, 2).tolist() == [0, 1, 6, 7, 2, 3, 4, 5]
  assert layout.order('striped', 8, 2).tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


@pytest.mark.parametrize('name', layout.LAYOUTS)
def test_one_device_has_all_tokens_in_order(name):
  made = batch.one_document(np.arange(6))
  assert (layout.arrange(made, name, 1, 3).index == np.arange(6)).all()


def test_arrange_permutes_all_six_arrays_together():
  made = batch.one_document(np.arange(16).reshape(2, 8))
  order = layout.order('zigzag', 8, 2)
  moved = layout.arrange(made, 'zigzag', 2, 8)
  assert (moved.index == order).all()
  for before, after in zip(made, moved):
    assert (after == before[:, order]).all()


@pytest.mark.parametrize('name, seq, facts', [
  ('zigzag', 10, 'seq_len 10.*multiple of 4.*8'),
  ('striped', 9, 'multiple of 2'),
  ('balanced', 9, 'multiple of 2'),
])  # fmt: skip
def test_an_impossible_layout_is_refused_with_the_nearest(name, seq, facts):
  with pytest.raises(errors.InputError, match=facts):
    layout.check(name, seq, 2)


def packed(rng, rows, seq):
  """segments [rows, seq] of documents of odd lengths; the rest is padding."""
  segments = np.zeros((rows, seq), np.int32)
  for row in segments:
    ends = np.sort(rng.choice(np.arange(1, seq), 5, replace=False))
    for number, (a, b) in enumerate(zip([0, *ends], ends), 1):
      row[a:b] = number
  return segments


def blocks_that_may_attend(segments, index, n, block):
  """[rows, member, hop], counted one pair of blocks at a time."""
  rows, seq = segments.shape
  part = seq // n
  cut = lambda member: [
    slice(a, min(a + block, (member + 1) * part))
    for a in range(member * part, (member + 1) * part, block)
  ]
  held = lambda row, where: block_bounds(
    Ids(segments[row, where], index[row, where])
  )
  counts = np.zeros((rows, n, n), int)
  for row, member, hop in np.ndindex(counts.shape):
    counts[row, member, hop] = sum(
      bool(block_may_attend(held(row, q), held(row, kv)))
      for q in cut(member)
      for kv in cut((member - hop) % n)
    )
  return counts


def lay_out(segments, index, name, n, block):
  """(segments, index) in a layout, the other arrays left aside."""
  made = batch.one_document(np.zeros_like(segments))
  made = made._replace(segments=segments, index=index)
  laid = layout.arrange(made, name, n, block)
  return laid.segments, laid.index


@pytest.mark.parametrize('name', layout.LAYOUTS)
@pytest.mark.parametrize('n, block', [(1, 16), (4, 8), (2, 7), (4, 64)])
def test_executed_blocks_are_those_that_may_attend(name, n, block, rng):
  segments = packed(rng, 2, 64)
  index = np.tile(np.arange(64, dtype=np.int32), (2, 1))
  segments, index = lay_out(segments, index, name, n, block)
  segments[1, 5:9], index[1, 5:9] = SHARED_SEGMENT, -1
  counts = layout.executed_blocks(segments, index, n, block)
  assert (counts == blocks_that_may_attend(segments, index, n, block)).all()


def test_a_causal_ring_of_contiguous_parts_waits_for_its_last_member():
  index = np.arange(16)[None]
  counts = layout.executed_blocks(np.ones((1, 16), int), index, 4, 4)
  assert counts.tolist() == [
    [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
  ]


def executed(segments, name, n, block):
  """`executed_blocks` of whole rows in a layout."""
  index = np.tile(np.arange(segments.shape[1]), (len(segments), 1))
  return layout.executed_blocks(
    *lay_out(segments, index, name, n, block), n, block
  )


def test_a_balanced_row_by_hand():
  # Six chunks of 2 tokens; their queries meet 1 2 1 and 1 2 3 key chunks. The
  # second fold, the more uneven, is dealt first: 5, 4, 3 to devices 0, 1, 2.
  # Of the first, chunk 1 goes to device 2, then 0 to 1, and 2 is left for 0.
  segments = np.array([[1, 1, 1, 1, 2, 2, 3, 3, 3, 3, 3, 3]])
  (order,) = layout.permutation(segments, 'balanced', 3, 2)
  devices = order.reshape(3, 2, 2)[..., 0] // 2  # chunks of each
  assert devices.tolist() == [[2, 5], [0, 4], [1, 3]]


@pytest.mark.parametrize(
  'n, block, chunk', [(4, 8, 8), (2, 4, 4), (8, 64, 16), (4, 12, 8)]
)
def test_balanced_deals_one_whole_chunk_of_each_fold_to_each_device(
  n, block, chunk, rng
):
  orders = layout.permutation(packed(rng, 3, 256), 'balanced', n, block)
  chunks = orders.reshape(3, n, 256 // n // chunk, chunk)
  assert (np.diff(chunks, axis=3) == 1).all()  # whole
  folds = chunks[..., 0] // (n * chunk)
  assert (folds == np.arange(folds.shape[2])).all()  # in the order of the row
  assert (np.sort(orders) == np.arange(256)).all()


@pytest.mark.parametrize('n', [2, 4, 16])
def test_balanced_is_zigzag_for_a_row_of_one_document(n):
  whole = np.ones((1, 1024), int)
  balanced, zigzag = (
    executed(whole, name, n, 16) for name in ('balanced', 'zigzag')
  )
  assert (balanced.sum(2) == zigzag.sum(2)).all()
  assert (balanced.max(1) == zigzag.max(1)).all()


def test_balanced_executes_no_block_that_the_row_itself_would_not(rng):
  segments = packed(rng, 4, 512)
  balanced = executed(segments, 'balanced', 8, 16)
  itself = executed(segments, 'contiguous', 1, 16)
  assert (balanced.sum((1, 2)) == itself.sum((1, 2))).all()


@pytest.mark.parametrize('n', [16])
def test_rows_of_prolong_are_skipped_and_even_over_the_ring(n, rng):
  mixture = list(balance.rows(65_536, rng))
  balanced = balance.measure(mixture, 'balanced', n, 128)
  assert balanced.triangle <= 0.33
  assert balanced.needed <= 1.02
  assert balanced.member <= 1.01
  assert balanced.worst_member <= 1.1
  assert balanced.hop <= 1.05
  zigzag = balance.measure(mixture, 'zigzag', n, 128)
  assert zigzag.worst_member > 2
  assert zigzag.hop > 1.15
