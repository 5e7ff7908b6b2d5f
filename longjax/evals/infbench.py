"""HELMET's prompts from the books of InfiniteBench, arXiv:2402.13718.

Template, the two examples without their books and the order are those of
HELMET's data.py (`load_infbench`). There a book is cut to a number of tokens of
Llama 2; here the whole prompt to eval.lengths of the model's.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

from longjax.evals import draws, helmet_prompts, records
from longjax.evals.prompts import Prompt, PromptSpec, Task


class Form(NamedTuple):
  """How a book and a question are put."""

  head: str  # before the examples
  asked: str  # after the book
  example: str  # for each, after '[story text]'
  cue: str  # with which the answer begins


def rows(data: records.DataSet, spec: PromptSpec) -> Iterator[dict]:
  """The records in the order of the draw, each with two others."""
  found = list(records.in_order(data, spec))
  for record in draws.permuted(found, spec.seed):
    others = [x for x in found if x['id'] != record['id']]
    yield dict(record, others=draws.permuted(others, spec.seed)[:2])


def words(record) -> dict:
  """Of the template; the answer to a choice is its letter, or all of it."""
  options, answers = record['options'], records.texts(record['answer'])
  if options:
    letter = 'ABCD'[options.index(answers[0])]
    answers = letter, f'{letter}. {answers[0]}'
    options = '\n'.join(map('{}. {}'.format, 'ABCD', options))
  return dict(question=record['input'], options=options, answers=answers,
              answer=answers[0], stripped=answers[0].strip())  # fmt: skip


def make(form: Form, record, spec: PromptSpec) -> Prompt:
  own, cue = words(record), f'\n\n{form.cue}'
  shown = '\n\n'.join(
    f'[story text]\n{form.example.format(**words(x))}' for x in record['others']
  )
  put = lambda context: (
    f'{form.head}\n\nFor example:\n\n{shown}\n\nNow, read the following story:'
    f'\n\n{context}\n\n{form.asked.format(**own)}'
  )
  context = record['context']
  text = helmet_prompts.cut(spec, put, context, cue, helmet_prompts.MARK)
  return Prompt(text, cue, own['answers'])


def task(split: str, form: Form, count: int, score, **more) -> Task:
  """The task of one of its files."""
  data = records.DataSet(
    'infbench',
    'hf://datasets/xinrongzhang2022/InfiniteBench, or a copy of it',
    ('id', 'context', 'input', 'answer', 'options'), split,
  )  # fmt: skip
  built = functools.partial(make, form)
  return records.task(data, built, count, score, rows=rows, **more)
