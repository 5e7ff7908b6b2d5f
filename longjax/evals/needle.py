"""A needle in a haystack, by context length and depth.

As in LLMTest_NeedleInAHaystack: one sentence hidden between two of prose, and
a question about it. The published score is a judgement of another model; here
it is the share of KEYWORDS in the answer, which needs none.
"""

import statistics

import numpy as np

from longjax.errors import InputError
from longjax.evals import evaluation, prompts
from longjax.evals.evaluation import PROSE, Evaluation, Point, Setup

NEEDLE = (
  '\nThe best thing to do in San Francisco is eat a sandwich and sit in '
  'Dolores Park on a sunny day.\n'
)
INTRO = (
  'You are a helpful AI bot that answers questions for a user. Keep your '
  'response short and direct.\n\n'
)
QUESTION = (
  '\n\nWhat is the best thing to do in San Francisco? Don\'t give information '
  'outside the document or repeat your findings.\nThe best thing to do in San '
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


def found(answer: str) -> float:
  """The share of the keywords that are in the answer."""
  return sum(word in answer.lower() for word in KEYWORDS) / len(KEYWORDS)


def heat_map(lm, tokenizer, text: str, lengths, depths) -> dict:
  """Scores by length and depth.

  Returns:
    dict of lists: length, depths, and score (a list for each length).
  """
  result = dict(length=[], depths=list(depths), score=[])
  parts = _parts(tokenizer, text)
  for length in lengths:
    asked = [_prompt(tokenizer, parts, length, depth) for depth in depths]
    answers = prompts.answers(lm, tokenizer, asked, ANSWER_TOKENS)
    result['length'].append(int(length))
    result['score'].append([found(answer) for answer in answers])
  return result


def check(setup: Setup, part: str):
  for length in setup.options.lengths:
    prompt(setup.tokenizer, setup.prose(), length, 0.5)


def run(lm, setup: Setup, part: str) -> dict:
  """By length, at 2 to 11 depths: eval.samples of them."""
  options = setup.options
  depths = np.linspace(0, 1, max(2, min(options.samples, 11))).round(3).tolist()
  return heat_map(lm, setup.tokenizer, setup.prose(), options.lengths, depths)


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
  at = round(room * depth)
  if at < room:
    at = _after_a_sentence(tokenizer, hay, at)
  return np.concatenate([intro, hay[:at], needle, hay[at:], question])


def _after_a_sentence(tokenizer, hay, at: int) -> int:
  """The last place up to `at` where the token before ends with a stop."""
  while at and not tokenizer.decode(hay[at - 1 : at]).rstrip().endswith(
    ('.', '!', '?')
  ):
    at -= 1
  return at


EVALUATION = Evaluation(
  'needle', 'Needle in a haystack', PROSE, run, scores, ('tokens',),
  percent=True, heat=True, text=text, check=check,
)  # fmt: skip
