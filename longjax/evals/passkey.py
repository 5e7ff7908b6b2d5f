"""Passkey retrieval: five digits hidden in filler, asked for at the end.

The task of Landmark Attention (arXiv:2305.16300), with the length counted in
tokens exactly, keys of five digits and fixed depths; ORIGINAL is the task as
it was published. Any tuned model passes (arXiv:2309.16039, footnote 4): a
failure tells more than a success.
"""

import functools
import re

import numpy as np

from longjax.errors import InputError
from longjax.evals import fill, prompts
from longjax.evals.evaluation import NOTHING, Setup
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


def grid(setup: Setup) -> tuple[list, list]:
  """eval.passkey_lengths, else eval.lengths; eval.passkey_depths."""
  options = setup.options
  if not options.passkey_depths:
    raise InputError('config.eval.passkey_depths is empty: name one, e.g. 0.5')
  lengths = options.passkey_lengths or options.lengths
  return list(map(int, lengths)), list(options.passkey_depths)


def make(setup: Setup, length: int, depths, rng) -> list[Sample]:
  keys = rng.integers(10_000, 100_000, len(depths)).tolist()
  return [
    Sample(prompt(setup.tokenizer, length, depth, key), (str(key),))
    for depth, key in zip(depths, keys)
  ]


TASK = Task(iter, ANSWER_TOKENS, first_number, needs=NOTHING)
EVALUATION = prompts.depth_map(
  'passkey', 'Passkey', TASK, 'found', bool, grid, make
)
TASKS = dict(
  passkey_original=Task(
    functools.partial(fill.longest_prompts, original), 10, first_number,
    needs=NOTHING,
  )
)  # fmt: skip
ORIGINAL = prompts.evaluation(
  'passkey_original', 'The original passkey prompt', TASKS
)
