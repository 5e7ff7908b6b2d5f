"""HELMET's retrieval-augmented generation, arXiv:2410.02694: an answer out of
passages of Wikipedia (NQ, TriviaQA, HotpotQA, PopQA).

Prompt, the two examples of a question, the cut at the end of the passages and
the score are those of its data.py and model_utils.py. All questions of the file
are asked; there 100 are drawn. Examples are in the file beside, ..._k3_...
"""

import functools
import hashlib
import math
import re

import numpy as np

from longjax.errors import InputError
from longjax.evals import records, score
from longjax.evals.prompts import Prompt, PromptSpec

PROMPT = (
  'Use the given documents to write a concise and short answer to the question.'
  ' Write your answer in the following format:\nAnswer: [answer]\n\n'
  '{shots}{context}\n\nQuestion: {question}'
)


@functools.lru_cache(4)
def _examples(name: str, path: str, fields) -> list:
  return [x for x in records.read(name, path, fields) if rare(x)]


def rare(record) -> bool:
  """Of PopQA only what is seldom looked up is asked."""
  return math.log10(record.get('s_pop', 1)) < 3


def shots(data: records.DataSet, demos: str, key: str, record) -> list:
  """Two examples out of a file: by a hash of `key`, each of another one."""
  examples = [x for x in _examples(data.name, demos, data.fields)
              if x[key] != record[key]]  # fmt: skip
  seed = int(hashlib.sha256(str(record[key]).encode()).hexdigest(), 16) % 2**31
  first: dict = {}
  for i in np.random.default_rng(seed).permutation(len(examples)):
    first.setdefault(examples[i][key], examples[i])
  return list(first.values())[:2]


def cut(spec: PromptSpec, fill, context: str, prefix: str) -> str:
  """fill(context) without the last tokens of the context, if it is too long."""
  excess = len(spec.encode(fill(context), prefix)) + spec.count - spec.length
  if excess <= 0:
    return fill(context)
  ids = spec.tokenizer.encode(context)
  if excess >= len(ids):
    raise InputError(
      f'a prompt of HELMET has no room in eval.lengths {spec.length}: what is '
      f'around its passages takes {spec.length + excess - len(ids)} tokens'
    )
  return fill(spec.tokenizer.decode(ids[:-excess]))


def passages(record) -> str:
  return '\n\n'.join(
    f'Document (Title: {x["title"]}): {x["text"]}' for x in record['ctxs']
  )


def make(record, spec: PromptSpec) -> Prompt | None:
  if not rare(record):
    return None
  file = spec.source.files[DATA.name].replace('-dev-', '-train-')
  demos = re.sub(r'_k\d+_', '_k3_', file)
  key = 'id' if 'id' in record else 'question'
  examples = ''.join(
    f'{passages(x)}\n\nQuestion: {x["question"]}\nAnswer: {x["answers"][0]}\n\n'
    for x in shots(DATA, demos, key, record)
  )
  fill = lambda context: PROMPT.format(
    shots=examples, context=context, question=record['question']
  )
  text = cut(spec, fill, passages(record), '\nAnswer:')
  return Prompt(text, '\nAnswer:', tuple(record['answers']))


DATA = records.DataSet(
  'helmet_rag', 'HELMET, retrieval-augmented generation',
  'a dev or test file of data/kilt of HELMET', ('question', 'answers', 'ctxs'),
)  # fmt: skip
EVALUATION = records.evaluation(DATA, make, 20, score.substring_match, ('\n',))
