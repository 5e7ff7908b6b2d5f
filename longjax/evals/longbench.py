"""LongBench v2, arXiv:2412.15204: 503 questions with four choices.

Prompt, truncation in the middle and the search for the answer are those of
its pred.py (without reasoning); there the text is cut to the model's window,
here to eval.lengths, with room for the chat template and the answer.
"""

import re

import numpy as np

from longjax.errors import InputError
from longjax.evals import records
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


def make(record, spec: PromptSpec) -> Prompt:
  """The prompt, of which the middle is left out if it is too long."""
  text = PROMPT.format(**{field: record[field].strip() for field in FIELDS})
  most = spec.length - spec.count - len(spec.encode('', ''))
  ids = spec.tokenizer.encode(text)
  while len(ids) > most:
    if most < 2:
      raise InputError(
        f'a prompt of LongBench v2 has no room in eval.lengths {spec.length}: '
        f'the answer takes {spec.count} tokens; use 1024 or more'
      )
    ids = np.concatenate([ids[: most // 2], ids[-(most // 2) :]])
    text = spec.tokenizer.decode(ids)
    ids = spec.tokenizer.encode(text)  # where both meet there may be more
    most -= max(len(ids) - most, 0)
  return Prompt(text, '', (record['answer'],))


def judge(answer: str, references) -> float:
  """1 if the answer names the right letter as it was told to."""
  answer = answer.replace('*', '')
  found = re.search(r'The correct answer is \(([A-D])\)', answer)
  found = found or re.search(r'The correct answer is ([A-D])', answer)
  return float(bool(found) and found[1] == references[0])


DATA = records.DataSet(
  'longbench_v2', 'LongBench v2', 'data.json of THUDM/LongBench-v2',
  (*FIELDS, 'answer'),
)  # fmt: skip
EVALUATION = records.evaluation(DATA, make, ANSWER_TOKENS, judge)
