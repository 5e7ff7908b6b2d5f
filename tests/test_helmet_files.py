"""HELMET's tasks from published files, beside what its own code gives.

golden/make_helmet.py made prompts and scores with that code.
"""

import json
import sys

import pytest
from commands import ROOT
from eval_cases import TOKENS, results_of, spec, write

from configs import common
from longjax import evals
from longjax.errors import InputError
from longjax.evals import (
  draws,
  helmet_icl,
  helmet_longqa,
  helmet_narrativeqa,
  helmet_prompts,
  helmet_recall,
  helmet_summ,
  labelled,
  multi_lexsum,
  score,
)

GOLDEN = json.loads((ROOT / 'tests/golden/helmet.json').read_text())
BOOKS = dict(
  longbook_qa_eng=helmet_longqa.TASKS['infbench_qa'],
  longbook_choice_eng=helmet_longqa.TASKS['infbench_choice'],
  longbook_sum_eng=helmet_summ.TASKS['infbench_sum'],
)


def asked(task, here) -> list:
  """[prompt, right answers] of a task, as HELMET's code gives them."""
  data, make, rows = task.stream.args
  made = [make(record, here) for record in rows(data, here)]
  return [(p.text + p.prefix, p.references) for p in made]


def same(made, wanted):
  right = lambda x: (x,) if isinstance(x, str) else tuple(x)
  assert made == [(text, right(answers)) for text, answers in wanted]


@pytest.mark.parametrize('name', GOLDEN['recall'])
def test_recall(tmp_path, name):
  told, task = GOLDEN['recall'][name], helmet_recall.TASKS[name]
  split = 'json_kv/test_k105_dep6' if name == 'json_kv' else \
    f'ruler/{name}/validation_8192'  # fmt: skip
  write(tmp_path / f'{split}.jsonl', told['records'])
  here = spec(task, 16_000, helmet_recall=tmp_path)
  same(asked(task, here), told['prompts'])
  with pytest.raises(InputError, match='8K or more'):
    next(task.stream(here._replace(length=8000)))
  with pytest.raises(InputError, match=r'has no .*(16384|k220)'):
    next(task.stream(here._replace(length=17_000)))


@pytest.mark.parametrize('name, of', [
  ('trec_coarse', helmet_icl.COARSE), ('trec_fine', helmet_icl.FINE),
  ('banking77', helmet_icl.BANKS), ('clinic150', helmet_icl.INTENTS),
  ('nlu', helmet_icl.NLU_LABELS),
])  # fmt: skip
def test_in_context_learning(tmp_path, name, of):
  told, task = GOLDEN['icl'][name], helmet_icl.TASKS[name]
  for split, rows in told['tables'].items():
    write(tmp_path / f'{split}.jsonl', rows)
  here = spec(task, **{of.data.name: tmp_path})
  drawn = labelled.rows(of, 5, of.data, here)
  made = [helmet_icl.make(of, (20,) * 5, record, here) for record in drawn]
  same([(p.text + p.prefix, p.references) for p in made], told['prompts'])


@pytest.mark.parametrize('split', BOOKS)
def test_books_of_infinitebench(tmp_path, split):
  told, task = GOLDEN['books'][split], BOOKS[split]
  write(tmp_path / f'{split}.jsonl', told['records'])
  here = spec(task, infbench=tmp_path)
  same(asked(task, here), told['prompts'])
  # A book that is too long ends with the mark, and the prompt fills the length.
  text = told['prompts'][0][0]
  short = spec(task, len(text) + task.count - 100, infbench=tmp_path)
  cut, _ = asked(task, short)[0]
  assert len(cut) == len(text) - 100
  before, after = cut.split(helmet_prompts.MARK)
  assert text.startswith(before) and text.endswith(after)


def test_narrativeqa(tmp_path, monkeypatch):
  told, task = GOLDEN['narrativeqa'], helmet_longqa.TASKS['narrativeqa']
  for split, rows in told['tables'].items():
    write(tmp_path / f'{split}-00000-of-00001.jsonl', rows)
  # There a character is a thousand tokens, here one; all examples are alike.
  monkeypatch.setattr(helmet_narrativeqa, 'LONG', 131)
  monkeypatch.setattr(draws, 'shots', lambda xs, key, record: xs[:2])
  here = spec(task, narrativeqa=tmp_path)
  same(asked(task, here), told['prompts'])


def test_multi_lexsum(tmp_path, monkeypatch):
  """In the files of the release, where documents lie in one of their own."""
  told, task = GOLDEN['multi_lexsum'], helmet_summ.TASKS['multi_lexsum']
  sources = {}
  for split, rows in told['tables'].items():
    cases = []
    for number, row in enumerate(rows):
      names = [f'{split}{number}.{i}' for i in range(len(row['sources']))]
      texts = [dict(doc_text=text) for text in row['sources']]
      sources |= dict(zip(names, texts))
      cases.append(row | dict(case_id=str(number), case_documents=names))
    name = dict(validation='dev').get(split, split)
    none = {'case_id': 'none', 'summary/short': None, 'case_documents': []}
    write(tmp_path / f'{name}.json', [*cases, none])
  write(tmp_path / 'sources.json', [sources])
  monkeypatch.setattr(multi_lexsum, 'LONG', 66)
  here = spec(task, multi_lexsum=tmp_path)
  same(asked(task, here), told['prompts'])


@pytest.mark.parametrize('module', [helmet_narrativeqa, multi_lexsum])
def test_texts_long_enough_are_those_of_helmet_s_comparison(
  module, monkeypatch, tmp_path
):
  """data.py: NarrativeQA above LONG, Multi-LexSum from LONG, BOS included."""
  texts = ['a' * n for n in (97, 98, 99, 100)]
  monkeypatch.setattr(module, 'LONG', 100)
  monkeypatch.setattr(TOKENS, 'document_start', 256)
  if module is multi_lexsum:
    sources = {str(len(x)): dict(doc_text=x) for x in texts}
    cases = [{'case_id': name, 'summary/short': 's', 'case_documents': [name]}
             for name in sources]  # fmt: skip
    write(tmp_path / 'dev.json', cases)
    write(tmp_path / 'train.json', cases)
    write(tmp_path / 'sources.json', [sources])
    task, key, file = helmet_summ.TASKS['multi_lexsum'], 'context', module.DEV
  else:
    rest = dict(question=dict(text=''), answers=[dict(text='')])
    stories = [dict(document=dict(text=x)) | rest for x in texts]
    write(tmp_path / 'test-00000-of-00001.jsonl', stories)
    task, key = helmet_longqa.TASKS['narrativeqa'], 'story'
    file = module.TEST
  here = spec(task, **{file.name: tmp_path})
  found = sorted(len(row[key]) for row in module.rows(file, here))
  assert found == ([99, 100] if module is multi_lexsum else [100])


def test_a_run_and_its_note_on_the_judge(tmp_path):
  records = GOLDEN['books']['longbook_choice_eng']['records']
  write(tmp_path / 'longbook_choice_eng.jsonl', records)
  name = 'helmet_longqa/infbench_choice'
  evaluation, results = results_of(name, lambda _: ' B', infbench=tmp_path)
  (found,) = results['infbench_choice']
  assert (found['samples'], found['score']) == (5, 1 / 5)
  _, below = evaluation.text(dict(model=results), common.base().eval)
  assert 'a model that judges' in ' '.join(below)


def test_without_the_package_of_rouge_nothing_runs(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'rouge_score', None)
  score.stemming_scorer.cache_clear()
  setup = evals.Setup(common.base(), TOKENS, log=lambda line: None)
  with pytest.raises(InputError, match='pip install rouge-score'):
    evals.check(setup, ['helmet_longqa/narrativeqa'])
  with pytest.raises(InputError, match=r'files\.infbench to hf://datasets'):
    evals.check(setup, ['helmet_longqa/infbench_choice'])
