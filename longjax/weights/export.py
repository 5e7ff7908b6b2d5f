"""Writes a Llama in Hugging Face's form, for transformers and what reads it.

Files are those that transformers' `save_pretrained` writes: the same tensors
in the same files of the same bytes, for the same size of a shard. config.json
has the rope that the model was trained with in both dialects, that of
transformers 5 and the keys of 4, which would otherwise take base 10,000.
"""

import json
import math
import os

import numpy as np

from longjax import errors, llama, rope
from longjax.weights import files, names

DTYPES = dict(float32='F32', float16='F16', bfloat16='BF16')
# The order in which transformers meets the tensors of a layer.
LAYER = ('q', 'k', 'v', 'o', 'gate', 'up', 'down', 'attn_norm', 'mlp_norm')


def rope_settings(config: llama.Llama) -> dict:
  """`rope_parameters` of transformers 5.

  Raises:
    InputError: transformers has no such rope.
  """
  settings, dim = config.rope, config.head_dim
  if settings.scaling == 'nope' or settings.xpos:
    name = 'xpos' if settings.xpos else 'nope'
    raise errors.InputError(
      f"rope {name!r} has no equivalent in transformers' Llama; only longjax "
      'runs this model'
    )
  found: dict = dict(rope_type='default', rope_theta=settings.base)
  if settings.scaling == 'none':
    return found
  if settings.scaling == 'ntk':  # is a larger base
    base = settings.base * settings.factor ** (dim / (dim - 2))
    return found | dict(rope_theta=base)
  found |= dict(rope_type=settings.scaling, factor=settings.factor)
  if settings.scaling == 'linear':
    return found
  found |= dict(original_max_position_embeddings=settings.original_length)
  if settings.scaling == 'llama3':
    return found | dict(
      low_freq_factor=settings.low_freq_factor,
      high_freq_factor=settings.high_freq_factor,
    )
  if settings.scaling == 'yarn':
    return found | dict(
      beta_fast=settings.beta_fast, beta_slow=settings.beta_slow
    )
  # Any other divides each frequency by a number, as LongRoPE does.
  plain, _ = rope.frequencies(rope.Rope(base=settings.base), dim)
  scaled, temperature = rope.frequencies(settings, dim)
  divisors = (plain / scaled).tolist()
  return found | dict(
    rope_type='longrope',
    short_factor=divisors,
    long_factor=divisors,
    attention_factor=temperature,
  )


def config_json(config: llama.Llama, window: int, dtype: str, tokens) -> dict:
  """What config.json says.

  Args:
    config: the model.
    window: tokens that it was trained for.
    dtype: of the tensors.
    tokens: the data.tokenizer.Tokenizer, or None.
  """
  settings = rope_settings(config)
  scaling = {k: v for k, v in settings.items() if k != 'rope_theta'}
  if config.rope.scaling == 'yarn':  # transformers 4 takes factor from these
    window = round(config.rope.original_length * config.rope.factor)
  return dict(
    architectures=['LlamaForCausalLM'],
    attention_bias=False,
    attention_dropout=0.0,
    bos_token_id=tokens and tokens.bos,
    dtype=dtype,
    eos_token_id=tokens and tokens.eos,
    head_dim=config.head_dim,
    hidden_act='silu',
    hidden_size=config.embed,
    intermediate_size=config.mlp,
    max_position_embeddings=window,
    mlp_bias=False,
    model_type='llama',
    num_attention_heads=config.heads,
    num_hidden_layers=config.layers,
    num_key_value_heads=config.kv_heads,
    rms_norm_eps=config.norm_eps,
    rope_parameters=settings,
    rope_scaling=scaling if scaling['rope_type'] != 'default' else None,
    rope_theta=settings['rope_theta'],
    tie_word_embeddings=config.tied,
    torch_dtype=dtype,
    use_cache=True,
    vocab_size=config.vocab,
  )


def generation_json(tokens) -> dict:
  """What generation_config.json says."""
  ends = (
    dict(bos_token_id=tokens.bos, eos_token_id=tokens.eos) if tokens else {}
  )
  return dict({'_from_model_config': True}, **ends)


def ordered(fields) -> list:
  """(row, layer) of each tensor, in the order of transformers."""
  rows = {row.path: row for row in names.rows(fields)}
  layered = [rows[f'layers/{name}'] for name in LAYER]
  return [
    (rows['embedding'], None),
    *((row, i) for i in range(fields['layers']) for row in layered),
    (rows['norm'], None),
    *((rows[path], None) for path in ('head',) if path in rows),
  ]


def plan(fields, dtypes, shard_bytes) -> dict[str, list]:
  """{file name: [(row, layer)]}, filled one after the other.

  Args:
    fields: of the llama.Llama.
    dtypes: {path: dtype name} of our parameters.
    shard_bytes: of tensors in a file; one that is larger has its own.
  """
  shards, room = [], 0
  for row, layer in ordered(fields):
    size = math.prod(names.stored_shape(row, fields))
    size *= np.dtype(dtypes[row.path]).itemsize
    if not shards or size > room:
      shards.append([])
      room = shard_bytes
    shards[-1].append((row, layer))
    room -= size
  if len(shards) == 1:
    return {'model.safetensors': shards[0]}
  return {
    f'model-{i:05}-of-{len(shards):05}.safetensors': shard
    for i, shard in enumerate(shards, 1)
  }


class Files:
  """The safetensors files of a model, at their sizes, to be filled."""

  def __init__(self, directory, fields, dtypes, shard_bytes):
    """Makes them, and the index if there are several.

    Args:
      directory: must exist.
      fields, dtypes, shard_bytes: as for `plan`.
    """
    self._fields, self._tensors, places = fields, {}, {}
    self.total_bytes = count = 0
    for file, shard in plan(fields, dtypes, shard_bytes).items():
      path = os.path.join(directory, file)
      entries = {
        names.name(row, 'huggingface', layer): (
          DTYPES[dtypes[row.path]],
          names.stored_shape(row, fields),
        )
        for row, layer in shard
      }
      self._tensors |= _make(path, entries)
      places |= dict.fromkeys(entries, file)
      for kind, shape in entries.values():
        count += math.prod(shape)
        self.total_bytes += math.prod(shape) * files.DTYPES[kind].itemsize
    if len({*places.values()}) > 1:
      index = dict(
        metadata=dict(total_parameters=count, total_size=self.total_bytes),
        weight_map=places,
      )
      write_json(os.path.join(directory, 'model.safetensors.index.json'), index)

  def view(self, row, layer) -> np.ndarray:
    """A tensor in the file, to be written to, its heads not flattened.

    Args:
      row: of names.TABLE.
      layer: None where the row is outside of them.

    Returns:
      Shape of the row's stored letters.
    """
    name = names.name(row, 'huggingface', layer)
    path, dtype, shape, offset = self._tensors[name]
    tensor = np.memmap(path, dtype, 'r+', offset, shape)
    letters = row.stored.replace(' ', '')
    return tensor.reshape(names.sizes(letters, self._fields))


def _make(path, entries) -> dict:
  """A file of zeros with its header; where each tensor lies in it."""
  order = sorted(
    entries, key=lambda n: (-files.DTYPES[entries[n][0]].itemsize, n)
  )
  header: dict = {'__metadata__': {'format': 'pt'}}
  end = 0
  for name in order:
    kind, shape = entries[name]
    begin, end = end, end + math.prod(shape) * files.DTYPES[kind].itemsize
    header[name] = dict(
      dtype=kind, shape=list(shape), data_offsets=[begin, end]
    )
  text = json.dumps(header, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)
  with open(path, 'wb') as file:
    file.write(len(text).to_bytes(8, 'little') + text)
    file.flush()
    _reserve(file, file.tell() + end)
  return {
    name: (
      path,
      files.DTYPES[entries[name][0]],
      tuple(entries[name][1]),
      8 + len(text) + header[name]['data_offsets'][0],
    )
    for name in order
  }


def _reserve(file, size):
  """Gives a file its size, and the space on the disk.

  It is filled through a mapping, where a full disk would end the process.
  """
  file.truncate(size)
  if not hasattr(os, 'posix_fallocate'):  # a Mac
    return
  try:
    os.posix_fallocate(file.fileno(), 0, size)
  except OSError as error:
    if error.errno in errors.FULL:
      raise  # else it is a file system that cannot do it


def write_json(path, value):
  """As transformers writes its JSON files."""
  with open(path, 'w', encoding='utf-8') as file:
    file.write(json.dumps(value, indent=2, sort_keys=True) + '\n')
