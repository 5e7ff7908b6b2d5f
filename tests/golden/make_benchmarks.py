"""Makes benchmarks.json: prompts and scores of NoLiMa's and HELMET's own code.

  python tests/golden/make_benchmarks.py REPOSITORIES

REPOSITORIES holds clones of adobe-research/NoLiMa and princeton-nlp/HELMET,
each in a directory of its name after the slash. Their functions are read from
there and run; nothing of them is kept. Needs datasets and pytrec_eval. It
shares no code with longjax.
"""

import ast
import copy
import hashlib
import json
import logging
import math
import os
import pathlib
import random
import string
import tempfile
import types

import datasets
import numpy as np
import pytrec_eval
from originals import ROOT, names_of

HERE = pathlib.Path(__file__).parent
WORDS = ('river', 'stone', 'amber', 'lantern', 'quiet', 'harbour', 'seven')
NEEDLES = [
  dict(
    id='0401', needle='Then {CHAR} said that {1} was near {2}.',
    questions=dict(onehop='Who was in {1}?', twohop='Who knew {2}?'),
    character_set=['Ada', 'Ben', 'Cyd', 'Dan'],
    system_prompt='', tests=dict(T1=dict(input_args=['Ulm', 'a spire']),
                                 T2=dict(input_args=['Oslo', 'a fjord'])),
  ),
  dict(
    id='0402B', needle='The {1} was {2}.', questions=dict(only='What was {1}?'),
    task_template='{haystack}\nQ: {question}\nA:', system_prompt='',
    tests=dict(T=dict(input_args=['lamp', 'red'], gold_answers=['red', 'Red'])),
  ),
]  # fmt: skip
RANKINGS = (
  'ID3 > ID1 > ID2', ' [ID: 2] > [ID: 3] > [ID: 1]', '3>3>1', 'none', '9 > 1',
  'ID1, ID2 > ID3', '2',
)  # fmt: skip
LABELS = {'1': 0, '2': 3, '3': 1, '4': 2}


def text(rng, words: int) -> str:
  return ' '.join(rng.choice(WORDS) for _ in range(words))


def nolima() -> dict:
  """Snippets of a book by depth; the tests of a set and the names drawn."""
  rng = random.Random(0)
  book = '\n'.join(text(rng, rng.randint(3, 12)) for _ in range(200))
  place = names_of(
    'NoLiMa/data/book_haystack.py', 'BookHaystack', hashlib=hashlib, os=os
  ).BookHaystack
  with tempfile.NamedTemporaryFile('w', suffix='.txt') as file:
    file.write(book)
    file.flush()
    haystack = place(file.name)
  encode = lambda s: list(s.encode())
  decode = lambda ids: bytes(ids).decode()
  cases = []
  for depth in (0, 0.04, 0.52, 1):
    made = haystack.generate_w_needle_placement(
      'HERE it is.', None, encode, decode, 900, depth=depth
    )
    cases.append(dict(depth=depth, text=made['text']))
  # The loop of its command that makes the tests.
  tree = ast.parse((ROOT / 'NoLiMa/evaluation/run_tests.py').read_text())
  main = next(x for x in tree.body if isinstance(x, ast.If)).body
  constant = [x for x in tree.body if isinstance(x, ast.Assign)]
  loop = [x for x in main if isinstance(x, ast.For)][:1]
  scope = dict(needle_set=NEEDLES, tests=[], copy=copy.copy,
               args=types.SimpleNamespace(base_seed=42))  # fmt: skip
  tree.body = [*constant, *loop]
  exec(compile(tree, 'run_tests', 'exec'), scope)
  tests = []
  for test in scope['tests']:
    drawn = None
    if '{CHAR}' in test['needle']:  # as its evaluate() does
      np.random.seed(test['seed'] + 1)  # of the second book
      drawn = [str(np.random.choice(test['character_set'])) for _ in range(26)]
    tests.append([
      test['task_template'], test['needle'], test['retrieval_question'],
      drawn or test['gold_answers'],
    ])  # fmt: skip
  return dict(book=book, length=900, cases=cases, needles=NEEDLES, tests=tests)


def prompts_of(made, count) -> list[str]:
  return [made['prompt_template'].format(**made['data'][i])
          for i in range(count)]  # fmt: skip


def helmet() -> tuple[dict, dict]:
  """Prompts and scores of retrieval-augmented generation and re-ranking."""
  rng = random.Random(1)
  utils = names_of(
    'HELMET/utils.py', 'parse_rankings', 'calculate_retrieval_metrics',
    'normalize_answer', 'substring_exact_match_score',
    'drqa_metric_max_over_ground_truths', string=string,
    pytrec_eval=pytrec_eval,
  )  # fmt: skip
  loaders = names_of(
    'HELMET/data.py', 'load_qa', 'load_msmarco_rerank', 'drop_duplicates',
    load_dataset=datasets.load_dataset, copy=copy, math=math, random=random,
    hashlib=hashlib, logging=logging, **vars(utils),
  )  # fmt: skip

  def passage(i):
    return dict(id=str(i), title=text(rng, 2), text=text(rng, 9))

  def question(i):
    ctxs = [passage(j) for j in range(3)]
    return dict(id=f'q{i}', question=text(rng, 4) + '?', s_pop=10 ** (i % 5),
                answers=[text(rng, 1), text(rng, 2)], ctxs=ctxs)  # fmt: skip

  def query(i):
    ctxs = [passage(j) | dict(label=rng.randint(0, 3)) for j in range(4)]
    return dict(qid=f'q{i}', query=text(rng, 3), ctxs=ctxs)

  rag = dict(records=[question(i) for i in range(6)],
             demos=[question(i // 2) for i in range(12)])  # fmt: skip
  rank = dict(records=[query(i) for i in range(3)],
              demos=[query(i // 2) for i in range(6)])  # fmt: skip
  with tempfile.TemporaryDirectory() as directory:
    paths, lists = {}, [x[k] for x in (rag, rank) for k in ('records', 'demos')]
    for name, rows in zip('abcd', lists):
      paths[name] = f'{directory}/{name}.jsonl'
      pathlib.Path(paths[name]).write_text(
        ''.join(json.dumps(x) + '\n' for x in rows)
      )
    made = loaders.load_qa(
      'kilt_popqa_3', paths['a'], paths['b'], popularity_threshold=3, shots=2
    )
    rag['prompts'] = prompts_of(made, len(made['data']))
    made = loaders.load_msmarco_rerank(paths['c'], paths['d'], shots=2)
    rank['prompts'] = prompts_of(made, len(made['data']))
  outputs = ('Answer: the River.', 'a  river, stone', 'rivers', 'lantern')
  rag['scores'] = [
    [x, ['river', 'Amber Lantern'], float(
      utils.drqa_metric_max_over_ground_truths(
        utils.substring_exact_match_score, x, ['river', 'Amber Lantern']))]
    for x in outputs
  ]  # fmt: skip
  rank['scores'] = [
    [x, LABELS, utils.calculate_retrieval_metrics(
      {'q': utils.parse_rankings(x)}, {'q': LABELS}, [10])['NDCG@10']]
    for x in RANKINGS
  ]  # fmt: skip
  return rag, rank


rag, rank = helmet()
(HERE / 'benchmarks.json').write_text(
  json.dumps(dict(nolima=nolima(), helmet_rag=rag, helmet_rerank=rank)) + '\n'
)
