"""Traces of some steps; `xprof --logdir RUN/profile` shows them."""

import functools

import jax

REQUESTED_STEPS = 3  # traced after a SIGUSR1


class Profiler:
  """Traces the steps that a config names, and those that a signal requests."""

  def __init__(self, directory, steps, request, log):
    """Traces nothing yet.

    Args:
      directory: where traces are written.
      steps: to trace, from the smallest to the largest; () is none.
      request: preemption.StopRequest, whose `profile` starts a trace.
      log: called with a line for each trace.
    """
    self.directory, self.request, self.log = str(directory), request, log
    self.first, self.last = (min(steps), max(steps)) if steps else (0, 0)
    self.running = False

  def before(self, step: int):
    """Starts a trace if this step belongs to one."""
    if self.request.profile:
      self.request.profile = False
      self.first, self.last = step, step + REQUESTED_STEPS - 1
    if self.first <= step <= self.last and not self.running:
      options = jax.profiler.ProfileOptions()
      options.python_tracer_level = 0
      start = functools.partial(
        jax.profiler.start_trace, self.directory, profiler_options=options
      )
      self.running = self._succeeds(start)

  def after(self, step: int):
    """Writes the trace if this step was its last."""
    if self.running and step >= self.last:
      self.close()

  def close(self):
    """Writes an unfinished trace."""
    if self.running:
      self.running = False
      if self._succeeds(jax.profiler.stop_trace):
        self.log(f'profile written to {self.directory}')

  def _succeeds(self, action) -> bool:
    """Calls action(); a failure, as of a full disk, must not end training."""
    try:
      action()
    except Exception as error:  # whatever the profiler raises
      self.first = self.last = 0
      self.log(f'WARNING: no profile in {self.directory}: {error}')
      return False
    return True
