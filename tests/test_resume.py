"""Interrupted and resumed: the same losses, bit for bit.

In this process; that the command exits with 75 and resumes after SIGKILL,
test_survival.py shows.
"""

import os
import signal

import jobs
import pytest

from longjax.errors import InputError
from longjax.train import metrics

STEPS = 16


def test_a_run_interrupted_and_resumed_has_the_same_losses(
  tmp_path, monkeypatch
):
  data = jobs.make_data(tmp_path / 'data')
  whole, parts, lines = tmp_path / 'whole', tmp_path / 'parts', []

  def train(workdir, log, **changes):
    same = dict(train__steps=STEPS, checkpoint__every_steps=5)
    return jobs.train_here(monkeypatch, workdir, data, log, **same | changes)

  def stop_at_7(line):
    if line.startswith('step 7/'):
      os.kill(os.getpid(), signal.SIGTERM)

  assert train(whole, lines.append, eval__length=64) == 0
  assert train(parts, stop_at_7) == 75
  assert len(metrics.read(parts)) == 7
  assert train(parts, lines.append) == 0
  assert 'resumed from step 7' in lines
  assert len(jobs.hexes(whole)) == STEPS
  assert jobs.hexes(parts) == jobs.hexes(whole)
  losses = jobs.losses(whole)
  assert losses[-1] < 0.95 * losses[0]
  assert f'after {STEPS} steps' in (whole / 'REPORT.md').read_text()
  (plot,) = (whole / 'plots').glob('*.png')
  assert plot.stat().st_size > 5000
  for name in ('config.json', 'code.json', 'checkpoints', 'tb'):
    assert (whole / name).exists()
  with pytest.raises(InputError, match=r'rope.base 500000.0 \(now 1000.0\)'):
    train(whole, lines.append, model__rope__base=1000.0)
