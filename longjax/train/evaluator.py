"""The evaluations before, while and after a run trains."""

import functools
import time
from typing import Any, NamedTuple

import jax

from longjax import evals, llama, lora, progress
from longjax.evals import saved_results
from longjax.parallel import processes, sharding
from longjax.train import metrics


class Evaluator(NamedTuple):
  """Runs the evaluations of a config, and stores their results."""

  run: Any  # loop.Run
  inputs: Any  # inputs.Inputs

  def before_training(self, params, released_config):
    """Of the weights as released if the recipe changes their RoPE or windows,
    and with the model of the recipe."""
    model, name = self.run.model, 'before training'
    changed = released_config and [
      field
      for field in ('rope', *llama.WINDOW_FIELDS)
      if getattr(released_config, field) != getattr(model, field)
    ]
    if changed:
      as_released = evals.compute_as(released_config, model).for_inference()
      self.run_evals('as released', None, params, as_released)
      name = 'RoPE change only' if changed == ['rope'] else name
    self.run_evals(name, 0, params, model.for_inference())

  def while_training(self, step: int, params):
    """Every eval.every_steps, but not after the last step."""
    every, steps = self.run.config.eval.every_steps, self.run.config.train.steps
    if every and step % every == 0 and step < steps:
      model = self.run.model.for_inference()
      self.run_evals(f'after {step} steps', step, params, model)

  def after_training(self, params, again: bool):
    """Of the finished run; `again` also if the results are there."""
    steps, model = self.run.config.train.steps, self.run.model.for_inference()
    self.run_evals(f'after {steps} steps', steps, params, model, again)

  def run_evals(self, name, step, params, model, again=False):
    """Runs all evaluations once per name; metrics have those with a `step`."""
    run, inputs = self.run, self.inputs
    if not evals.names(run.config.eval):
      return
    has = processes.is_primary() and saved_results.done(
      run.local, name, run.config
    )
    if processes.broadcast_from_primary(has) and not again:
      return
    run.log(f'evaluating: {name}')
    began = time.monotonic()
    with run.clock.timed('evaluating'):
      params = merged_params(run, params)
      results = dict(evals.evaluate(params, model, inputs.evals))
    if processes.is_primary():
      save_results(run, name, step, results)
    run.log(f'  done in {progress.duration(time.monotonic() - began)}')


def merged_params(run, params):
  """The params that the model reads, see `lora.merged`."""
  if 'lora' not in params:
    return params
  merge = functools.partial(
    lora.merged, alpha=run.config.lora.alpha, mesh=run.mesh
  )
  shardings = sharding.params(llama.abstract(run.model), run.mesh)
  return jax.jit(merge, out_shardings=shardings)(params)


def save_results(run, name: str, step: int | None, results: dict):
  """Stores an evaluation; a full disk must not end training."""
  try:
    saved_results.save(run.local, name, run.config, results)
    if step is not None:
      metrics.write_evaluation(run.local, step, evals.scalars(results))
  except OSError as error:
    run.log(
      f'WARNING: not all results of {name!r} were stored: {error.strerror}'
    )
