"""Packing, against packs and rows worked out by hand."""

import numpy as np
import pytest

from longjax import errors
from longjax.data import mixture, pack, row_plans


class Memory:
  """A store of documents in memory; masks are 1 unless given."""

  directory = 'memory'

  def __init__(self, *documents, masks=(), sources=()):
    self._documents = [np.array(d, np.uint32) for d in documents]
    self._masks = [np.array(m, np.uint8) for m in masks]
    self.lengths = np.array([len(d) for d in documents], np.int64)
    self.sources = np.array(sources, np.int64)
    names = [f'source{i}' for i in range(max(sources, default=0) + 1)]
    self.manifest = dict(sources=[dict(name=name) for name in names])

  def tokens(self, document, start=0, length=None):
    end = None if length is None else start + length
    return self._documents[document][start:end]

  def mask(self, document, start=0, length=None):
    end = None if length is None else start + length
    if self._masks:
      return self._masks[document][start:end]
    return np.ones(len(self.tokens(document, start, length)), np.uint8)


DATA = Memory([1, 2, 3], [11, 12, 13, 14, 15, 16], [21, 22])
# Document:       0  1  2  3   4  5  6
LENGTHS = np.array([3, 6, 2, 4, 11, 1, 5])


def packed(rule, length, lengths=LENGTHS, order=None, **keys):
  """Packs as ([(document, start, length), ...] of each, dropped)."""
  keys = dict(group=1) | keys
  component = mixture.ComponentConfig(pack=rule, length=length, **keys)
  order = np.arange(len(lengths)) if order is None else order
  made = pack.packs(component, lengths, order, np.random.default_rng(0))
  return [[tuple(s) for s in made[i]] for i in range(len(made))], made.dropped


def test_whole_cuts_long_documents_into_pieces_of_exactly_the_length():
  assert packed('whole', 4) == (
    [[(1, 0, 4)], [(3, 0, 4)], [(4, 0, 4)], [(4, 4, 4)], [(6, 0, 4)]],
    3 + 2 + 2 + 3 + 1 + 1,
  )


def test_concatenate_carries_the_remainder_into_the_next_pack():
  assert packed('concatenate', 8) == (
    [
      [(0, 0, 3), (1, 0, 5)],
      [(1, 5, 1), (2, 0, 2), (3, 0, 4), (4, 0, 1)],
      [(4, 1, 8)],
      [(4, 9, 2), (5, 0, 1), (6, 0, 5)],
    ],
    0,
  )


def test_documents_are_taken_in_the_given_order():
  assert packed('concatenate', 5, DATA.lengths, [2, 0, 1]) == (
    [[(2, 0, 2), (0, 0, 3)], [(1, 0, 5)]], 1,
  )  # fmt: skip


def test_concatenate_without_carry_drops_the_remainder():
  assert packed('concatenate', 8, carry=False) == (
    [
      [(0, 0, 3), (1, 0, 5)],
      [(2, 0, 2), (3, 0, 4), (4, 0, 2)],
    ],
    1 + 9 + 1 + 5,
  )


def test_best_fit_cuts_only_what_is_longer_than_a_pack():
  # 4 gives a full pack and a rest of 3; then 6, 5, 4, 3 (0), 3 (4), 2, 1 go
  # where they fit best: 6+2, 5+3, 4+3, 1 beside 4+3.
  assert packed('best_fit', 8) == (
    [
      [(4, 0, 8)],
      [(1, 0, 6), (2, 0, 2)],
      [(6, 0, 5), (0, 0, 3)],
      [(3, 0, 4), (4, 8, 3), (5, 0, 1)],
    ],
    0,
  )


def test_next_fit_keeps_documents_whole_and_leaves_out_longer_ones():
  assert packed('next_fit', 8) == (
    [[(0, 0, 3)], [(1, 0, 6), (2, 0, 2)], [(3, 0, 4), (5, 0, 1)], [(6, 0, 5)]],
    11,
  )


def test_sorted_has_one_document_a_pack_in_order_of_length():
  assert packed('sorted', 5) == (
    [[(5, 0, 1)], [(2, 0, 2)], [(0, 0, 3)], [(3, 0, 4)], [(6, 0, 5)]],
    6 + 11,
  )


def test_sorted_leaves_out_the_shortest_that_fill_no_group():
  groups, dropped = packed('sorted', 11, group=3)
  lengths = [n for ((_, _, n),) in groups]
  assert (lengths, dropped) == ([2, 3, 4, 5, 6, 11], 1)


def test_interleave_alternates_the_chunks_of_documents():
  # Each of 2 documents gives 4 tokens in 2 chunks; 0, 2 and 5 are too short.
  assert packed('interleave', 8, documents=2, chunks=2) == (
    [
      [(1, 0, 2), (3, 0, 2), (1, 2, 2), (3, 2, 2)],
      [(4, 0, 2), (6, 0, 2), (4, 2, 2), (6, 2, 2)],
    ],
    3 + 2 + 2 + 7 + 1 + 1,
  )


@pytest.mark.parametrize('rule', pack.RULES)
def test_a_rule_keeps_a_token_at_most_once_and_counts_the_others(rule):
  rng = np.random.default_rng(1)
  lengths = rng.integers(1, 40, 300)
  order = rng.permutation(300)[:250]
  for carry in (True, False):
    made, dropped = packed(rule, 16, lengths, order, carry=carry)
    tokens = [(d, s + i) for p in made for d, s, n in p for i in range(n)]
    assert len(set(tokens)) == len(tokens)
    assert len(tokens) + dropped == lengths[order].sum()
    assert all(sum(n for *_, n in p) <= 16 for p in made)
    assert all(s >= 0 and s + n <= lengths[d] for p in made for d, s, n in p)
    if rule == 'best_fit':
      assert dropped == 0
      uncut = lengths <= 16
      assert all(n == lengths[d] for p in made for d, _, n in p if uncut[d])


@pytest.mark.parametrize('rule', pack.RULES)
def test_too_few_tokens_are_no_packs(rule):
  whole = dict(best_fit=1, next_fit=1, in_order=1, sorted=1).get(rule, 0)
  assert len(packed(rule, 32, np.array([3]))[0]) == whole
  assert packed(rule, 32, np.array([], int)) == ([], 0)


def rows_of(packs, length, seq_len, joined=False, data=DATA):
  spans = [[pack.DocumentSpan(*s) for s in p] for p in packs]
  plans = row_plans.of_packs(spans, length, seq_len, joined)
  return [row_plans.read_row(data, plan, seq_len) for plan in plans]


def test_a_row_by_hand():
  (row,) = rows_of([[(0, 0, 3), (1, 0, 1)]], 4, 4)
  assert row.tokens.tolist() == [1, 2, 3, 11]
  # 3 ends its document; 11 does not: its target is in another row.
  assert row.targets.tolist() == [2, 3, 0, 12]
  assert row.weights.tolist() == [1, 1, 0, 1]
  assert row.segments.tolist() == [1, 1, 1, 2]
  assert [a.dtype == np.int32 for a in row] == [True, True, False] + [True] * 3


def test_padding_has_segment_and_weight_0():
  (row,) = rows_of([[(2, 0, 2)]], 4, 4)
  assert row.tokens.tolist() == [21, 22, 0, 0]
  assert row.targets.tolist() == [22, 0, 0, 0]
  assert row.weights.tolist() == [1, 0, 0, 0]
  assert row.segments.tolist() == [1, 1, 0, 0]


def test_short_packs_share_a_row_but_no_segment():
  # The first pack is not full: the second begins at its place all the same.
  (row,) = rows_of([[(2, 0, 2)], [(1, 0, 3)]], 3, 6)
  assert row.tokens.tolist() == [21, 22, 0, 11, 12, 13]
  assert row.segments.tolist() == [1, 1, 0, 2, 2, 2]
  assert row.targets.tolist() == [22, 0, 0, 12, 13, 14]


def test_a_long_pack_is_consecutive_rows_of_one_document():
  rows = rows_of([[(1, 0, 6)]], 6, 2)
  assert [r.tokens.tolist() for r in rows] == [[11, 12], [13, 14], [15, 16]]
  assert [r.targets.tolist() for r in rows] == [[12, 13], [14, 15], [16, 0]]
  assert all(r.segments.tolist() == [1, 1] for r in rows)


def test_a_long_pack_of_several_documents_is_cut_at_rows():
  rows = rows_of([[(0, 0, 3), (1, 0, 5)]], 8, 4)
  assert [r.tokens.tolist() for r in rows] == [[1, 2, 3, 11], [12, 13, 14, 15]]
  assert [r.segments.tolist() for r in rows] == [[1, 1, 1, 2], [1, 1, 1, 1]]


@pytest.mark.parametrize('seq_len, every', [(8, 8), (8, 4), (4, 4), (4, 2)])
def test_a_cut_joined_pack_predicts_each_token_once(seq_len, every):
  data = Memory([1, 2, 3, 4, 5], [11, 12, 13, 14, 15])
  spans = [[pack.DocumentSpan(*s) for s in (
    (0, 0, 2), (1, 0, 2), (0, 2, 2), (1, 2, 2)
  )]]  # fmt: skip
  plans = row_plans.of_packs(spans, 8, seq_len, joined=True)
  rows = [
    row_plans.read_row(data, row_plans.cut_segments(plan, every), seq_len)
    for plan in plans
  ]
  flat = lambda name: np.concatenate([getattr(r, name) for r in rows]).tolist()
  assert flat('tokens') == [1, 2, 11, 12, 3, 4, 13, 14]
  # The next token of the pack, also across rows and cuts; after its end that
  # of the document.
  assert flat('targets') == [2, 11, 12, 3, 4, 13, 14, 15]
  assert flat('weights') == [1] * 8
  starts = flat('positions').count(0)
  assert starts == 8 // every


def test_a_mask_decides_what_is_predicted():
  data = Memory([1, 2, 3, 4], masks=[[0, 0, 1, 1]])
  (row,) = rows_of([[(0, 0, 4)]], 4, 4, data=data)
  assert row.targets.tolist() == [2, 3, 4, 0]
  assert row.weights.tolist() == [0, 1, 1, 0]


def test_cutting_a_row_makes_segments_and_changes_no_token():
  spans = [[pack.DocumentSpan(0, 0, 3), pack.DocumentSpan(1, 0, 5)]]
  (plan,) = row_plans.of_packs(spans, 8, 8)
  cut = row_plans.cut_segments(plan, 2)
  before, after = (row_plans.read_row(DATA, p, 8) for p in (plan, cut))
  assert before.segments.tolist() == [1, 1, 1, 2, 2, 2, 2, 2]
  assert after.segments.tolist() == [1, 1, 2, 3, 4, 4, 5, 5]
  for name in ('tokens', 'targets', 'weights'):
    assert (getattr(before, name) == getattr(after, name)).all()
  assert plan.squared_lengths() == 9 + 25
  assert cut.squared_lengths() == 4 + 1 + 1 + 4 + 4


@pytest.mark.parametrize('rule', ['concatenate', 'best_fit', 'whole'])
def test_every_token_but_the_first_of_a_document_is_predicted_once(rule):
  rng = np.random.default_rng(0)
  ends = np.cumsum(rng.integers(1, 40, 60))
  data = Memory(*np.split(np.arange(ends[-1] + 20) + 1, ends))
  spans, _ = packed(rule, 16, data.lengths, rng.permutation(61))
  rows = rows_of(spans, 16, 16, data=data)
  tokens, targets, weights, segments, *_ = (np.stack(x) for x in zip(*rows))
  predicted = targets[weights > 0]
  assert len(set(predicted.tolist())) == len(predicted)
  firsts = {int(data.tokens(d)[0]) for d in range(61)}
  assert not firsts & set(predicted.tolist())
  # Ids count up inside a document: the target is always the next one.
  assert (predicted == tokens[weights > 0] + 1).all()
  lost = np.count_nonzero(segments) - len(predicted)
  assert lost == sum(int(data.tokens(d)[-1]) in tokens for d in range(61))


def test_a_batch_has_six_arrays_in_contiguous_order():
  spans = [
    [pack.DocumentSpan(0, 0, 3), pack.DocumentSpan(1, 0, 1)],
    [pack.DocumentSpan(1, 1, 4)],
  ]
  made = row_plans.batch(DATA, row_plans.of_packs(spans, 4, 4), 4)
  assert made.tokens.tolist() == [[1, 2, 3, 11], [12, 13, 14, 15]]
  assert made.positions.tolist() == [[0, 1, 2, 0], [0, 1, 2, 3]]
  assert made.index.tolist() == [[0, 1, 2, 3]] * 2
  assert {a.shape for a in made} == {(2, 4)}
  assert [a.dtype == np.int32 for a in made] == [True, True, False] + [True] * 3


def test_evaluation_reads_the_start_of_long_documents():
  rows = row_plans.one_document_rows(DATA, 3, 2)
  made = row_plans.batch(DATA, rows, 3)
  assert made.tokens.tolist() == [[1, 2, 3], [11, 12, 13]]
  assert made.targets.tolist() == [[2, 3, 0], [12, 13, 14]]
  with pytest.raises(errors.InputError, match='there are 1; the longest has 6'):
    row_plans.one_document_rows(DATA, 4, 2)
