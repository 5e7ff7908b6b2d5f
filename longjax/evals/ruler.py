"""RULER, arXiv:2404.06654: thirteen tasks, and how long a context is effective.

Prompts, parameters and metrics are those of the benchmark's generators
(evals/ruler_prompts.py). What differs: the essays are the documents of
`eval.sources`; the documents of qa_1 and qa_2 are invented, unless eval.files
has SQuAD and HotpotQA.
"""

import functools

import numpy as np

from longjax.evals import (
  evaluation,
  pieces,
  prompts,
  ruler_data,
  ruler_prompts,
  score,
)
from longjax.evals.markdown import table
from longjax.evals.prompts import Task


def needles(count=128, **kinds) -> Task:
  """A task of magic numbers, see ruler_prompts.niah."""
  cuts = dict(noise=pieces.LINES, needle=pieces.WORDS)
  cut = cuts.get(kinds.get('hay', ''), pieces.SENTENCES)
  if kinds.get('key') == 'uuids':
    cut = pieces.CHUNKS
  return Task(functools.partial(ruler_prompts.niah, **kinds), count, cut=cut)


def _questions(data: str, stand_in: str) -> Task:
  stream = lambda spec: ruler_prompts.documents(
    spec, *ruler_data.load(data, spec.source)
  )
  return Task(stream, 32, score.any_reference, stand_in=stand_in, data=data)


TASKS = dict(
  niah_single_1=needles(hay='noise'),
  niah_single_2=needles(),
  niah_single_3=needles(value='uuids'),
  niah_multikey_1=needles(keys=4),
  niah_multikey_2=needles(hay='needle'),
  niah_multikey_3=needles(hay='needle', key='uuids', value='uuids'),
  niah_multivalue=needles(values=4),
  niah_multiquery=needles(keys=4, queries=4),
  vt=Task(ruler_prompts.tracking, 30, cut=pieces.LINES),
  cwe=Task(ruler_prompts.common_words, 120, cut=pieces.WORDS),
  fwe=Task(ruler_prompts.frequent_words, 50, cut=pieces.WORDS),
  qa_1=_questions('squad', 'invented documents, not SQuAD'),
  qa_2=_questions('hotpotqa', 'invented documents, not HotpotQA'),
)
BAR = 85.6  # Llama-2-7B-chat at 4K, the paper's bar for an effective length
BASE_BAR = 79.4  # the same of the base model, table 12


def effective_length(means: dict, bar: float) -> int:
  """The longest length whose mean of the tasks reaches the bar; 0 is none.

  Args:
    means: {length: mean of the thirteen tasks in percent}.
    bar: in percent.
  """
  return max((n for n, mean in means.items() if mean >= bar), default=0)


def weighted(means: dict) -> tuple[float, float]:
  """wAvg (inc) and (dec): linear weights, rising and falling with length."""
  values = [means[length] for length in sorted(means)]
  rising = np.arange(1, len(values) + 1)
  average = lambda weights: float(np.average(values, weights=weights))
  return average(rising), average(rising[::-1])


def summary(results: dict) -> list[str]:
  """Means by length, effective lengths and weighted means of each model."""
  rows = []
  for name, tasks in results.items():
    points = evaluation.means(prompts.points(tasks))
    means = {length: 100 * point.value for length, point in points.items()}
    if not means:
      continue
    shown = (f'{n:,}: {mean:.1f}' for n, mean in sorted(means.items()))
    effective = [
      f'{effective_length(means, bar):,}'
      if tasks.keys() == TASKS.keys() else 'not all tasks'
      for bar in (BAR, BASE_BAR)
    ]  # fmt: skip
    average = [f'{x:.1f}' for x in weighted(means)]
    rows.append([name, ', '.join(shown), *effective, *average])
  head = ['', 'mean of the tasks', f'effective (bar {BAR})',
          f'effective (bar {BASE_BAR})', 'wAvg inc', 'dec']  # fmt: skip
  return [
    table(head, rows),
    'Essays are held-out documents, and stand-ins count in the means: compare '
    'models with each other, not with the published tables.',
  ]


EVALUATION = prompts.evaluation(
  'ruler', 'RULER', TASKS, lists=True, summary=summary
)
