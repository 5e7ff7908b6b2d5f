"""The laboratory: its tasks, its command, its table, and all of it at a tiny
size."""

import json
import math
import sys

import jobs
import numpy as np
import pytest

from configs.lab import base, extend
from launch import lab as command
from longjax.errors import InputError
from longjax.lab import compare as lab
from longjax.lab import miniature

PROSE = np.frombuffer(b'Now is the winter of our discontent. ' * 50, np.uint8)
SIZES = (miniature.MIN_TOKENS, 64, 251)


def taken_apart(tokens, mask):
  """(text, its entries by key, keys asked, answers)."""
  first = int(np.argmax(mask)) - 1
  text, asked = tokens[:first], tokens[first:]
  entries = text[text >= miniature.ENTRY]
  by_key = {(e - miniature.ENTRY) // miniature.VALUES: e for e in entries}
  assert len(by_key) == len(entries)  # keys are distinct
  return text, by_key, asked[::2] - miniature.QUESTION, asked[1::2]


@pytest.mark.parametrize('asked', (0, miniature.QUESTIONS))
@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('task', miniature.TASKS)
def test_the_answer_is_the_entry_of_the_key_that_is_asked(
  rng, task, size, asked
):
  for _ in range(20):
    tokens, mask = miniature.build(rng, task, PROSE, size, asked)
    _, entries, keys, answers = taken_apart(tokens, mask)
    assert len(tokens) == len(mask) == size
    assert answers.tolist() == [entries[key] for key in keys]
    assert mask.sum() == len(answers) and (tokens[mask > 0] == answers).all()
    assert min(keys) >= 0 and max(keys) < miniature.KEYS
    assert tokens.max() < 384  # ids of the byte tokenizer


def test_the_configs_name_the_tasks_that_there_are():
  assert base.TASKS == miniature.TASKS


def test_tasks_have_the_entries_and_questions_that_they_say(rng):
  counts = {}
  for task in miniature.TASKS:
    made = miniature.build(rng, task, PROSE, 200, miniature.QUESTIONS)
    text, entries, keys, answers = taken_apart(*made)
    counts[task] = len(entries), len(keys)
  assert counts == dict(look_up=(32, 4), passkey=(1, 1), first=(32, 1))
  assert text[0] == answers[0]  # of 'first'


@pytest.mark.parametrize('task', miniature.TASKS)
def test_a_document_to_train_on_has_its_length_and_answers(rng, task):
  for _ in range(50):
    tokens, mask = miniature.document(rng, task, PROSE, 64)
    assert len(tokens) == len(mask) == 64
    assert mask.any() and (tokens[mask > 0] >= miniature.ENTRY).all()


def test_an_answer_is_found_with_more_than_half_of_the_probability():
  def nll(batch):
    """Sure of entries with even ids, nearly sure of the others."""
    answer = batch.targets >= miniature.ENTRY
    even = answer & (batch.targets % 2 == 0)
    return np.where(even, math.log(2) - 0.01, math.log(2) + 0.01)

  share = miniature.accuracy(nll, 'look_up', PROSE, 64)
  assert share == pytest.approx(0.5, abs=0.1)  # of 256 answers
  assert miniature.accuracy(lambda b: 0 * b.weights, 'passkey', PROSE, 64) == 1
  assert miniature.accuracy(lambda b: b.weights, 'first', PROSE, 64) == 0


def result(share):
  """As `lab.measure` gives it, everything alike."""
  tasks = {
    task: {str(n): share for n in lab.LENGTHS} for task in lab.miniature.TASKS
  }
  return dict(loss={'0-64': share}, **tasks)


def test_the_tables_have_the_mean_of_the_seeds_and_half_of_their_range():
  tables = lab.report(dict(base=[result(0.9), result(0.5)]), 64)
  rows = [x for x in tables.splitlines() if x.startswith('| base')]
  cell = ' 0.70 +-0.20 |'
  assert rows == ['| base |' + cell, *['| base |' + cell * 5] * 3]
  assert '| base | 0.90 |\n' in lab.report(dict(base=[result(0.9)]), 64)


def test_the_table_says_whether_the_base_retrieves_at_all():
  assert ': passed' in lab.premise([result(1.0), result(0.96)], 64)
  assert ': FAILED' in lab.premise([result(1.0), result(0.9)], 64)


def test_every_method_gets_as_many_tokens():
  totals = set()
  for method in extend.ROPES:
    steps = [m for m in extend.chain(method) if m in extend.ROPES]
    shapes = [extend.get_config(m).train for m in steps]
    totals.add(sum(t.steps * t.batch * t.seq_len for t in shapes))
  totals.remove(50 * 4096)  # smollm3_128, the first of two steps
  assert totals == {100 * 4096}


def test_a_method_comes_after_what_it_starts_from():
  assert extend.chain('abf') == ('abf',)
  assert extend.chain('smollm3') == ('rnope', 'smollm3_128', 'smollm3')
  assert {extend.chain(m)[0] for m in extend.ROPES} <= {*command.METHODS}


@pytest.mark.parametrize(
  'flag', ['--methods=abf,alibi', '--methods=', '--seeds=0,-1', '--seeds=']
)
def test_what_it_cannot_do_is_refused_before_anything_is_made(
  monkeypatch, flag
):
  monkeypatch.setattr(sys, 'argv', ['lab.py', flag])
  with pytest.raises(InputError, match=flag[2:7]):
    command.main()


def test_a_run_that_was_trained_otherwise_is_not_taken_for_this_one(tmp_path):
  config = extend.get_config('abf')
  (tmp_path / 'config.json').write_text(json.dumps(config.to_dict()))
  lab.refuse_other(config, tmp_path)
  config.eval.batch += 1
  lab.refuse_other(config, tmp_path)
  config.optim.learning_rate *= 2
  with pytest.raises(InputError, match=r'another optim.learning_rate: remove'):
    lab.refuse_other(config, tmp_path)


@pytest.mark.slow
def test_the_laboratory_runs_whole(tmp_path, monkeypatch, make_mesh):
  def small(config):
    config.train.steps = 2
    config.optim.warmup_steps = 1
    return config

  monkeypatch.setattr(lab.sharding, 'make_mesh', make_mesh)  # of eight devices
  monkeypatch.setattr(lab, 'DOCUMENTS', 300)
  seeds, methods = [0, 1], ['fot']
  recipes = {m: lambda m=m: small(extend.get_config(m)) for m in methods}
  plays = dict(path='longjax', include='train/*.py')
  here = lab.Laboratory(
    lambda: small(base.get_config()), recipes, plays, base.WINDOW, extend.TARGET
  )
  with jobs.compilation_cache(tmp_path / 'compiled'):
    lab.compare(here, seeds, tmp_path)
  results = json.loads((tmp_path / 'results.json').read_text())
  assert [*results] == ['base', *methods]
  assert all(len(runs) == len(seeds) for runs in results.values())
  for runs in results.values():
    for run in runs:
      assert np.isfinite([*run['loss'].values()]).all()
      assert [*run['look_up']] == ['64', '128', '256', '512', '1024']
  assert (tmp_path / 'table.md').read_text().count('| fot |') == 4
  assert (tmp_path / 'lab.png').stat().st_size > 10_000

  def never(*_, **__):
    raise AssertionError('trained again')

  monkeypatch.setattr('longjax.train.loop.main', never)
  lab.compare(here, seeds, tmp_path)
