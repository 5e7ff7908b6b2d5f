"""Interrupted and resumed: the same losses, bit for bit."""

import os
import pathlib
import signal
import subprocess
import sys

import commands

from longjax.train import metrics

ROOT = pathlib.Path(__file__).resolve().parents[1]
COMMAND = ['tpu.py', '--config=configs/tiny.py']


def hexes(workdir):
  return [(x['step'], x['loss_hex']) for x in metrics.read(workdir)]


def interrupted(workdir, at):
  """Starts training and asks it to end once step `at` is done."""
  process = subprocess.Popen(
    [sys.executable, 'launch/tpu.py', *COMMAND[1:], f'--workdir={workdir}'],
    cwd=ROOT, env=os.environ, stdout=subprocess.PIPE, text=True,
  )  # fmt: skip
  for line in process.stdout:
    if line.startswith(f'step {at}/'):
      process.send_signal(signal.SIGTERM)
  return process.wait(timeout=300)


def test_40_steps_interrupted_at_20_and_resumed_are_the_same_40(tmp_path):
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  done = commands.run(*COMMAND, f'--workdir={whole}')
  assert done.returncode == 0, done.stderr
  assert interrupted(parts, 20) == 75
  assert 20 <= len(metrics.read(parts)) <= 22
  done = commands.run(*COMMAND, f'--workdir={parts}')
  assert done.returncode == 0, done.stderr
  assert 'resumed from step 2' in done.stdout
  assert len(hexes(whole)) == 40
  assert hexes(parts) == hexes(whole)
  losses = [x['loss'] for x in metrics.read(whole)]
  assert losses[-1] < 0.6 * losses[0]
  report = (whole / 'REPORT.md').read_text()
  assert '| position | recipe, untrained | recipe, 40 steps |' in report
  assert (whole / 'plots' / 'loss_by_position.png').stat().st_size > 5000
  line = commands.refused(
    *COMMAND, f'--workdir={whole}', '--config.model.rope.base=1000.0'
  )
  assert 'config.model.rope.base 500000.0 (now 1000.0)' in line
  for name in ('config.json', 'code.json', 'REPORT.md', 'checkpoints', 'tb'):
    assert (whole / name).exists()
