"""Hostile inputs of every kind, a few of each; tests/fuzz.py takes more."""

import subprocess
import sys

import commands
import pytest


@pytest.mark.slow
def test_hostile_inputs_are_read_or_refused_in_one_line():
  done = subprocess.run(
    [sys.executable, 'tests/fuzz.py', '--seed=100000', '--count=260'],
    cwd=commands.ROOT, text=True, capture_output=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stdout + done.stderr[-2000:]
