"""Reads a Llama in Meta's form: params.json and consolidated.NN.pth.

A model of N files is cut over N devices: matrices along the dim that their
layer is parallel in, norms repeated in each. Tensors are joined when they are
read, so that only one of them is in memory.
"""

import functools
import glob
import os

import numpy as np

from longjax import errors, storage
from longjax.weights import tensor_files as files
from longjax.weights.tensors import (
  Tensor,
  TensorSource,
  count,
  flag,
  positive,
  same,
)

PARAMS = 'params.json'
EMBEDDING, HEAD = 'tok_embeddings.weight', 'output.weight'
KEYS = frozenset([
  'dim', 'n_layers', 'n_heads', 'n_kv_heads', 'norm_eps', 'rope_theta',
  'use_scaled_rope', 'rope_scaling_factor', 'vocab_size',
  # These gave the width of the feed-forward, which the tensors have.
  'multiple_of', 'ffn_dim_multiplier',
  # Of the runtime.
  'max_batch_size', 'max_seq_len', 'model_parallel_size',
])  # fmt: skip
# params.json says of Llama 3.1 and 3.2 alike only `use_scaled_rope`. The
# factor is 8 in 3.1 and 3.3 (8B, 70B, 405B) and 32 in 3.2 (1B, 3B).
ROPE_FACTORS = {
  (4096, 32): 8.0,
  (8192, 80): 8.0,
  (16_384, 126): 8.0,
  (2048, 16): 32.0,
  (3072, 28): 32.0,
}  # (dim, n_layers)


def source(directory) -> TensorSource:
  """The model of a directory with params.json."""
  path = os.path.join(directory, PARAMS)
  params = files.load_json(path)
  shards = _shards(directory)
  loaded = [files.pytorch(shard) for shard in shards]
  for shard, tensors in zip(shards, loaded):
    if tensors.keys() != loaded[0].keys():
      odd = min(tensors.keys() ^ loaded[0].keys())
      raise errors.InputError(
        f'{directory}: only one of {os.path.basename(shard)} and '
        f'{os.path.basename(shards[0])} has the tensor {odd}'
      )
  try:
    fields = _fields(params, loaded)
    tensors = {
      name: _joined(name, [x[name] for x in loaded], fields)
      for name in loaded[0]
    }
    tensors.pop('rope.freqs', None)  # Meta's code computes them anew
  except errors.InputError as error:
    raise errors.InputError(f'{directory}: {error}') from None
  embedding = tensors.get(EMBEDDING)  # a lacking one is refused later
  if HEAD not in tensors or (embedding and same(tensors[HEAD], embedding)):
    fields['tied'] = True  # Llama 3.2 stores its head twice
    tensors.pop(HEAD, None)
  return TensorSource(str(directory), 'meta', fields, tensors, (path, *shards))


def _shards(directory) -> list[str]:
  """consolidated.00.pth and those after it, none missing between."""
  found = glob.glob(os.path.join(glob.escape(directory), 'consolidated.*.pth'))
  numbers = range(max(len(found), 1))
  return [
    storage.inside(directory, f'consolidated.{n:02}.pth') for n in numbers
  ]


def _fields(params, loaded) -> dict:
  """The fields of a llama.Llama."""
  unknown = sorted(params.keys() - KEYS)
  if unknown:
    raise errors.InputError(
      f'{PARAMS}: {unknown[0]} = {str(params[unknown[0]])[:80]} is a '
      'setting that longjax does not support'
    )
  number = functools.partial(count, params, prefix=f'{PARAMS}: ')
  dim, layers, heads = map(number, ('dim', 'n_layers', 'n_heads'))
  if dim % heads:
    raise errors.InputError(
      f'{PARAMS}: dim {dim} is not a multiple of n_heads {heads}'
    )
  given, vocab = params.get('vocab_size', -1), 0
  if given == -1:  # Llama 2: from the embedding, cut in one dim or the other
    vocab, columns = _shape(loaded[0], EMBEDDING)
    vocab = vocab if columns != dim else _rows(loaded, EMBEDDING)
  return dict(
    vocab=vocab or number('vocab_size'),
    layers=layers,
    embed=dim,
    mlp=_rows(loaded, 'layers.0.feed_forward.w1.weight'),
    heads=heads,
    kv_heads=number('n_kv_heads', heads),
    head_dim=dim // heads,
    norm_eps=positive(params, 'norm_eps', prefix=f'{PARAMS}: '),
    tied=False,
    rope=_rope(params, dim, layers),
  )


def _rows(loaded, name) -> int:
  """Rows of a matrix whose files lie below each other."""
  return sum(_shape(tensors, name)[0] for tensors in loaded)


def _shape(tensors, name):
  if name not in tensors or len(tensors[name].shape) != 2:
    raise errors.InputError(f'lacks the matrix {name}')
  return tensors[name].shape


def _rope(params, dim, layers) -> dict:
  """The fields of a rope.Rope."""
  scaled = flag(params, 'use_scaled_rope', f'{PARAMS}: ')
  if params.get('rope_theta') is None and scaled:
    raise errors.InputError(f'{PARAMS}: use_scaled_rope without rope_theta')
  base = positive(params, 'rope_theta', 10_000.0, f'{PARAMS}: ')
  given = params.get('rope_scaling_factor')
  if not scaled:
    if given is not None:
      raise errors.InputError(
        f'{PARAMS}: rope_scaling_factor {given} without use_scaled_rope'
      )
    return dict(base=base)
  if given is None and (dim, layers) not in ROPE_FACTORS:
    raise errors.InputError(
      f'{PARAMS}: use_scaled_rope has no factor, and no Llama 3.1 or '
      f'3.2 has dim {dim} and {layers} layers; add "rope_scaling_factor": 8 '
      '(3.1) or 32 (3.2)'
    )
  factor = ROPE_FACTORS.get((dim, layers))
  return dict(
    base=base,
    scaling='llama3',
    factor=positive(params, 'rope_scaling_factor', factor, f'{PARAMS}: '),
    original_length=8192,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
  )


def _joined(name, parts: list[Tensor], fields) -> Tensor:
  """One tensor from its part in each file."""
  dim = _dim(name, parts, fields)
  if dim is None:
    if not all(same(part, parts[0]) for part in parts):
      raise errors.InputError(f'{name} differs from file to file')
    return parts[0]
  shapes = [part.shape for part in parts]
  if len({(s[:dim], s[dim + 1 :]) for s in shapes}) > 1 or (
    len({part.dtype for part in parts}) > 1
  ):
    raise errors.InputError(
      f'parts of {name} cannot be joined: shapes {shapes}'
    )
  shape = list(shapes[0])
  shape[dim] = sum(s[dim] for s in shapes)
  read = lambda: np.concatenate([part.read() for part in parts], dim)
  return Tensor(tuple(shape), parts[0].dtype, read)


def _dim(name, parts, fields):
  """The dim that the files cut; None if each has the whole."""
  if len(parts) == 1 or len(parts[0].shape) < 2:
    return None
  if name == EMBEDDING:  # Llama 3 cuts the vocabulary, Llama 2 the other dim
    return 0 if parts[0].shape[1] == fields['embed'] else 1
  return 1 if name.endswith(('attention.wo.weight', '.w2.weight')) else 0
