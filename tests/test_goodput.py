"""Where the time of a run went, by hand."""

import json

import pytest

from longjax.train import goodput


def test_the_time_of_two_starts_by_hand():
  """10 of 40 s of training were done again; 60 s passed between."""
  starts = [
    dict(began=1000.0, seconds=100.0, training=40.0, compiling=20.0),
    {
      'began': 1160.0, 'seconds': 50.0, 'training': 30.0, 'saving': 5.0,
      'lost to restarts': 10.0,
    },
  ]  # fmt: skip
  found = goodput.summary(starts)
  assert found['seconds'] == 210 and found['down'] == 60
  assert found['training'] == 60 and found['compiling'] == 20
  assert found['starting'] == 150 - 40 - 20 - 30 - 5
  assert found['goodput'] == pytest.approx(60 / 210)
  parts = [*goodput.KINDS, 'starting', 'down']
  assert sum(found[k] for k in parts) == pytest.approx(found['seconds'])


def test_a_clock_that_jumps_back_makes_no_negative_time():
  starts = [dict(began=1000.0, seconds=10.0), dict(began=3.0, seconds=10.0)]
  assert goodput.summary(starts)['down'] == 0
  assert goodput.summary([])['goodput'] == 0


def test_the_starts_of_a_run_are_kept_and_a_torn_file_begins_anew(tmp_path):
  for count in (1, 2):
    clock = goodput.Clock()
    clock.write()  # not before it is ours
    clock.attach(tmp_path)
    with clock.timed('compiling'):
      pass
    clock.add('training', 3.0)
    clock.add('lost to restarts', 1.0)
    clock.close()
    assert len(goodput.read(tmp_path)) == count
  assert goodput.summary(goodput.read(tmp_path))['training'] == 4
  (tmp_path / 'goodput.json').write_text(json.dumps([{}])[:2])
  assert goodput.read(tmp_path) == []
