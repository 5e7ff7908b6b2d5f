"""The verbs of launch/pod.py; each may be repeated without harm."""

import functools
import json

from longjax.errors import InputError
from longjax.pod import hosts, queued, remote_shell, xpk
from longjax.pod import supervise as supervising
from longjax.pod.commands import CommandFailed
from longjax.pod.request import on_gke

POLL_SECONDS = 60


def cloud(pod):
  """The module that makes and deletes the slice."""
  return xpk if on_gke(pod) else queued


def up(terminal, pod) -> int:
  """Requests the slice unless it is there, and waits until it is ready."""
  provider, before = cloud(pod), None
  while True:
    state, reason = provider.state(terminal, pod, quiet=before is not None)
    if state != before:
      terminal.log(_state_line(pod, state, reason))
    if state in provider.READY:
      return 0
    if state in provider.LOST:
      terminal.log('delete it with pod.py down, then pod.py up')
      return 1
    if not state:
      if before is not None:
        terminal.log(f'{pod.name} has been deleted by somebody else')
        return 1
      provider.create(terminal, pod)
    before = state
    terminal.sleep(POLL_SECONDS if state else 0)


def push(terminal, pod, code) -> int:
  """Copies the tree to all hosts and installs what it needs."""
  (xpk if on_gke(pod) else hosts).push(terminal, pod, code)
  terminal.log(f'{pod.name}: has commit {code.commit[:12]}, tree {code.id}')
  return 0


def run(terminal, pod, code, retries: int, restart: bool) -> int:
  """Starts training; with `restart`, stops what runs there first."""
  if restart:
    (xpk if on_gke(pod) else hosts).stop(terminal, pod)
  if on_gke(pod):
    xpk.start(terminal, pod, code, retries)
    return 0
  try:
    workers = hosts.start(terminal, pod)
  except CommandFailed as error:
    for worker in error.workers:
      terminal.log(hosts.describe(worker))
    terminal.log('other workers did not answer; pod.py run again starts them')
    raise
  if workers and all(x['state'] == 'running' for x in workers):
    raise InputError(
      f'{pod.name} trains already (pid {workers[0]["pid"]} on '
      f'{workers[0]["worker"]}); --restart stops that first; follow it with '
      'pod.py logs'
    )
  more = '; pod.py supervise restarts it if it fails'
  if pod.uses_existing_hosts:
    more = ''
  terminal.log(f'{pod.name}: training; follow it with pod.py logs{more}')
  return 0


def stop(terminal, pod) -> int:
  """Training saves a checkpoint and ends; the slice stays."""
  if on_gke(pod):
    xpk.stop(terminal, pod)
  else:
    terminal.log('\n'.join(map(hosts.describe, hosts.stop(terminal, pod))))
  return 0


def logs(terminal, pod, worker: str) -> int:
  """Follows a host until ctrl-C; after a failure, the end of every log.

  Args:
    worker: the number of a host, all, or '' for the first.
  """
  follow = xpk.follow_log if on_gke(pod) else hosts.follow_log
  if not worker and not on_gke(pod):
    workers = hosts.status(terminal, pod)
    if any(x['state'] == 'lost' or x['code'] for x in workers):
      terminal.log(hosts.log_ends(terminal, pod))
      return 1
  return follow(terminal, pod, worker or '0')


def status(terminal, pod) -> int:
  """The slice, the hosts, the last step."""
  provider = remote_shell if pod.uses_existing_hosts else cloud(pod)
  state, reason = provider.state(terminal, pod)
  terminal.log(_state_line(pod, state, reason))
  if state in provider.READY:
    if on_gke(pod):
      terminal.log(xpk.listing(terminal, pod))
    else:
      terminal.log(_worker_lines(terminal, pod))
  if pod.workdir:
    terminal.log(step_line(last_step(terminal, pod)))
  else:
    terminal.log('--workdir adds the last step')
  return 0


def down(terminal, pod) -> int:
  """Deletes what `up` made."""
  deleted = cloud(pod).delete(terminal, pod)
  terminal.log(f'{pod.name}: {"deleted" if deleted else "nothing to delete"}')
  return 0


def supervise(terminal, pod, code, retries: int) -> int:
  """up, push and run, repeated until training ends; on GKE, XPK repeats."""
  if not on_gke(pod):
    step = functools.partial(last_step, terminal, pod)
    return supervising.supervise(terminal, pod, code, retries, step)
  if failed := up(terminal, pod):
    return failed
  push(terminal, pod, code)
  run(terminal, pod, code, retries, restart=False)
  if problem := xpk.wait(terminal, pod):
    terminal.log(f'{pod.name}: {problem}')
  return 1 if problem else 0


def _state_line(pod, state: str, reason: str) -> str:
  return f'{pod.name}: {state or "not there"}{reason and f": {reason}"}'


def _worker_lines(terminal, pod) -> str:
  """A line for each host, and one if some did not answer."""
  missing = []
  try:
    workers = hosts.status(terminal, pod)
  except hosts.NotPushed as error:
    workers, missing = [], [str(error)]
  except CommandFailed as error:
    workers, missing = error.workers, [f'others do not answer: {error}']
  return '\n'.join([*map(hosts.describe, workers), *missing])


def last_step(terminal, pod) -> dict:
  """The last line of metrics.jsonl; {} if there is none."""
  if not pod.workdir:
    return {}
  if pod.bucket:
    file = f'{pod.workdir.rstrip("/")}/metrics.jsonl'
    argv = ['gcloud', 'storage', 'cat', '--range=-4096', file]
    text = terminal.run(argv, check=False, seconds=120).out
  else:
    text = hosts.last_metrics(terminal, pod)
  for line in reversed(text.splitlines()):
    try:
      return json.loads(line)
    except ValueError:  # cut short, by the range or by a crash
      continue
  return {}


def step_line(metrics: dict) -> str:
  """`step 120  loss 2.1130  42,600 tokens/s  mfu 47.1%`."""
  if not metrics.get('step'):
    return 'no step yet'
  line = (
    f'step {metrics["step"]}  loss {metrics["loss"]:.4f}  '
    f'{metrics["tokens_per_second"]:,.0f} tokens/s'
  )
  mfu = metrics.get('mfu')
  return line if mfu is None else f'{line}  mfu {mfu:.1%}'
