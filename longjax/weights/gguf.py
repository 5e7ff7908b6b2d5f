"""Reads a Llama from a GGUF file; quantized tensors come out in float32.

The `gguf` package dequantizes; this file holds what it reads to what a Llama
must have, and refuses the rest in one line that names the file and the tensor.
"""

import functools

import gguf
import numpy as np

from longjax import errors, gguf_file, rope
from longjax.weights.tensors import (
  BFLOAT16,
  Tensor,
  TensorSource,
  count,
  mapped,
  positive,
)

EMBEDDING = 'token_embd.weight'
HEAD = 'output.weight'
ROPE_FACTORS = 'rope_freqs.weight'

# Keys of `llama.*` that are read below, then those without effect on logits.
# Any other might change the model, so it is refused.
KEYS = frozenset([
  'block_count', 'embedding_length', 'feed_forward_length', 'context_length',
  'attention.head_count', 'attention.head_count_kv', 'attention.key_length',
  'attention.value_length', 'attention.layer_norm_rms_epsilon',
  'rope.dimension_count', 'rope.freq_base', 'rope.scaling.type',
  'rope.scaling.factor', 'rope.scaling.original_context_length',
  'rope.scaling.yarn_beta_fast', 'rope.scaling.yarn_beta_slow',

  'vocab_size', 'tensor_data_layout', 'rope.scaling.finetuned',
])  # fmt: skip


FLOATS = {
  gguf.GGMLQuantizationType.F64: np.dtype('f8'),
  gguf.GGMLQuantizationType.F32: np.dtype('f4'),
  gguf.GGMLQuantizationType.F16: np.dtype('f2'),
  gguf.GGMLQuantizationType.BF16: BFLOAT16,
}


def source(path) -> TensorSource:
  """The model of a GGUF file of general.architecture 'llama'."""
  path = str(path)
  try:
    reader = gguf_file.read(path)
    tensors = {x.name: _tensor(path, x) for x in reader.tensors}
    metadata = _metadata(reader)
    fields = _fields(metadata, tensors)
  except ValueError as error:  # ours, rope.Rope's, or of damaged metadata
    message = ' '.join(str(error).split())  # a damaged name may have newlines
    raise errors.InputError(f'{path}: {message}') from error
  tensors.pop(ROPE_FACTORS, None)
  window = metadata.get('context_length', 0)
  return TensorSource(
    path,
    'gguf',
    fields,
    tensors,
    (path,),
    window=window if isinstance(window, int) else 0,
  )


def _metadata(reader):
  """The metadata of the architecture as a dict, without 'llama.'."""
  field = reader.get_field('general.architecture')
  architecture = field and field.contents()
  if architecture != 'llama':
    raise errors.InputError(
      f'general.architecture is {architecture!r}; only llama is read'
    )
  split = reader.get_field('split.count')
  parts = split and split.contents()
  if isinstance(parts, int) and parts > 1:
    raise errors.InputError(
      f"is one of {parts} parts of a model; merge them with llama.cpp's "
      'llama-gguf-split --merge'
    )
  found = {
    key.removeprefix('llama.'): _short(field.contents())
    for key, field in reader.fields.items()
    if key.startswith('llama.')
  }
  unknown = sorted(found.keys() - KEYS)
  if unknown:
    raise errors.InputError(
      f'llama.{unknown[0]} = {found[unknown[0]]} is a '
      'setting that longjax does not support'
    )
  return found


def _short(value):
  """The decimal that was meant: 9.999999747378752e-06 is float32's 1e-5."""
  return float(str(np.float32(value))) if isinstance(value, float) else value


def _fields(metadata, tensors):
  """The fields of a llama.Llama from the metadata."""
  number = functools.partial(count, metadata, prefix='llama.')
  if EMBEDDING not in tensors:
    raise errors.InputError(f'lacks tensor {EMBEDDING}')
  heads, embed = number('attention.head_count'), number('embedding_length')
  head_dim = number('attention.key_length', embed // heads)
  for key in ('rope.dimension_count', 'attention.value_length'):
    if metadata.get(key, head_dim) != head_dim:
      raise errors.InputError(
        f'llama.{key} = {metadata[key]} must equal the dim of a head, '
        f'{head_dim}'
      )
  return dict(
    vocab=tensors[EMBEDDING].shape[0],
    layers=number('block_count'),
    embed=embed,
    mlp=number('feed_forward_length'),
    heads=heads,
    kv_heads=number('attention.head_count_kv', heads),
    head_dim=head_dim,
    norm_eps=positive(
      metadata, 'attention.layer_norm_rms_epsilon', prefix='llama.'
    ),
    tied=HEAD not in tensors,
    rope=_rope(metadata, tensors, head_dim),
  )


def _rope(metadata, tensors, head_dim):
  """The fields of a rope.Rope."""
  number = functools.partial(positive, metadata, prefix='llama.')
  base = number('rope.freq_base', 10_000.0)
  # As in llama.cpp, whose default is linear.
  default = 'linear' if 'rope.scaling.factor' in metadata else 'none'
  scaling = metadata.get('rope.scaling.type', default)
  if ROPE_FACTORS in tensors:
    if scaling != 'none':
      raise errors.InputError(
        f'has both {ROPE_FACTORS} and rope scaling {scaling!r}'
      )
    return _llama3(metadata, tensors[ROPE_FACTORS], base, head_dim)
  if scaling == 'none':
    return dict(base=base)
  factor = number('rope.scaling.factor', 1.0)
  if scaling == 'linear':
    return dict(base=base, scaling='linear', factor=factor)
  if scaling == 'yarn':
    window = metadata.get('context_length', 0)
    return dict(
      base=base,
      scaling='yarn',
      factor=factor,
      original_length=count(
        metadata, 'rope.scaling.original_context_length', window, 'llama.'
      ),
      beta_fast=number('rope.scaling.yarn_beta_fast', 32.0),
      beta_slow=number('rope.scaling.yarn_beta_slow', 1.0),
    )
  raise errors.InputError(
    f'llama.rope.scaling.type {scaling!r} is not one of none, linear, yarn'
  )


def _llama3(metadata, tensor, base, head_dim):
  """Llama 3.1's scaling from its divisors of each frequency.

  The file holds the divisors, not the rule; the largest is the factor. Every
  Llama 3.1, 3.2 and 3.3 was released with window 8192 and factors 1 and 4.
  """
  if tensor.shape != (head_dim // 2,):
    raise errors.InputError(f'{ROPE_FACTORS} has shape {tensor.shape}')
  divisors = np.asarray(tensor.read(), np.float32)
  if not np.isfinite(divisors).all():
    raise errors.InputError(f'{ROPE_FACTORS} holds NaN or infinity')
  fields: dict = dict(
    base=base,
    scaling='llama3',
    factor=_short(float(divisors.max())),
    original_length=metadata.get('rope.scaling.original_context_length', 8192),
    low_freq_factor=1.0,
    high_freq_factor=4.0,
  )
  if fields['factor'] >= 1:
    plain, _ = rope.frequencies(rope.Rope(base=base), head_dim)
    scaled, _ = rope.frequencies(rope.Rope(**fields), head_dim)
    if np.allclose(plain / scaled, divisors, rtol=1e-5, atol=0):
      return fields
  raise errors.InputError(
    f'{ROPE_FACTORS} is not the scaling of Llama 3.1 with window '
    f'{fields["original_length"]} and factor {fields["factor"]}'
  )


def _tensor(path, stored) -> Tensor:
  """A tensor of the reader, without the reader and what it has mapped."""
  kind, name = stored.tensor_type, stored.name
  shape = tuple(int(n) for n in reversed(stored.shape))
  offset, raw = int(stored.data_offset), stored.data
  if kind in FLOATS:
    return mapped(path, FLOATS[kind], shape, offset)
  packed = mapped(path, raw.dtype, raw.shape, offset)

  def read():
    try:
      return gguf.dequantize(packed.read(), kind)
    except NotImplementedError:
      raise errors.InputError(
        f'{path}: {name} has quantization type {kind.name}, which the gguf '
        'package cannot read; convert the file to Q8_0, F16 or F32'
      ) from None

  return Tensor(shape, np.dtype('f4'), read)
