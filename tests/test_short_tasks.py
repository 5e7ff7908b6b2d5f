"""Our model behind lm-eval's interface, against losses worked out by hand."""

import math
import types

import numpy as np
import pytest
from eval_cases import TOKENS

from configs import common
from longjax.errors import InputError
from longjax.evals import Setup, short_tasks, table
from longjax.inference.language_model import LM

NEXT = np.frombuffer(b'bcdefghijklmnopqrstuvwxyza', np.uint8)


def following(token):
  """The alphabet goes on; anything else is followed by 'a'."""
  inside = (token >= 97) & (token <= 122)
  return np.where(inside, NEXT[np.clip(token - 97, 0, 25)], 97)


def nll(batch):
  """The next letter has 3/4 of the probability, any other token 1/1024."""
  right = batch.targets == following(batch.tokens)
  return np.where(right, -math.log(3 / 4), math.log(1024))


def continued(prompts, count, stopped=None):
  answers = []
  for prompt in prompts:
    ids = [int(following(np.asarray(prompt[-1])))]
    while len(ids) < count:
      ids.append(int(following(np.asarray(ids[-1]))))
    answers.append(np.array(ids))
  return answers


@pytest.fixture(scope='module')
def lm_harness():
  pytest.importorskip('lm_eval')
  from longjax.evals import lm_harness  # seconds, and each worker reads this

  return lm_harness


@pytest.fixture(scope='module')
def harness(lm_harness):
  return lm_harness.Harness(LM(nll, continued), TOKENS, window=8)


def request(*arguments):
  return types.SimpleNamespace(args=arguments)


def test_a_continuation_has_its_probability_and_is_greedy_or_not(harness):
  found = harness.loglikelihood(
    [request('ab', 'cde'), request('ab', 'cx'), request('', 'ab')],
    disable_tqdm=True,
  )
  right, wrong = math.log(3 / 4), -math.log(1024)
  assert found[0] == (pytest.approx(3 * right), True)
  assert found[1] == (pytest.approx(right + wrong), False)
  assert found[2] == (pytest.approx(2 * right), True)  # after <eos> comes 'a'


def test_what_is_too_long_for_the_window_loses_its_beginning(harness):
  (found,) = harness.loglikelihood([request('z' * 20 + 'abcde', 'fgh')],
                                   disable_tqdm=True)  # fmt: skip
  assert found == (pytest.approx(3 * math.log(3 / 4)), True)


def test_a_long_text_is_scored_once_in_windows(harness):
  text = 'abcdefghijklmnopqrstuvwxyz'
  (found,) = harness.loglikelihood_rolling([request(text)])
  assert found == pytest.approx(26 * math.log(3 / 4))


def test_answers_end_before_a_stop_string(harness):
  ask = dict(until=['h', 'zz'], max_gen_toks=6)
  assert harness.generate_until([request('abcd', ask)]) == ['efg']
  ask = dict(until='q', max_gen_toks=3)
  assert harness.generate_until([request('abcd', ask)]) == ['efg']


def test_an_answer_must_leave_the_window_room_for_a_prompt(harness):
  with pytest.raises(InputError, match=r'generates 8 tokens; .* is 8,'):
    harness.generate_until([request('abcd', dict(max_gen_toks=8))])


def test_a_data_set_out_of_reach_is_one_line_and_the_limit_holds(
  lm_harness, monkeypatch
):
  def fetch(limit, **_):
    raise ConnectionError(f'cannot reach the Hub for {limit}')

  monkeypatch.setattr(lm_harness, 'find', lambda task: (task, None))
  monkeypatch.setattr(lm_harness.evaluator, 'simple_evaluate', fetch)
  config = common.base()
  config.eval.update(samples=20, limit=3)
  with pytest.raises(InputError, match=r'lm_eval/arc_easy: .* Hub for 3'):
    short_tasks.run(None, Setup(config, TOKENS), 'arc_easy')


LETTERS = """
task: letters
dataset_path: json
dataset_kwargs:
  data_files: {test: FILE}
test_split: test
output_type: multiple_choice
doc_to_text: "{{text}}"
target_delimiter: ""
doc_to_choice: ["h", "x"]
doc_to_target: "{{answer}}"
"""


@pytest.mark.slow
def test_a_task_in_a_file_is_run_with_its_own_data(harness, tmp_path):
  """The alphabet goes on: of two choices 'h' follows 'efg', 'x' never does."""
  data, task = tmp_path / 'data.jsonl', tmp_path / 'letters.yaml'
  data.write_text(
    '{"text": "efg", "answer": 0}\n' * 3 + '{"text": "defg", "answer": 1}\n'
  )
  task.write_text(LETTERS.replace('FILE', str(data)))
  config = common.base()
  config.eval.update(lengths=(8,), samples=20)
  setup = Setup(config, TOKENS)
  evaluation, part = table.find(f'lm_eval/{task}')
  evaluation.check(setup, part)
  assert evaluation.run(harness.lm, setup, part)['acc,none'] == 0.75
  config.eval.samples = 2
  assert evaluation.run(harness.lm, setup, part)['acc,none'] == 1.0


def test_tasks_that_are_none_are_refused(lm_harness, tmp_path):
  with pytest.raises(InputError, match='no such file'):
    lm_harness.find(str(tmp_path / 'none.yaml'))
  (tmp_path / 'other.yaml').write_text('name: letters')
  with pytest.raises(InputError, match='defines no task'):
    lm_harness.find(str(tmp_path / 'other.yaml'))
