"""A needle in a haystack, by context length and depth.

As in LLMTest_NeedleInAHaystack: one sentence hidden between two of prose, and
a question about it. The published score is a judgement of another model; here
it is the share of KEYWORDS in the answer, which needs none.
"""

import statistics

import numpy as np

from longjax.errors import InputError
from longjax.evals import evaluation, prompts, score
from longjax.evals.evaluation import PROSE, Evaluation, Point, Setup
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


def prompt(tokenizer, text: str, length: int, depth: float) -> np.ndarray:
  """[length - ANSWER_TOKENS] ids, the needle after a share of the haystack.

  Args:
    tokenizer: of the model.
    text: prose, repeated if it is too short.
    length: tokens of prompt and answer.
    depth: 0 to 1; the needle is put after the last sentence that ends there.
  """
  return _prompt(tokenizer, _parts(tokenizer, text), length, depth)


def found(answer: str, references=KEYWORDS) -> float:
  """The share of the keywords that are in the answer."""
  return score.all_references(answer, references)


def check(setup: Setup, part: str):
  for length in setup.options.lengths:
    prompt(setup.tokenizer, setup.prose(), length, 0.5)


def run(lm, setup: Setup, part: str) -> dict:
  """At 2 to 11 depths, as many as there are samples.

  Returns:
    dict of lists: length, depths, and score (a list for each length).
  """
  count, tokenizer = max(2, min(setup.samples, 11)), setup.tokenizer
  depths = np.linspace(0, 1, count).round(3).tolist()
  result = dict(length=[], depths=depths, score=[])
  parts = _parts(tokenizer, setup.prose())
  for length in map(int, setup.options.lengths):
    made = [
      Sample(_prompt(tokenizer, parts, length, depth), KEYWORDS)
      for depth in depths
    ]
    label = f'needle at {length:,} tokens'
    shares, _ = prompts.score_samples(lm, setup, label, TASK, made, len(made))
    result['length'].append(length)
    result['score'].append(shares)
  return result


TASK = Task(lambda spec: iter(()), ANSWER_TOKENS, found)


def scores(result: dict) -> dict:
  return {
    str(length): Point(statistics.fmean(row), each=tuple(row))
    for length, row in zip(result['length'], result['score'])
  }


def text(maps: dict, options):
  above, below = prompts.map_text(maps, options)
  return [
    'Share of the keywords in the answer in percent (not the judge of the '
    f'original); the haystack is {evaluation.sources(options)}.', *above
  ], below  # fmt: skip


def _parts(tokenizer, text):
  intro = prompts.encode(tokenizer, INTRO)
  return intro, *(np.asarray(tokenizer.encode(x)) for x in
                  (NEEDLE, QUESTION, text))  # fmt: skip


def _prompt(tokenizer, parts, length, depth):
  intro, needle, question, hay = parts
  room = length - ANSWER_TOKENS - len(intro) - len(needle) - len(question)
  if room < 0 or not len(hay):
    raise InputError(
      f'a needle needs at least {length - room} tokens and some text, got '
      f'length {length} and {len(hay)} tokens of text'
    )
  hay = np.tile(hay, -(-room // len(hay)))[:room]
  at = int(room * depth)
  if depth < 1:
    at = _after_a_sentence(tokenizer, hay, at)
  return np.concatenate([intro, hay[:at], needle, hay[at:], question])


def _after_a_sentence(tokenizer, hay, at: int) -> int:
  """The last place up to `at` where the token before is a full stop."""
  while at and tokenizer.decode(hay[at - 1 : at]).strip() != '.':
    at -= 1
  return at


EVALUATION = Evaluation(
  'needle', 'Needle in a haystack', PROSE, run, scores, ('tokens',),
  percent=True, heat=True, text=text, check=check,
)  # fmt: skip
