"""TPU7x: a workload on GKE, through XPK.

Cloud TPU gives TPU7x to GKE only. XPK builds an image of the tree and keeps
the workload alive: GKE restarts it after exit code 75 and after a killed
process. https://github.com/AI-Hypercomputer/xpk, read at June 2026.
"""

import shlex

from longjax.errors import InputError
from longjax.pod import request, tree

IMAGE = 'python:3.12'
READY = ('RUNNING', 'RECONCILING')
LOST = ('ERROR', 'DEGRADED', 'STOPPING')


def check(pod):
  """Refuses a pod without what GKE needs."""
  if not pod.zone or not pod.project:
    raise InputError('TPU7x is on GKE only: give --zone and --project')
  if pod.tier == 'reserved' and not pod.reservation:
    raise InputError('--reserved TPU7x needs --reservation=NAME')


def state(terminal, pod, quiet=False) -> tuple[str, str]:
  """(state of the cluster, why it failed); ('', '') if there is none."""
  found = _describe(terminal, pod, quiet)
  return found.get('status', ''), found.get('statusMessage', '')


def create(terminal, pod):
  """Creates the cluster; returns when it is there."""
  tier = f'--{pod.tier}'
  if pod.tier == 'reserved':
    tier = f'--reservation={pod.reservation}'
  terminal.run([
    'xpk', 'cluster', 'create', f'--cluster={cluster(pod)}', *_size(pod),
    *pod.place, tier,
    f'--custom-cluster-arguments=--labels={request.LABEL}={pod.name}',
  ], follow=True)  # fmt: skip


def delete(terminal, pod) -> bool:
  """Deletes the workload, and the cluster if pod.py made it.

  Returns:
    False if there is no cluster.
  """
  found = _describe(terminal, pod)
  if not found:
    return False
  stop(terminal, pod)
  if found.get('resourceLabels', {}).get(request.LABEL) == pod.name:
    terminal.run(['xpk', 'cluster', 'delete', *_cluster(pod), '--force'])
  return True


def push(terminal, pod, code):
  """Unpacks the tree; XPK copies it into the image when the run starts."""
  if not terminal.dry:
    tree.unpack(code)


def start(terminal, pod, code, restarts: int):
  """Starts the workload; GKE restarts it up to `restarts` times."""
  place = tree.unpacked(code)
  if not terminal.dry and not place.exists():
    raise InputError('this tree was not pushed yet: pod.py push')
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
  argv = ['xpk', 'workload', 'delete', f'--workload={pod.name}']
  terminal.run([*argv, *_cluster(pod), '--force'])


def wait(terminal, pod) -> int:
  """Waits until the workload has ended; 0 if it completed."""
  argv = ['xpk', 'workload', 'list', *_cluster(pod)]
  argv += [f'--wait-for-job-completion={pod.name}']
  return terminal.run(argv, check=False, follow=True).code


def listing(terminal, pod) -> str:
  """XPK's line on the workload."""
  argv = ['xpk', 'workload', 'list', *_cluster(pod)]
  return terminal.run([*argv, f'--filter-by-job={pod.name}']).out.rstrip()


def follow_log(terminal, pod) -> int:
  """Follows the log of host 0 of slice 0."""
  argv = ['gcloud', 'container', 'clusters', 'get-credentials', cluster(pod)]
  terminal.run([*argv, *_location(pod)])
  job = 'jobset.sigs.k8s.io'
  return terminal.run([
    'kubectl', 'logs', '--follow', '--tail=100', '--all-containers',
    f'--selector={job}/jobset-name={pod.name},{job}/job-index=0,'
    'batch.kubernetes.io/job-completion-index=0',
  ], check=False, follow=True).code  # fmt: skip


def cluster(pod) -> str:
  """The cluster of --cluster, or the pod's own."""
  return pod.cluster or pod.name


def _size(pod) -> list[str]:
  kind = pod.slice.name.replace(':', '-')
  return [f'--tpu-type={kind}', f'--num-slices={pod.slice.slices}']


def _cluster(pod) -> list[str]:
  return [f'--cluster={cluster(pod)}', *pod.place]


def _location(pod) -> list[str]:
  region = pod.zone.rsplit('-', 1)[0]
  return [f'--location={region}', f'--project={pod.project}']


def _describe(terminal, pod, quiet=False) -> dict:
  argv = ['gcloud', 'container', 'clusters', 'describe', cluster(pod)]
  argv += [*_location(pod), '--format=json']
  return terminal.describe(argv, quiet)
