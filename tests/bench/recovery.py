"""Seeded failures of a training job, and what each costs.

  python tests/bench/recovery.py [--failures 100] [--seed 0]

Jobs of 1, 2 and 4 processes train a small model; each is ended or disturbed
again and again, and started again as a supervisor would, until it is done. Then
its losses must be those of an undisturbed job, every bit. Prints a line a
failure and a table; exit code 1 if a job was not recovered.
"""

import argparse
import pathlib
import re
import resource
import signal
import statistics
import sys
import tempfile
import time
from typing import NamedTuple

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]

import jobs  # noqa: E402

STEPS, EVERY = 400, 3  # of a job; between saves
A_JOB = 15  # failures
SHARES = {1: 0.5, 2: 0.4, 4: 0.1}  # of the failures, by processes of the job
HANG_SECONDS = 15

# Storage that does not answer while a file HANG lies beside what is opened.
SITE = """
import os, pathlib, time
real = pathlib.Path.open
def opened(self, *args, **kwargs):
  while os.path.exists(self.with_name('HANG')): time.sleep(0.05)
  return real(self, *args, **kwargs)
pathlib.Path.open = opened
"""


class Cost(NamedTuple):
  """Of one failure."""

  fault: str
  processes: int
  repeated: int  # steps
  seconds: float | None  # to the first new step; None: it failed before it
  said: str


class Supervised:
  """A job that is started again until it is done.

  Attributes:
    costs: of the failures so far.
  """

  def __init__(self, workdir, data, processes):
    self.workdir, self.data, self.processes = workdir, data, processes
    self.job = self.failed = None
    self.reached = 0  # the newest step that any start has said
    self.costs = []

  def start(self):
    """Starts the job."""
    self.job = jobs.Job(
      self.workdir, self.data, self.processes, train__steps=STEPS,
      checkpoint__every_steps=EVERY, checkpoint__max_failed=20,
      train__hang_seconds=HANG_SECONDS, mesh__seq=max(self.processes, 2),
      eval__length=64, eval__every_steps=20,
    )  # fmt: skip

  def fail(self, fault, rng):
    """Disturbs the job, ends what is left of it, and notes the time."""
    fault(self, rng)
    failed = time.monotonic()
    if fault in (preempted, preempted_saving):
      self.wait_for_end()  # it saves first
    codes = [p.poll() for p in self.job.processes]
    self.observe()
    self.job.kill()
    if codes == [0] * self.processes:
      return  # it was done before
    if self.failed:  # again before a new step
      self.costs.append(Cost(self.failed[0], self.processes, 0, None, ''))
    self.reached = max([self.reached, *self.steps()])
    self.failed = fault.__name__, failed

  def observe(self):
    """Notes what the last failure has cost, at the first new step."""
    said = self.steps()
    if not self.failed or not said or said[-1] <= self.reached:
      return
    name, failed = self.failed
    lines = self.job.output().splitlines()
    how = [x for x in lines if 'resumed' in x or 'passed over' in x]
    cost = Cost(
      name, self.processes, self.reached + 1 - said[0],
      time.monotonic() - failed, ' | '.join(how),
    )  # fmt: skip
    self.failed = None
    self.costs.append(cost)
    print(
      f'{cost.fault:17} {cost.processes} processes  {cost.repeated} steps '
      f'repeated  {cost.seconds:.1f} s  {cost.said}',
      flush=True,
    )

  def steps(self) -> list[int]:
    """The steps that this start has said."""
    return [
      int(x)
      for x in re.findall(r'^step (\d+)/', self.job.output(), re.MULTILINE)
    ]

  def wait_until(self, ready, seconds=600.0):
    """Returns when ready() holds or the job has ended."""
    until = time.monotonic() + seconds
    while not ready() and self.running():
      self.observe()
      if time.monotonic() > until:
        raise TimeoutError(self.job.output())
      time.sleep(0.003)

  def running(self) -> bool:
    return any(p.poll() is None for p in self.job.processes)

  def wait_for_end(self, seconds=600.0):
    """Returns when the job has ended by itself."""
    self.wait_until(lambda: False, seconds)

  def wait_for_save(self):
    """Returns when a save is half written, or the job has ended."""
    self.wait_for_steps(2)
    self.wait_until(lambda: any(self.workdir.glob('checkpoints/*tmp*')))

  def wait_for_steps(self, count):
    """Returns when this start has done so many steps, or has ended."""
    self.wait_until(lambda: len(self.steps()) >= count)


# Each fault disturbs or ends a running job; `rng` draws the moment.


def kill(job, rng, only=()):
  job.job.send(signal.SIGKILL, only or range(job.processes))


def starting(job, rng):
  time.sleep(rng.uniform(0.2, 3))
  kill(job, rng)


def compiling(job, rng):
  job.wait_until(lambda: 'compiling the train step' in job.job.output())
  kill(job, rng)


def restoring(job, rng):
  job.wait_until(
    lambda: re.search('resumed from step|compiled in', job.job.output())
  )
  kill(job, rng)


def first_step(job, rng):
  job.wait_for_steps(1)
  kill(job, rng)


def stepping(job, rng):
  job.wait_for_steps(rng.integers(2, 9))
  time.sleep(rng.uniform(0, 0.1))
  kill(job, rng)


def one_of_several(job, rng):
  job.wait_for_steps(rng.integers(2, 9))
  kill(job, rng, [int(rng.integers(job.processes))])


def saving(job, rng):
  """While a save is half written."""
  job.wait_for_save()
  time.sleep(rng.uniform(0, 0.02))
  kill(job, rng)


def evaluating(job, rng):
  job.wait_until(lambda: 'evaluating' in job.job.output())
  kill(job, rng)


def preempted(job, rng):
  job.wait_for_steps(rng.integers(1, 9))
  job.job.send(signal.SIGTERM, [int(rng.integers(job.processes))])


def preempted_saving(job, rng):
  job.wait_for_save()
  job.job.send(signal.SIGTERM)


def damaged(job, rng):
  """The newest save is cut in half on the disk."""
  job.wait_for_steps(EVERY * 2 + 1)
  kill(job, rng)
  job.job.wait()
  saved = [p for p in job.workdir.glob('checkpoints/*') if p.name.isdigit()]
  saved.sort(key=lambda path: int(path.name))
  if len(saved) > 1:
    files = [x for x in saved[-1].rglob('*') if x.is_file()]
    largest = max(files, key=lambda x: x.stat().st_size)
    with largest.open('r+b') as file:
      file.truncate(largest.stat().st_size // 2)


def full_disk(job, rng):
  """No file may grow past 16 KiB for a while, on one process; then killed."""
  job.wait_for_steps(2)
  pid = job.job.processes[int(rng.integers(job.processes))].pid
  limit = resource.prlimit(pid, resource.RLIMIT_FSIZE)
  resource.prlimit(pid, resource.RLIMIT_FSIZE, (1 << 14, limit[1]))
  job.wait_for_steps(len(job.steps()) + 5)
  if job.running() and rng.random() < 0.5:
    resource.prlimit(pid, resource.RLIMIT_FSIZE, limit)
    job.wait_for_steps(len(job.steps()) + 5)
  kill(job, rng)


def hanging(job, rng):
  """Storage does not answer: the watchdog must end the job."""
  job.wait_for_steps(rng.integers(2, 9))
  (job.workdir / 'HANG').touch()
  job.wait_for_end(20 * HANG_SECONDS)
  (job.workdir / 'HANG').unlink()


def frozen(job, rng):
  """One of several processes stands still, as where its network is lost."""
  job.wait_for_steps(rng.integers(2, 9))
  other = int(rng.integers(1, job.processes))
  job.job.send(signal.SIGSTOP, [other])
  job.wait_until(lambda: job.job.processes[0].poll() is not None)
  kill(job, rng)


def second_job(job, rng):
  """Another is started in the same directory: it is refused."""
  job.wait_for_steps(2)
  with jobs.Job(job.workdir, job.data, train__steps=STEPS) as other:
    codes = other.wait()
    if job.running() and codes != [2]:
      raise RuntimeError(f'the second job was not refused: {other.output()}')
  kill(job, rng)


ALONE = (
  starting, compiling, restoring, first_step, stepping, saving, evaluating,
  preempted, preempted_saving, damaged, full_disk, hanging, second_job,
)  # fmt: skip
TOGETHER = (*ALONE, one_of_several, frozen)


def disturbed(workdir, data, processes, count, rng) -> list[Cost]:
  """Trains to the end through so many failures."""
  job = Supervised(workdir, data, processes)
  faults = TOGETHER if processes > 1 else ALONE
  for i in rng.permutation(count):
    job.start()
    job.fail(faults[i % len(faults)], rng)
  job.start()
  job.wait_for_end(3600)
  job.observe()
  if job.job.wait() != [0] * processes:
    raise RuntimeError(job.job.output())
  return job.costs


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--failures', type=int, default=100)
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  rng, costs, same = np.random.default_rng(args.seed), [], True
  with tempfile.TemporaryDirectory() as name:
    place = pathlib.Path(name)
    (place / 'site').mkdir()
    (place / 'site' / 'sitecustomize.py').write_text(SITE)
    jobs.os.environ['PYTHONPATH'] = str(place / 'site')
    data = jobs.make_data(place / 'data')
    for processes, share in SHARES.items():
      expected = place / f'undisturbed{processes}'
      disturbed(expected, data, processes, 0, rng)
      left = round(args.failures * share)
      while left:
        count = min(left, A_JOB)
        left -= count
        workdir = place / f'run{processes}-{left}'
        costs += disturbed(workdir, data, processes, count, rng)
        equal = jobs.hexes(workdir) == jobs.hexes(expected)
        same &= equal
        print(f'{workdir.name}: losses equal to the bit: {equal}', flush=True)
  print(table(costs))
  return 0 if same else 1


def table(costs) -> str:
  """A row a fault, in Markdown."""
  rows = [
    '| failure | times | steps repeated, at most | s to a new step, median '
    '| worst |',
    '|---|---|---|---|---|',
  ]
  names = sorted({c.fault for c in costs})
  for name in [*names, 'all']:
    mine = [c for c in costs if name in (c.fault, 'all')]
    seconds = [c.seconds for c in mine if c.seconds is not None] or [0.0]
    rows.append(
      f'| {name.replace("_", " ")} | {len(mine)} | '
      f'{max(c.repeated for c in mine)} | {statistics.median(seconds):.1f} | '
      f'{max(seconds):.1f} |'
    )
  return '\n'.join(rows)


if __name__ == '__main__':
  sys.exit(main())
