"""Running the commands of launch/ as a user does."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]


def run(script, *arguments, timeout=300, **environment):
  """The finished process of `python launch/SCRIPT ARGUMENTS`."""
  return subprocess.run(
    [sys.executable, f'launch/{script}', *map(str, arguments)],
    cwd=ROOT, env=os.environ | environment, timeout=timeout,
    capture_output=True, text=True, check=False,
  )  # fmt: skip


def refused(script, *arguments, **environment) -> str:
  """The one line with which the command refuses: exit code 2."""
  done = run(script, *arguments, **environment)
  lines = done.stderr.strip().splitlines()
  assert done.returncode == 2, done.stderr
  assert len(lines) == 1, done.stderr
  return lines[0]
