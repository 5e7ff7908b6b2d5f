"""Prompts with known answers: made to a length, answered by a model, scored.

A task yields prompts that fill a context length together with their answers,
counted in the model's own tokens (evals/fill.py). `evaluation` makes an
evaluation of such tasks.
"""

import itertools
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np

from longjax.data import chat as chats
from longjax.errors import InputError
from longjax.evals import pieces, score, word_lists
from longjax.evals.evaluation import PROSE, Axis, Evaluation, Point, Setup
from longjax.inference import generate
from longjax.parallel import processes
from longjax.progress import Progress

INTERVALS = (
  'In percent, with the 95 % binomial interval and the number of samples.'
)
CHAT = "Prompts are in the tokenizer's chat template (eval.chat)."


class Source(NamedTuple):
  """What tasks are made of."""

  text: str  # prose for haystacks
  words: Any = None  # evals.word_lists.Words
  files: Mapping[str, str] = {}  # paths of data sets by name, eval.files


class Prompt(NamedTuple):
  """A question, and how a right answer looks."""

  text: Any  # what a user says, or a list of messages
  prefix: str  # with which the answer begins
  references: tuple


class Sample(NamedTuple):
  """A prompt as ids, and what a right answer holds."""

  prompt: np.ndarray
  references: tuple


class PromptSpec(NamedTuple):
  """What prompts are made for."""

  source: Source
  tokenizer: Any
  encode: Callable  # (text, prefix) -> ids
  uncounted: int  # ids in front that RULER does not count
  length: int  # tokens of prompt and answer
  count: int  # of them of the answer
  seed: int


class Task(NamedTuple):
  """How a benchmark makes its prompts and scores the answers."""

  stream: Callable  # PromptSpec -> iterator of Samples, the same for the same
  count: int  # tokens of the answer
  # (answer, references) -> 0 to 1, or several such that `combine` takes.
  score: Callable = score.all_references
  stop: tuple[str, ...] = ()  # an answer ends before these
  stand_in: str = ''  # what is invented here in place of the benchmark's data
  data: str = ''  # name in eval.files that takes its place
  cut: Any = pieces.SENTENCES  # what the prompts share; None is nothing
  whole: bool = False  # all prompts are asked, whatever eval.samples
  # Scores of samples -> numbers whose mean is the score of the task.
  combine: Callable = list
  ready: Callable = tuple  # raises InputError for what is not installed
  needs: str = PROSE  # what evals.evaluation.Evaluation needs


def encode(tokenizer, text: str) -> np.ndarray:
  """A prompt as ids, with what the tokenizer puts before a document."""
  return _started(tokenizer, tokenizer.encode(text))


def _started(tokenizer, ids) -> np.ndarray:
  start = tokenizer.document_start
  ids = np.asarray(ids, np.int32)
  return ids if start is None else np.concatenate([[start], ids])


def make_spec(
  tokenizer, task: Task, source: Source, length: int, seed: int, chat=False
) -> PromptSpec:
  """For the prompts of a task; `chat` puts them in the tokenizer's template."""
  ids_of = pieces.Encoder(tokenizer, task.cut)

  def plain(text, prefix) -> np.ndarray:
    if not isinstance(text, str):
      raise InputError('a conversation needs config.eval.chat=true')
    return _started(tokenizer, ids_of(text + prefix))

  def in_template(text, prefix) -> np.ndarray:
    one = isinstance(text, str)
    messages = [dict(role='user', content=text)] if one else text
    return chats.prompt(messages, tokenizer, chats.FROM_TOKENIZER, prefix)

  uncounted = int(tokenizer.document_start is not None and not chat)
  put = in_template if chat else plain
  return PromptSpec(source, tokenizer, put, uncounted, length, task.count, seed)


def samples(
  task: Task, tokenizer, source: Source, length: int, count: int, seed: int
) -> list[Sample]:
  """`count` prompts that leave room for the answer within `length` tokens."""
  made = task.stream(make_spec(tokenizer, task, source, length, seed))
  return list(itertools.islice(made, count))


def answers(lm, tokenizer, prompts, count: int, stop=()) -> list[str]:
  """The model's likeliest continuations, cut before the first of `stop`."""
  ids = lm.generate(prompts, count, generate.stop_at(tokenizer, stop))
  texts = [tokenizer.decode(x[:count]) for x in ids]
  return [until(text, stop) for text in texts]


def until(text: str, stop) -> str:
  """The text before the first of some strings."""
  ends = [at for s in stop if (at := text.find(s)) >= 0]
  return text[: min(ends)] if ends else text


def scores(lm, tokenizer, task: Task, made: list[Sample]) -> list:
  """The score of each sample, 0 to 1, or several."""
  prompts = [sample.prompt for sample in made]
  found = answers(lm, tokenizer, prompts, task.count, task.stop)
  return [
    np.asarray(task.score(a, s.references), float).tolist()
    for a, s in zip(found, made)
  ]


def score_samples(
  lm, setup: Setup, label: str, task: Task, made: Iterable[Sample], total: int
) -> tuple[list, int]:
  """(the score of each sample, tokens of the shortest prompt).

  A line every few seconds has the samples done, their rate and mean score;
  `total` is how many there are, 0 if that is not known.
  """
  text = lambda n: f'{n:,.0f} samples' if n >= 10 else f'{n:.2g} samples'
  progress = Progress(f'  {label}', total, setup.log, text)
  found, lengths, made = [], [], prefetch(made, 2 * setup.batch)
  while group := list(itertools.islice(made, setup.batch)):
    key = setup.cache.key(label, task.count, task.stop, *group)
    processes.require_equal(f'the prompts of {label}', key)
    ask = lambda group=group: scores(lm, setup.tokenizer, task, group)
    found += setup.cache.get(key, ask)
    lengths += [len(sample.prompt) for sample in group]
    progress.what = f'  {label}, score {100 * np.mean(found):.1f}'
    progress.add(len(group))
  return found, min(lengths)


def prefetch(made: Iterable, count: int) -> Iterator:
  """The same, up to `count` of them made while the caller is at work."""
  made, end = iter(made), object()
  pool = futures.ThreadPoolExecutor(1)
  try:
    ready = [pool.submit(next, made, end) for _ in range(count)]
    while (one := ready.pop(0).result()) is not end:
      ready.append(pool.submit(next, made, end))
      yield one
  finally:
    pool.shutdown(wait=False, cancel_futures=True)


def evaluation(
  name: str, title: str, tasks: dict[str, Task], lists=False,
  summary: Callable = lambda results: [],
) -> Evaluation:  # fmt: skip
  """An Evaluation that puts the prompts of tasks at each of eval.lengths.

  Args:
    name: as eval.tasks has it; with several tasks name/TASK is one of them.
    title: of the section in the report.
    tasks: {name: Task}.
    lists: whether prompts are made of words from lists, too.
    summary: {name of a model: its results} -> paragraphs below the table.
  """
  needs = next(iter(tasks.values())).needs

  def stream(setup: Setup, key: str, length: int):
    task = tasks[key]
    words = word_lists.load(setup.log) if lists else None
    prose = setup.prose() if needs == PROSE else ''
    of = Source(prose, words, setup.options.files)
    seed, chat = setup.config.seed, setup.options.chat
    return task.stream(make_spec(setup.tokenizer, task, of, length, seed, chat))

  def label(key: str, length: int) -> str:
    return f'{name}/{key} at {length:,} tokens'.replace(f'{key}/{key}', key)

  def asked(setup: Setup, part: str):
    names = [part] if part else tasks
    return itertools.product(names, map(int, setup.options.lengths))

  def check(setup: Setup, part: str):
    # Where lengths are long, the search for the sizes takes a minute.
    pairs, text = [*asked(setup, part)], lambda n: f'{n:.0f} first prompts'
    progress = Progress(f'  {name}', len(pairs), setup.log, text)
    for key, length in pairs:
      made = stream(setup, key, length)
      try:
        tasks[key].ready()
        first = next(made, None)
      except InputError as error:
        raise InputError(f'{label(key, length)}: {error}') from None
      if first is None:
        raise InputError(
          f'{label(key, length)}: no prompt is that short: use longer --lengths'
        )
      setup.started[name, key, length] = itertools.chain([first], made)
      progress.add(1)

  def run(lm, setup: Setup, part: str) -> dict:
    results: dict = {key: [] for key, _ in asked(setup, part)}
    for key, length in asked(setup, part):
      made = setup.started.pop((name, key, length), None)
      made = made or stream(setup, key, length)
      most = setup.options.limit if tasks[key].whole else setup.samples
      made = itertools.islice(made, most or None)
      found, least = score_samples(
        lm, setup, label(key, length), tasks[key], made, most
      )
      # `tokens` say how near the shortest prompt comes to the length.
      tokens = least + tasks[key].count
      results[key].append(
        dict(length=length, tokens=tokens)
        | score.summary(tasks[key].combine(found))
      )
    return results

  return Evaluation(
    name, title, needs, run, points, percent=True, axis=Axis(),
    text=lambda results, options: (
      [INTERVALS, CHAT if options.chat else ''], summary(results)
    ),
    check=check,
    parts=tuple(tasks) if len(tasks) > 1 else (),
    stand_ins={key: (task.stand_in, task.data) for key, task in tasks.items()
               if task.stand_in},
  )  # fmt: skip


def points(results: dict) -> dict:
  """{'task/length': Point} of {task: its scores by length}."""
  return {
    f'{name}/{x["length"]}': Point(
      x['score'], x.get('low'), x.get('high'), tuple(x.get('each', ()))
    )
    for name, found in results.items()
    for x in found
  }


def depth_map(
  name: str, title: str, task: Task, key: str, kind: Callable, grid: Callable,
  make: Callable, above: Callable = lambda options: [],
) -> Evaluation:  # fmt: skip
  """An Evaluation that asks once at each length and depth.

  Args:
    name, title: see Evaluation.
    task: of the answers; its needs are the evaluation's.
    key: of the scores in the results, a list for each length.
    kind: what a score is there: float or bool.
    grid: Setup -> (lengths, depths).
    make: (Setup, length, depths, numpy Generator) -> a Sample for each depth.
    above: section `eval` -> paragraphs above the table.
  """
  draws = lambda setup: np.random.default_rng(setup.config.seed)

  def check(setup: Setup, part: str):
    for length in grid(setup)[0]:
      make(setup, length, [0.5], draws(setup))

  def run(lm, setup: Setup, part: str) -> dict:
    (lengths, depths), rng, rows = grid(setup), draws(setup), []
    for length in lengths:
      made = make(setup, length, depths, rng)
      label = f'{name} at {length:,} tokens'
      found, _ = score_samples(lm, setup, label, task, made, len(made))
      rows.append([kind(x) for x in found])
    return {'length': lengths, 'depths': depths, key: rows}

  def scores(result: dict) -> dict:
    return {
      str(length): Point(statistics.fmean(row), each=tuple(map(float, row)))
      for length, row in zip(result['length'], result[key])
    }

  def text(results: dict, options):
    depths = next(iter(results.values()))['depths']
    shown = ', '.join(f'{d:.0%}' for d in depths)
    return [*above(options), f'One try at each depth: {shown}.'], []

  return Evaluation(
    name, title, task.needs, run, scores, ('tokens',), percent=True, heat=True,
    text=text, check=check,
  )  # fmt: skip
