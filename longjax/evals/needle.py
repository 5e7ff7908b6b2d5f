"""A needle in a haystack, by context length and depth.

As in LLMTest_NeedleInAHaystack: one sentence hidden between two of prose, and
a question about it. The published score is a judgement of another model; here
it is the share of KEYWORDS in the answer, which needs none.
"""

import statistics

import numpy as np

from longjax.errors import InputError
from longjax.evals import evaluation, figures, prompts
from longjax.evals.evaluation import PROSE, Evaluation, Setup
from longjax.evals.markdown import figure, section, side_by_side

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
    str(length): statistics.fmean(row)
    for length, row in zip(result['length'], result['score'])
  }


def render(maps: dict, options, plots) -> str:
  draw(plots / 'needle.png', maps)
  first = next(iter(maps.values()))
  return section(
    'Needle in a haystack',
    'Share of the keywords in the answer in percent (not the judge of the '
    f'original), mean of {len(first["depths"])} depths, one try each; the '
    f'haystack is {evaluation.sources(options)}.',
    side_by_side(
      ['tokens'],
      [[f'{length:,}'] for length in first['length']],
      maps,
      lambda result, i: f'{100 * np.mean(result["score"][i]):.0f}',
    ),
    figure('needle', 'needle.png'),
  )


def draw(path, maps: dict):
  """Needles found by context length and depth, from 0 (red) to 1 (green)."""
  with figures.figure(path, len(maps)) as (drawn, axes):
    axes = np.atleast_1d(axes)
    for ax, (name, result) in zip(axes, maps.items()):
      columns = list(zip(*result['score']))  # [depths, lengths]
      image = ax.imshow(columns, vmin=0, vmax=1, cmap='RdYlGn', aspect='auto')
      ax.set_title(name)
      lengths = [f'{n:,}' for n in result['length']]
      depths = [f'{d:.0%}' for d in result['depths']]
      ax.set_xticks(range(len(lengths)), lengths)
      ax.set_yticks(range(len(depths)), depths)
      ax.set_xlabel('context (tokens)')
      ax.set_ylabel('depth of the needle')
    drawn.colorbar(image, ax=axes, label='share of the keywords')


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


EVALUATION = Evaluation('needle', PROSE, run, render, scores, check)
