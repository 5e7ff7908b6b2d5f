"""Keeps a run on queued resources alive until training ends by itself.

A slice that was taken away, or whose hosts end with exit code 75, is deleted
and requested again; after a crash, training starts in the same place. Exit
codes 0 and 2 end it: a retry does not change a refused config. Each turn
looks at the cloud anew, so the command may be interrupted and repeated. While
the cloud does not answer, nothing is deleted.
"""

from collections.abc import Callable

from longjax.errors import PREEMPTED
from longjax.pod import hosts, queued
from longjax.pod.commands import CommandFailed

REFUSED = 2  # exit code of launch/tpu.py, as PREEMPTED is
POLL_SECONDS = 60
MAX_STALLED_POLLS = 10  # in a row without a new step
EXIT_CODES = dict(done=0, refused=REFUSED)
# States that may pass; after MAX_STALLED_POLLS each counts as the other.
TOLERATED = {'out of reach': 'lost', 'ending': 'crashed'}
FAILURES = ('lost', 'preempted', 'crashed', 'unknown', *TOLERATED)
LONGEST_WAIT_SECONDS = 900


def supervise(
  terminal, pod, code, retries: int, last_step: Callable[[], dict]
) -> int:
  """0 when training is done, 2 when it was refused, 1 after too many failures.

  Args:
    code: the tree to push to hosts without one.
    retries: failures in a row, without a new step between them.
    last_step: returns the last line of metrics.jsonl.
  """
  failures, waits, step, before = 0, 0, 0, None
  while True:
    state, detail = observe(terminal, pod)
    if before is None and state == 'refused':  # that was before this command
      state, detail = 'empty', f'was refused, tried again: {detail}'
    if (state, detail) != before:
      terminal.log(f'{pod.name}: {state}{detail and f": {detail}"}')
    before = state, detail
    if state in EXIT_CODES:
      return EXIT_CODES[state]
    now = last_step().get('step', 0) if state in FAILURES else step
    new, step = now > step, max(now, step)
    waits = 1 if new else waits + 1
    if state in TOLERATED and waits < MAX_STALLED_POLLS:
      terminal.sleep(POLL_SECONDS)
      continue
    state, waits = TOLERATED.get(state, state), 0
    failed = f'{state}: {detail}' if state in FAILURES else ''
    try:
      act(terminal, pod, code, state)
    except CommandFailed as error:
      failed = str(error)
      terminal.log(failed)
    if not failed:
      terminal.sleep(POLL_SECONDS if state in ('waiting', 'running') else 0)
      continue
    failures = 1 if new else failures + 1
    if failures > retries:
      terminal.log(
        f'{retries} retries in a row without a new step; the last: {failed}'
      )
      return 1
    wait = min(30 * 2 ** (failures - 1), LONGEST_WAIT_SECONDS)
    terminal.log(f'failure {failures} of at most {retries} in a row; {wait} s')
    terminal.sleep(wait)


def observe(terminal, pod) -> tuple[str, str]:
  """(state, detail).

  absent, waiting, lost: the slice; empty, running, ending, done, refused,
  preempted, crashed: its hosts; out of reach: some of them; unknown: the cloud
  does not answer, so nothing can be concluded.
  """
  try:
    state, reason = queued.state(terminal, pod, quiet=True)
  except CommandFailed as error:
    return 'unknown', str(error)
  if state in queued.LOST:
    return 'lost', f'{state}{reason and f", {reason}"}'
  if state not in queued.READY:
    return ('waiting' if state else 'absent'), state
  try:
    return summarize(hosts.status(terminal, pod, quiet=True), '')
  except hosts.NotPushed:
    return 'empty', ''
  except CommandFailed as error:
    return summarize(error.workers, str(error))


def summarize(workers: list[dict], unreached: str) -> tuple[str, str]:
  """(state, detail) of all hosts together.

  Args:
    workers: as hosts.status gives them.
    unreached: why others are not among them, or ''.
  """
  codes = {x['code']: x for x in workers if x['code'] is not None}
  states = {x['state'] for x in workers}
  failed = [x for x in workers if x['state'] == 'lost' or x['code']]
  if REFUSED in codes:
    return 'refused', codes[REFUSED]['said']
  if unreached or not workers:
    return 'out of reach', unreached
  if failed and 'running' in states:
    return 'ending', ''
  if PREEMPTED in codes:
    return 'preempted', f'code {PREEMPTED} on {codes[PREEMPTED]["worker"]}'
  if failed:
    code = failed[0]['code']
    end = 'no exit code' if code is None else f'code {code}'
    return 'crashed', f'{failed[0]["worker"]}: {end}'
  last = 'done' if states == {'exited'} else 'running'
  return ('empty' if 'idle' in states else last), ''


def act(terminal, pod, code, state: str):
  """Takes the action that a state calls for."""
  if state == 'absent':
    queued.create(terminal, pod)
  elif state in ('lost', 'preempted'):
    queued.delete(terminal, pod)
  elif state == 'crashed':
    terminal.log(hosts.log_ends(terminal, pod))
    hosts.stop(terminal, pod)
  if state in ('crashed', 'empty'):
    hosts.push(terminal, pod, code)
    hosts.start(terminal, pod)
