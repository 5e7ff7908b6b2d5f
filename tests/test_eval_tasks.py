"""Prompts that are made: what they hold, how long they are, who passes."""

import bisect
import collections
import hashlib
import json
import re

import numpy as np
import pytest
from commands import ROOT
from eval_cases import SOURCE, TOKENS, blind, reader

from configs import common
from longjax import evals
from longjax.errors import InputError
from longjax.evals import (
  fill,
  first_sentence,
  helmet,
  needle,
  passkey,
  prompts,
  ruler,
)

TASKS = {
  **ruler.TASKS,
  **{f'helmet_{name}': task for name, task in helmet.TASKS.items()},
  **first_sentence.TASKS,
  **passkey.TASKS,
}
LENGTH = 4096  # in bytes, here


@pytest.fixture(scope='module', params=TASKS)
def made(request):
  """(task, two of its samples, their length)."""
  task = TASKS[request.param]
  big = request.param in ruler.TASKS or 'niah' in request.param
  length = 2 * LENGTH if big else LENGTH
  return task, prompts.samples(task, TOKENS, SOURCE, length, 2, seed=5), length


def test_the_prompt_and_its_answer_fit(made):
  task, samples, length = made
  assert all(len(x.prompt) <= length - task.count + 1 for x in samples)


@pytest.mark.parametrize('name', [
  'helmet_json_kv', 'helmet_icl', 'first_sentence', 'passkey_original',
])  # fmt: skip
def test_one_unit_of_haystack_more_would_not_fit(name):
  task = TASKS[name]
  build = lambda size, number: ''.join(task.stream.args[0](
    np.random.default_rng([5, number]), SOURCE, size, number
  )[:2])  # fmt: skip
  made = prompts.samples(task, TOKENS, SOURCE, LENGTH, 2, seed=5)
  for number, sample in enumerate(made):
    text = TOKENS.decode(sample.prompt)
    hi = LENGTH if name == 'passkey_original' else 200
    size = bisect.bisect_right(
      range(hi), len(text), key=lambda n, i=number: len(build(n, i))
    )
    assert build(size - 1, number) == text
    assert len(build(size, number)) > LENGTH - task.count


def test_a_reader_of_the_prompt_scores_all_and_a_blind_model_at_chance(made):
  task, samples, _ = made
  assert prompts.scores(reader, TOKENS, task, samples) == [1.0] * 2
  chance = 1.0 if task is helmet.TASKS['icl'] else 0.0  # one label of six
  assert max(prompts.scores(blind, TOKENS, task, samples)) <= chance


def test_seeds_decide_the_prompts(made):
  task, samples, length = made
  again, other = (
    prompts.samples(task, TOKENS, SOURCE, length, 1, seed)[0] for seed in (5, 6)
  )
  assert np.array_equal(samples[0].prompt, again.prompt)
  assert not np.array_equal(again.prompt[:5000], other.prompt[:5000])


def text_of(name, size, seed=0, number=0):
  rng = np.random.default_rng(seed)
  prompt = TASKS[name].stream.args[0](rng, SOURCE, size, number)
  return prompt.text + prompt.prefix, prompt.references


def test_a_newline_stands_before_helmets_answers():
  for name in ('multikey_2', 'multikey_3', 'multivalue'):
    task = TASKS[f'helmet_niah_{name}']
    (sample,) = prompts.samples(task, TOKENS, SOURCE, 2 * LENGTH, 1, 0)
    assert '?\nThe special magic' in TOKENS.decode(sample.prompt)


def test_demonstrations_are_balanced_and_their_labels_shuffled():
  text, (label,) = text_of('helmet_icl', 60)
  labels = re.findall(r'\nlabel: (\d)', text)
  assert collections.Counter(labels) == dict.fromkeys('012345', 10)
  assert len({text_of('helmet_icl', 6, seed)[1][0] for seed in range(20)}) > 3
  assert label[0] in '012345'


@pytest.mark.parametrize('answer, right', [
  (' 3', 1), ('label: 3', 1), ('x Label: 3\nlabel: 4', 0), ('the 3.', 1),
  ('foo\nlabel:3', 0), ('3 7', 0), ('\n3', 0), ('', 0),
])  # fmt: skip
def test_a_label_is_found_as_helmet_finds_it(answer, right):
  """Values of its parse_output and normalize_answer of the cue and the answer,
  which its eval.py puts together."""
  assert helmet.label_match(answer, ('3',)) == right


def test_pairs_of_a_json_object_are_random_and_asked_after_two_shots():
  text, (value,) = text_of('helmet_json_kv', 10, number=3)
  pairs = dict(re.findall(r'"(\S+)": "(\S+)"', text))
  assert len(pairs) == 13
  assert [*pairs.values()].index(value) == round(12 * 3 / 5)  # of six places
  asked = re.findall(r'Key: (\S+)\nCorresponding value:', text)
  assert len(asked) == 3 and pairs[asked[-1]] == value
  assert text.endswith('Corresponding value:')


def test_the_original_passkey_prompt_by_its_parts():
  text, (key,) = text_of('passkey_original', 500)
  lines = text.split('\n')
  assert len(lines) == 5 and 1 <= int(key) <= 50_000
  assert lines[4] == 'What is the pass key? The pass key is'
  assert len(lines[1]) + len(lines[3]) == 500
  assert (
    lines[2] == f'The pass key is {key}. Remember it. {key} is the pass key.'
  )
  grass = 'The grass is green. The sky is blue.'
  assert all(x.startswith(grass[: len(x)]) for x in (lines[1], lines[3]))


def test_haystacks_are_those_of_the_original():
  """Digests of tests/golden/make_needle.py, by length and depth."""
  golden = json.loads((ROOT / 'tests/golden/needle.json').read_text())
  around = len(needle.INTRO + needle.QUESTION) + needle.ANSWER_TOKENS
  for key, wanted in golden.items():
    length, depth = map(int, key.split())
    made = needle.prompt(TOKENS, SOURCE.text, length + around, depth / 100)
    text = TOKENS.decode(made).removeprefix(needle.INTRO)
    text = text.removesuffix(needle.QUESTION)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == wanted, key


def test_a_reader_finds_needles_and_a_blind_model_none(monkeypatch):
  monkeypatch.setattr(evals.Setup, 'prose', lambda setup: SOURCE.text)
  config = common.base()
  config.eval.update(lengths=(2000,), samples=2)
  setup = evals.Setup(config, TOKENS, log=lambda line: None)
  assert needle.EVALUATION.run(reader, setup, '')['score'] == [[1.0, 1.0]]
  assert needle.EVALUATION.run(blind, setup, '')['score'] == [[0.0, 0.0]]
  share = needle.TASK.score('A SANDWICH, in Dolores park', needle.KEYWORDS)
  assert share == pytest.approx(2 / 3)


def test_too_short_a_length_is_refused_in_one_line():
  for name in ('cwe', 'vt', 'qa_1', 'niah_single_2'):
    with pytest.raises(InputError, match='a prompt needs at least'):
      prompts.samples(ruler.TASKS[name], TOKENS, SOURCE, 700, 1, 0)
  with pytest.raises(InputError, match='at least'):
    needle.prompt(TOKENS, SOURCE.text, 100, 0.5)


def test_what_is_made_ahead_comes_in_order_and_with_its_errors():
  def made():
    yield from range(5)
    raise InputError('six')

  assert [*prompts.prefetch(range(9), 2)] == [*range(9)]
  found = []
  with pytest.raises(InputError, match='six'):
    found.extend(prompts.prefetch(made(), 2))
  assert found == [*range(5)]


def test_effective_length_and_weighted_means_of_the_paper():
  """Llama 3.1 8B, table 3: 32K, and 85.4 and 91.3."""
  lengths = [4096 << i for i in range(6)]
  means = dict(zip(lengths, (95.5, 93.8, 91.6, 87.4, 84.7, 77.0)))
  assert ruler.effective_length(means, ruler.BAR) == 32_768
  rising, falling = ruler.weighted(means)
  assert (round(rising, 1), round(falling, 1)) == (85.4, 91.3)
  assert ruler.effective_length({4096: 10.0}, ruler.BAR) == 0


def test_the_largest_size_that_fits_is_found_from_anywhere():
  measured = []
  measure = lambda size: measured.append(size) or 100 + 7 * size
  for near in (0, 1, 141, 142, 143, 5000):
    assert fill.largest(measure, 100 + 7 * 142 + 3, near) == 142
  assert len(measured) < 100
  assert fill.largest(lambda size: 10 + min(size, 40), 1000) >= 40
