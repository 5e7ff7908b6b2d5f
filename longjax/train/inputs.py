"""What a run reads: weights, tokenizer, batches, held-out documents."""

import pathlib
from typing import Any, NamedTuple

from longjax import checkpoint, evals, llama, weights
from longjax.data import downloads, pipeline, prepare
from longjax.errors import InputError
from longjax.weights import released


class Inputs(NamedTuple):
  """What a run reads; found and checked before anything is written."""

  source: pathlib.Path | None  # of the weights; None is random weights
  tokenizer: Any
  data: pipeline.Pipeline
  evals: evals.Setup  # of its evaluations
  released: dict  # what the weights say beside their tensors

  def digests(self) -> dict[str, str]:
    """Of what must be equal on all processes."""
    held_out = self.evals.store
    return {
      'weights': weights.fingerprint(self.source) if self.source else '',
      'tokenizer': self.tokenizer.digest,
      'data': self.data.digest,
      'held-out documents': held_out.digest if held_out else '',
    }


def find_inputs(run) -> Inputs:
  """Finds and checks what the run reads; no device is used."""
  config, held_out = run.config, None
  source = find_weights(run)
  tokenizer = prepare.find_tokenizer(config, run.log)
  if source:
    released.check_tokenizer(source, tokenizer, config)
  if tokenizer.vocab > run.model.vocab:
    raise InputError(
      f'the tokenizer has {tokenizer.vocab} ids, but config.model.vocab is '
      f'only {run.model.vocab}'
    )
  data = pipeline.Pipeline(prepare.prepare(config, tokenizer, run.log), config)
  if evals.need_documents(evals.names(config.eval)):
    held_out = prepare.held_out(config, tokenizer, run.log)
  setup = evals.Setup(config, tokenizer, held_out, run.mesh, run.log)
  evals.check(setup)
  known = released.read(source) if source else {}
  return Inputs(source, tokenizer, data, setup, known)


def find_weights(run) -> pathlib.Path | None:
  """Where the weights are, fetched if need be; None is random weights."""
  if not run.config.weights:
    raise InputError(
      "config.weights is empty: name a checkpoint or a file, or 'random'"
    )
  if run.config.weights == 'random':
    return None
  source = downloads.locate(run.config.weights, run.log)
  there = weights.config(source)
  refuse_other_model(run.model, there, source)  # before a tokenizer is sought
  for field in llama.WINDOW_FIELDS:  # which a recipe may change on purpose
    here, before = getattr(run.model, field), getattr(there, field)
    if here != before:
      run.log(f'model.{field} is {here}, that of the weights {before}')
  if run.config.moments:
    refuse_without_moments(source)
  return source


def refuse_without_moments(source):
  """InputError unless it is a run that has trained all its weights."""
  known = {} if weights.find(source) else checkpoint.metadata(source)
  before = known.get('config', {})
  if not before or before.get('lora', {}).get('rank'):
    what = 'trained with LoRA' if before else 'not of a longjax run'
    raise InputError(
      f'config.moments loads the moments of all weights, but {source} is '
      f'{what} and has none; set it to False'
    )


def refuse_other_model(model: llama.Llama, there: llama.Llama, source):
  """InputError if the weights are of another architecture than the config."""
  different = [
    f'{field} {getattr(model, field)} (there {getattr(there, field)})'
    for field in llama.ARCHITECTURE
    if getattr(model, field) != getattr(there, field)
  ]
  if model.window and model.scale_windows != there.scale_windows:
    different.append(
      f'scale_windows {model.scale_windows} (there {there.scale_windows})'
    )
  layers, before = model.memory.layers, there.memory.layers
  if before and layers != before:
    different.append(f'memory.layers {layers} (there {before})')
  if different:
    raise InputError(
      f'config.model differs from that of {source}: {", ".join(different)}; '
      'change these keys, as --config.model.KEY=VALUE'
    )
