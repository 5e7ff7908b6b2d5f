"""Interrupted and resumed: the same losses, bit for bit.

In this process; that the command exits with 75 and resumes after SIGKILL,
test_survival.py shows.
"""

import os
import signal

import jobs
import pytest

from configs import tiny
from longjax.errors import InputError
from longjax.train import loop, metrics

STEPS = 16


@pytest.fixture(autouse=True)
def compiled_once(tmp_path):
  with jobs.compilation_cache(tmp_path / 'compiled'):
    yield


def config(**changes):
  made = tiny.get_config()
  made.train.steps = STEPS
  made.checkpoint.every_steps = 5
  for key, value in changes.items():
    made.update_from_flattened_dict({key.replace('__', '.'): value})
  return made


def test_a_run_interrupted_and_resumed_has_the_same_losses(tmp_path):
  whole, parts, lines = tmp_path / 'whole', tmp_path / 'parts', []
  assert loop.main(config(), whole, lines.append) == 0

  def stop_at_7(line):
    if line.startswith('step 7/'):
      os.kill(os.getpid(), signal.SIGTERM)

  assert loop.main(config(eval__length=0), parts, stop_at_7) == 75
  assert len(metrics.read(parts)) == 7
  assert loop.main(config(eval__length=0), parts, lines.append) == 0
  assert 'resumed from step 7' in lines
  assert len(jobs.hexes(whole)) == STEPS
  assert jobs.hexes(parts) == jobs.hexes(whole)
  losses = jobs.losses(whole)
  assert losses[-1] < 0.85 * losses[0]
  assert f'after {STEPS} steps' in (whole / 'REPORT.md').read_text()
  assert (whole / 'plots' / 'loss_by_position.png').stat().st_size > 5000
  for name in ('config.json', 'code.json', 'checkpoints', 'tb'):
    assert (whole / name).exists()
  with pytest.raises(InputError, match=r'rope.base 500000.0 \(now 1000.0\)'):
    loop.main(config(model__rope__base=1000.0), whole, lines.append)
