"""Looks after a run on queued resources until it ends by itself.

A slice that was taken away, or whose workers end with exit code 75, is deleted
and asked for again; a crash is followed by a start in the same place. Exit
code 0 and exit code 2 end it: what a user must mend, no retry mends. Every
turn looks anew, so that the command can be interrupted and given again; and
where this machine is offline, nothing is deleted.
"""

import time
from collections.abc import Callable

from longjax.errors import PREEMPTED
from longjax.pod import queued
from longjax.pod.terminal import CommandFailed

REFUSED = 2  # exit code of launch/tpu.py, as PREEMPTED is
POLL_SECONDS = 60
PATIENCE = 10  # looks in a row without a new step
ENDS = dict(done=0, refused=REFUSED)
PATIENT = {'out of reach': 'lost', 'ending': 'crashed'}  # and then
TROUBLE = ('lost', 'preempted', 'crashed', 'unknown', *PATIENT)
LONGEST_WAIT_SECONDS = 900


def watch(
  terminal, pod, code, retries: int, last_step: Callable, log, sleep=time.sleep
) -> int:
  """0 when training is done, 2 when it was refused, 1 when retries are spent.

  Args:
    code: the tree to push where there is none.
    retries: failures in a row, without a new step between them.
    last_step: gives the last line of metrics.jsonl.
    log: called with lines for a person.
    sleep: called with seconds.
  """
  failures, waits, step, before = 0, 0, 0, None
  while True:
    saw, why = look(terminal, pod)
    if before is None and saw == 'refused':  # that was before this command
      saw, why = 'empty', f'was refused, tried again: {why}'
    if (saw, why) != before:
      log(f'{pod.name}: {saw}{why and f": {why}"}')
    before = saw, why
    if saw in ENDS:
      return ENDS[saw]
    now = last_step().get('step', 0) if saw in TROUBLE else step
    new, step = now > step, max(now, step)
    waits = 1 if new else waits + 1
    if saw in PATIENT and waits < PATIENCE:
      sleep(POLL_SECONDS)
      continue
    saw, waits = PATIENT.get(saw, saw), 0
    failed = f'{saw}: {why}' if saw in TROUBLE else ''
    try:
      act(terminal, pod, code, saw, log)
    except CommandFailed as error:
      failed = str(error)
      log(failed)
    if not failed:
      sleep(POLL_SECONDS if saw in ('waiting', 'running') else 0)
      continue
    failures = 1 if new else failures + 1
    if failures > retries:
      log(f'{retries} retries in a row without a new step; the last: {failed}')
      return 1
    wait = min(30 * 2 ** (failures - 1), LONGEST_WAIT_SECONDS)
    log(f'failure {failures} of at most {retries} in a row; {wait} s')
    sleep(wait)


def look(terminal, pod) -> tuple[str, str]:
  """(what is, a line on it).

  absent, waiting, lost: the slice; empty, running, ending, done, refused,
  preempted, crashed: its workers; out of reach: some of them; unknown: the
  cloud does not answer, so nothing may be concluded.
  """
  try:
    state, why = queued.state(terminal, pod, quiet=True)
  except CommandFailed as error:
    return 'unknown', str(error)
  if state in queued.LOST:
    return 'lost', f'{state}{why and f", {why}"}'
  if state not in queued.READY:
    return ('waiting' if state else 'absent'), state
  try:
    return verdict(queued.workers(terminal, pod, quiet=True), '')
  except queued.NotPushed:
    return 'empty', ''
  except CommandFailed as error:
    return verdict(error.workers, str(error))


def verdict(workers: list[dict], unreached: str) -> tuple[str, str]:
  """What the workers' states mean together.

  Args:
    workers: as queued.workers gives them.
    unreached: why others are not among them, or ''.
  """
  codes = {x['code']: x for x in workers if x['code'] is not None}
  states = {x['state'] for x in workers}
  failed = [x for x in workers if x['state'] == 'lost' or x['code']]
  if REFUSED in codes:
    saw = 'refused', codes[REFUSED]['said']
  elif unreached or not workers:
    saw = 'out of reach', unreached
  elif failed and 'running' in states:
    saw = 'ending', ''
  elif PREEMPTED in codes:
    saw = 'preempted', f'code {PREEMPTED} on {codes[PREEMPTED]["worker"]}'
  elif failed:
    code = failed[0]['code']
    how = 'gone without a word' if code is None else f'code {code}'
    saw = 'crashed', f'{failed[0]["worker"]}: {how}'
  elif 'idle' in states:
    saw = 'empty', ''
  else:
    saw = ('done' if states == {'exited'} else 'running'), ''
  return saw


def act(terminal, pod, code, saw: str, log):
  """What helps against what was seen."""
  if saw == 'absent':
    queued.create(terminal, pod)
  elif saw in ('lost', 'preempted'):
    queued.delete(terminal, pod)
  elif saw == 'crashed':
    log(queued.last_words(terminal, pod).rstrip())
    queued.stop(terminal, pod)
  if saw in ('crashed', 'empty'):
    queued.push(terminal, pod, code)
    queued.start(terminal, pod)
