"""worker.sh on every host of a slice: what it runs is given, by launch/pod.py.

On each host a run has a directory longjax/NAME below the user's home: trees by
digest, `code` that links to the newest, and the files that worker.sh keeps.
What a remote shell reads is quoted word by word.
"""

import re
import shlex

from longjax.errors import InputError
from longjax.pod import remote_shell, tree
from longjax.pod.commands import CommandFailed


class NotPushed(InputError):
  """The hosts have no code yet."""


def push(terminal, pod, code):
  """Copies the tree to all hosts and installs what it needs."""
  home = f'longjax/{pod.name}/{code.id}'
  archive = tree.archive(code)
  if not terminal.dry:
    tree.pack(code)
  remote_shell.copy(terminal, pod, str(archive))
  remote_shell.shell(
    terminal, pod,
    f'mkdir -p {home} && tar -xzf {archive.name} -C {home} && '
    f'bash {home}/longjax/pod/worker.sh install',
  )  # fmt: skip


def start(terminal, pod) -> list[dict]:
  """Starts training on all hosts; a host that trains already is left alone."""
  return _worker(terminal, pod, 'start', pod.bucket, *pod.arguments)


def stop(terminal, pod) -> list[dict]:
  """SIGTERM on all hosts: training saves a checkpoint and ends."""
  return _worker(terminal, pod, 'stop')


def status(terminal, pod, quiet=False) -> list[dict]:
  """dict(worker, state, code, said, pid) of each host, see `parse`."""
  return _worker(terminal, pod, 'status', quiet=quiet, seconds=120)


def follow_log(terminal, pod, worker: str) -> int:
  """Follows the log of a host, or of `all`; the exit code of ssh."""
  line = f'tail -n 100 -F longjax/{pod.name}/log'
  if worker == 'all':
    line += ' | sed -u "s/^/$(hostname): /"'
  done = remote_shell.shell(
    terminal, pod, line, worker, check=False, follow=True
  )
  return done.code


def log_ends(terminal, pod) -> str:
  """The last 20 lines of the log of every host."""
  command = f'tail -v -n 20 longjax/{pod.name}/log'
  done = remote_shell.shell(terminal, pod, command, check=False, seconds=120)
  return done.out.rstrip()


def last_metrics(terminal, pod) -> str:
  """The end of metrics.jsonl in a directory that the hosts share."""
  file = shlex.quote(f'{pod.workdir}/metrics.jsonl')
  line = f'tail -c 4096 {file}'
  return remote_shell.shell(
    terminal, pod, line, '0', check=False, seconds=120
  ).out


def _worker(terminal, pod, *words, **options) -> list[dict]:
  """Runs worker.sh on all hosts; the states that it printed.

  Raises:
    CommandFailed: its `workers` are the states of the hosts that answered.
    NotPushed: no host has the script.
  """
  script = f'longjax/{pod.name}/code/longjax/pod/worker.sh'

  def line(process):
    environment = (
      remote_shell.environment(pod, process) if 'start' in words[:1] else []
    )
    before = ['env', *environment] if environment else []
    return shlex.join([*before, 'bash', script, *words])

  try:
    return parse(remote_shell.shell(terminal, pod, line, **options).out)
  except CommandFailed as error:
    error.workers = parse(error.result.out)
    missing = f'{script}: No such file' in error.result.error
    if missing and not error.workers and not remote_shell.unreached(error):
      raise NotPushed('the workers have no code yet: pod.py push') from None
    raise


def parse(text: str) -> list[dict]:
  """The states in the output of worker.sh: `longjax worker=W state=S ...`."""
  workers = []
  for line in text.splitlines():
    if match := re.search(r'longjax worker=(\S+) state=(\w+)(.*)', line):
      worker, state, rest = match.groups()
      rest, _, said = rest.partition(' said=')
      numbers = {k: int(v) for k, v in re.findall(r'(code|pid)=(\d+)', rest)}
      one = dict(worker=worker, state=state, code=None, pid=None, said=said)
      workers.append(one | numbers)
  return workers


def describe(worker: dict) -> str:
  """`w0: exited, code 2, pid 7: the last line of its log`."""
  line = f'{worker["worker"]}: {worker["state"]}'
  for key in ('code', 'pid'):
    if worker[key] is not None:
      line += f', {key} {worker[key]}'
  return line + (worker['said'] and f': {worker["said"]}')
