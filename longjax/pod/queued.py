"""v4, v5e, v5p and v6e: queued resources of Cloud TPU."""

from longjax.errors import InputError
from longjax.pod import request
from longjax.pod.remote_shell import QUEUED

READY = ('ACTIVE',)
TIERS = {
  'spot': ['--spot'],
  'reserved': ['--reserved'],
  'flex-start': ['--provisioning-model=flex-start'],
}
LOST = ('FAILED', 'SUSPENDED', 'PREEMPTED')  # SUSPENDING, DELETING pass


def state(terminal, pod, quiet=False) -> tuple[str, str]:
  """(state of the request, why it failed); ('', '') if there is none.

  Raises:
    InputError: it has another size than the slice of the pod.
  """
  found = _describe(terminal, pod, quiet)
  for node in _nodes(found):
    request.check_size(pod, node)
  about = found.get('state', {})
  reason = about.get('failedData', {}).get('error', {}).get('message', '')
  return about.get('state', ''), reason


def create(terminal, pod):
  """Requests the slice; returns when the request is in the queue."""
  node = [f'--node-id={pod.name}']
  if pod.slice.slices > 1:
    node = [f'--node-count={pod.slice.slices}', f'--node-prefix={pod.name}']
  # A reservation with a name is asked for by its name alone.
  tier = [] if pod.reservation else TIERS.get(pod.tier, [])
  base = [*QUEUED]
  if pod.tier == 'flex-start' or request.flags(pod, *request.ALPHA):
    base.insert(1, 'alpha')
  image = pod.runtime or request.IMAGES[pod.slice.generation]
  terminal.run([
    *base, 'create', pod.name, *pod.place, *request.accelerator(pod.slice),
    f'--runtime-version={image}', *node, *tier,
    *request.flags(pod, *request.PASSED),
    f'--labels={request.LABEL}={pod.name}', *pod.gcloud_flag, '--async',
    '--quiet',
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
  terminal.run([
    *QUEUED, 'delete', pod.name, *pod.place, '--force', '--quiet',
  ])  # fmt: skip
  return True


def _nodes(found: dict) -> list[dict]:
  specs = found.get('tpu', {}).get('nodeSpec', [])
  return [spec.get('node', {}) for spec in specs]


def _describe(terminal, pod, quiet=False) -> dict:
  return terminal.read_json([*QUEUED, 'describe', pod.name, *pod.place], quiet)
