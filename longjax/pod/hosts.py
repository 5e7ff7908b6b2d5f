"""worker.sh on every host of a slice, by ssh.

On each host a run has a directory longjax/NAME below the user's home: trees by
digest, `code` that links to the newest, and the files that worker.sh keeps.
What a remote shell reads is quoted word by word.
"""

import re
import shlex

from longjax.errors import InputError
from longjax.pod import tree
from longjax.pod.commands import CommandFailed

GCLOUD = ['gcloud', 'compute', 'tpus', 'queued-resources']
ALL = ['--node=all', '--worker=all']
FIRST = ['--node=0', '--worker=0']
SSH_FAILED = 'return code [255]'  # in gcloud's message when ssh itself failed
SSH_SECONDS = 1800  # an install is the longest


class NotPushed(InputError):
  """The hosts have no code yet."""


def push(terminal, pod, code):
  """Copies the tree to all hosts and installs what it needs."""
  home = f'longjax/{pod.name}/{code.id}'
  archive = tree.archive(code)
  if not terminal.dry:
    tree.pack(code)
  terminal.run([
    *GCLOUD, 'scp', str(archive), f'{pod.name}:', *pod.place, *ALL, '--quiet',
  ], seconds=SSH_SECONDS)  # fmt: skip
  ssh(
    terminal, pod,
    f'mkdir -p {home} && tar -xzf {archive.name} -C {home} && '
    f'bash {home}/longjax/pod/worker.sh install',
  )  # fmt: skip


def start(terminal, pod) -> list[dict]:
  """Starts training on all hosts; a host that trains already is left alone."""
  return _worker(terminal, pod, 'start', pod.bucket, *pod.arguments)


def stop(terminal, pod):
  """SIGTERM on all hosts: training saves a checkpoint and ends."""
  _worker(terminal, pod, 'stop')


def status(terminal, pod, quiet=False) -> list[dict]:
  """dict(worker, state, code, said, pid) of each host, see `parse`."""
  return _worker(terminal, pod, 'status', quiet=quiet, seconds=120)


def follow_log(terminal, pod) -> int:
  """Follows the log of host 0; the exit code of ssh."""
  command = f'tail -n 100 -F longjax/{pod.name}/log'
  done = ssh(terminal, pod, command, FIRST, check=False, follow=True)
  return done.code


def log_ends(terminal, pod) -> str:
  """The last 20 lines of the log of every host."""
  command = f'tail -v -n 20 longjax/{pod.name}/log'
  return ssh(terminal, pod, command, check=False, seconds=120).out.rstrip()


def ssh(terminal, pod, command, where=ALL, **options):
  """Runs a line of shell on hosts; options are those of Terminal.run."""
  seconds = None if options.get('follow') else SSH_SECONDS
  argv = [*GCLOUD, 'ssh', pod.name, *pod.place, *where, '--quiet']
  options = dict(seconds=seconds) | options
  return terminal.run([*argv, f'--command={command}'], **options)


def _worker(terminal, pod, *words, **options) -> list[dict]:
  """Runs worker.sh on all hosts; the states that it printed.

  Raises:
    CommandFailed: its `workers` are the states of the hosts that answered.
    NotPushed: no host has the script.
  """
  script = f'longjax/{pod.name}/code/longjax/pod/worker.sh'
  command = f'bash {script} {shlex.join(words)}'
  try:
    return parse(ssh(terminal, pod, command, **options).out)
  except CommandFailed as error:
    error.workers = parse(error.result.out)
    message = error.result.error
    missing = f'{script}: No such file' in message
    if missing and not error.workers and SSH_FAILED not in message:
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
