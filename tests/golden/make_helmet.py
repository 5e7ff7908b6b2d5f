"""Makes helmet.json: prompts and scores of HELMET's own code on small inputs.

  python tests/golden/make_helmet.py REPOSITORIES

REPOSITORIES holds a clone of princeton-nlp/HELMET in the directory HELMET. Its
functions are read from there and run; nothing of them is kept. Needs datasets
and rouge-score. It shares no code with longjax.
"""

import collections
import copy
import hashlib
import json
import logging
import math
import pathlib
import random
import string
import tempfile

import datasets
from originals import names_of
from rouge_score import rouge_scorer

HERE = pathlib.Path(__file__).parent
WORDS = ('river', 'stones', 'amber', 'lantern', 'running', 'harbour', 'the')
SHOTS = 20  # of in-context learning
ANSWERS = (
  ' The stones.', '\nThe stones', 'Answer: amber river\nQuestion: stones?',
  ' A lantern was running by the rivers', '', ' B', 'b. Amber river, I think',
  ' A\nAnswer: B', ' C. the harbour', 'Summary: stones run\nAnswer: lantern',
  ' label: 3', ' 3.\nlabel: 2', 'the 2', ' 3 2', ' harboured lanterns amber',
)  # fmt: skip
RIGHT = ['stone', 'running lanterns, the rivers']
CHOICE = ['B', 'B. amber river']

# In one process, so that what is defined here is found.
for name in ('map', 'filter'):
  plain = getattr(datasets.Dataset, name)
  setattr(
    datasets.Dataset, name,
    lambda *args, plain=plain, num_proc=0, **more: plain(*args, **more),
  )  # fmt: skip


class Long:
  """A tokenizer to which each character is a thousand tokens."""

  def from_pretrained(self):
    return lambda text, **_: dict(input_ids=range(1000 * len(text)))


def text(rng, words: int) -> str:
  return ' '.join(rng.choice(WORDS) for _ in range(words))


def load(loaders, tables, name, *args):
  """What a loader gives whose data set has these tables."""
  parts = {k: datasets.Dataset.from_list(rows) for k, rows in tables.items()}
  given = lambda *_, **__: datasets.DatasetDict(parts)
  loader, real = getattr(loaders, name), datasets.load_dataset
  loader.__globals__['load_dataset'] = datasets.load_dataset = given
  made = loader(*args)
  datasets.load_dataset = real
  return made


def prompts(made) -> list:
  """(prompt, right answer or answers) of what a loader gives."""
  template = made['prompt_template']
  return [[template.format(**x), x['answer']] for x in made['data']]


def recall(loaders, rng) -> dict:
  """Of JSON key-value pairs and of RULER's needles."""
  uuid = lambda: f'{rng.getrandbits(64):016x}'
  rows = []
  for _ in range(5):
    pairs = [[uuid(), uuid()] for _ in range(6)]
    context = json.dumps(dict(pairs), indent=1)
    rows.append(dict(context=context, question=pairs[4][0], answer=pairs[4][1],
                     demos=pairs[:3], num_kvs=6))  # fmt: skip
  needles = [
    dict(context=text(rng, 9), query=text(rng, 1), type_needle_v='number',
         answer=['7', '8']) for _ in range(3)
  ]  # fmt: skip
  found = {}
  for name, records, loader, before, after in (
    ('json_kv', rows, 'load_json_kv', (), (2, 5)),
    ('niah_multikey_2', needles, 'load_ruler', ('niah_mk_2',), (3,)),
    ('niah_multivalue', needles, 'load_ruler', ('niah_mv',), (3,)),
  ):
    with tempfile.NamedTemporaryFile('w', suffix='.jsonl') as file:
      file.writelines(json.dumps(x) + '\n' for x in records)
      file.flush()
      loaders.load_ruler.__globals__['load_dataset'] = datasets.load_dataset
      made = getattr(loaders, loader)(*before, file.name, *after)
      found[name] = dict(records=records, prompts=prompts(made))
  return found


def in_context(loaders, rng) -> dict:
  """Of the five data sets, all texts different."""
  number = iter(range(10**6))

  def rows(count, labels, field, *others):
    return [
      {'text': f'{text(rng, 3)} {next(number)}', field: int(rng.random() ** 2
       * labels)} | dict.fromkeys(others, 0) for _ in range(count)
    ]  # fmt: skip

  coarse, fine = 'coarse_label', 'fine_label'
  cases = dict(
    trec_coarse=(coarse, dict(train=rows(60, 6, coarse),
                              test=rows(3, 6, coarse))),
    trec_fine=(fine, dict(train=rows(90, 50, fine), test=rows(3, 50, fine))),
    banking77=('label', dict(train=rows(90, 77, 'label'),
                             test=rows(9, 77, 'label'))),
    clinic150=('intent', dict(train=rows(90, 151, 'intent'),
                              validation=rows(9, 151, 'intent'))),
    nlu=('label', dict(train=rows(101, 68, 'label'))),
  )  # fmt: skip
  found = {}
  for name, (field, tables) in cases.items():
    kind = datasets.ClassLabel(names=[str(i) for i in range(160)])
    plain = datasets.Dataset.from_list
    datasets.Dataset.from_list = (
      lambda rows, kind=kind, field=field, plain=plain: plain(rows).cast_column(
        field, kind
      )
    )
    made = load(
      loaders, tables, 'load_icl', f'icl_{name}_{SHOTS}shot_balance', 5
    )
    datasets.Dataset.from_list = plain
    found[name] = dict(tables=tables, prompts=prompts(made))
  return found


def books(loaders, rng) -> dict:
  """Of InfiniteBench."""
  found = {}
  for split in ('longbook_qa_eng', 'longbook_choice_eng', 'longbook_sum_eng'):
    records = []
    for i in range(5):
      options = [f'{text(rng, 2)} {j}' for j in range(4)]
      choice = 'choice' in split
      answers = (
        [options[i % 4]] if choice else [f' {text(rng, 3)} ', text(rng, 2)]
      )
      records.append(
        dict(
          id=i,
          context=text(rng, 80),
          input=text(rng, 4) + '?',
          answer=answers,
          options=options if choice else [],
        )
      )
    name = split.replace('longbook', 'infbench') + '_9999999'
    made = load(loaders, {split: records}, 'load_infbench', name, 2, 5)
    loaders.choice = made['post_process'] if choice else loaders.choice
    found[split] = dict(records=records, prompts=prompts(made))
  return found


def stories(loaders, rng) -> dict:
  """Of NarrativeQA and Multi-LexSum; their examples are all alike, since which
  are drawn differs from run to run."""

  def row(story, asked, answers):
    return dict(document=dict(text=story), question=dict(text=asked),
                answers=[dict(text=x) for x in answers])  # fmt: skip

  example = row('', 'Who?', ['Ada', 'Ben'])
  test = [row(text(rng, (40, 5)[i == 1]), f'{text(rng, 3)}? {i}',
              [text(rng, 1), text(rng, 2)]) for i in range(4)]  # fmt: skip
  tables = dict(test=test, train=[example] * 3)
  made = load(loaders, tables, 'load_narrativeqa', 'qa_9999999', 2)
  narrative = dict(tables=tables, prompts=prompts(made))
  cases = [
    {'sources': [text(rng, 30), text(rng, 9)], 'summary/short': text(rng, 7)}
    for _ in range(3)
  ]
  example = {'sources': ['x'], 'summary/short': 'They settled.'}
  tables = dict(validation=cases, train=[example] * 3)
  made = load(loaders, tables, 'load_multi_lexsum', 'x_9999999', 2)
  lawsuits = dict(tables=tables, prompts=prompts(made))
  return dict(narrativeqa=narrative, multi_lexsum=lawsuits)


def scores(utils, loaders) -> dict:
  """What each answer gets, as completions are scored: after the cue."""
  whole = lambda cue, right: [
    loaders.default_post_process(dict(output=cue + x), dict(answer=right))[0]
    for x in ANSWERS
  ]
  after = lambda cue, marker, right: [
    utils.calculate_metrics(utils.parse_output(cue + x, marker), right)
    for x in ANSWERS
  ]
  choice = lambda x: loaders.choice(
    dict(output='Answer:' + x), dict(answer=CHOICE)
  )[0]
  rouge = [x['rougeL_f1'] for x in whole('Answer:', RIGHT)]
  lexsum = zip(
    (utils.calculate_metrics('Summary:' + x, RIGHT) for x in ANSWERS),
    after('Summary:', 'Summary:', RIGHT),
  )
  return dict(
    rouge=rouge,
    book=[x['rougeL_f1'] for x in whole('Summary:', RIGHT)],
    lexsum=[max(a['rougeL_f1'], b['rougeL_f1']) for a, b in lexsum],
    choice=[float(choice(x)['exact_match']) for x in ANSWERS],
    label=[float(x['exact_match']) for x in after('label:', 'label:', '3')],
    substring=[float(x['substring_exact_match'])
               for x in whole('Answer:', RIGHT)],
  )  # fmt: skip


rng = random.Random(2)
utils = names_of(
  'HELMET/utils.py', 'parse_output', 'calculate_metrics', 'normalize_answer',
  'f1_score', 'drqa_exact_match_score', 'substring_exact_match_score',
  'drqa_metric_max_over_ground_truths', string=string,
  Counter=collections.Counter, rouge_scorer=rouge_scorer,
)  # fmt: skip
loaders = names_of(
  'HELMET/data.py', 'load_json_kv', 'load_ruler', 'load_icl', 'load_infbench',
  'load_narrativeqa', 'load_multi_lexsum', 'filter_length', 'truncate_llama2',
  'default_post_process', datasets=datasets, copy=copy, math=math,
  random=random, hashlib=hashlib, logging=logging, AutoTokenizer=Long,
  load_dataset=None, **vars(utils),
)  # fmt: skip
loaders.choice = None  # how an answer to a choice is scored
found = dict(
  recall=recall(loaders, rng), icl=in_context(loaders, rng),
  books=books(loaders, rng), **stories(loaders, rng),
  answers=dict(texts=ANSWERS, right=RIGHT, choice=CHOICE),
  scores=scores(utils, loaders),
)  # fmt: skip
(HERE / 'helmet.json').write_text(json.dumps(found) + '\n')
