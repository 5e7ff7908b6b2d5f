"""Scores against cases worked out by hand and the formulas in the books."""

import pytest
from scipy import stats

from longjax.evals import score


def test_ruler_matches():
  assert (
    score.all_references('It is 12 and AB.', ['12', 'ab', 'cd', '7']) == 0.5
  )
  assert score.any_reference('in Paris', ['Rome', 'paris']) == 1
  assert score.any_reference('in Paris', ['Rome']) == 0


def test_answers_are_normalized_as_squad_does():
  assert score.normalized('  The cat, a DOG; an owl!') == 'cat dog owl'
  assert score.exact_match('The Nile.', ['nile']) == 1
  assert score.exact_match('Nile river', ['nile']) == 0
  assert score.substring_match('It is the Nile, I think', ['The nile']) == 1


def test_rouge_by_hand():
  """police killed the gunman / police kill the gunman: LCS 3 of 4 and 4."""
  assert score.rouge_l('police kill the gunman',
                       ['police killed the gunman']) == 0.75  # fmt: skip
  # LCS of 'a b c d e' and 'a c e': 3; F1 = 2 * 3 / (5 + 3).
  assert score.rouge_l('a b c d e', ['a c e', 'z']) == 0.75
  assert score.rouge_l('', ['a']) == 0


def test_rouge_is_that_of_the_public_package(rng):
  scorer = pytest.importorskip('rouge_score.rouge_scorer')
  theirs = scorer.RougeScorer(['rougeL'])
  words = ['one', 'two', 'Three', 'four,', "five's", '6']
  for _ in range(50):
    a, b = (' '.join(rng.choice(words, rng.integers(1, 12))) for _ in 'ab')
    wanted = theirs.score(b, a)
    assert score.rouge_l(a, [b]) == pytest.approx(wanted['rougeL'].fmeasure)


@pytest.mark.parametrize('right, count', [(0, 10), (7, 10), (10, 10), (3, 50)])
def test_the_interval_is_wilsons(right, count):
  wanted = stats.binomtest(right, count).proportion_ci(method='wilson')
  found = score.interval([1.0] * right + [0.0] * (count - right))
  assert found == pytest.approx((wanted.low, wanted.high), abs=1e-7)


def test_the_interval_of_a_difference_is_that_of_the_paired_t_test(rng):
  before, after = rng.random((2, 12))
  wanted = stats.ttest_rel(after, before).confidence_interval(0.95)
  assert score.paired_interval(before, after) == pytest.approx(tuple(wanted))
  assert score.paired_interval([1, 0], [1, 0]) is None  # nothing differs
  assert score.paired_interval([1], [0]) is None


def test_a_summary_counts_its_samples():
  summary = score.summary([1, 0.5, 0, 0.5])
  assert summary['score'] == 0.5 and summary['samples'] == 4
  assert score.interval([]) == (0.0, 1.0)
