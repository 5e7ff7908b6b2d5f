"""A needle in a haystack, by context length and depth.

As in LLMTest_NeedleInAHaystack: one sentence hidden between two of prose, and
a question about it. The published score is a judgement of another model; here
it is the share of KEYWORDS in the answer, which needs none.
"""

import functools

import numpy as np

from longjax.errors import InputError
from longjax.evals import evaluation, prompts, score
from longjax.evals.evaluation import Setup
from longjax.evals.prompts import Sample, Task

NEEDLE = (
  '\nThe best thing to do in San Francisco is eat a sandwich and sit in '
  'Dolores Park on a sunny day.\n'
)
INTRO = (
  'You are a helpful AI bot that answers questions for a user. Keep your '
  'response short and direct\n\n'
)
QUESTION = (
  '\n\nWhat is the best thing to do in San Francisco? Don\'t give information '
  'outside the document or repeat your findings\nThe best thing to do in San '
  'Francisco is'
)  # fmt: skip
KEYWORDS = ('sandwich', 'dolores park', 'sunny')
ANSWER_TOKENS = 32


@functools.lru_cache(8)
def _ids(tokenizer, text: str) -> np.ndarray:
  return np.asarray(tokenizer.encode(text))


def prompt(tokenizer, text: str, length: int, depth: float) -> np.ndarray:
  """[length - ANSWER_TOKENS] ids, the needle after a share of the haystack.

  Args:
    tokenizer: of the model.
    text: prose, repeated if it is too short.
    length: tokens of prompt and answer.
    depth: 0 to 1; the needle is put after the last sentence that ends there.
  """
  intro = prompts.encode(tokenizer, INTRO)
  needle, question, hay = (_ids(tokenizer, x) for x in (NEEDLE, QUESTION, text))
  room = length - ANSWER_TOKENS - len(intro) - len(needle) - len(question)
  if room < 0 or not len(hay):
    raise InputError(
      f'a needle needs at least {length - room} tokens and some text, got '
      f'length {length} and {len(hay)} tokens of text'
    )
  hay = np.tile(hay, -(-room // len(hay)))[:room]
  at = int(room * depth)
  while depth < 1 and at and tokenizer.decode(hay[at - 1 : at]).strip() != '.':
    at -= 1
  return np.concatenate([intro, hay[:at], needle, hay[at:], question])


def grid(setup: Setup) -> tuple[list, list]:
  """eval.lengths, and 2 to 11 depths, as many as there are samples."""
  count = max(2, min(setup.samples, 11))
  depths = np.linspace(0, 1, count).round(3).tolist()
  return list(map(int, setup.options.lengths)), depths


def make(setup: Setup, length: int, depths, rng) -> list[Sample]:
  one = functools.partial(prompt, setup.tokenizer, setup.prose(), length)
  return [Sample(one(depth), KEYWORDS) for depth in depths]


def above(options) -> list[str]:
  return [
    'Share of the keywords in the answer in percent (not the judge of the '
    f'original); the haystack is {evaluation.sources(options)}.'
  ]


# The score: the share of the keywords that are in the answer.
TASK = Task(iter, ANSWER_TOKENS, score.all_references)
EVALUATION = prompts.depth_map(
  'needle', 'Needle in a haystack', TASK, 'score', float, grid, make, above
)
