"""Runs a line of shell on the hosts of a pod, and copies a file to them.

  a request, --tpu   one command of gcloud for all hosts
  --mig              gcloud compute ssh to each instance of the group
  --hosts            plain ssh to each

Also the state of hosts that exist; `queued` and `xpk` have that of requests.
"""

from collections.abc import Callable
from typing import NamedTuple

from longjax.errors import InputError
from longjax.pod import request
from longjax.pod.commands import CommandFailed, Result

QUEUED = ['gcloud', 'compute', 'tpus', 'queued-resources']
READY = ('READY', 'RUNNING', 'given')
SSH = ['-o', 'BatchMode=yes', '-o', 'ConnectTimeout=30']
SSH_FAILED = 'return code [255]'  # in gcloud's message when ssh itself failed
SECONDS = 1800  # an install is the longest
PORT = 8476  # of the coordinator of --hosts


class Connection(NamedTuple):
  """To one host, or by one command of gcloud to all."""

  base: list[str]  # of gcloud, [] is plain ssh
  target: str
  flags: list[str]

  def shell(self, line: str) -> list[str]:
    if not self.base:
      return ['ssh', *SSH, self.target, line]
    words = [*self.base, 'ssh', self.target, *self.flags, '--quiet']
    return [*words, f'--command={line}']

  def copy(self, file: str) -> list[str]:
    if not self.base:
      return ['scp', '-q', *SSH, file, f'{self.target}:']
    words = [*self.base, 'scp', file, f'{self.target}:', *self.flags]
    return [*words, '--quiet']


def shell(
  terminal, pod, line: str | Callable[[int], str], worker='all', **options
) -> Result:
  """Runs a line on hosts; options are those of Terminal.run.

  Args:
    line: a line, or the line of each process where `multiprocess(pod)`.
    worker: the number of one, SLICE.NUMBER where slices are several, or all.
    **options: of Terminal.run.
  """
  of = line if callable(line) else lambda process: line
  seconds = None if options.get('follow') else SECONDS
  found = connections(terminal, pod, worker)
  commands = [host.shell(of(i)) for i, host in found]
  return terminal.run_all(commands, **(dict(seconds=seconds) | options))


def copy(terminal, pod, file: str):
  """Copies a file to the home of all hosts."""
  commands = [x.copy(file) for _, x in connections(terminal, pod, 'all')]
  terminal.run_all(commands, seconds=SECONDS)


def connections(terminal, pod, worker) -> list[tuple[int, Connection]]:
  """[(process number, connection)] of the hosts that `worker` names."""
  tunnel = request.flags(pod, 'tunnel_through_iap')
  if pod.internal_ips and not tunnel:
    tunnel = ['--internal-ip']
  if not (pod.mig or pod.hosts):
    node, _, number = worker.rpartition('.')
    at = [f'--worker={number}']
    if pod.tpu:  # the tunnel of tpu-vm is in the alpha track only
      track = ['alpha'] if pod.tunnel_through_iap else []
      base, name = ['gcloud', *track, 'compute', 'tpus', 'tpu-vm'], pod.tpu
    else:
      base, name = QUEUED, pod.name
      at = [f'--node={node or ("all" if worker == "all" else 0)}', *at]
    return [(0, Connection(base, name, [*pod.place, *at, *tunnel]))]
  if pod.hosts:
    found = [Connection([], host, []) for host in pod.hosts]
  else:
    project = request.flags(pod, 'project')
    found = [
      Connection(['gcloud', 'compute'], name,
                 [*project, f'--zone={zone}', *tunnel])
      for name, zone, _ in instances(terminal, pod)
    ]  # fmt: skip
  numbered = list(enumerate(found))
  if worker == 'all':
    return numbered
  if int(worker) >= len(found):
    raise InputError(f'--worker {worker}: there are {len(found)} hosts, from 0')
  return [numbered[int(worker)]]


def multiprocess(pod) -> bool:
  """Whether we number the processes; on Cloud TPU and in a MIG jax does."""
  return len(pod.hosts) > 1


def environment(pod, process: int) -> list[str]:
  """KEY=VALUE of one process; what --env sets comes last."""
  if not multiprocess(pod):
    return [*pod.env]
  first = pod.hosts[0].rpartition('@')[2]
  ours = dict(COORDINATOR=f'{first}:{PORT}', PROCESSES=len(pod.hosts))
  ours |= dict(PROCESS=process)
  return [*(f'LONGJAX_{k}={v}' for k, v in ours.items()), *pod.env]


def instances(terminal, pod, quiet=True) -> list[tuple[str, str, str]]:
  """[(name, zone, status)] of a managed instance group, by name."""
  group = ['gcloud', 'compute', 'instance-groups', 'managed']
  argv = [*group, 'list-instances', pod.mig, *pod.place]
  found = []
  for one in terminal.read_json(argv, quiet):
    *_, zone, _, name = one['instance'].split('/')
    found.append((name, zone, one.get('instanceStatus', '')))
  if not found:
    raise InputError(f'the managed instance group {pod.mig} has no instances')
  return sorted(found)


def state(terminal, pod, quiet=False) -> tuple[str, str]:
  """(state of hosts that exist, '')."""
  if pod.hosts:
    return 'given', ''
  if pod.mig:
    states = {status for *_, status in instances(terminal, pod, quiet)}
    return ', '.join(sorted(states)), ''
  argv = ['gcloud', 'compute', 'tpus', 'tpu-vm', 'describe', pod.tpu]
  node = terminal.read_json([*argv, *pod.place], quiet)
  if not node:
    raise InputError(f'there is no TPU node {pod.tpu} in this zone and project')
  request.check_size(pod, node)
  return node.get('state', ''), ''


def unreached(error: CommandFailed) -> bool:
  """Whether ssh itself failed, of at least one host."""
  return error.result.code == 255 or SSH_FAILED in error.result.error
