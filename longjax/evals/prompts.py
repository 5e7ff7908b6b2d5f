"""Prompts with known answers: made to a length, put to a model, scored.

A task builds a text of a given size (sentences, words, pairs: what its
haystack is counted in) from random numbers; here the size is chosen so that
prompt and answer fill a context length, counted in the model's own tokens.
`evaluation` makes an evaluation of such tasks.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from longjax.errors import InputError
from longjax.evals import score, word_lists
from longjax.evals.evaluation import PROSE, Axis, Evaluation, Point, Setup
from longjax.inference import generate

INTERVALS = (
  'In percent, with the 95 % binomial interval and the number of samples.'
)


class Source(NamedTuple):
  """What tasks are made of."""

  text: str  # prose for haystacks
  words: Any = None  # evals.word_lists.Words


class Sample(NamedTuple):
  """A prompt and what a right answer holds."""

  prompt: np.ndarray  # ids
  references: tuple[str, ...]


class Task(NamedTuple):
  """How a benchmark makes its prompts and scores the answers."""

  # (rng, source, size, length) -> (text, references), the same for the same.
  build: Callable
  count: int  # tokens of the answer
  score: Callable = score.all_references  # (answer, references) -> 0 to 1
  stop: tuple[str, ...] = ()  # an answer ends before these
  stand_in: str = ''  # what is invented here in place of the benchmark's data


def encode(tokenizer, text: str) -> np.ndarray:
  """A prompt as ids, with what the tokenizer puts before a document."""
  ids = np.asarray(tokenizer.encode(text), np.int32)
  start = tokenizer.document_start
  return ids if start is None else np.concatenate([[start], ids])


def samples(
  task: Task, tokenizer, source: Source, length: int, count: int, seed: int
) -> list[Sample]:
  """`count` prompts that leave room for the answer within `length` tokens.

  The haystack is the largest that fits: one unit more would not.
  """
  made, size = [], 0
  for number in range(count):

    def build(size, number=number):
      rng = np.random.default_rng([seed, number])
      return task.build(rng, source, size, length)

    measure = lambda size, build=build: len(encode(tokenizer, build(size)[0]))
    size = largest(measure, length - task.count, near=size)
    text, references = build(size)
    made.append(Sample(encode(tokenizer, text), tuple(references)))
  return made


def largest(measure, limit: int, near=0) -> int:
  """The largest size with measure(size) <= limit, from a size it is near to.

  Raises:
    InputError: not even size 0 fits.
  """
  low, high, step = -1, None, 1
  size, before = near, -1
  while high is None or high - low > 1:
    tokens = measure(size)
    if tokens <= limit:
      if tokens == before and high is None and step > 64:
        return low  # there is no more of the haystack
      low, before = size, tokens
    else:
      high = size
    if not size:
      check_room(tokens, limit)
    if high is None:
      # As if all of it were haystack: near from below.
      step = max(step * 2, (limit - tokens) * size // max(tokens, 1))
      size = low + step
    elif low < 0:
      size = max(size - max(step, (tokens - limit) * size // tokens + 1), 0)
      step *= 2
    else:
      size = (low + high) // 2
  return low


def check_room(tokens: int, limit: int):
  """InputError for a prompt that has no haystack and is too long."""
  if tokens > limit:
    raise InputError(
      f'a prompt needs at least {tokens} tokens, but only {limit} are left '
      'beside the answer: use longer --lengths (config.eval.lengths)'
    )


def answers(lm, tokenizer, prompts, count: int, stop=()) -> list[str]:
  """The model's likeliest continuations, cut before the first of `stop`."""
  ids = lm.generate(prompts, count, generate.stop_at(tokenizer, stop))
  texts = [tokenizer.decode(x[:count]) for x in ids]
  return [until(text, stop) for text in texts]


def until(text: str, stop) -> str:
  """The text before the first of some strings."""
  ends = [at for s in stop if (at := text.find(s)) >= 0]
  return text[: min(ends)] if ends else text


def scores(lm, tokenizer, task: Task, made: list[Sample]) -> list[float]:
  """The score of each sample, 0 to 1."""
  prompts = [sample.prompt for sample in made]
  found = answers(lm, tokenizer, prompts, task.count, task.stop)
  return [float(task.score(a, s.references)) for a, s in zip(found, made)]


def evaluation(
  name: str, title: str, tasks: dict[str, Task], needs=PROSE, lists=False,
  summary: Callable = lambda results: [],
) -> Evaluation:  # fmt: skip
  """An Evaluation that puts the prompts of tasks at each of eval.lengths.

  Args:
    name: as eval.tasks has it; with several tasks name/TASK is one of them.
    title: of the section in the report.
    tasks: {name: Task}.
    needs: what evals.evaluation.Evaluation needs.
    lists: whether prompts are made of words from lists, too.
    summary: {name of a model: its results} -> paragraphs below the table.
  """

  def source(setup: Setup) -> Source:
    return Source(setup.prose(), word_lists.load(setup.log) if lists else None)

  def asked(part: str) -> dict[str, Task]:
    return {part: tasks[part]} if part else tasks

  def check(setup: Setup, part: str):
    of = source(setup)
    for task in asked(part).values():
      for length in setup.options.lengths:
        least, _ = task.build(np.random.default_rng(0), of, 0, length)
        tokens = len(encode(setup.tokenizer, least))
        check_room(tokens, length - task.count)

  def run(lm, setup: Setup, part: str) -> dict:
    of = source(setup)
    return {
      key: [
        at_length(lm, setup, key, task, of, length)
        for length in setup.options.lengths
      ]
      for key, task in asked(part).items()
    }

  return Evaluation(
    name, title, needs, run, points, percent=True, axis=Axis(),
    text=lambda results, options: ([INTERVALS], summary(results)), check=check,
    parts=tuple(tasks) if len(tasks) > 1 else (),
    stand_ins={k: task.stand_in for k, task in tasks.items() if task.stand_in},
  )  # fmt: skip


def at_length(lm, setup: Setup, name, task: Task, of: Source, length) -> dict:
  """{'length', 'tokens', 'score', 'low', 'high', 'samples'} of a task.

  `tokens` are those of the shortest prompt and its answer: how near the
  prompts come to their length.
  """
  setup.log(f'  {name} at {length:,} tokens')
  made = samples(
    task, setup.tokenizer, of, length, setup.options.samples, setup.config.seed
  )
  found = scores(lm, setup.tokenizer, task, made)
  least = min(len(sample.prompt) for sample in made) + task.count
  return dict(length=int(length), tokens=least) | score.summary(found)


def points(results: dict) -> dict:
  """{'task/length': Point} of {task: its scores by length}."""
  return {
    f'{name}/{x["length"]}': Point(x['score'], x.get('low'), x.get('high'))
    for name, found in results.items()
    for x in found
  }


def map_text(results: dict, options):
  """Of results by length and depth: at which depths."""
  depths = next(iter(results.values()))['depths']
  return [
    f'One try at each depth: {", ".join(f"{d:.0%}" for d in depths)}.'
  ], []
