"""v4, v5e, v5p and v6e: queued resources of Cloud TPU, reached by ssh.

On each worker the run has a directory longjax/NAME below the home of the user:
trees by their digest, `code` that leads to the newest, and the files that
worker.sh keeps. gcloud refuses or forwards what is in lists of arguments; what
a remote shell will read is quoted word by word.
"""

import json
import re
import shlex

from longjax.errors import InputError
from longjax.pod import request, tree
from longjax.pod.terminal import CommandFailed

GCLOUD = ['gcloud', 'compute', 'tpus', 'queued-resources']
EVERYWHERE = ['--node=all', '--worker=all']
FIRST = ['--node=0', '--worker=0']
READY = ('ACTIVE',)
LOST = ('FAILED', 'SUSPENDED', 'PREEMPTED')  # SUSPENDING, DELETING pass
UNREACHED = 'return code [255]'  # what gcloud says when ssh itself failed
SSH_SECONDS = 1800  # an install is the longest


def state(terminal, pod, quiet=False) -> tuple[str, str]:
  """(state of the request, why it failed); ('', '') if there is none.

  Raises:
    InputError: it is of another size than the slice of the pod.
  """
  found = _describe(terminal, pod, quiet)
  _check_size(found, pod)
  about = found.get('state', {})
  failed = about.get('failedData', {}).get('error', {}).get('message', '')
  return about.get('state', ''), failed


def create(terminal, pod):
  """Asks for the slice; returns when the request is in the queue."""
  assert pod.slice
  node = [f'--node-id={pod.name}']
  if pod.slice.slices > 1:
    node = [f'--node-count={pod.slice.slices}', f'--node-prefix={pod.name}']
  tier = [] if pod.tier == 'on-demand' else [f'--{pod.tier}']
  account = pod.service_account
  account = [f'--service-account={account}'] if account else []
  image = pod.runtime or request.TYPES[pod.slice.generation][2]
  terminal.run([
    *GCLOUD, 'create', pod.name, *pod.place, *request.hardware(pod.slice),
    f'--runtime-version={image}', *node, *tier, *account,
    f'--labels={request.LABEL}={pod.name}', '--async', '--quiet',
  ])  # fmt: skip


def delete(terminal, pod) -> bool:
  """Deletes request and slice; False if there is none.

  Raises:
    InputError: it was not made by this command.
  """
  found = _describe(terminal, pod)
  if not found:
    return False
  labels = [node.get('labels', {}) for node in _nodes(found)]
  if not labels or any(x.get(request.LABEL) != pod.name for x in labels):
    raise InputError(
      f'the queued resource {pod.name} was not made by pod.py, which deletes '
      'only what it made'
    )
  terminal.run([*GCLOUD, 'delete', pod.name, *pod.place, '--force', '--quiet'])
  return True


def push(terminal, pod, code):
  """Copies the tree to all workers and installs what it needs."""
  home = f'longjax/{pod.name}/{code.id}'
  archive = tree.archive(code)
  if terminal.acts:
    tree.pack(code)
  terminal.run([
    *GCLOUD, 'scp', str(archive), f'{pod.name}:', *pod.place, *EVERYWHERE,
    '--quiet',
  ], seconds=SSH_SECONDS)  # fmt: skip
  ssh(
    terminal, pod,
    f'mkdir -p {home} && tar -xzf {archive.name} -C {home} && '
    f'bash {home}/longjax/pod/worker.sh install',
  )  # fmt: skip


def start(terminal, pod) -> list[dict]:
  """Starts training on all workers; on those that train already, nothing."""
  return _worker(terminal, pod, 'start', pod.bucket, *pod.arguments)


def stop(terminal, pod):
  """SIGTERM on all workers: a checkpoint, then the end."""
  _worker(terminal, pod, 'stop')


def workers(terminal, pod, quiet=False) -> list[dict]:
  """What each worker says: dict(worker, state, code, said, pid)."""
  return _worker(terminal, pod, 'status', quiet=quiet, seconds=120)


def logs(terminal, pod) -> int:
  """Follows the log of worker 0; the exit code of ssh."""
  command = f'tail -n 100 -F longjax/{pod.name}/log'
  return terminal.follow(_ssh(pod, command, FIRST))


def last_words(terminal, pod, lines=20) -> str:
  """The end of the log of every worker."""
  return ssh(
    terminal, pod,
    f'tail -v -n {lines} longjax/{pod.name}/log', check=False, seconds=120,
  ).out  # fmt: skip


def ssh(terminal, pod, command, **how):
  """Runs a line of shell on all workers."""
  how = dict(seconds=SSH_SECONDS) | how
  return terminal.run(_ssh(pod, command, EVERYWHERE), **how)


def _ssh(pod, command, where) -> list[str]:
  return [
    *GCLOUD, 'ssh', pod.name, *pod.place, *where, '--quiet',
    f'--command={command}',
  ]  # fmt: skip


def _worker(terminal, pod, *words, **how) -> list[dict]:
  """worker.sh on all workers, and what it said there. A CommandFailed has in
  `workers` what those said that could be reached."""
  script = f'longjax/{pod.name}/code/longjax/pod/worker.sh'
  try:
    done = ssh(terminal, pod, f'bash {script} {shlex.join(words)}', **how)
  except CommandFailed as error:
    error.workers = read(error.done.out)
    missing = f'{script}: No such file' in error.done.error
    if missing and not error.workers and UNREACHED not in error.done.error:
      raise NotPushed('the workers have no code yet: pod.py push') from None
    raise
  return read(done.out)


class NotPushed(InputError):
  """The workers have no code yet."""


def read(text: str) -> list[dict]:
  """The lines of worker.sh among those of ssh."""
  found = []
  for line in text.splitlines():
    if match := re.search(r'longjax worker=(\S+) state=(\w+)(.*)', line):
      worker, is_in, rest = match.groups()
      one = dict(worker=worker, state=is_in, code=None, pid=None, said='')
      rest, _, one['said'] = rest.partition(' said=')
      for key, value in re.findall(r'(code|pid)=(\d+)', rest):
        one[key] = int(value)
      found.append(one)
  return found


def _check_size(found: dict, pod):
  for node in _nodes(found) if pod.slice else ():
    kind = node.get('acceleratorType', '').rsplit('/', 1)[-1]
    asked = request.hardware(pod.slice)
    if kind and len(asked) == 1 and asked != [f'--accelerator-type={kind}']:
      raise InputError(
        f'{pod.name} is there, but as {kind}, not {pod.slice.name}; pod.py '
        'down deletes it, --name makes another'
      )


def _nodes(found: dict) -> list[dict]:
  specs = found.get('tpu', {}).get('nodeSpec', [])
  return [spec.get('node', {}) for spec in specs]


def _describe(terminal, pod, quiet=False) -> dict:
  done = terminal.run(
    [*GCLOUD, 'describe', pod.name, *pod.place, '--format=json'],
    check=False, quiet=quiet, seconds=300,
  )  # fmt: skip
  if done.code and 'NOT_FOUND' in done.error:
    return {}
  if done.code:
    raise CommandFailed([*GCLOUD, 'describe'], done)
  return json.loads(done.out)
