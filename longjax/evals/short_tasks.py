"""The evaluation lm_eval/NAME: tasks of lm-eval, an optional package."""

from longjax.errors import InputError
from longjax.evals.evaluation import NOTHING, Evaluation, Point, Setup


def harness():
  """longjax.evals.lm_harness, which imports lm-eval.

  Raises:
    InputError: lm-eval is not installed.
  """
  try:
    from longjax.evals import lm_harness
  except ImportError:
    raise InputError('lm_eval/... needs: pip install lm-eval') from None
  return lm_harness


def check(setup: Setup, part: str):
  harness().find(part)


def run(lm, setup: Setup, part: str) -> dict:
  window = max(setup.options.lengths)
  model = harness().Harness(lm, setup.tokenizer, window)
  return harness().run(model, part, setup.samples)


def scores(results: dict) -> dict:
  return {
    f'{task}/{_metric(metric)}': Point(value)
    for task, metrics in results.items()
    for metric, value in metrics.items()
  }


def _metric(name: str) -> str:
  """Without the name of lm-eval's filter: 'acc,none' -> 'acc'."""
  return name.partition(',')[0]


EVALUATION = Evaluation(
  'lm_eval', 'lm-eval', NOTHING, run, scores, ('task', 'metric'), check=check,
  any_part=True, merge=lambda parts: parts,
)  # fmt: skip
