"""Configs whose model is that of weights: config.model = 'weights'."""

import dataclasses
import functools
import sys
from typing import Any

from longjax import config, llama, weights
from longjax.data import downloads
from longjax.errors import InputError

# Not on stdout, where generate writes its text and plan its JSON.
log = functools.partial(print, file=sys.stderr)


def model_of(spec: str, like) -> dict:
  """The section `model` of a config for weights.

  Args:
    spec: config.weights.
    like: a section `model`, for what says how to compute, and for all that is
      set where it has open keys (None); or no section.

  Raises:
    InputError: no weights, or what they are is not known.
  """
  if spec in ('', 'random'):
    raise InputError(
      "config.model is 'weights': config.weights must name a checkpoint or "
      f'files whose model is known, but it is {spec!r}'
    )
  found = config.flat(
    dataclasses.asdict(weights.config(downloads.locate(spec, log)))
  )
  found |= {
    name: config.KEYS[f'model.{name}'].default for name in llama.EXECUTION
  }
  given = {} if isinstance(like, str) else config.flat(like)
  is_open = None in given.values()
  return config.nest(found | {
    name: value for name, value in given.items()
    if value is not None and (is_open or name in llama.EXECUTION)
  })  # fmt: skip


def config_of(spec: str) -> Any:
  """A config of all defaults for a checkpoint, or weights in another format.

  A model with memory layers reads windows of what it was trained on.
  """
  values = config.flat(model_of(spec, 'weights'), 'model.')
  path = downloads.locate(spec, log)
  if seq_len := weights.trained_seq_len(path):
    values['train.seq_len'] = seq_len
  return config.build(values | {'weights': spec, 'name': path.name})
