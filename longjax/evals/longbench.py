"""LongBench v2, arXiv:2412.15204: 503 questions with four choices.

Prompt, truncation in the middle and the search for the answer are those of
its pred.py (without reasoning); there the text is cut to the model's window,
here to eval.lengths, with room for the chat template and the answer.
"""

import re

import numpy as np

from longjax.evals import prompts, records
from longjax.evals.prompts import Prompt, PromptSpec

PROMPT = (
  'Please read the following text and answer the question below.\n\n<text>\n'
  '{context}\n</text>\n\nWhat is the correct answer to this question: '
  '{question}\nChoices:\n(A) {choice_A}\n(B) {choice_B}\n(C) {choice_C}\n'
  '(D) {choice_D}\n\nFormat your response as follows: "The correct answer is '
  '(insert answer here)".'
)
FIELDS = ('context', 'question', *(f'choice_{x}' for x in 'ABCD'))
ANSWER_TOKENS = 128


def middle(ids, excess: int):
  """Ids, or a text, without those in the middle."""
  half = (len(ids) - excess) // 2
  parts = ids[:half], ids[len(ids) - half :]
  return ''.join(parts) if isinstance(ids, str) else np.concatenate(parts)


def make(record, spec: PromptSpec) -> Prompt:
  """The prompt, of which the middle is left out if it is too long."""
  text = PROMPT.format(**{field: record[field].strip() for field in FIELDS})
  text = records.cut(spec, text, drop=middle)
  return Prompt(text, '', (record['answer'],))


def score_answer(answer: str, references) -> float:
  """1 if the answer names the right letter as it was told to."""
  answer = answer.replace('*', '')
  found = re.search(r'The correct answer is \(([A-D])\)', answer)
  found = found or re.search(r'The correct answer is ([A-D])', answer)
  return float(bool(found) and found[1] == references[0])


DATA = records.DataSet(
  'longbench_v2', 'data.json of THUDM/LongBench-v2', (*FIELDS, 'answer')
)
TASKS = dict(longbench_v2=records.task(DATA, make, ANSWER_TOKENS, score_answer))
EVALUATION = prompts.evaluation('longbench_v2', 'LongBench v2', TASKS)
