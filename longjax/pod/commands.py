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
from concurrent import futures
from typing import NamedTuple

from longjax.errors import InputError

AT_ONCE = 64  # connections, as gcloud has
INSTALL = dict(
  ssh='https://www.openssh.com',
  scp='https://www.openssh.com',
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
    """Runs a command to its end; it reads no terminal.

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
      capture_output=True, text=True, errors='replace', input='n\n',
    )  # fmt: skip
    try:
      done = subprocess.run(argv, check=False, timeout=seconds, **capture)
      result = Result(done.returncode, done.stdout or '', done.stderr or '')
    except subprocess.TimeoutExpired:
      result = Result(124, '', f'no answer in {seconds} s')
    if check and result.code:
      raise CommandFailed(argv, result)
    return result

  def run_all(self, commands, check=True, **options) -> Result:
    """Runs commands at the same time; their outputs, the first failure."""
    if len(commands) == 1:
      return self.run(commands[0], check=check, **options)
    run = lambda argv: self.run(argv, check=False, **options)
    with futures.ThreadPoolExecutor(1 if self.dry else AT_ONCE) as pool:
      results = list(pool.map(run, commands))
    out, error = (''.join(text) for text in zip(*(r[1:] for r in results)))
    code, argv = next(
      ((r.code, c) for r, c in zip(results, commands) if r.code), (0, [])
    )
    if check and code:
      raise CommandFailed(argv, Result(code, out, error))
    return Result(code, out, error)

  def read_json(self, argv, quiet=False):
    """What a command with --format=json prints; {} if there is no such."""
    argv = [*argv, '--format=json']
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
    self.exists, self.trains = exists, False
    labels = dict(longjax=name)
    spec = [dict(node=dict(labels=labels))]
    self.answers = {  # to read_json, by words of the command
      'queued-resources': dict(
        state=dict(state='ACTIVE'), tpu=dict(nodeSpec=spec)
      ),
      'clusters': [
        dict(status='RUNNING', resourceLabels=labels, location='REGION')
      ],
      'tpu-vm': dict(state='READY'),
      'list-instances': [
        dict(
          instance=f'zones/ZONE/instances/HOST-{i}', instanceStatus='RUNNING'
        )
        for i in (0, 1)
      ],
    }

  def _comment(self, text):
    for line in text.splitlines():
      print(f'# {line}')

  def run(self, argv, **_) -> Result:
    print(shell_line(argv))
    self.exists |= 'create' in argv
    self.trains |= ' start ' in argv[-1]
    if argv[-1] == '--format=json':
      answer = next(a for word, a in self.answers.items() if word in argv)
      empty = Result(0, '[]') if 'list' in argv else Result(1, '', 'NOT_FOUND')
      return Result(0, json.dumps(answer)) if self.exists else empty
    if argv[-1].endswith('worker.sh status'):
      state = 'exited code=0' if self.trains else 'idle'
      return Result(0, f'longjax worker=0 state={state}\n')
    return Result(0)
