"""Records of SCROLLS, arXiv:2201.03533: a text that begins with a question.

A question that has several answers is as many records, which are one here, as
in its evaluator.
"""

from collections.abc import Iterator

from longjax.evals import records
from longjax.evals.prompts import PromptSpec

WHERE = (
  'a directory with {0}/train.jsonl and {0}/validation.jsonl, or {0}.zip, as '
  'hf://datasets/tau/scrolls has them'
)


def data_set(name: str, split: str) -> records.DataSet:
  """A split of one of its data sets."""
  fields = ('id', 'input', 'output')
  return records.DataSet(
    'scrolls', WHERE.format(name), fields, f'{name}/{split}'
  )


def merged(data: records.DataSet, spec: PromptSpec) -> Iterator[dict]:
  """Each question once, `output` the list of its answers."""
  answers: dict = {}
  for record in records.in_order(data, spec):
    answers.setdefault(record['id'], []).append(record['output'])
  for record in records.in_order(data, spec):  # again: the texts take gigabytes
    if found := answers.pop(record['id'], None):
      yield dict(record, output=found)


def context_and_question(record, choices: bool) -> tuple[str, str]:
  """Both as lm-eval divides them; ValueError of another text.

  Args:
    record: with the text, `input`.
    choices: whether four of them belong to the question (QuALITY).
  """
  text = record['input']
  at = text.index('\n\n', text.index('(D)') if choices else 0)
  return text[at:].strip(), text[:at]
