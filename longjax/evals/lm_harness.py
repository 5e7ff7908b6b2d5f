"""Runs a task of lm-eval (EleutherAI's harness) on a longjax model.

  from longjax.evals import lm_harness
  harness = lm_harness.Harness(lm, tokenizer, window=8192)
  lm_eval.simple_evaluate(model=harness, tasks=['lambada_openai'])

Needs `pip install lm-eval`, which nothing else here does. Its tasks fetch
their own data sets, and say from where; a task in a .yaml file of yours may
have its data beside it.
"""

import functools
import math
import pathlib

import numpy as np
from lm_eval import (  # pyright: ignore[reportMissingImports]
  evaluator,
  tasks,
  utils,
)
from lm_eval.api.model import (  # pyright: ignore[reportMissingImports]
  TemplateLM,
)

from longjax.errors import InputError, nearest
from longjax.evals import prompts
from longjax.inference.language_model import row_losses

BATCH = 16  # rows whose losses are computed at once


@functools.lru_cache
def find(task: str):
  """(the name of a task, lm-eval's manager that has it).

  Args:
    task: a name that lm-eval knows, or the path of a .yaml file, whose whole
      directory lm-eval then searches.

  Raises:
    InputError: there is none.
  """
  if not task.endswith('.yaml'):
    manager = tasks.TaskManager()
    if task not in manager.all_tasks:
      near = nearest(task, manager.all_tasks)
      raise InputError(f'lm-eval has no task {task!r}; nearest is {near!r}')
    return task, manager
  path = pathlib.Path(task)
  if not path.is_file():
    raise InputError(f'{path}: no such file, which should define a task')
  manager = tasks.TaskManager(
    include_path=str(path.parent), include_defaults=False
  )
  for name, entry in manager.task_index.items():
    if entry.yaml_path and path.samefile(entry.yaml_path):
      return name, manager
  raise InputError(f'{path} defines no task of lm-eval: it needs a key `task`')


def run(harness: 'Harness', task: str, samples: int) -> dict:
  """{metric: value} of a task; see `find`.

  Raises:
    InputError: its data set is not here, and cannot be fetched.
  """
  name, manager = find(task)
  try:
    found = evaluator.simple_evaluate(
      model=harness, tasks=[name], limit=samples, task_manager=manager,
      log_samples=False,
    )  # fmt: skip
  except (ConnectionError, FileNotFoundError) as error:
    raise InputError(
      f'lm_eval/{task}: its data set cannot be fetched ({error}); run it once '
      'where the Hub is in reach, and copy the cache of datasets from there'
    ) from error
  results: dict = dict(found or {}).get('results') or {}  # pyright: ignore
  numbers = results.get(name, {})
  return {k: v for k, v in numbers.items() if isinstance(v, int | float)}


class Harness(TemplateLM):
  """A language_model.LM behind lm-eval's model interface."""

  def __init__(self, lm, tokenizer, window: int, answer_tokens=256):
    """The model reads at most `window` tokens, the last ones of a request."""
    super().__init__()
    self.lm, self.ours = lm, tokenizer
    self.window, self.answer_tokens = window, answer_tokens

  @property
  def eot_token_id(self) -> int:
    ends = (self.ours.document_end, self.ours.eos, self.ours.bos, 0)
    return next(i for i in ends if i is not None)

  @property
  def prefix_token_id(self) -> int:
    start = self.ours.document_start
    return self.eot_token_id if start is None else start

  @property
  def max_length(self) -> int:
    return self.window

  @property
  def tokenizer_name(self) -> str:
    return self.ours.digest[:12]

  def tok_encode(self, string, add_special_tokens=None, **_) -> list[int]:
    """The ids; in front what the tokenizer puts before a document."""
    if add_special_tokens is False:
      return self.ours.encode(string).tolist()
    return prompts.encode(self.ours, string).tolist()

  def _loglikelihood_tokens(self, requests, **_):
    pairs = [
      self._within(context, continuation)
      for _, context, continuation in requests
    ]
    losses = self._losses([a + b for a, b in pairs])
    found = []
    for (context, continuation), loss in zip(pairs, losses):
      own = loss[len(context) - 1 :]
      found.append(
        (-float(own.sum()), self._greedy(context, continuation, own))
      )
    return found

  def loglikelihood_rolling(self, requests, disable_tqdm=False) -> list[float]:
    """The log-probability of whole texts, each token predicted once."""
    sums = []
    for request in requests:
      ids = self.tok_encode(request.args[0], add_special_tokens=False)
      pairs = [
        utils.make_disjoint_window(x)
        for x in utils.get_rolling_token_windows(
          ids, self.prefix_token_id, self.window, 1
        )
      ]
      losses = self._losses([a + b for a, b in pairs])
      sums.append(-math.fsum(
        loss[len(a) - 1 :].sum() for (a, _), loss in zip(pairs, losses)
      ))  # fmt: skip
    return sums

  def generate_until(self, requests, disable_tqdm=False) -> list[str]:
    """Greedy answers."""
    texts = []
    for request in requests:
      context, options = request.args
      count = options.get('max_gen_toks', self.answer_tokens)
      if count >= self.window:
        raise InputError(
          f'this task of lm-eval generates {count} tokens; the longest of '
          f'eval.lengths is {self.window}, and must be above it for a prompt'
        )
      stop = options.get('until') or []
      stop = [stop] if isinstance(stop, str) else stop
      ids = np.array(self.tok_encode(context)[count - self.window :])
      texts += prompts.answers(self.lm, self.ours, [ids], count, stop)
    return texts

  def _within(self, context, continuation):
    """Both, without what is too far back for the window."""
    whole = (context + continuation)[-self.window :]
    cut = min(len(continuation), len(whole) - 1)
    return whole[: len(whole) - cut], whole[len(whole) - cut :]

  def _losses(self, rows) -> list[np.ndarray]:
    """[tokens - 1] nats of the tokens of each row after its first."""
    found: list = [None] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for first in range(0, len(order), BATCH):
      group = order[first : first + BATCH]
      losses = row_losses(self.lm, [rows[i] for i in group])
      for i, loss in zip(group, losses):
        found[i] = loss
    return found

  def _greedy(self, context, continuation, losses) -> bool:
    """Whether the likeliest tokens are these; asked only if in doubt."""
    if len(losses) and losses.max() < math.log(2):
      return True  # each more likely than all others together
    ids = self.lm.generate([np.array(context)], len(continuation))[0]
    return list(ids) == list(continuation)
