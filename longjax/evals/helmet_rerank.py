"""HELMET's passage re-ranking, arXiv:2410.02694: MS MARCO, scored by NDCG@10.

Prompt, examples, how an answer is read and the score (trec_eval's) are those of
its data.py and utils.py. Examples are in the file beside, ..._k10_...
"""

import re

import numpy as np

from longjax.evals import helmet_rag, records
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
  demos = re.sub(r'_k\d+_', '_k10_', spec.source.files[DATA.name])
  examples = ''.join(
    f'{passages(x)}\n\nQuery: {x["query"]}\nRanking: {ranking(x)}\n\n'
    for x in helmet_rag.shots(DATA, demos, 'qid', record)
  )
  fill = lambda context: PROMPT.format(
    shots=examples, context=context, query=record['query']
  )
  text = helmet_rag.cut(spec, fill, passages(record), '\nRanking:')
  labels = tuple((x['id'], int(x['label'])) for x in record['ctxs'])
  return Prompt(text, '\nRanking:', labels)


def ndcg(answer: str, references) -> float:
  """NDCG@10 of the longest run of numbers with > between them."""
  answer = re.sub(r'[\[\]:]', '', answer).lower().replace('id', '')
  runs = [m[0] for m in re.finditer(r'\d+(?:\s*>\s*\d+)*', answer)]
  named = [x.strip() for x in max(runs, key=len, default='').split('>')]
  labels = dict(references)
  gain = lambda xs: sum(x / np.log2(i + 2) for i, x in enumerate(xs[:10]))
  best = gain(sorted((max(x, 0) for x in labels.values()), reverse=True))
  found = [max(labels.get(x, 0), 0) for x in dict.fromkeys(named)]
  return float(gain(found) / best) if best else 0.0


DATA = records.DataSet(
  'helmet_rerank', 'HELMET, passage re-ranking',
  'a test file of data/msmarco of HELMET', ('qid', 'query', 'ctxs'),
)  # fmt: skip
EVALUATION = records.evaluation(DATA, make, 200, ndcg, ('\n',))
