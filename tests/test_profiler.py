"""Traces of the steps that a config or a signal asks for, and no others."""

import jax
import pytest

from longjax.train import preemption, profiler


def traced(directory, steps=(), asked_before=0, until=9):
  """(what was said, steps in which a trace ran) of a loop of steps."""
  asked, lines, running = preemption.StopRequest(), [], []
  trace = profiler.Profiler(directory, steps, asked, lines.append)
  for step in range(1, until + 1):
    asked.profile |= step == asked_before
    trace.before(step)
    if trace.running:
      running.append(step)
    trace.after(step)
  trace.close()
  return lines, running


@pytest.mark.parametrize('how, want', [
  (dict(), []),
  (dict(steps=(3, 5)), [3, 4, 5]),
  (dict(asked_before=4), [4, 5, 6]),
  (dict(asked_before=8), [8, 9]),  # the run ends
])  # fmt: skip
def test_the_steps_that_were_asked_for_are_traced(how, want, tmp_path):
  lines, running = traced(tmp_path / 'profile', **how)
  assert running == want
  assert len(list((tmp_path / 'profile').rglob('*.xplane.pb'))) == bool(want)
  assert lines == [f'profile written to {tmp_path / "profile"}'] * bool(want)


@pytest.mark.parametrize('which', ['start_trace', 'stop_trace'])
def test_a_profile_that_cannot_be_had_ends_nothing(
  which, tmp_path, monkeypatch
):
  real = getattr(jax.profiler, which)

  def fails(*args, **kwargs):
    if which == 'stop_trace':
      real()
    raise RuntimeError('No space left on device')

  monkeypatch.setattr(jax.profiler, which, fails)
  lines, _ = traced(tmp_path, steps=(3, 4))
  assert lines == [
    f'WARNING: no profile in {tmp_path}: No space left on device'
  ]
