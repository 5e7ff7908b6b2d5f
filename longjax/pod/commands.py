"""Other programs, run with lists of arguments; each command is printed.

A `DryRun` only prints them and answers as if all had succeeded, so --dry-run
goes through the same code.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from typing import NamedTuple

from longjax.errors import InputError

INSTALL = dict(
  gcloud='https://cloud.google.com/sdk/docs/install',
  xpk='pip install xpk (https://github.com/AI-Hypercomputer/xpk)',
  kubectl='gcloud components install kubectl gke-gcloud-auth-plugin',
)


class Result(NamedTuple):
  """How a command ended."""

  code: int
  out: str = ''
  error: str = ''


class CommandFailed(Exception):
  """A command of another program failed; the message quotes its error."""

  def __init__(self, argv, result: Result):
    text = result.error if result.error.strip() else result.out
    reason = _reason(text) or f'exit code {result.code}'
    super().__init__(f'{" ".join(argv[:5])}: {reason}')
    self.result = result
    self.workers: list[dict] = []  # of hosts.py: those that answered


def _reason(text: str) -> str:
  """The first error and the two lines after it, where gcloud names the missing
  setting; without an error, the last line."""
  lines = [x.strip() for x in text.splitlines() if x.strip()]
  errors = (i for i, line in enumerate(lines) if 'ERROR' in line)
  first = next(errors, len(lines) - 1)
  return ' '.join(lines[max(first, 0) :][:3])


def shell_line(argv) -> str:
  """The command as one would type it; shlex.split gives argv again."""
  words = []
  for word in argv:
    flag, equals, value = word.partition('=')
    plain = equals and re.fullmatch('--[a-z-]+', flag)
    words.append(f'{flag}={shlex.quote(value)}' if plain else shlex.quote(word))
  return ' '.join(words)


class Terminal:
  """Runs commands; prints each on stderr.

  Attributes:
    dry: whether commands are only printed.
    log: called with a line for the user.
    sleep: called with seconds.
  """

  dry = False

  def __init__(self, log=print, sleep=time.sleep):
    self.log, self.sleep = log, sleep

  def run(
    self, argv, check=True, quiet=False, follow=False, seconds=None
  ) -> Result:
    """Runs a command to its end.

    Args:
      argv: list of arguments; no shell reads them.
      check: raise CommandFailed unless the exit code is 0.
      quiet: do not print the command.
      follow: its output goes to this terminal instead of the result.
      seconds: time limit; beyond it the command has failed.
    """
    if not shutil.which(argv[0]):
      raise InputError(f'{argv[0]} is not installed; see {INSTALL[argv[0]]}')
    if not quiet:
      print('+', shell_line(argv), file=sys.stderr, flush=True)
    capture: dict = {} if follow else dict(
      capture_output=True, text=True, errors='replace',
      stdin=subprocess.DEVNULL,
    )  # fmt: skip
    try:
      done = subprocess.run(argv, check=False, timeout=seconds, **capture)
      result = Result(done.returncode, done.stdout or '', done.stderr or '')
    except subprocess.TimeoutExpired:
      result = Result(124, '', f'no answer in {seconds} s')
    if check and result.code:
      raise CommandFailed(argv, result)
    return result

  def describe(self, argv, quiet=False) -> dict:
    """What `gcloud ... describe --format=json` prints; {} if there is none."""
    done = self.run(argv, check=False, quiet=quiet, seconds=300)
    if done.code and ('NOT_FOUND' in done.error or 'Not found' in done.error):
      return {}
    if done.code:
      raise CommandFailed(argv, done)
    return json.loads(done.out)


class DryRun(Terminal):
  """Prints commands on stdout and all else as comments; runs nothing."""

  dry = True

  def __init__(self, exists: bool, name: str):
    """exists: whether the slice of pod `name` is there at the start."""
    super().__init__(self._comment, lambda seconds: None)
    self.exists, self.name, self.trains = exists, name, False

  def _comment(self, text):
    for line in text.splitlines():
      print(f'# {line}')

  def run(self, argv, **_) -> Result:
    print(shell_line(argv))
    self.exists |= 'create' in argv
    self.trains |= ' start ' in argv[-1]
    if 'describe' in argv and not self.exists:
      return Result(1, error='NOT_FOUND')
    if 'describe' in argv:  # a queued resource, or a cluster of GKE
      labels = dict(longjax=self.name)
      nodes = [dict(node=dict(labels=labels))]
      queued = dict(state=dict(state='ACTIVE'), tpu=dict(nodeSpec=nodes))
      cluster = dict(status='RUNNING', resourceLabels=labels)
      return Result(0, json.dumps(queued | cluster))
    if argv[-1].endswith('worker.sh status'):
      state = 'exited code=0' if self.trains else 'idle'
      return Result(0, f'longjax worker=0 state={state}')
    return Result(0)
