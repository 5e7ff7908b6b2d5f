"""Reads a directory in Hugging Face's form: config.json and files of tensors.

The families of families.py: Llama (SmolLM2, OpenLLaMA and LongLLaMA too, whose
memory layers are set by the config that trains it), Mistral, Ministral 3,
Qwen2 and 3, SmolLM3, OLMo 3.
"""

import os
import re

from longjax import errors, storage
from longjax.weights import config_json, families
from longjax.weights import tensor_files as files
from longjax.weights.tensors import TensorSource, same

# Whole or as an index of shards, in the order in which transformers looks.
WEIGHTS = (
  'model.safetensors', 'model.safetensors.index.json',
  'pytorch_model.bin', 'pytorch_model.bin.index.json',
)  # fmt: skip
HEAD, EMBEDDING = 'lm_head.weight', 'model.embed_tokens.weight'


def source(directory, remote=None) -> TensorSource:
  """The model of a directory with config.json.

  Args:
    directory: local.
    remote: {name: hub.Range} of files that belong there, or None.
  """
  path = os.path.join(directory, config_json.NAME)
  config = files.load_json(path)
  try:
    fields = config_json.fields(config)
  except errors.InputError as error:
    raise errors.InputError(f'{path}: {error}') from None
  streams = {n: (x, files.streamed(x)) for n, x in (remote or {}).items()}
  tensors, read = _tensors(directory, streams)
  # Old files hold RoPE's plain frequencies, which transformers ignores too.
  old = re.compile(r'model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq')
  tensors = {k: x for k, x in tensors.items() if not old.fullmatch(k)}
  tensors = _without_tied_head(directory, tensors, fields)
  return TensorSource(
    str(directory),
    'huggingface',
    fields,
    tensors,
    (path, *read),
    window=config_json.window(config),
    family=families.family(config),
    streams=tuple(streams.values()),
  )


def _tensors(directory, streams):
  """({name: Tensor}, the local files that hold them)."""
  has = lambda n: n in streams or os.path.lexists(os.path.join(directory, n))
  found = next(filter(has, WEIGHTS), None)
  if found is None:
    raise errors.InputError(
      f'{directory}: has {config_json.NAME} but none of {", ".join(WEIGHTS)}'
    )
  if found in streams:
    return streams[found][1], ()
  path = storage.inside(directory, found)
  if not found.endswith('.json'):
    return files.read(path), (path,)
  places = files.load_json(path).get('weight_map')
  if not isinstance(places, dict) or not places:
    raise errors.InputError(f'{path}: has no weight_map')
  tensors, read = {}, [path]
  names = sorted({*map(str, places.values())})
  paths = {n: storage.inside(directory, n) for n in names if n not in streams}
  for name in names:
    shard = paths.get(name, os.path.join(directory, name))
    here = streams[name][1] if name in streams else files.read(shard)
    listed = {tensor for tensor, place in places.items() if place == name}
    for verb, wrong in (
      ('lacks', listed - here.keys()),
      ('has, and the index does not list,', here.keys() - listed),
    ):
      if wrong:
        raise errors.InputError(f'{shard}: {verb} tensor {min(wrong)}')
    tensors |= here
  return tensors, (*read, *paths.values())


def _without_tied_head(directory, tensors, fields):
  """A tied model may store its head too; it must be the embedding."""
  if not fields['tied'] or HEAD not in tensors or EMBEDDING not in tensors:
    return tensors
  if not same(tensors[HEAD], tensors[EMBEDDING]):
    raise errors.InputError(
      f'{directory}: {HEAD} is not {EMBEDDING}, but {config_json.NAME} says '
      'tie_word_embeddings'
    )
  return {name: x for name, x in tensors.items() if name != HEAD}
