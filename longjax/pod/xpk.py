"""TPU7x: a workload on GKE, through XPK.

Cloud TPU gives TPU7x to GKE only. XPK builds an image of the tree and keeps
the workload alive: it starts it again after exit code 75 and what a killed
process leaves. https://github.com/AI-Hypercomputer/xpk, read at June 2026.
"""

import json
import shlex

from longjax.errors import InputError
from longjax.pod import request, tree
from longjax.pod.terminal import CommandFailed

IMAGE = 'python:3.12'
READY = ('RUNNING', 'RECONCILING')
LOST = ('ERROR', 'DEGRADED', 'STOPPING')


def state(terminal, pod, quiet=False) -> tuple[str, str]:
  """(state of the cluster, why it failed); ('', '') if there is none."""
  found = _describe(terminal, pod, quiet)
  return found.get('status', ''), found.get('statusMessage', '')


def create(terminal, pod):
  """Makes the cluster; returns when it is there."""
  tier = [f'--{pod.tier}']
  if pod.tier == 'reserved':
    tier = [f'--reservation={pod.reservation}']
  terminal.follow([
    'xpk', 'cluster', 'create', f'--cluster={cluster(pod)}', *_size(pod),
    *pod.place, *tier,
    f'--custom-cluster-arguments=--labels={request.LABEL}={pod.name}',
  ], check=True)  # fmt: skip


def delete(terminal, pod) -> bool:
  """Deletes the workload, and the cluster if it is the pod's own; False if
  there is no cluster."""
  found = _describe(terminal, pod)
  if not found:
    return False
  stop(terminal, pod)
  if found.get('resourceLabels', {}).get(request.LABEL) == pod.name:
    terminal.run([
      'xpk', 'cluster', 'delete', *_cluster(pod), '--force'
    ])  # fmt: skip
  return True


def push(terminal, pod, code):
  """Lays the tree out; XPK copies it into the image when the run starts."""
  if terminal.acts:
    tree.unpack(code)


def start(terminal, pod, code, restarts: int) -> None:
  """Starts the workload; GKE starts it again up to `restarts` times."""
  place = tree.unpacked(code)
  train = shlex.join(['python', 'launch/tpu.py', *pod.arguments])
  command = (
    'pip install -q uv && uv pip install -q --system -r requirements.txt '
    f'"jax[tpu]" gcsfs && exec {train}'
  )
  terminal.run([
    'xpk', 'workload', 'create', f'--workload={pod.name}', *_cluster(pod),
    *_size(pod), f'--base-docker-image={IMAGE}', f'--script-dir={place}',
    f'--max-restarts={restarts}', '--restart-on-exit-codes=1,75',
    f'--command={command}',
  ])  # fmt: skip


def stop(terminal, pod):
  """Deletes the workload."""
  terminal.run([
    'xpk', 'workload', 'delete', f'--workload={pod.name}', *_cluster(pod),
    '--force',
  ])  # fmt: skip


def wait(terminal, pod) -> int:
  """Until the workload has ended; 0 if it did its work."""
  return terminal.follow([
    'xpk', 'workload', 'list', *_cluster(pod),
    f'--wait-for-job-completion={pod.name}',
  ])  # fmt: skip


def listing(terminal, pod) -> str:
  """What XPK says of the workload."""
  return terminal.run([
    'xpk', 'workload', 'list', *_cluster(pod), f'--filter-by-job={pod.name}'
  ]).out  # fmt: skip


def logs(terminal, pod) -> int:
  """Follows the log of worker 0 of slice 0."""
  terminal.run([
    'gcloud', 'container', 'clusters', 'get-credentials', cluster(pod),
    *_location(pod),
  ])  # fmt: skip
  job = 'jobset.sigs.k8s.io'
  return terminal.follow([
    'kubectl', 'logs', '--follow', '--tail=100', '--all-containers',
    f'--selector={job}/jobset-name={pod.name},{job}/job-index=0,'
    'batch.kubernetes.io/job-completion-index=0',
  ])  # fmt: skip


def cluster(pod) -> str:
  """The cluster that was named, or the pod's own."""
  return pod.cluster or pod.name


def check(pod):
  """Refuses what GKE cannot do without."""
  if not pod.zone or not pod.project:
    raise InputError('TPU7x is there on GKE only: give --zone and --project')
  if pod.tier == 'reserved' and not pod.reservation:
    raise InputError('--reserved TPU7x needs the name: --reservation=NAME')


def _size(pod) -> list[str]:
  assert pod.slice
  kind = pod.slice.name.replace(':', '-')
  return [f'--tpu-type={kind}', f'--num-slices={pod.slice.slices}']


def _cluster(pod) -> list[str]:
  return [f'--cluster={cluster(pod)}', *pod.place]


def _location(pod) -> list[str]:
  region = pod.zone.rsplit('-', 1)[0]
  return [f'--location={region}', f'--project={pod.project}']


def _describe(terminal, pod, quiet=False) -> dict:
  argv = [
    'gcloud', 'container', 'clusters', 'describe', cluster(pod),
    *_location(pod), '--format=json',
  ]  # fmt: skip
  done = terminal.run(argv, check=False, quiet=quiet, seconds=300)
  if done.code and ('NOT_FOUND' in done.error or 'Not found' in done.error):
    return {}
  if done.code:
    raise CommandFailed(argv, done)
  return json.loads(done.out)
