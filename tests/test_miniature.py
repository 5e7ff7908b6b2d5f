"""The tasks of the laboratory, against what their words say."""

import math

import numpy as np
import pytest

from longjax.evals import miniature

PROSE = np.frombuffer(b'Now is the winter of our discontent. ' * 50, np.uint8)
SIZES = (miniature.LEAST, 64, 251)


def taken_apart(tokens, mask):
  """(text, its entries by key, keys asked, answers)."""
  first = int(np.argmax(mask)) - 1
  text, asked = tokens[:first], tokens[first:]
  entries = text[text >= miniature.ENTRY]
  by_key = {(e - miniature.ENTRY) // miniature.VALUES: e for e in entries}
  assert len(by_key) == len(entries)  # keys are distinct
  return text, by_key, asked[::2] - miniature.QUESTION, asked[1::2]


@pytest.mark.parametrize('asked', (0, miniature.ASKED))
@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('task', miniature.TASKS)
def test_the_answer_is_the_entry_of_the_key_that_is_asked(
  rng, task, size, asked
):
  for _ in range(20):
    tokens, mask = miniature.build(rng, task, PROSE, size, asked)
    _, entries, keys, answers = taken_apart(tokens, mask)
    assert len(tokens) == len(mask) == size
    assert answers.tolist() == [entries[key] for key in keys]
    assert mask.sum() == len(answers) and (tokens[mask > 0] == answers).all()
    assert min(keys) >= 0 and max(keys) < miniature.KEYS
    assert tokens.max() < 384  # ids of the byte tokenizer


def test_tasks_have_the_entries_and_questions_that_they_say(rng):
  counts = {}
  for task in miniature.TASKS:
    made = miniature.build(rng, task, PROSE, 200, miniature.ASKED)
    text, entries, keys, answers = taken_apart(*made)
    counts[task] = len(entries), len(keys)
  assert counts == dict(look_up=(32, 4), passkey=(1, 1), first=(32, 1))
  assert text[0] == answers[0]  # of 'first'


@pytest.mark.parametrize('task', miniature.TASKS)
def test_a_document_to_train_on_has_its_length_and_answers(rng, task):
  for _ in range(50):
    tokens, mask = miniature.document(rng, task, PROSE, 64)
    assert len(tokens) == len(mask) == 64
    assert mask.any() and (tokens[mask > 0] >= miniature.ENTRY).all()


def test_an_answer_is_found_with_more_than_half_of_the_probability():
  def nll(batch):
    """Sure of entries with even ids, nearly sure of the others."""
    answer = batch.targets >= miniature.ENTRY
    even = answer & (batch.targets % 2 == 0)
    return np.where(even, math.log(2) - 0.01, math.log(2) + 0.01)

  share = miniature.accuracy(nll, 'look_up', PROSE, 64)
  assert share == pytest.approx(0.5, abs=0.1)  # of 256 answers
  assert miniature.accuracy(lambda b: 0 * b.weights, 'passkey', PROSE, 64) == 1
  assert miniature.accuracy(lambda b: b.weights, 'first', PROSE, 64) == 0
