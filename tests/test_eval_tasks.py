"""Prompts that are made: what they hold, how long they are, who passes."""

import bisect
import collections
import re

import numpy as np
import pytest
from eval_cases import SOURCE, TOKENS, blind, reader

from longjax.errors import InputError
from longjax.evals import (
  first_sentence,
  haystack,
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
  length = LENGTH if 'cwe' not in request.param else 2 * LENGTH
  return task, prompts.samples(task, TOKENS, SOURCE, length, 2, seed=5), length


def test_the_prompt_and_its_answer_fill_the_length_and_no_more(made):
  task, samples, length = made
  for number, sample in enumerate(samples):
    assert len(sample.prompt) <= length - task.count
    # One unit of haystack more would not fit: the same draw, built again.
    build = lambda size, n=number: task.build(
      np.random.default_rng([5, n]), SOURCE, size, length
    )[0]
    text = TOKENS.decode(sample.prompt)
    # Coded words are counted in whole numbers: sizes may give one text.
    high = 1
    while len(build(high)) <= len(text):
      high *= 2
    size = bisect.bisect_right(
      range(high), len(text), key=lambda n: len(build(n))
    )
    assert build(size - 1) == text
    assert len(build(size)) > length - task.count


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


def text_of(name, size, seed=0, length=LENGTH):
  rng = np.random.default_rng(seed)
  return TASKS[name].build(rng, SOURCE, size, length)


def test_needles_are_worded_and_counted_as_published():
  text, answers = text_of('niah_single_2', 30)
  assert text.startswith(
    'A special magic number is hidden within the following text.'
  )
  assert (
    re.search(r'for \w+-\w+ mentioned in the provided text is$', text)
    and len(answers) == 1
  )
  needles = 'One of the special magic numbers for'
  counts = dict(niah_single_3=1, niah_multikey_1=4, niah_multivalue=4,
                niah_multiquery=4)  # fmt: skip
  for name, count in counts.items():
    text, answers = text_of(name, 30)
    found = re.findall(r'One of the special magic \w+ for', text)
    assert len(found) == count, name
    assert len(answers) == (1 if 'key' in name or 'single' in name else 4)
  text, _ = text_of('niah_multikey_2', 25)
  assert text.count(needles) == 26  # other needles are the haystack
  text, answers = text_of('niah_multiquery', 10)
  assert text.startswith('Some special magic numbers are hidden')
  assert ', and ' in text[text.rindex('What are all') :]
  uuid = r'[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}'
  text, answers = text_of('niah_multikey_3', 5)
  assert re.fullmatch(uuid, answers[0]) and len(re.findall(uuid, text)) >= 12


def test_a_chain_of_variables_has_four_hops_and_one_worked_example():
  text, answers = text_of('vt', 20)
  assert len(answers) == 5 and all(len(a) == 5 for a in answers)
  body = text[text.rindex('Memorize') :]
  assert len(re.findall(r'VAR \w{5} = VAR \w{5} ', body)) == 4
  assert body.count(ruler.NOISE) == 20
  example = text[: text.rindex('Memorize')]
  assert len(re.findall(r'VAR \w{3} = VAR \w{3} ', example)) == 4
  assert re.search(r'they are: \w{3}( \w{3}){4}\n\n$', example)


@pytest.mark.parametrize('length, often, seldom', [(4096, 30, 3), (4095, 6, 1)])
def test_common_words_have_the_published_counts(length, often, seldom):
  text, answers = text_of('cwe', 50, length=length)
  body = text[text.rindex('Below') : text.rindex('Question')]
  counts = collections.Counter(re.findall(r'\d+\. (\w+)', body))
  assert [counts[a] for a in answers] == [often] * 10
  assert sorted(set(counts.values())) == [seldom, often]
  assert len(counts) == 60
  numbers = [int(n) for n in re.findall(r'(\d+)\. ', body)]
  assert numbers == list(range(1, 10 * often + 50 * seldom + 1))


def test_frequent_words_follow_zipf():
  """Counts are N k^-2 / zeta(2), zeta(2) = 1.644934."""
  text, answers = text_of('fwe', 1000)
  body = text[text.index('coded words.') + 13 : text.rindex('\nQuestion')]
  counts = collections.Counter(body.split())
  assert counts['...'] == int(1000 / 1.644934)
  assert [counts[a] for a in answers] == [151, 67, 37]


def test_questions_need_one_document_or_two():
  text, (town,) = text_of('qa_1', 4)
  assert len(re.findall(r'Document \d:', text)) == 5
  assert text.endswith(' Answer:') and town in text
  text, (river,) = text_of('qa_2', 4)
  assert len(re.findall(r'Document \d:', text)) == 6 and river in text


def test_demonstrations_are_balanced_and_their_labels_shuffled():
  text, (label,) = text_of('helmet_icl', 60)
  labels = re.findall(r'\nlabel: (\d)', text)
  assert collections.Counter(labels) == dict.fromkeys('012345', 10)
  assert len({text_of('helmet_icl', 6, seed)[1][0] for seed in range(20)}) > 3
  assert label in '012345'


def test_pairs_of_a_json_object_are_random_and_asked_after_two_shots():
  text, (value,) = text_of('helmet_json_kv', 10)
  pairs = dict(re.findall(r'"(\S+)": "(\S+)"', text))
  assert len(pairs) == 13 and value in pairs.values()
  asked = re.findall(r'Key: (\S+)\nCorresponding value:', text)
  assert len(asked) == 3 and pairs[asked[-1]] == value
  assert text.endswith('Corresponding value:')


def test_the_original_passkey_prompt_by_its_parts():
  text, (key,) = text_of('passkey_original', 500)
  lines = text.split('\n')
  assert len(lines) == 5 and 1 <= int(key) <= 50_000
  assert len(lines[1]) + len(lines[3]) == 500
  assert (
    lines[2] == f'The pass key is {key}. Remember it. {key} is the pass key.'
  )
  grass = 'The grass is green. The sky is blue.'
  assert all(x.startswith(grass[: len(x)]) for x in (lines[1], lines[3]))


def test_a_needle_stands_after_the_sentence_at_its_depth():
  sentences = haystack.sentences(SOURCE.text)
  for length, depth in ((3000, 0.0), (4000, 0.4), (4001, 0.75), (5000, 1.0)):
    ids = needle.prompt(TOKENS, SOURCE.text, length, depth)
    assert len(ids) == length - needle.ANSWER_TOKENS
    text = TOKENS.decode(ids)
    before, after = text.split(needle.NEEDLE)
    hay = before.removeprefix(needle.INTRO)
    room = len(hay) + len(after) - len(needle.QUESTION)
    longest = max(map(len, sentences)) + 1
    assert depth * room - longest <= len(hay) <= depth * room + 1
    assert depth == 1 or not hay or hay.rstrip().endswith('.')


def test_a_reader_finds_needles_and_a_blind_model_none():
  run = lambda lm: needle.heat_map(lm, TOKENS, SOURCE.text, (2000,), (0, 0.5))
  assert run(reader)['score'] == [[1.0, 1.0]]
  assert run(blind)['score'] == [[0.0, 0.0]]
  assert needle.found('A SANDWICH, in Dolores park') == pytest.approx(2 / 3)


def test_too_short_a_length_is_refused_in_one_line():
  with pytest.raises(InputError, match='a prompt needs at least'):
    prompts.samples(ruler.TASKS['cwe'], TOKENS, SOURCE, 500, 1, 0)
  with pytest.raises(InputError, match='at least'):
    needle.prompt(TOKENS, SOURCE.text, 100, 0.5)


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
    assert prompts.largest(measure, 100 + 7 * 142 + 3, near) == 142
  assert len(measured) < 100
  assert prompts.largest(lambda size: 10 + min(size, 40), 1000) >= 40
