"""The tasks of the laboratory, against what their words say."""

import math
import re

import numpy as np
import pytest

from longjax.evals import miniature

PROSE = 'Now is the winter of our discontent made glorious summer. ' * 30
SIZES = (miniature.LEAST, 64, 250)


@pytest.mark.parametrize('size', SIZES)
def test_a_dictionary_is_asked_for_what_it_said(rng, size):
  pieces = miniature.look_up(rng, PROSE, size)
  text, queries = ''.join(pieces), len(pieces) // 2
  records = re.findall(r'([A-Z][a-z])(\d) ', text + ' ')
  entries = dict(records[:-queries])
  assert size - len(text) in (1, 1 + size % miniature.RECORD)
  assert len(entries) + queries == len(records)  # keys are distinct
  assert all(entries[key] == value for key, value in records[-queries:])
  assert pieces[1::2] == [value for _, value in records[-queries:]]


@pytest.mark.parametrize('size', SIZES)
def test_a_passkey_stands_once_in_the_prose_before_it_is_asked(rng, size):
  given, key = miniature.passkey(rng, PROSE, size)
  [(before, hidden, after)] = re.findall(r'^(.*)#(\d{5})(.*)#$', given)
  assert hidden == key and before + after in PROSE
  assert len(given + key) == size


@pytest.mark.parametrize('size', SIZES)
def test_the_first_line_is_what_the_text_begins_with(rng, size):
  given, line = miniature.first_line(rng, PROSE, size)
  assert len(line) == miniature.LINE and len(given + line) == size
  assert given == f'^{line}{given[1 + len(line) : -1]}^'


@pytest.mark.parametrize('task', miniature.TASKS)
def test_a_document_to_train_on_has_its_length_and_answers(rng, task):
  made = [miniature.document(rng, task, PROSE, 64) for _ in range(50)]
  tokens, masks = zip(*map(miniature.encoded, made))
  assert {len(x) for x in tokens} == {64}
  assert all(mask.any() for mask in masks)


def test_what_is_asked_is_what_is_learned():
  tokens, mask = miniature.encoded(['ab', 'c', 'd', 'ef', 'g'])
  assert bytes(tokens.tolist()) == b'abcdefg'
  assert mask.tolist() == [0, 0, 1, 0, 1, 1, 0]


def test_rows_weigh_the_targets_that_are_asked():
  batch = miniature.rows([['ab', 'c', 'd']])
  assert batch.weights.tolist() == [[0, 1, 0, 0]]
  assert batch.targets[0, 1] == ord('c')


def test_a_byte_is_found_if_it_gets_more_than_half_of_the_probability():
  def nll(batch):
    """Right of digits below 5, nearly right of the others."""
    low = batch.targets < ord('5')
    return np.where(low, math.log(2) - 0.01, math.log(2) + 0.01)

  share = miniature.accuracy(nll, 'look_up', PROSE, 64)
  assert share == pytest.approx(0.5, abs=0.1)  # of 256 digits
  assert miniature.accuracy(lambda b: 0 * b.weights, 'passkey', PROSE, 64) == 1
  none = lambda b: 0 * b.weights + 1
  assert miniature.accuracy(none, 'first_line', PROSE, 64) == 0


def test_a_dictionary_is_measured_with_few_questions():
  def nll(batch):
    assert batch.weights.sum(1).tolist() == [4.0] * miniature.ROWS
    return batch.weights

  miniature.accuracy(nll, 'look_up', PROSE, 64)
