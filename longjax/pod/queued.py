"""v4, v5e, v5p and v6e: queued resources of Cloud TPU."""

from longjax.errors import InputError
from longjax.pod import request
from longjax.pod.hosts import GCLOUD

READY = ('ACTIVE',)
LOST = ('FAILED', 'SUSPENDED', 'PREEMPTED')  # SUSPENDING, DELETING pass


def state(terminal, pod, quiet=False) -> tuple[str, str]:
  """(state of the request, why it failed); ('', '') if there is none.

  Raises:
    InputError: it has another size than the slice of the pod.
  """
  found = _describe(terminal, pod, quiet)
  expected = request.accelerator(pod.slice) if pod.slice else []
  for node in _nodes(found):
    kind = node.get('acceleratorType', '').rsplit('/', 1)[-1]
    asked = [f'--accelerator-type={kind}']
    if kind and len(expected) == 1 and expected != asked:
      raise InputError(
        f'{pod.name} exists as {kind}, not as {pod.slice.name}; delete it with '
        'pod.py down, or give another --name'
      )
  about = found.get('state', {})
  reason = about.get('failedData', {}).get('error', {}).get('message', '')
  return about.get('state', ''), reason


def create(terminal, pod):
  """Requests the slice; returns when the request is in the queue."""
  node = [f'--node-id={pod.name}']
  if pod.slice.slices > 1:
    node = [f'--node-count={pod.slice.slices}', f'--node-prefix={pod.name}']
  tier = [] if pod.tier == 'on-demand' else [f'--{pod.tier}']
  account = pod.service_account
  account = [f'--service-account={account}'] if account else []
  image = pod.runtime or request.TYPES[pod.slice.generation][2]
  terminal.run([
    *GCLOUD, 'create', pod.name, *pod.place, *request.accelerator(pod.slice),
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
      f'the queued resource {pod.name} was not made by pod.py (no label '
      f'{request.LABEL}={pod.name}), so it is not deleted'
    )
  terminal.run([*GCLOUD, 'delete', pod.name, *pod.place, '--force', '--quiet'])
  return True


def _nodes(found: dict) -> list[dict]:
  specs = found.get('tpu', {}).get('nodeSpec', [])
  return [spec.get('node', {}) for spec in specs]


def _describe(terminal, pod, quiet=False) -> dict:
  argv = [*GCLOUD, 'describe', pod.name, *pod.place, '--format=json']
  return terminal.describe(argv, quiet)
