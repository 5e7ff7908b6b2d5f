"""Traces of some steps, to look at with xprof: `xprof --logdir RUN/profile`."""

import functools

import jax

ASKED_STEPS = 3  # that SIGUSR1 asks for


class Profiler:
  """Traces the steps of a config, and those that a signal asks for."""

  def __init__(self, directory, steps, asked, log):
    """Traces nothing yet.

    Args:
      directory: where traces go.
      steps: to trace, from the smallest to the largest; () is none.
      asked: signals.Asked.
      log: called with a line for each trace.
    """
    self.directory, self.asked, self.log = str(directory), asked, log
    self.first, self.last = (min(steps), max(steps)) if steps else (0, 0)
    self.running = False

  def before(self, step: int):
    """Starts a trace if this step is to be in it."""
    if self.asked.profile:
      self.asked.profile = False
      self.first, self.last = step, step + ASKED_STEPS - 1
    if self.first <= step <= self.last and not self.running:
      options = jax.profiler.ProfileOptions()
      options.python_tracer_level = 0
      start = functools.partial(
        jax.profiler.start_trace, self.directory, profiler_options=options
      )
      self.running = self._done(start)

  def after(self, step: int):
    """Writes the trace if this step was its last."""
    if self.running and step >= self.last:
      self.close()

  def close(self):
    """Writes what there is."""
    if self.running:
      self.running = False
      if self._done(jax.profiler.stop_trace):
        self.log(f'profile written to {self.directory}')

  def _done(self, action) -> bool:
    """Whether that went well; a disk that is full must not end training."""
    try:
      action()
    except Exception as error:  # of the profiler's, whatever that met
      self.first = self.last = 0
      self.log(f'WARNING: no profile in {self.directory}: {error}')
      return False
    return True
