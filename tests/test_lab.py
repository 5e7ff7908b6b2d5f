"""The laboratory: its command, its table, and all of it at a tiny size."""

import json
import sys

import numpy as np
import pytest

from configs.lab import base, extend
from launch import lab
from longjax.errors import InputError


def result(share):
  """As `lab.measure` gives it, everything alike."""
  tasks = {
    task: {str(n): share for n in lab.LENGTHS} for task in lab.miniature.TASKS
  }
  return dict(loss={'0-64': share}, **tasks)


def test_the_tables_have_the_mean_of_the_seeds_and_half_of_their_range():
  tables = lab.report(dict(base=[result(0.9), result(0.5)]))
  rows = [x for x in tables.splitlines() if x.startswith('| base')]
  cell = ' 0.70 +-0.20 |'
  assert rows == ['| base |' + cell, *['| base |' + cell * 5] * 3]
  assert '| base | 0.90 |\n' in lab.report(dict(base=[result(0.9)]))


def test_the_table_says_whether_the_base_retrieves_at_all():
  assert 'holds (least' in lab.report(dict(base=[result(1.0), result(0.96)]))
  assert 'DOES NOT HOLD' in lab.report(dict(base=[result(1.0), result(0.9)]))


def test_every_method_gets_as_many_tokens():
  shapes = [extend.get_config(m).train for m in extend.ROPES]
  assert len({t.steps * t.batch * t.seq_len for t in shapes}) == 1


@pytest.mark.parametrize(
  'flag', ['--methods=abf,alibi', '--methods=', '--seeds=0,-1', '--seeds=']
)
def test_what_it_cannot_do_is_refused_before_anything_is_made(
  monkeypatch, flag
):
  monkeypatch.setattr(sys, 'argv', ['lab.py', flag])
  with pytest.raises(InputError, match=flag[2:7]):
    lab.main()


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
  of_base, of_method = base.get_config, extend.get_config
  monkeypatch.setattr(lab.base, 'get_config', lambda: small(of_base()))
  monkeypatch.setattr(lab.extend, 'get_config', lambda m: small(of_method(m)))
  monkeypatch.setattr(lab, 'PLAYS', dict(path='longjax', include='run/*.py'))
  monkeypatch.setattr(lab, 'DOCUMENTS', 300)
  seeds, methods = [0, 1], ['joined', 'pose', 'fot']
  lab.compare(seeds, methods, tmp_path)
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
  lab.compare(seeds, methods, tmp_path)
