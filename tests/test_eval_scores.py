"""Scores against cases worked out by hand and the formulas in the books."""

import json

import numpy as np
import pytest
from commands import ROOT

from longjax.evals import (
  helmet,
  helmet_longqa,
  helmet_prompts,
  helmet_summ,
  score,
)

HELMET = json.loads((ROOT / 'tests/golden/helmet.json').read_text())


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
  kinds = ['rouge1', 'rouge2', 'rougeL']
  theirs = scorer.RougeScorer(kinds)
  words = ['one', 'two', 'Three', 'four,', "five's", '6']
  for _ in range(50):
    a, b = (' '.join(rng.choice(words, rng.integers(1, 12))) for _ in 'ab')
    wanted = theirs.score(b, a)
    wanted = [wanted[kind].fmeasure for kind in kinds]
    assert score.rouges(a, [b]) == pytest.approx(tuple(wanted))


SCROLLS = (  # the example in its metrics/scrolls.py
  ('exact match example', ['exact match example']),
  ('hello there', ['hello', 'hi there']),
  ('general kenobi', ['commander kenobi']),
)


def test_scores_of_scrolls_are_those_of_its_example():
  each = lambda metric: [metric(a, r) for a, r in SCROLLS]
  mean = lambda metric: 100 * np.mean(each(metric))
  assert mean(score.f1) == pytest.approx(72.2222, abs=1e-4)
  assert mean(score.exact_match) == pytest.approx(33.3333, abs=1e-4)
  rouges = np.array(each(score.rouges))
  wanted = [72.2222, 33.3333, 72.2222]
  assert 100 * rouges.mean(axis=0) == pytest.approx(wanted, abs=1e-4)
  shares = score.geometric_mean(rouges)
  assert 100 * np.mean(shares) == pytest.approx(55.8136, abs=1e-4)
  assert score.geometric_mean([(0.5, 0, 1), (1, 0, 1)]) == [0.0, 0.0]
  assert score.geometric_mean([(0.3,), (0.7,)]) == pytest.approx([0.3, 0.7])


@pytest.mark.parametrize('name, judge', [
  ('rouge', helmet_longqa.ROUGE),
  ('book', helmet_summ.TASKS['infbench_sum'].score),
  ('lexsum', helmet_summ.TASKS['multi_lexsum'].score),
  ('choice', helmet_longqa.right_choice), ('label', helmet.label_match),
  ('substring', helmet_prompts.best(score.substring_match, 'Answer:')),
])  # fmt: skip
def test_scores_of_helmet_are_those_of_its_code(name, judge):
  """Made by golden/make_helmet.py."""
  pytest.importorskip('rouge_score')
  told = HELMET['answers']
  right = dict(choice=told['choice'], label=['3']).get(name, told['right'])
  found = [judge(text, right) for text in told['texts']]
  assert found == pytest.approx(HELMET['scores'][name])
  assert 0 < sum(found) < len(found)


@pytest.mark.parametrize('right, count', [(0, 10), (7, 10), (10, 10), (3, 50)])
def test_the_interval_is_wilsons(right, count):
  from scipy import stats  # a second, and each worker reads this file

  wanted = stats.binomtest(right, count).proportion_ci(method='wilson')
  found = score.interval([1.0] * right + [0.0] * (count - right))
  assert found == pytest.approx((wanted.low, wanted.high), abs=1e-7)


def test_the_interval_of_a_difference_is_that_of_the_paired_t_test(rng):
  before, after = rng.random((2, 12))
  from scipy import stats

  wanted = stats.ttest_rel(after, before).confidence_interval(0.95)
  assert score.paired_interval(before, after) == pytest.approx(tuple(wanted))
  assert score.paired_interval([1, 0], [1, 0]) is None  # nothing differs
  assert score.paired_interval([1], [0]) is None


def test_a_summary_counts_its_samples():
  summary = score.summary([1, 0.5, 0, 0.5])
  assert summary['score'] == 0.5 and summary['samples'] == 4
  assert score.interval([]) == (0.0, 1.0)
