"""Running the commands of launch/ as a user does."""

import os
import pathlib
import subprocess
import sys

from longjax import cli

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
  return one_line(done.returncode, done.stderr)


def refused_here(answer, capsys) -> str:
  """The one line with which answer() is refused in this process."""
  return one_line(cli.exit_code_of(answer), capsys.readouterr().err)


def one_line(code, text) -> str:
  lines = text.strip().splitlines()
  assert (code, len(lines)) == (2, 1), text
  return lines[0]
