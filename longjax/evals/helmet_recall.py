"""HELMET's recall, arXiv:2410.02694, from its own files: JSON key-value pairs
and three of RULER's tasks, with its prompts and scores."""

import functools

from longjax.evals import (
  draws,
  helmet,
  helmet_prompts,
  prompts,
  records,
  score,
)
from longjax.evals.prompts import Prompt, PromptSpec, Task
from longjax.evals.ruler_prompts import wording

PAIRS = zip(helmet_prompts.LENGTHS, (105, 220, 440, 900, 1800))
SIZES = tuple(dict(tokens=n, pairs=pairs) for n, pairs in PAIRS)


def rows(data: records.DataSet, spec: PromptSpec):
  """Of the file that was made for eval.lengths."""
  size = helmet_prompts.size_for(SIZES, spec.length)
  data = data._replace(split=data.split.format(**size))
  # HELMET takes the first 100.
  return draws.permuted(records.in_order(data, spec), spec.seed)


def key_value(record, spec: PromptSpec) -> Prompt:
  shots = helmet.shown(record['demos'][: helmet.SHOTS])
  form = lambda context: helmet.KV.format(
    context=context, shots=shots, key=record['question']
  )
  cue = '\nCorresponding value:'
  text = helmet_prompts.cut(spec, form, record['context'], cue)
  return Prompt(text, cue, records.texts(record['answer']))


def needle(one: bool, record, spec: PromptSpec) -> Prompt:
  words = dict(kind=record['type_needle_v'], query=record['query'])
  template, cue = wording(one)
  form, cue = functools.partial(template.format, **words), cue.format(**words)
  text = helmet_prompts.cut(
    spec, lambda x: form(context=x), record['context'], '\n' + cue
  )
  answers = record['answer' if 'answer' in record else 'outputs']
  return Prompt(text, '\n' + cue, records.texts(answers))


def task(split: str, make, count: int, metric=score.all_references) -> Task:
  where = 'the directory data of HELMET, from its data.tar.gz'
  data = records.DataSet('helmet_recall', where, ('context',), split)
  return records.task(data, make, count, metric, rows=rows)


def needles(name: str, count: int, one=True) -> Task:
  make = functools.partial(needle, one)
  return task(f'ruler/niah_{name}/validation_{{tokens}}', make, count)


KV = ('json_kv/test_k{pairs}_dep6', key_value, 100, score.substring_match)
TASKS = dict(json_kv=task(*KV), niah_multikey_2=needles('multikey_2', 50),
             niah_multikey_3=needles('multikey_3', 100),
             niah_multivalue=needles('multivalue', 50, one=False))  # fmt: skip
EVALUATION = prompts.evaluation(
  'helmet_recall', 'HELMET, recall', TASKS, summary=helmet.recall
)
