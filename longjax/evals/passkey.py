"""Passkey retrieval: five digits hidden in filler, asked for at the end.

The task of Landmark Attention (arXiv:2305.16300), with the length counted in
tokens exactly, keys of five digits and fixed depths; ORIGINAL is the task as
it was published. Any tuned model passes (arXiv:2309.16039, footnote 4): a
failure tells more than a success.
"""

import functools
import re
import statistics

import numpy as np

from longjax.errors import InputError
from longjax.evals import fill, prompts
from longjax.evals.evaluation import NOTHING, Evaluation, Point, Setup
from longjax.evals.prompts import Prompt, Sample, Source, Task

INTRO = (
  'There is an important info hidden inside a lot of irrelevant text. Find it '
  'and memorize it. I will quiz you about the important information there.\n'
)
FILLER = (
  'The grass is green. The sky is blue. The sun is yellow. Here we go. There '
  'and back again. '
)
KEY = '\nThe pass key is {key}. Remember it. {key} is the pass key.\n'
QUESTION = '\nWhat is the pass key? The pass key is'
ANSWER_TOKENS = 8


def prompt(tokenizer, length: int, depth: float, key: int) -> np.ndarray:
  """[length - ANSWER_TOKENS] ids, the key after a share `depth` of filler."""
  intro = prompts.encode(tokenizer, INTRO)
  hidden, question = (
    np.asarray(tokenizer.encode(text))
    for text in (KEY.format(key=key), QUESTION)
  )
  spec = length - ANSWER_TOKENS - len(intro) - len(hidden) - len(question)
  if spec < 0:
    raise InputError(
      f'passkey needs at least {length - spec} tokens, got length {length}'
    )
  once = np.asarray(tokenizer.encode(FILLER))
  filler = np.tile(once, -(-spec // len(once)) + 1)
  before = round(spec * depth)
  return np.concatenate(
    [intro, filler[:before], hidden, filler[: spec - before], question]
  )


def first_number(answer: str, references) -> float:
  """1 if the first integer of the answer is the key."""
  return float(re.findall(r'\d+', answer)[:1] == [*references])


def original(rng, source: Source, size: int, number: int) -> Prompt:
  """The prompt of Landmark Attention's run_test.py: `size` characters of
  filler, cut anywhere, and a key below 50,000 at a random place."""
  before = int(rng.integers(0, size + 1))
  filler = FILLER * (size // len(FILLER) + 1)
  key = rng.integers(1, 50_001)
  lines = (
    'There is an important info hidden inside a lot of irrelevant text. Find '
    'it and memorize them. I will quiz you about the important information '
    'there.',
    filler[:before],
    f'The pass key is {key}. Remember it. {key} is the pass key.',
    filler[: size - before],
    'What is the pass key?',
  )
  return Prompt('\n'.join(lines), ' The pass key is', (str(key),))


def lengths(options) -> tuple[int, ...]:
  """eval.passkey_lengths, else eval.lengths."""
  return options.passkey_lengths or options.lengths


def check(setup: Setup, part: str):
  if not setup.options.passkey_depths:
    raise InputError('config.eval.passkey_depths is empty: name one, e.g. 0.5')
  for length in lengths(setup.options):
    prompt(setup.tokenizer, length, 0.5, 12345)


def run(lm, setup: Setup, part: str) -> dict:
  """dict of lists: length, depths, found (a list of bools for each length)."""
  rng = np.random.default_rng(setup.config.seed)
  depths = setup.options.passkey_depths
  result = dict(length=[], depths=list(depths), found=[])
  for length in map(int, lengths(setup.options)):
    keys = rng.integers(10_000, 100_000, len(depths)).tolist()
    made = [
      Sample(prompt(setup.tokenizer, length, depth, key), (str(key),))
      for depth, key in zip(depths, keys)
    ]
    label = f'passkey at {length:,} tokens'
    found, _ = prompts.score_samples(lm, setup, label, TASK, made, len(made))
    result['length'].append(length)
    result['found'].append([x == 1 for x in found])
  return result


TASK = Task(lambda spec: iter(()), ANSWER_TOKENS, first_number)


def scores(result: dict) -> dict:
  return {
    str(length): Point(statistics.fmean(row), each=tuple(map(float, row)))
    for length, row in zip(result['length'], result['found'])
  }


EVALUATION = Evaluation(
  'passkey', 'Passkey', NOTHING, run, scores, ('tokens',), percent=True,
  heat=True, text=prompts.map_text, check=check,
)  # fmt: skip
TASKS = dict(
  passkey_original=Task(
    functools.partial(fill.longest_prompts, original), 10, first_number
  )
)
ORIGINAL = prompts.evaluation(
  'passkey_original', 'The original passkey prompt', TASKS, needs=NOTHING
)
