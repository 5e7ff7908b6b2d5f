"""HELMET's passage re-ranking, arXiv:2410.02694: MS MARCO, scored by NDCG@10.

Prompt, examples, how an answer is read and the score (trec_eval's) are those of
its data.py and utils.py. Examples are in the file beside, ..._k10_...
"""

import re

from longjax.evals import draws, helmet_prompts, prompts, records, score
from longjax.evals.prompts import Prompt, PromptSpec

PROMPT = (
  'You are provided with a list of documents, each indicated by their ID. Rank '
  'each document based on their relevance to the question in descending order '
  'from most relelvant to least relevant texts. Include all documents in the '
  'rankings. Write your answer using the unique IDs, with the following format:'
  '\nRanking: ID3 > ID1 > ID2\n\n{shots}{context}\n\nQuery: {query}'
)


def passages(record) -> str:
  title = '(Title: {title})' if 'title' in record['ctxs'][0] else ''
  form = f'[ID: {{id}}] {f"Document {title}".strip()}: {{text}}'
  return '\n\n'.join(form.format(**x) for x in record['ctxs'])


def ranking(record) -> str:
  best = sorted(record['ctxs'], key=lambda x: x['label'], reverse=True)
  return ' > '.join(x['id'] for x in best)


def make(record, spec: PromptSpec) -> Prompt:
  file = re.sub(r'_k\d+_', '_k10_', spec.source.files[DATA.name])
  shots = ''.join(
    f'{passages(x)}\n\nQuery: {x["query"]}\nRanking: {ranking(x)}\n\n'
    for x in draws.shots(records.cached(DATA, file), 'qid', record)
  )
  form = lambda context: PROMPT.format(
    shots=shots, context=context, query=record['query']
  )
  text = helmet_prompts.cut(spec, form, passages(record), '\nRanking:')
  labels = tuple((x['id'], int(x['label'])) for x in record['ctxs'])
  return Prompt(text, '\nRanking:', labels)


DATA = records.DataSet(
  'helmet_rerank', 'a test file of data/msmarco of HELMET',
  ('qid', 'query', 'ctxs'),
)  # fmt: skip
TASKS = dict(helmet_rerank=records.task(DATA, make, 200, score.ndcg))
EVALUATION = prompts.evaluation(
  'helmet_rerank', 'HELMET, passage re-ranking', TASKS
)
