"""A run whose steps no longer come ends, and one that is slow does not."""

import contextlib
import time

from longjax.train import watchdog


def ended(monkeypatch, seconds, action) -> list:
  """The exit codes with which a Watchdog of so many seconds would have ended
  the process while `action(watch)` ran."""
  codes, lines = [], []
  monkeypatch.setattr(watchdog.faulthandler, 'dump_traceback', lambda **_: 0)
  watch = watchdog.Watchdog(seconds, lines.append)

  def end(code):
    codes.append(code)
    watch.close()

  monkeypatch.setattr(watchdog.os, '_exit', end)
  with contextlib.closing(watch):
    action(watch)
  assert len(lines) == len(codes)
  assert all('hang_seconds' in line for line in lines)
  return codes


def test_a_run_that_stands_still_ends_with_75(monkeypatch):
  assert ended(monkeypatch, 0.2, lambda watch: time.sleep(0.5)) == [75]


def test_steps_evaluations_and_slow_steps_do_not_end_it(monkeypatch):
  def steps(watch):
    for _ in range(10):
      time.sleep(0.05)
      watch.step_done()

  def evaluation(watch):
    with watch.paused():
      time.sleep(0.5)

  def slow(watch):
    time.sleep(0.15)
    watch.step_done()
    assert watch.limit > 1
    time.sleep(0.5)

  for action in steps, evaluation, slow:
    assert not ended(monkeypatch, 0.2, action)
  assert not ended(monkeypatch, 0, lambda watch: time.sleep(0.3))
