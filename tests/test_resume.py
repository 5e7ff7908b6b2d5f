"""Interrupted and resumed: the same losses, bit for bit."""

import os
import signal
import subprocess
import sys

import commands

from configs import tiny
from longjax.train import loop, metrics

STEPS = 16


def config_of():
  config = tiny.get_config()
  config.train.steps = STEPS
  config.checkpoint.every_steps = 5
  return config


def hexes(workdir):
  return [(x['step'], x['loss_hex']) for x in metrics.read(workdir)]


def interrupted(workdir, at):
  """Starts training and asks it to end once step `at` is done."""
  process = subprocess.Popen(
    [sys.executable, 'launch/tpu.py', '--config=configs/tiny.py',
     f'--config.train.steps={STEPS}', '--config.checkpoint.every_steps=5',
     f'--workdir={workdir}'],
    cwd=commands.ROOT, env=os.environ, stdout=subprocess.PIPE, text=True,
  )  # fmt: skip
  for line in process.stdout:
    if line.startswith(f'step {at}/'):
      process.send_signal(signal.SIGTERM)
  return process.wait(timeout=300)


def test_a_run_interrupted_and_resumed_has_the_same_losses(tmp_path, capsys):
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  assert loop.main(config_of(), whole) == 0
  assert interrupted(parts, 7) == 75
  assert 7 <= len(metrics.read(parts)) <= 9
  capsys.readouterr()
  assert loop.main(config_of(), parts) == 0
  assert 'resumed from step' in capsys.readouterr().out
  assert len(hexes(whole)) == STEPS
  assert hexes(parts) == hexes(whole)
  losses = [x['loss'] for x in metrics.read(whole)]
  assert losses[-1] < 0.85 * losses[0]
  report = (whole / 'REPORT.md').read_text()
  assert f'| position | recipe, untrained | recipe, {STEPS} steps |' in report
  assert (whole / 'plots' / 'loss_by_position.png').stat().st_size > 5000
  for name in ('config.json', 'code.json', 'REPORT.md', 'checkpoints', 'tb'):
    assert (whole / name).exists()
  other = config_of()
  other.model.rope.base = 1000.0
  line = commands.refused_here(lambda: loop.main(other, whole), capsys)
  assert 'config.model.rope.base 500000.0 (now 1000.0)' in line
