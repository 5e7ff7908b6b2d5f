"""What a config must be, said before any device is touched."""

import math

from longjax import attention, cli, llama, longce, lora, rope
from longjax.data import pipeline
from longjax.errors import InputError
from longjax.train import optimizer


def llama_config(config) -> llama.Llama:
  """The section `model` of a config, or InputError."""
  fields = config.model.to_dict()
  try:
    return llama.Llama(**fields)
  except (ValueError, TypeError, ArithmeticError) as error:
    raise InputError(f'config.model: {error}') from None


MOST = 2**63  # all numbers of a config are below
# The smallest value that a key may have; a nan is none.
LEAST = {
  'seed': 0,
  'mesh.data': 1,
  'mesh.seq': 1,
  'train.steps': 1,
  'train.batch': 1,
  'train.micro_batches': 1,
  'train.seq_len': 1,
  'train.loss_chunk': 1,
  'train.longce.gamma': 0,
  'train.longce.short': 1,
  'train.longce.stride': 1,
  'lora.rank': 0,
  'lora.alpha': 1e-9,
  'optim.learning_rate': 0,
  'optim.warmup_steps': 0,
  'optim.warmup_from': 0,
  'optim.min_ratio': 0,
  'optim.eps': 0,
  'optim.weight_decay': 0,
  'optim.clip': 1e-9,
  'optim.spike_sigmas': 0,
  'optim.spike_window': 2,
  'optim.max_skipped': 0,
  'checkpoint.every_steps': 1,
  'checkpoint.keep': 1,
  'checkpoint.keep_every_steps': 0,
  'checkpoint.max_failed': 1,
  'eval.documents': 1,
  'eval.length': 0,
  'eval.window': 0,
  'eval.samples': 1,
  'eval.batch': 1,
  'eval.every_steps': 0,
}


def check(config) -> llama.Llama:
  """Refuses what cannot work, before devices are touched; the model."""
  model, train = llama_config(config), config.train
  check_numbers(config)
  pipeline.check(config)
  check_run(config)
  lora.check(config.lora, llama.abstract(model))
  longce.check(train.longce, train.seq_len)
  check_memory(config, model)
  check_attention(config, model)
  check_xpos(config, model.rope)
  return model


def check_numbers(config):
  """The part of `check` about numbers, each by itself and the batch."""
  flat, train = cli.keys(config), config.train
  for key, least in LEAST.items():
    if not least <= flat[key] < MOST:
      bound = f'at least {least}' if flat[key] < least else 'a finite number'
      raise InputError(f'config.{key} must be {bound}, is {flat[key]}')
  for key in ('optim.b1', 'optim.b2'):
    if not 0 <= flat[key] < 1:
      raise InputError(f'config.{key} must be from 0 to below 1: {flat[key]}')
  if not all(0 <= depth <= 1 for depth in config.eval.passkey_depths):
    raise InputError(
      'config.eval.passkey_depths are shares from 0 to 1, got '
      f'{config.eval.passkey_depths}'
    )
  if train.batch % (train.micro_batches * config.mesh.data):
    raise InputError(
      f'config.train.batch {train.batch} is not a multiple of '
      f'train.micro_batches x mesh.data = '
      f'{train.micro_batches * config.mesh.data}'
    )


def check_run(config):
  """The part of `check` about how a run goes, rather than what it learns."""
  flat = cli.keys(config)
  if config.optim.schedule not in optimizer.SCHEDULES:
    raise InputError(
      f'config.optim.schedule {config.optim.schedule!r} is none of '
      f'{", ".join(optimizer.SCHEDULES)}'
    )
  for key in ('data.skip_steps', 'train.profile_steps'):
    if not all(isinstance(step, int) for step in flat[key]):
      raise InputError(f'config.{key} are numbers of steps, got {flat[key]}')
  if config.moments and config.weights == 'random':
    raise InputError(
      'config.moments takes those of the run that config.weights names, but '
      "it is 'random'"
    )
  if config.moments and config.lora.rank:
    raise InputError(
      'config.moments continues those of all weights; with config.lora.rank '
      'there are only those of the factors, which start anew'
    )


def check_memory(config, model: llama.Llama):
  """The part of `check` about rows that see rows of their micro-batch."""
  train = config.train
  try:
    model.memory.check(train.batch // train.micro_batches)
  except ValueError as error:
    raise InputError(f'config.model.memory: {error}') from None
  if model.memory.rows and train.micro_batches > 1:
    raise InputError(
      'config.model.memory.rows are the rows of a batch one after the other, '
      'which train.micro_batches does not keep together: use 1'
    )


def check_attention(config, model: llama.Llama):
  """The part of `check` about a sequence over the devices of mesh.seq."""
  seq_len, members = config.train.seq_len, config.mesh.seq
  if model.group and seq_len % model.group:
    raise InputError(
      f'config.train.seq_len {seq_len} is not a multiple of '
      f'config.model.group {model.group}, whose groups cut it'
    )
  if members > 1 and model.attention == 'blockwise':
    raise InputError(
      f'config.model.attention blockwise needs whole sequences, but mesh.seq '
      f'is {members}; use ring or gather'
    )
  heads = model.heads, model.kv_heads
  try:
    attention.exchange(model.attention, *heads, members, model.ulysses)
  except ValueError as error:
    raise InputError(f'config.mesh.seq {members}: {error}') from None


def check_xpos(config, asked: rope.Rope):
  """The part of `check` about a decay that float32 does not hold."""
  longest = max(
    config.train.seq_len, config.data.positions.target, config.eval.length
  )
  most = int(rope.XPOS_REACH * asked.xpos)
  if asked.xpos and longest > most:
    raise InputError(
      f'config.model.rope.xpos {asked.xpos:g} reaches {most:,} tokens, but '
      f'train.seq_len, data.positions.target or eval.length is {longest:,}; '
      f'use at least {math.ceil(longest / rope.XPOS_REACH):,}'
    )
