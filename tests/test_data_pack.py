"""Packing and positions, against rows worked out by hand."""

import numpy as np
import pytest

from longjax import errors
from longjax.data import pack, positions


class Memory:
  """A store of documents in memory."""

  directory = 'memory'

  def __init__(self, *documents):
    self._documents = [np.array(d, np.uint32) for d in documents]
    self.lengths = np.array([len(d) for d in documents], np.int64)

  def tokens(self, document, start=0, length=None):
    end = None if length is None else start + length
    return self._documents[document][start:end]


DATA = Memory([1, 2, 3], [11, 12, 13, 14, 15, 16], [21, 22])


def spans(rows):
  return [[tuple(span) for span in row] for row in rows]


def test_rows_are_full_and_the_remainder_starts_the_next():
  rows = pack.concatenate(DATA.lengths, 4)
  assert spans(rows) == [
    [(0, 0, 3), (1, 0, 1)],
    [(1, 1, 4)],
  ]
  assert (len(rows), rows.dropped) == (2, 3)


def test_documents_are_taken_in_the_given_order():
  rows = pack.concatenate(DATA.lengths, 5, order=[2, 0, 1])
  assert spans(rows) == [[(2, 0, 2), (0, 0, 3)], [(1, 0, 5)]]
  assert rows.dropped == 1


def test_too_few_tokens_are_no_rows():
  rows = pack.concatenate(DATA.lengths, 12)
  assert (len(rows), rows.dropped) == (0, 11)
  assert (len(pack.concatenate([], 4)), pack.concatenate([], 4).dropped) == (
    0,
    0,
  )


def test_a_row_by_hand():
  row = pack.row(DATA, [pack.Span(0, 0, 3), pack.Span(1, 0, 1)], 4)
  assert row.tokens.tolist() == [1, 2, 3, 11]
  # 3 ends its document; 11 does not: its target is in the next row.
  assert row.targets.tolist() == [2, 3, 0, 12]
  assert row.weights.tolist() == [1, 1, 0, 1]
  assert row.segments.tolist() == [1, 1, 1, 2]
  assert [a.dtype for a in row] == [np.int32, np.int32, np.float32, np.int32]


def test_padding_has_segment_and_weight_0():
  row = pack.row(DATA, [pack.Span(2, 0, 2)], 4)
  assert row.tokens.tolist() == [21, 22, 0, 0]
  assert row.targets.tolist() == [22, 0, 0, 0]
  assert row.weights.tolist() == [1, 0, 0, 0]
  assert row.segments.tolist() == [1, 1, 0, 0]


def test_every_token_but_the_first_of_a_document_is_predicted_once():
  rng = np.random.default_rng(0)
  ends = np.cumsum(rng.integers(1, 40, 60))
  data = Memory(*np.split(np.arange(ends[-1] + 20) + 1, ends))
  seq_len = 8
  rows = pack.concatenate(data.lengths, seq_len, rng.permutation(61))
  made = pack.batch(data, rows, seq_len)
  predicted = made.targets[made.weights > 0]
  assert len(set(predicted.tolist())) == len(predicted)
  firsts = {int(data.tokens(d)[0]) for d in range(61)}
  assert not firsts & set(predicted.tolist())
  # Ids count up inside a document: the target is always the next one.
  assert (predicted == made.tokens[made.weights > 0] + 1).all()
  lost = made.tokens.size - len(predicted)
  assert lost == sum(int(data.tokens(d)[-1]) in made.tokens for d in range(61))


def test_positions_restart_in_each_segment():
  segments = [[1, 1, 2, 2, 2, 0], [1, 2, 3, 3, 0, 0]]
  assert positions.plain(segments).tolist() == [
    [0, 1, 0, 1, 2, 0],
    [0, 0, 0, 1, 0, 1],
  ]
  assert positions.plain(np.array([5, 5, 6])).tolist() == [0, 1, 0]


def test_a_batch_has_six_arrays_in_contiguous_order():
  made = pack.batch(DATA, pack.concatenate(DATA.lengths, 4), 4)
  assert made.tokens.tolist() == [[1, 2, 3, 11], [12, 13, 14, 15]]
  assert made.positions.tolist() == [[0, 1, 2, 0], [0, 1, 2, 3]]
  assert made.index.tolist() == [[0, 1, 2, 3]] * 2
  assert {a.shape for a in made} == {(2, 4)}
  assert [a.dtype == np.int32 for a in made] == [True, True, False] + [True] * 3


def test_evaluation_reads_the_start_of_long_documents():
  rows = pack.one_document_rows(DATA, 3, 2)
  assert spans(rows) == [[(0, 0, 3)], [(1, 0, 3)]]
  assert pack.batch(DATA, rows, 3).targets.tolist() == [[2, 3, 0], [12, 13, 14]]
  with pytest.raises(errors.InputError, match='there are 1; the longest has 6'):
    pack.one_document_rows(DATA, 4, 2)
