"""Other programs, run with lists of arguments; each command is shown.

A `Rehearsal` only shows them, and answers as if all went well: what
--dry-run prints is what the same code does.
"""

import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
from typing import NamedTuple

from longjax.errors import InputError

WHERE = dict(
  gcloud='https://cloud.google.com/sdk/docs/install',
  xpk='pip install xpk (https://github.com/AI-Hypercomputer/xpk)',
  kubectl='gcloud components install kubectl gke-gcloud-auth-plugin',
  git='https://git-scm.com',
)


class Done(NamedTuple):
  """How a command ended."""

  code: int
  out: str = ''
  error: str = ''


class CommandFailed(Exception):
  """A command of another program failed; the message is what it says of it."""

  def __init__(self, argv, done: Done):
    said = _reason(done.error if done.error.strip() else done.out)
    said = said or f'exit code {done.code}'
    super().__init__(f'{" ".join(argv[:5])}: {said}')
    self.done = done
    self.workers: list[dict] = []  # what was heard before, for queued


def _reason(text: str) -> str:
  """The first error and the two lines behind it; without one, the last line.

  gcloud says behind the error which of its settings is missing.
  """
  lines = [x.strip() for x in text.splitlines() if x.strip()]
  at = next((i for i, x in enumerate(lines) if 'ERROR' in x), None)
  if at is None:
    return ''.join(lines[-1:])
  more = itertools.takewhile(
    lambda x: not x.startswith('- ') and 'ERROR' not in x,
    lines[at + 1 : at + 3],
  )
  return ' '.join([lines[at], *more])


def line(argv) -> str:
  """As one would type it; shlex.split gives argv again."""
  words = []
  for word in argv:
    flag, equals, value = word.partition('=')
    plain = equals and re.fullmatch('--[a-z-]+', flag)
    words.append(f'{flag}={shlex.quote(value)}' if plain else shlex.quote(word))
  return ' '.join(words)


class Terminal:
  """Runs commands, and says each on stderr."""

  acts = True

  def show(self, argv, quiet=False):
    if not shutil.which(argv[0]):
      raise InputError(f'{argv[0]} is not installed; see {WHERE[argv[0]]}')
    if not quiet:
      print('+', line(argv), file=sys.stderr, flush=True)

  def run(self, argv, check=True, quiet=False, seconds=None) -> Done:
    """Runs to the end.

    Args:
      argv: list of arguments; no shell sees them.
      check: raise CommandFailed unless the exit code is 0.
      quiet: do not show the command.
      seconds: time it may take; then it counts as failed.
    """
    self.show(argv, quiet)
    try:
      done = subprocess.run(
        argv, capture_output=True, text=True, errors='replace', check=False,
        timeout=seconds, stdin=subprocess.DEVNULL,
      )  # fmt: skip
      done = Done(done.returncode, done.stdout, done.stderr)
    except subprocess.TimeoutExpired:
      done = Done(124, '', f'no answer in {seconds} s')
    if check and done.code:
      raise CommandFailed(argv, done)
    return done

  def follow(self, argv, check=False) -> int:
    """Runs with its output on this terminal; the exit code."""
    self.show(argv)
    code = subprocess.run(argv, check=False).returncode
    if check and code:
      raise CommandFailed(argv, Done(code))
    return code


class Rehearsal:
  """Prints the commands on stdout, runs none."""

  acts = False

  def __init__(self, exists: bool, label: str):
    """exists: whether the slice is there at the start."""
    self.exists, self.label, self.trains = exists, label, False

  def run(self, argv, check=True, quiet=False, seconds=None) -> Done:
    print(line(argv))
    self.exists |= 'create' in argv
    self.trains |= ' start ' in argv[-1]
    if 'describe' in argv:
      return self.described()
    if argv[-1].endswith('worker.sh status'):
      now = 'exited code=0' if self.trains else 'idle'
      return Done(0, f'longjax worker=0 state={now}')
    return Done(0)

  def described(self) -> Done:
    """What gcloud says of a queued resource, and of a cluster."""
    if not self.exists:
      return Done(1, error='NOT_FOUND')
    labels = dict(longjax=self.label)
    found = dict(
      state=dict(state='ACTIVE'),
      tpu=dict(nodeSpec=[dict(node=dict(labels=labels))]),
      status='RUNNING',
      resourceLabels=labels,
    )
    return Done(0, json.dumps(found))

  def follow(self, argv, check=False) -> int:
    return self.run(argv).code
