"""What a model can do with its context, measured the same way each time."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from longjax import llama, weights
from longjax.data import chat as chats
from longjax.errors import InputError
from longjax.evals import table
from longjax.evals.evaluation import DOCUMENTS, NOTHING, Setup
from longjax.inference import language_model
from longjax.parallel import sharding

__all__ = [
  'Setup', 'as_trained', 'check', 'compute_as', 'evaluate', 'load', 'names',
  'need_documents', 'scalars',
]  # fmt: skip


def evaluate(
  params, model: llama.Llama, setup: Setup, asked=()
) -> Iterator[tuple[str, dict]]:
  """Runs evaluations, one at a time.

  Args:
    params: sharded over the mesh, or numpy.
    model: how to read them.
    setup: what else is needed.
    asked: names of evaluations instead of those of the config.

  Yields:
    (name, its results as JSON has them).
  """
  others = []
  if setup.options.chat:
    others = [
      setup.tokenizer.token_to_id(
        chats.end(setup.tokenizer, chats.FROM_TOKENIZER)
      )
    ]
  ends = language_model.stop_token_ids(setup.tokenizer, *others)
  lm = language_model.from_config(
    params, model, setup.mesh, setup.config, ends, setup.log
  )
  for name in asked or names(setup.options):
    setup.log(f'  {name}')
    evaluation, part = table.find(name)
    run = lambda e=evaluation, part=part: finite(e.run(lm, setup, part))
    key = setup.cache.key(name, setup.options.to_json(), setup.tokenizer.digest)
    # Those of prompts are kept batch by batch.
    whole = evaluation.needs == DOCUMENTS or evaluation.any_part
    yield name, setup.cache.get(key, run) if whole else run()


def names(options) -> list[str]:
  """The evaluations of a section `eval`, in order, each once."""
  asked = []
  if options.length and options.documents:
    asked.append('position_loss')
  if options.passkey_lengths:
    asked.append('passkey')
  return list(dict.fromkeys([*asked, *options.tasks]))


def check(setup: Setup, asked=()):
  """InputError, before any training, for what could not be evaluated."""
  options = setup.options
  found = [(n, *table.find(n)) for n in asked or names(options)]
  if not options.lengths or min(options.lengths) < 1:
    raise InputError(
      f'config.eval.lengths are numbers of tokens, got {tuple(options.lengths)}'
    )
  if options.chat:
    chats.source(chats.FROM_TOKENIZER, setup.tokenizer)
  for name, evaluation, part in found:
    if evaluation.needs == DOCUMENTS and options.length < evaluation.least:
      raise InputError(
        f'task {name} needs a config.eval.length of at least '
        f'{evaluation.least}, which is {options.length}'
      )
    if evaluation.needs != NOTHING and setup.store is None:
      raise InputError(f'task {name} needs documents in config.eval.sources')
    if evaluation.needs == DOCUMENTS:
      setup.rows()
    evaluation.check(setup, part)


def need_documents(asked) -> bool:
  """Whether one of these evaluations reads eval.sources."""
  return any(table.find(name)[0].needs != NOTHING for name in asked)


def load(path, like: llama.Llama, mesh):
  """(params on the mesh, the model), computed as another one is.

  The model is that of the weights, its RoPE too.
  """
  place = lambda model: sharding.params(llama.abstract(model), mesh)
  params, model = weights.load(path, dtype=like.dtype, place=place)
  return params, compute_as(model, like).for_inference()


def compute_as(model: llama.Llama, like: llama.Llama) -> llama.Llama:
  """`model` with the fields of `like` that say how, not what, to compute."""
  computed = {f: getattr(like, f) for f in llama.EXECUTION}
  return dataclasses.replace(model, **computed)


def as_trained(config, path, model: llama.Llama, log=print):
  """The config, with the train.seq_len of a run whose model has memory layers:
  it reads windows of what it was trained on.

  Args:
    config: the whole config, whose mesh must divide these windows.
    path: of the weights; those in other formats name no train.seq_len.
    model: theirs.
    log: called with a line where it differs.
  """
  seq_len = weights.trained_seq_len(path) if model.memory.layers else 0
  if seq_len in (0, config.train.seq_len):
    return config
  if seq_len % config.mesh.seq:
    raise InputError(
      f'config.mesh.seq is {config.mesh.seq}; it must divide {seq_len}, the '
      f'tokens of a window of {path}, which has memory layers'
    )
  log(
    f'{path} has memory layers and reads windows of {seq_len} tokens, the '
    f'train.seq_len of its run, not of {config.train.seq_len}'
  )
  config = config.copy_and_resolve_references()
  config.train.seq_len = seq_len
  return config


def scalars(results: dict) -> dict[str, float]:
  """The numbers of results: {'task/length' or the like: number}."""
  return {
    f'{name}/{tag}': point.value
    for name, result in table.by_evaluation(results).items()
    for tag, point in table.EVALUATIONS[name].scores(result).items()
    if point.value is not None
  }


def finite(found) -> Any:
  """As JSON has it: None for numbers that are not finite."""
  if isinstance(found, dict):
    return {str(k): finite(v) for k, v in found.items()}
  if isinstance(found, list | tuple):
    return [finite(v) for v in found]
  if isinstance(found, float) and not math.isfinite(found):
    return None
  return found
