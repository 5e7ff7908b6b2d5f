"""HELMET's retrieval-augmented generation, arXiv:2410.02694: an answer out of
passages of Wikipedia (NQ, TriviaQA, HotpotQA, PopQA).

Prompt, the two examples of a question, the cut at the end of the passages and
the score are those of its data.py and model_utils.py. All questions of the file
are asked; there 100 are drawn. Examples are in the file beside, ..._k3_...
"""

import math
import re

from longjax.evals import draws, helmet_prompts, prompts, records, score
from longjax.evals.prompts import Prompt, PromptSpec

PROMPT = (
  'Use the given documents to write a concise and short answer to the question.'
  ' Write your answer in the following format:\nAnswer: [answer]\n\n'
  '{shots}{context}\n\nQuestion: {question}'
)


def rare(record) -> bool:
  """Of PopQA only what is seldom looked up is asked."""
  return math.log10(record.get('s_pop', 1)) < 3


def passages(record) -> str:
  return '\n\n'.join(
    f'Document (Title: {x["title"]}): {x["text"]}' for x in record['ctxs']
  )


def make(record, spec: PromptSpec) -> Prompt | None:
  if not rare(record):
    return None
  file = spec.source.files[DATA.name].replace('-dev-', '-train-')
  examples = records.cached(DATA, re.sub(r'_k\d+_', '_k3_', file))
  key = 'id' if 'id' in record else 'question'
  shots = ''.join(
    f'{passages(x)}\n\nQuestion: {x["question"]}\nAnswer: {x["answers"][0]}\n\n'
    for x in draws.shots(filter(rare, examples), key, record)
  )
  form = lambda context: PROMPT.format(
    shots=shots, context=context, question=record['question']
  )
  text = helmet_prompts.cut(spec, form, passages(record), '\nAnswer:')
  return Prompt(text, '\nAnswer:', records.texts(record['answers']))


DATA = records.DataSet(
  'helmet_rag', 'a dev or test file of data/kilt of HELMET',
  ('question', 'answers', 'ctxs'),
)  # fmt: skip
SCORE = helmet_prompts.best(score.substring_match, 'Answer:')
TASKS = dict(helmet_rag=records.task(DATA, make, 20, SCORE))
EVALUATION = prompts.evaluation(
  'helmet_rag', 'HELMET, retrieval-augmented generation', TASKS
)
