"""NoLiMa, arXiv:2502.05167: needles that share no word with the question.

Needles, their places among the lines of a book, questions and score are those
of the original's evaluation/ for sets without distractors; its system prompt is
left out. There a snippet of a book has a given length, here the whole prompt.
"""

import fnmatch
import functools
import pathlib
from collections.abc import Iterator

import numpy as np

from longjax import hub, storage
from longjax.errors import InputError
from longjax.evals import prompts, records
from longjax.evals.prompts import PromptSpec, Sample

TEMPLATE = (
  'You will answer a question based on the following book snippet:\n\n'
  '{haystack}\n\nUse the information provided in the book snippet to answer '
  'the question. Your answer should be short and based on either explicitly '
  'stated facts or strong, logical inferences.\n\nQuestion: {question}\n\n '
  'Return only the final answer with no additional explanation or reasoning.'
)
DEPTHS = (np.linspace(0, 100, 26) / 100).tolist()


@functools.lru_cache(8)
def _book(tokenizer, path):
  """(ids, places of the first and of those with a line break)."""
  try:
    ids = np.asarray(tokenizer.encode(storage.content(path).decode()))
  except UnicodeDecodeError as error:
    raise InputError(f'{path}: a book of NoLiMa is UTF-8: {error}') from None
  breaks = [i for i in np.unique(ids) if '\n' in tokenizer.decode([i])]
  return ids, np.append(0, np.flatnonzero(np.isin(ids, breaks)))


def hide(tokenizer, book, needle: str, length: int, depth: float) -> str:
  """`length` tokens of a book, and the needle as a line of its own."""
  ids, places = book
  beyond = places / (length + 1) - depth
  at = int(places[np.where(beyond < 0, np.inf, beyond).argmin()])
  start = at - round(length * depth)
  if start < 0 or start + length > len(ids):
    raise InputError(
      f'NoLiMa needs {length:,} tokens of a book around depth {depth:.0%}, '
      f'but one has {len(ids):,}: use shorter eval.lengths'
    )
  before = tokenizer.decode(ids[start : at + 1])
  before = before[: max(before.rfind('\n'), 0)]
  after = tokenizer.decode(ids[at + 1 : start + length])
  return f'{before} {needle}\n{after}'


def tests(needles, seed: int) -> Iterator[tuple]:
  """(template, needle, question, right answers at each of DEPTHS)."""
  for each in needles:
    rng = np.random.RandomState(seed + int(each['id'][:4]))
    state = rng.get_state()
    for question in each['questions'].values():
      for test in each['tests'].values():
        needle, asked = each['needle'], question
        for number, word in enumerate(test['input_args'], 1):
          mark = f'{{{number}}}'
          needle = needle.replace(mark, word)
          asked = question.replace(mark, word) if mark in question else asked
        answers = [test.get('gold_answers', ())] * len(DEPTHS)
        if '{CHAR}' in needle:
          rng.set_state(state)
          names = each['character_set']
          answers = [(str(rng.choice(names)),) for _ in DEPTHS]
        yield each.get('task_template', TEMPLATE), needle, asked, answers


def rows(data: records.DataSet, spec: PromptSpec) -> Iterator[tuple]:
  """By book and depth, so that the prompts of all tests begin alike."""
  needles = list(records.in_order(data, spec))
  if any('distractors' in each for each in needles):
    raise InputError(
      'config.eval.files.nolima: needle sets with distractors are not '
      'supported; use one without'
    )
  directory = records.path(BOOKS, spec)
  local = hub.resolve(directory, lambda names: fnmatch.filter(names, '*.txt'))
  books = sorted(pathlib.Path(local).expanduser().glob('*.txt'))
  if not books:
    raise InputError(f'config.eval.files.nolima_books: no .txt in {directory}')
  for number, path in enumerate(books):
    book = _book(spec.tokenizer, path)
    for i, depth in enumerate(DEPTHS):
      for *texts, answers in tests(needles, spec.seed + number):
        yield book, depth, *texts, answers[i]


def make(row: tuple, spec: PromptSpec) -> Sample:
  """With as much of the book as fits."""
  book, depth, template, needle, question, answers = row
  name = answers[0] if '{CHAR}' in needle else ''
  needle, question = (x.replace('{CHAR}', name) for x in (needle, question))
  fill = lambda text: spec.encode(
    template.format(haystack=text, question=question), ''
  )
  hidden = functools.partial(hide, spec.tokenizer, book, needle)
  most = spec.length - spec.count
  length = most - len(fill(f' {needle}\n'))
  while len(ids := fill(hidden(length, depth))) > most:
    length -= len(ids) - most
  return Sample(ids, tuple(answers))


DATA = records.DataSet(
  'nolima', 'needlesets/needle_set.json of amodaresi/NoLiMa',
  ('id', 'needle', 'questions', 'tests'),
)  # fmt: skip
BOOKS = records.DataSet(
  'nolima_books', 'the directory haystack/rand_shuffle of amodaresi/NoLiMa'
)
score_answer = lambda answer, names: float(
  any(name in answer for name in names)
)
TASKS = dict(nolima=records.task(DATA, make, 192, score_answer, rows=rows))
EVALUATION = prompts.evaluation('nolima', 'NoLiMa', TASKS)
