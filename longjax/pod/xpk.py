"""TPU7x: a workload on GKE, through XPK 1.14 or later.

XPK builds an image of the tree and keeps the workload alive: GKE restarts it
after exit codes 75 and 1 and after a killed process.
https://github.com/AI-Hypercomputer/xpk; flags: package xpk 1.16.0.
"""

import shlex

from longjax.errors import InputError
from longjax.pod import request, tree

IMAGE = 'python:3.12'
READY = ('RUNNING', 'RECONCILING')
LOST = ('ERROR', 'DEGRADED', 'STOPPING')
GRACE = 300  # seconds to save a checkpoint; XPK's default is 30
TTL = 7 * 24 * 3600  # seconds until GKE forgets how a workload ended
NOT_COMPLETED, UNKNOWN = 125, 1  # exit codes of `xpk workload list --wait-...`


def check(pod):
  """Refuses a pod without what GKE needs, or with what it has not."""
  if not pod.zone or not pod.project:
    raise InputError('TPU7x is on GKE only: give --zone and --project')
  if pod.tier == 'reserved' and not pod.reservation:
    raise InputError('--reserved TPU7x needs --reservation=NAME')
  only = ('internal_ips', 'tunnel_through_iap', 'valid_until_duration',
          'max_run_duration', 'service_account', 'runtime')  # fmt: skip
  if given := request.flags(pod, *only):
    raise InputError(
      f'{given[0]} does not go with TPU7x, which XPK requests; flags of `xpk '
      'cluster create` are given as --gcloud-flag=--private'
    )


def state(terminal, pod, quiet=False) -> tuple[str, str]:
  """(state of the cluster, why it failed); ('', '') if there is none."""
  found = _describe(terminal, pod, quiet)
  return found.get('status', ''), found.get('statusMessage', '')


def create(terminal, pod):
  """Creates the cluster; returns when it is there."""
  tier = f'--{"flex" if pod.tier == "flex-start" else pod.tier}'
  if pod.reservation:
    tier = f'--reservation={pod.reservation}'
  # gcloud takes the last --labels, so XPK's own goes along.
  labels = f'--labels=gke_product_type=xpk,{request.LABEL}={pod.name}'
  more = ' '.join([labels, *request.flags(pod, 'network', 'subnetwork')])
  terminal.run([
    'xpk', 'cluster', 'create', f'--cluster={cluster(pod)}', *_size(pod),
    *pod.place, tier, f'--custom-cluster-arguments={more}', *pod.gcloud_flag,
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
  # exec: the signal that ends a pod goes to training, not to a shell.
  train = shlex.join(['python', 'launch/tpu.py', *pod.arguments])
  command = (
    'pip install -q uv && uv pip install -q --system -r requirements.txt '
    f'"jax[tpu]" gcsfs && exec {train}'
  )
  terminal.run([
    'xpk', 'workload', 'create', f'--workload={pod.name}', *_cluster(pod),
    *_size(pod), f'--base-docker-image={IMAGE}', f'--script-dir={place}',
    f'--max-restarts={restarts}', '--restart-on-exit-codes=1,75',
    '--no-use-parallel-containers', f'--ttl-seconds-after-finished={TTL}',
    f'--termination-grace-period-seconds={GRACE}',
    *(f'--env={word}' for word in pod.env), f'--command={command}',
  ])  # fmt: skip


def stop(terminal, pod):
  """Deletes the workload; training saves a checkpoint and ends."""
  argv = ['xpk', 'workload', 'delete', f'--workload={pod.name}']
  terminal.run([*argv, *_cluster(pod), '--force'])


def wait(terminal, pod) -> str:
  """Waits until the workload has ended; '' if completed, else what happened."""
  argv = ['xpk', 'workload', 'list', *_cluster(pod)]
  argv += [f'--wait-for-job-completion={pod.name}']
  code = terminal.run(argv, check=False, follow=True).code
  ends = {
    0: '',
    NOT_COMPLETED: 'training failed: pod.py logs',
    UNKNOWN: 'xpk found no such workload, or could not ask: see its lines',
  }
  return ends.get(code, f'xpk ended with code {code}; the workload may run on')


def listing(terminal, pod) -> str:
  """XPK's line on the workload."""
  argv = ['xpk', 'workload', 'list', *_cluster(pod)]
  return terminal.run([*argv, f'--filter-by-job={pod.name}']).out.rstrip()


def follow_log(terminal, pod, worker: str) -> int:
  """Follows the log of a host, [SLICE.]NUMBER, or of all."""
  where = _describe(terminal, pod).get('location', pod.zone.rsplit('-', 1)[0])
  terminal.run([
    'gcloud', 'container', 'clusters', 'get-credentials', cluster(pod),
    f'--location={where}', f'--project={pod.project}', '--dns-endpoint',
  ])  # fmt: skip
  job, (node, _, number) = 'jobset.sigs.k8s.io', worker.rpartition('.')
  which = ['--prefix', '--max-log-requests=1000']
  chosen = [f'{job}/jobset-name={pod.name}']
  if worker != 'all':
    which = []
    chosen += [f'{job}/job-index={node or 0}']
    chosen += [f'batch.kubernetes.io/job-completion-index={number}']
  return terminal.run([
    'kubectl', 'logs', '--follow', '--tail=100', '--all-containers', *which,
    f'--selector={",".join(chosen)}',
  ], check=False, follow=True).code  # fmt: skip


def cluster(pod) -> str:
  """The cluster of --cluster, or the pod's own."""
  return pod.cluster or pod.name


def _size(pod) -> list[str]:
  kind = pod.slice.name.replace(':', '-')
  return [f'--tpu-type={kind}', f'--num-slices={pod.slice.slices}']


def _cluster(pod) -> list[str]:
  return [f'--cluster={cluster(pod)}', *pod.place]


def _describe(terminal, pod, quiet=False) -> dict:
  """The cluster, regional or zonal; {} if there is none."""
  argv = ['gcloud', 'container', 'clusters', 'list']
  argv += [f'--filter=name={cluster(pod)}', f'--project={pod.project}']
  found = terminal.read_json(argv, quiet)
  return next(iter(found), {})
