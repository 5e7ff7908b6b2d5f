"""What launch/pod.py can do; each may be given again without harm."""

import functools
import json
import time

from longjax.errors import InputError
from longjax.pod import queued, tree, watch, xpk
from longjax.pod.terminal import CommandFailed

POLL_SECONDS = 60
GKE = 'tpu7x'


def on_gke(pod) -> bool:
  """Whether its TPU is given to GKE only."""
  return pod.slice is not None and pod.slice.generation == GKE


def cloud(pod):
  """The module that speaks for where the pod is."""
  return xpk if on_gke(pod) else queued


def up(terminal, pod, log=print, sleep=time.sleep) -> int:
  """Asks for the slice unless that was done, and waits until it is there."""
  where, before = cloud(pod), None
  while True:
    state, why = where.state(terminal, pod, quiet=before is not None)
    if state != before:
      log(f'{pod.name}: {state or "not there"}{why and f": {why}"}')
    if state in where.READY:
      return 0
    if state in where.LOST:
      log('pod.py down deletes it; then pod.py up')
      return 1
    if not state:
      if before is not None:
        log(f'{pod.name} has been deleted by somebody')
        return 1
      where.create(terminal, pod)
    before = state
    sleep(POLL_SECONDS if state else 0)


def push(terminal, pod, code, log=print) -> int:
  """Brings the tree and what it needs to all workers."""
  cloud(pod).push(terminal, pod, code)
  log(f'{pod.name}: has commit {code.commit[:12]}, tree {code.id}')
  return 0


def run(terminal, pod, code, retries, again, log=print) -> int:
  """Starts training; refuses where it runs, or with `again` ends it first."""
  if again:
    cloud(pod).stop(terminal, pod)
  if on_gke(pod):
    if terminal.acts and not tree.unpacked(code).exists():
      raise InputError('this tree was not pushed yet: pod.py push')
    xpk.start(terminal, pod, code, retries)
    return 0
  try:
    said = queued.start(terminal, pod)
  except CommandFailed as error:
    for line in map(describe, error.workers):
      log(line)
    log('the others did not answer; pod.py run again starts what does not run')
    raise
  if said and all(x['state'] == 'running' for x in said):
    raise InputError(
      f'{pod.name} trains already (pid {said[0]["pid"]} on '
      f'{said[0]["worker"]}); --restart ends that first, pod.py logs follows it'
    )
  log(f'{pod.name}: training; pod.py logs follows, pod.py supervise looks on')
  return 0


def logs(terminal, pod, log=print) -> int:
  """Follows worker 0 until ctrl-C; after a failure, the end of every log."""
  if not on_gke(pod):
    workers = queued.workers(terminal, pod)
    if any(x['state'] == 'lost' or x['code'] for x in workers):
      log(queued.last_words(terminal, pod).rstrip())
      return 1
  return cloud(pod).logs(terminal, pod)


def status(terminal, pod, log=print) -> int:
  """The slice, the workers, the last step."""
  state, why = cloud(pod).state(terminal, pod)
  log(f'{pod.name}: {state or "not there"}{why and f": {why}"}')
  if state in cloud(pod).READY:
    if on_gke(pod):
      log(xpk.listing(terminal, pod).rstrip())
    else:
      for line in look_at_workers(terminal, pod):
        log(line)
  if pod.workdir:
    log(progress(last_step(terminal, pod)))
  else:
    log('--workdir=gs://BUCKET/RUN has the last step said too')
  return 0


def down(terminal, pod, log=print) -> int:
  """Deletes what `up` made."""
  there = cloud(pod).delete(terminal, pod)
  log(f'{pod.name}: {"deleted" if there else "there is none"}')
  return 0


def supervise(terminal, pod, code, retries, log=print, sleep=time.sleep) -> int:
  """All of it, until training ends by itself; on GKE, XPK looks after it."""
  if not on_gke(pod):
    step = functools.partial(last_step, terminal, pod)
    return watch.watch(terminal, pod, code, retries, step, log, sleep)
  if failed := up(terminal, pod, log, sleep):
    return failed
  push(terminal, pod, code, log)
  run(terminal, pod, code, retries, again=False, log=log)
  return 1 if xpk.wait(terminal, pod) else 0


def look_at_workers(terminal, pod) -> list[str]:
  """A line for each worker, and one if some did not answer."""
  try:
    return [describe(x) for x in queued.workers(terminal, pod)]
  except queued.NotPushed as error:
    return [str(error)]
  except CommandFailed as error:
    return [*map(describe, error.workers), f'others do not answer: {error}']


def describe(worker: dict) -> str:
  """A worker's own words, for a person."""
  parts = [f'{worker["worker"]}: {worker["state"]}']
  if worker['code'] is not None:
    parts.append(f'code {worker["code"]}')
  if worker['pid'] is not None:
    parts.append(f'pid {worker["pid"]}')
  return ', '.join(parts) + (worker['said'] and f': {worker["said"]}')


def last_step(terminal, pod) -> dict:
  """The last line of metrics.jsonl; {} if there is none."""
  if not pod.workdir:
    return {}
  done = terminal.run(
    [
      'gcloud', 'storage', 'cat', '--range=-4096',
      f'{pod.workdir.rstrip("/")}/metrics.jsonl',
    ], check=False, seconds=120,
  )  # fmt: skip
  for line in reversed(done.out.splitlines()):
    try:
      return json.loads(line)
    except ValueError:  # cut short, by the range or by a crash
      continue
  return {}


def progress(line: dict) -> str:
  """`step 120  loss 2.1130  42,600 tokens/s  mfu 47.1%`."""
  if not line.get('step'):
    return 'no step yet'
  parts = [f'step {line["step"]}', f'loss {line["loss"]:.4f}']
  parts.append(f'{line["tokens_per_second"]:,.0f} tokens/s')
  if line.get('mfu') is not None:
    parts.append(f'mfu {line["mfu"]:.1%}')
  return '  '.join(parts)
