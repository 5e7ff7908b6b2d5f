"""Runs that are killed, preempted, started twice or out of disk resume.

Most jobs are the real command, on a model so small that a start costs seconds.
Whatever ended a run, the finished one must have the losses of an undisturbed
run, bit for bit.
"""

import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import time

import jobs
import numpy as np
import pytest

from longjax.errors import InputError
from longjax.train import goodput, metrics

STEPS = 60


@pytest.fixture(scope='session')
def data(tmp_path_factory):
  return jobs.make_data(tmp_path_factory.mktemp('survival') / 'data')


@pytest.fixture(scope='session')
def undisturbed(data, tmp_path_factory):
  """The losses of an undisturbed run; it is traced, and cannot write for
  TensorBoard, which the others can."""
  workdir = tmp_path_factory.mktemp('runs') / 'undisturbed'
  workdir.mkdir()
  (workdir / 'tb').write_text('in the way of the directory')
  said = jobs.finish(
    workdir, data, train__steps=STEPS, train__profile_steps='(3, 4)',
    checkpoint__every_steps=STEPS,
  )  # fmt: skip
  assert 'nothing for TensorBoard is written' in said
  assert list((workdir / 'profile').rglob('*.xplane.pb'))
  return jobs.hexes(workdir)


@pytest.mark.slow
def test_killed_at_random_moments_it_resumes_and_every_loss_is_the_same(
  data, undisturbed, tmp_path
):
  rng = np.random.default_rng(1)
  for step in sorted(rng.choice(np.arange(2, STEPS - 2), 8, False)):
    with jobs.Job(tmp_path / 'run', data, train__steps=STEPS) as job:
      job.wait_for_step(step)
      time.sleep(rng.uniform(0, 0.1))
      job.kill()
  said = jobs.finish(tmp_path / 'run', data, train__steps=STEPS)
  assert 'resumed from step' in said
  assert jobs.hexes(tmp_path / 'run') == undisturbed
  starts = goodput.read(tmp_path / 'run')
  assert len(starts) >= 2 and 0 < goodput.summary(starts)['goodput'] < 1
  assert not any((tmp_path / 'run').glob('checkpoints/*tmp*'))


def test_a_run_interrupted_and_resumed_has_the_same_losses(
  data, undisturbed, tmp_path, monkeypatch
):
  """In this process, and the undisturbed run in one of its own."""
  run, lines = tmp_path / 'run', []

  def train(log, **changes):
    changes = dict(train__steps=STEPS, checkpoint__every_steps=50) | changes
    return jobs.train_here(monkeypatch, run, data, log, **changes)

  def stop_at_7(line):
    if line.startswith('step 7/'):
      os.kill(os.getpid(), signal.SIGTERM)

  assert train(stop_at_7) == 75
  assert len(metrics.read(run)) == 7
  assert train(lines.append, eval__length=64) == 0
  assert 'resumed from step 7' in lines
  assert jobs.hexes(run) == undisturbed
  losses = jobs.losses(run)
  assert losses[-1] < 0.95 * losses[0]
  assert f'after {STEPS} steps' in (run / 'REPORT.md').read_text()
  (plot,) = (run / 'plots').glob('*.png')
  assert plot.stat().st_size > 5000
  for name in ('config.json', 'code.json', 'checkpoints', 'tb'):
    assert (run / name).exists()
  with pytest.raises(InputError, match=r'rope.base 500000.0 \(now 1000.0\)'):
    train(lines.append, model__rope__base=1000.0)


@pytest.mark.parametrize(
  'moment', ['evaluating: before training', 'compiling the train step']
)
def test_sigterm_while_there_is_nothing_to_save_ends_at_once(
  moment, data, tmp_path, monkeypatch
):
  def stop(line):
    if line.startswith(moment):
      os.kill(os.getpid(), signal.SIGTERM)

  with pytest.raises(SystemExit) as ended:
    jobs.train_here(monkeypatch, tmp_path / 'run', data, stop, eval__length=64)
  assert ended.value.code == 75
  assert not any((tmp_path / 'run' / 'checkpoints').iterdir())
  assert not (tmp_path / 'run' / 'LOCK').exists()


def test_a_long_run_survives_a_full_disk_a_second_job_and_saves_at_sigterm(
  data, undisturbed, tmp_path, monkeypatch
):
  """RLIMIT_FSIZE plays the full disk: no file may grow past 64 KiB."""
  workdir = tmp_path / 'run'
  changes = dict(checkpoint__every_steps=50, checkpoint__max_failed=12)
  with jobs.Job(workdir, data, train__steps=100_000, **changes) as job:
    job.wait_for_step(70)
    pid = job.processes[0].pid
    limit = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1 << 16, limit[1]))
    job.wait_for('training continues, the next try is after step')
    saved = {p.name for p in (workdir / 'checkpoints').iterdir()}
    assert any(name.isdigit() for name in saved), saved  # the one before
    resource.prlimit(pid, resource.RLIMIT_FSIZE, limit)

    with pytest.raises(InputError, match=f'process {pid} on .* is training'):
      jobs.train_here(monkeypatch, workdir, data)

    job.send(signal.SIGUSR1)
    job.wait_for('profile written to')

    began = time.monotonic()
    job.send(signal.SIGTERM)
    assert job.wait() == [75], job.output()
    assert time.monotonic() - began < 20  # a step, and 10 s of a busy machine
  losses = jobs.hexes(workdir)
  last = max(losses)
  assert [losses[k] for k in undisturbed] == list(undisturbed.values())
  metadata = jobs.metadata(workdir, last)
  assert metadata['step'] == last and metadata['tokens'] == last * 4 * 64
  assert metadata['mesh'] == dict(data=1, seq=2)
  assert metadata['processes'] == 1
  assert not any((workdir / 'checkpoints').glob('*tmp*'))


@pytest.fixture
def small_disk(tmp_path):
  """A disk of 4 MiB, which a test can fill."""
  place = tmp_path / 'run'
  place.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', str(place)]
  done = subprocess.run(mount, capture_output=True, text=True, check=False)
  if done.returncode:
    pytest.skip(f'needs the right to mount a disk: {done.stderr.strip()}')
  yield place
  subprocess.run(['umount', '--lazy', str(place)], check=True)


def fill(disk):
  """A file that takes all the space that is left."""
  ballast = disk / 'ballast'
  with (
    ballast.open('wb', buffering=0) as file,
    pytest.raises(OSError, match='No space left'),
  ):
    while True:
      file.write(bytes(4096))
  return ballast


@pytest.mark.slow
def test_a_disk_that_is_full_for_a_while_costs_no_step_and_no_line(
  small_disk, data, undisturbed
):
  changes = dict(train__steps=STEPS, checkpoint__max_failed=12)
  with jobs.Job(small_disk, data, **changes) as job:
    job.wait_for_step(1)
    ballast = fill(small_disk)
    job.wait_for('training continues, the next try is after')
    job.wait_for('training continues, lines wait until it can be written')
    ballast.unlink()
    assert job.wait() == [0], job.output()
  assert jobs.hexes(small_disk) == undisturbed
  assert jobs.metadata(small_disk, STEPS)['step'] == STEPS
  assert not any((small_disk / 'checkpoints').glob('*tmp*'))


@pytest.mark.slow
def test_a_disk_that_stays_full_ends_it_and_space_lets_it_go_on(
  small_disk, data, undisturbed
):
  changes = dict(train__steps=STEPS, checkpoint__max_failed=3)
  with jobs.Job(small_disk, data, **changes) as job:
    while not (small_disk / 'checkpoints' / '3').is_dir():
      assert job.processes[0].poll() is None, job.output()
      time.sleep(0.005)
    ballast = fill(small_disk)
    assert job.wait() == [2], job.output()
    last = job.output().strip().splitlines()[-1]
  assert 'No space left on device' in last
  assert re.search(r'that was failure 3 in a row, step \d+ is saved', last)
  assert 'repair the storage and run the same command again' in last
  said = jobs.finish(small_disk, data, expected=2, train__steps=STEPS)
  assert 'checkpoints cannot be written there: [Errno 28] No space' in said
  assert not list((small_disk / 'checkpoints').glob('.probe*'))
  ballast.unlink()
  said = jobs.finish(small_disk, data, train__steps=STEPS)
  assert 'resumed from step' in said
  assert jobs.hexes(small_disk) == undisturbed


JUMPING = """
import time
def jumping(real, unit):
  return lambda: real() + 9999 * unit * (int(time.monotonic() / 0.7) % 3 - 1)
time.time, time.time_ns = jumping(time.time, 1.0), jumping(time.time_ns, 10**9)
"""


@pytest.mark.slow
def test_neither_clocks_that_jump_nor_a_rotated_log_change_the_training(
  data, undisturbed, tmp_path, monkeypatch
):
  """The clock jumps by hours, on and back, all the time (a save that Orbax
  then takes for too late is tried again); metrics.jsonl is moved away;
  TensorBoard cannot write; and the run is interrupted."""
  (tmp_path / 'site').mkdir()
  (tmp_path / 'site' / 'sitecustomize.py').write_text(JUMPING)
  monkeypatch.setenv('PYTHONPATH', str(tmp_path / 'site'))
  workdir = tmp_path / 'run'
  workdir.mkdir()
  (workdir / 'tb').write_text('in the way of the directory')
  with jobs.Job(workdir, data, train__steps=STEPS) as job:
    job.wait_for_step(5)
    (workdir / 'metrics.jsonl').rename(workdir / 'metrics.jsonl.1')
    job.wait_for_step(20)
    job.send(signal.SIGTERM)
    assert job.wait() == [75], job.output()
  jobs.finish(workdir, data, train__steps=STEPS)
  (tmp_path / 'moved').mkdir()
  shutil.copy(workdir / 'metrics.jsonl.1', tmp_path / 'moved/metrics.jsonl')
  assert jobs.hexes(tmp_path / 'moved') | jobs.hexes(workdir) == undisturbed
  lines = metrics.read(tmp_path / 'moved') + metrics.read(workdir)
  assert [line['tokens'] for line in lines] == [
    step * 4 * 64 for step in range(1, STEPS + 1)
  ]
  for line in lines:
    assert 0 < line['step_seconds'] < 60
    assert 0 < line['tokens_per_second'] < np.inf
    assert 0 <= line['goodput'] <= 1 and 0 <= line['data_seconds'] < 60
  whole = goodput.summary(goodput.read(workdir))
  assert min(whole.values()) >= 0 and whole['goodput'] <= 1, whole


def test_two_processes_train_as_one_and_one_resumes_what_they_saved(
  data, undisturbed, tmp_path, monkeypatch
):
  """One is killed: the other must end within a heartbeat and 30 s."""
  with jobs.Job(tmp_path / 'run', data, 2, train__steps=STEPS) as job:
    job.wait_for_step(20)
    began = time.monotonic()
    job.send(signal.SIGKILL, [1])
    codes = job.wait()
    assert time.monotonic() - began < 10 + 30
    assert codes[1] == -signal.SIGKILL and codes[0] not in (0, 2)
  lines, changes = [], dict(train__steps=STEPS, checkpoint__every_steps=50)
  assert not jobs.train_here(
    monkeypatch, tmp_path / 'run', data, lines.append, **changes
  )
  assert any(line.startswith('resumed from step') for line in lines)
  losses = jobs.hexes(tmp_path / 'run')
  assert list(losses) == list(undisturbed)
  values = lambda run: [float.fromhex(x) for x in run.values()]
  np.testing.assert_allclose(values(losses), values(undisturbed), atol=1e-5)


@pytest.mark.slow
def test_processes_that_differ_all_refuse_and_show_both(data, tmp_path):
  other = ['--config.optim.learning_rate=0.5']
  with jobs.Job(tmp_path / 'run', data, 2, last=other) as job:
    codes = job.wait()
    said = [job.output(i).strip().splitlines()[-1] for i in range(2)]
  assert codes == [2, 2], said
  assert said[0] == said[1]
  assert 'differ in config' in said[0]
  assert 'on processes [0]' in said[0] and 'on processes [1]' in said[0]
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_the_next_stage_keeps_moments_and_restarts_the_schedule(
  data, tmp_path, monkeypatch
):
  """As ProLong's second stage does (arXiv:2410.02660, section 5)."""
  lines = []

  def train(name, **changes):
    changes |= dict(train__steps=6, optim__warmup_steps=2)
    assert not jobs.train_here(
      monkeypatch, tmp_path / name, data, lines.append, **changes
    )

  train('one')
  train('without', weights=str(tmp_path / 'one'))
  train('two', weights=str(tmp_path / 'one'), moments=True)
  said = f'moments of {tmp_path / "one"}; the schedule restarts'
  assert any(said in line for line in lines)
  first, without, two = (
    metrics.read(tmp_path / name) for name in ('one', 'without', 'two')
  )
  rates = [[line['lr'] for line in run] for run in (first, without, two)]
  assert rates[0] == rates[1] == rates[2]
  # Of the same weights and batches; the first rate is 0.
  assert two[1]['loss_hex'] == without[1]['loss_hex']
  assert two[2]['loss_hex'] != without[2]['loss_hex']


@pytest.mark.slow
def test_sigterm_to_one_of_two_ends_both_at_the_same_step(
  data, undisturbed, tmp_path
):
  with jobs.Job(tmp_path / 'run', data, 2, train__steps=STEPS) as job:
    job.wait_for_step(5)
    job.send(signal.SIGTERM, [1])
    assert job.wait() == [75, 75], job.output()
  last = max(jobs.hexes(tmp_path / 'run'))
  metadata = jobs.metadata(tmp_path / 'run', last)
  assert metadata['step'] == last and metadata['processes'] == 2
  said = jobs.finish(tmp_path / 'run', data, 4, mesh__seq=4, train__steps=STEPS)
  assert f'resumed from step {last}\n' in said
  assert 'config.mesh.seq was 2, is now 4' in said
  assert_close(jobs.hexes(tmp_path / 'run'), undisturbed)


def handles_sigterm(pid) -> bool:
  status = pathlib.Path(f'/proc/{pid}/status').read_text()
  caught = re.search(r'SigCgt:\s*(\w+)', status)
  return bool(caught and int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.slow
@pytest.mark.parametrize('moment, to', [('', (0, 1)), ('compiling', (1,))])
def test_sigterm_before_the_first_step_ends_all_processes(
  moment, to, data, tmp_path
):
  """While they import jax; and of one while the other waits for it."""
  with jobs.Job(tmp_path / 'run', data, 2, train__steps=STEPS) as job:
    if moment:
      job.wait_for(moment)
    while not all(handles_sigterm(p.pid) for p in job.processes):
      time.sleep(0.01)
    job.send(signal.SIGTERM, to)
    assert job.wait(60) == [75, 75], job.output(0) + job.output(1)
    assert 'Traceback' not in job.output(0) + job.output(1)
  assert not list(tmp_path.glob('run/checkpoints/*'))
  assert not (tmp_path / 'run' / 'LOCK').exists()


@pytest.mark.slow
def test_other_meshes_and_processes_go_on_with_the_same_batches(data, tmp_path):
  """2x4 -> 1x8 -> 1x1, then 2 processes -> 1 -> 4, 20 steps each."""
  places = [(2, 4, 1), (1, 8, 1), (1, 1, 1)]
  places += [(1, 2, 2), (1, 2, 1), (1, 4, 4)]
  steps = 20 * len(places)
  for i, (rows, seq, processes) in enumerate(places, 1):
    changes = dict(mesh__data=rows, mesh__seq=seq, train__steps=20 * i)
    jobs.finish(tmp_path / 'moved', data, processes, **changes)
  jobs.finish(tmp_path / 'stayed', data, train__steps=steps, mesh__seq=1)
  moved, stayed = (jobs.hexes(tmp_path / n) for n in ('moved', 'stayed'))
  assert_close(moved, stayed)


def assert_close(one, two):
  """The bar is 1e-5 over 20 steps; rounding grows with the steps after."""
  assert list(one) == list(two)
  values = [[float.fromhex(x) for x in run.values()] for run in (one, two)]
  np.testing.assert_allclose(values[0][:20], values[1][:20], atol=1e-5, rtol=0)
  np.testing.assert_allclose(*values, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_what_one_of_two_processes_cannot_read_holds_up_none(data, tmp_path):
  """The other waits for it at no barrier, and both take the save before."""
  workdir, asks = tmp_path / 'run', dict(processes=2, checkpoint__keep=3)
  jobs.finish(workdir, data, train__steps=9, **asks)
  (its_shards,) = workdir.glob('checkpoints/9/state/ocdbt.process_1/d/*')
  os.truncate(its_shards, its_shards.stat().st_size // 2)
  began = time.monotonic()
  said = jobs.finish(workdir, data, train__steps=12, **asks)
  assert time.monotonic() - began < 120
  assert '/9 passed over' in said and 'resumed from step 6' in said
