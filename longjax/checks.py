"""What a whole config must satisfy, checked before any device is used.

Each key by itself is checked by longjax/config.py, and the keys of a section by
the module that reads it (llama, rope, lora, longce, data/...), which `check`
calls; rules between sections are here. The commands apply all of them before
they do anything (longjax/cli.py).
"""

from typing import Any

from longjax import config as schema
from longjax.data import pipeline
from longjax.errors import InputError


def check(config) -> Any:
  """The llama.Llama of a config; InputError where the config cannot work."""
  schema.check(config)
  check_batch(config)
  check_moments(config)
  check_schedule(config)
  pipeline.check(config)
  from longjax import llama, longce, lora  # jax takes a second or more

  model = llama_config(config)
  lora.check(config.lora, llama.abstract(model))
  longce.check(config.train.longce, config.train.seq_len)
  check_memory(config, model)
  check_sequence(config, model)
  check_xpos(config, model.rope)
  check_rotated(config, model)
  check_e2llm(config.data.positions, model.rope)
  check_longce(config, model)
  return model


def llama_config(config) -> Any:
  """The section `model` of a config as a llama.Llama, or InputError."""
  from longjax import llama

  try:
    return llama.Llama(**config.model.to_dict())
  except (ValueError, TypeError, ArithmeticError) as error:
    raise InputError(f'config.model: {error}') from None


def check_batch(config):
  """The rows of a batch over devices and micro-batches."""
  train = config.train
  parts = train.micro_batches * config.mesh.data
  if train.batch % parts:
    raise InputError(
      f'config.train.batch is {train.batch}; it must be a multiple of '
      f'train.micro_batches * mesh.data = {parts}'
    )


def check_memory(config, model):
  """Rows that attend to other rows of their micro-batch."""
  train = config.train
  try:
    model.memory.check(train.batch // train.micro_batches)
  except ValueError as error:
    raise InputError(f'config.model.memory: {error}') from None
  if model.memory.rows and train.micro_batches > 1:
    raise InputError(
      f'config.train.micro_batches is {train.micro_batches}; it must be 1 with '
      'model.memory.rows, whose packs are consecutive rows of the batch'
    )


def check_moments(config):
  """Where the moments of AdamW come from."""
  if config.moments and config.weights == 'random':
    raise InputError(
      'config.moments loads the moments of the run that config.weights names, '
      "but config.weights is 'random'"
    )
  if config.moments and config.lora.rank:
    raise InputError(
      f'config.moments must be False with config.lora.rank '
      f'{config.lora.rank}: it loads the moments of all weights, but LoRA has '
      'moments of its factors alone, which start at 0'
    )


def check_schedule(config):
  """The steps in which warm-up-stable-decay decays."""
  optim, wsd = config.optim, config.optim.schedule == 'wsd'
  most = config.train.steps - optim.warmup_steps
  if not 1 <= optim.decay_steps <= most if wsd else optim.decay_steps:
    must = f'from 1 to train.steps - optim.warmup_steps = {most}' if wsd else 0
    raise InputError(
      f'config.optim.decay_steps is {optim.decay_steps}; it must be {must} '
      f'with optim.schedule {optim.schedule}'
    )


def check_sequence(config, model):
  """A row over the devices of mesh.seq, and in the groups of LongLoRA."""
  from longjax import attention

  seq_len, members = config.train.seq_len, config.mesh.seq
  if model.group and seq_len % model.group:
    raise InputError(
      f'config.train.seq_len is {seq_len}; it must be a multiple of '
      f'config.model.group = {model.group}'
    )
  if members > 1 and attention.STRATEGIES[model.attention].whole_rows:
    raise InputError(
      f'config.mesh.seq is {members}; it must be 1 with model.attention '
      f'{model.attention}, which needs whole rows: use ring or gather'
    )
  # LongLoRA's two kinds of groups have half of the heads each.
  parts = 2 if model.group else 1
  heads = model.heads // parts, max(1, model.kv_heads // parts)
  try:
    attention.exchange_size(model.attention, *heads, members, model.ulysses)
  except ValueError as error:
    raise InputError(f'config.mesh.seq is {members}: {error}') from None


def check_xpos(config, recipe):
  """The decay of xPos, which float32 must hold over the longest row."""
  from longjax import rope

  section = config.eval
  rope.check_reach(recipe, max(
    config.train.seq_len, config.data.positions.target, section.length,
    *section.passkey_lengths, *(section.lengths if section.tasks else ()),
  ))  # fmt: skip


def check_rotated(config, model):
  """Positions that are drawn are those of layers that rotate."""
  kind = config.data.positions.kind
  unrotated = len(model.nope_layers) == model.layers
  if kind != 'plain' and (unrotated or model.rope.scaling == 'nope'):
    raise InputError(
      f'config.data.positions.kind is {kind!r}, but no layer of the model has '
      'RoPE, which alone reads positions: set it to plain, with target 0, or '
      'model.rope.scaling and nope_layers to those of a model with RoPE'
    )


def check_e2llm(positions, recipe):
  """E2-LLM's positions are those before a division by target / window."""
  if positions.kind != 'e2llm':
    return
  factor = positions.target / positions.window
  if (recipe.scaling, recipe.factor) != ('linear', factor):
    raise InputError(
      f"config.data.positions.kind is 'e2llm' with model.rope.scaling "
      f'{recipe.scaling!r} by {recipe.factor:g}; it needs linear by target / '
      f'window = {factor:g}'
    )


def check_longce(config, model):
  """Both contexts of LongCE are those of the same attention."""
  gamma = config.train.longce.gamma
  if gamma and (model.group or model.memory.rows):
    raise InputError(
      f'config.train.longce.gamma is {gamma:g}; it must be 0 with model.group '
      'or model.memory.rows, whose long context is not the whole row'
    )
