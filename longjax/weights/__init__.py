"""Weights in: `params, config = weights.load(path)`, whatever the format.

How to read this package: `names` is the one table of tensor names; `gguf`,
`huggingface` and `meta` each turn a path into a `tensors.TensorSource`, whose
tensors are not read yet (`tensor_files` maps safetensors and PyTorch's files);
`tensors` checks them and hands out our parameters; `convert` imports and
exports, with `checkpoint_arrays` for checkpoints and `directories` for what is
made whole or not at all; `show` prints what a path holds.
"""

import glob
import hashlib
import os
import pathlib

import jax

from longjax import errors, hub, llama, storage
from longjax.weights import (
  config_json,
  gguf,
  huggingface,
  meta,
  names,
  tensors,
)

OTHERS = (
  'a .gguf file or a directory with one, a directory with config.json and '
  'safetensors (Hugging Face) or with params.json and consolidated.*.pth (Meta)'
)
FORMATS = f'{OTHERS}, or a longjax checkpoint or run directory'


def load(path, *, dtype='float32', place=None):
  """Loads a model.

  Args:
    path: one of FORMATS.
    dtype: of the config that is returned, that is of matmuls: 'float32' or
      'bfloat16'. Parameters are float32 always.
    place: called with the config before any tensor is read; returns a
      jax.sharding.Sharding for each parameter. Each host then reads what it
      holds, one parameter at a time. Without it, arrays are numpy's.

  Returns:
    params: dict of arrays, layers stacked.
    config: the `llama.Llama` that reads them.

  Raises:
    InputError: names the file or tensor that is missing or damaged.
  """
  path = hub.resolve(path)
  source, config = _described(path, dtype)
  if source is None:
    from longjax import checkpoint

    params, _ = checkpoint.load_params(path, place and place(config))
    return params, config
  tensors.check(source)
  if place is None:
    return tensors.arrays(source), config
  return _placed(source, place(config)), config


def config(path) -> llama.Llama:
  """The model of weights or of a checkpoint, whose arrays are not read.

  Raises:
    InputError: as `load`, but for what only the arrays show.
  """
  return _described(hub.resolve(path), 'float32')[1]


PIECE = 1 << 16  # bytes at either end of a file that count


def fingerprint(path) -> str:
  """Tells weights apart, cheaply: of a checkpoint by the digests of its arrays,
  of other files by their sizes, beginnings and ends."""
  path = hub.resolve(path)
  if source := find(path):
    digest = hashlib.sha256()
    for name in source.files:
      size = os.path.getsize(name)
      with open(name, 'rb') as file:
        ends = file.read(PIECE), file.seek(max(size - PIECE, 0)), file.read()
      digest.update(repr((os.path.basename(name), size, ends)).encode())
    return digest.hexdigest()[:16]
  from longjax import checkpoint

  metadata = checkpoint.metadata(path)
  known = [metadata.get('step'), metadata.get('digests')]
  return hashlib.sha256(repr(known).encode()).hexdigest()[:16]


def trained_seq_len(path) -> int:
  """train.seq_len of the run that made a checkpoint; 0 for other weights."""
  path = hub.resolve(path)
  if find(path):
    return 0
  from longjax import checkpoint

  config = checkpoint.metadata(path).get('config', {})
  return config.get('train', {}).get('seq_len', 0)


def _described(path, dtype):
  """(the TensorSource, or None for a checkpoint of ours; its llama.Llama)."""
  if source := find(path):
    return source, as_config(path, source.fields, dtype)
  from longjax import checkpoint  # late: Orbax takes seconds to import

  return None, as_config(path, checkpoint.metadata(path).get('model'), dtype)


def _placed(source, shardings):
  """Every parameter in its sharding; only one is in host memory at a time."""
  found = {}
  for row in names.rows(source.fields):
    shape = names.shapes(source.fields)[row.path]
    *parents, key = row.path.split('/')
    sharding = (shardings[parents[0]] if parents else shardings)[key]
    mine = sharding.addressable_devices_indices_map(shape)
    # Replicas share a part; a slice is not hashable before Python 3.12.
    indices = {str(index): index for index in mine.values()}
    parts = dict(
      zip(indices, tensors.parts(source, row, list(indices.values())))
    )
    found[row.path] = jax.make_array_from_callback(
      shape, sharding, lambda index, parts=parts: parts[str(index)]
    )
  return tensors.tree(found)


def find(path):
  """The TensorSource that `path` is or holds; None for a checkpoint of ours."""
  if '://' in str(path):
    return None  # launch/convert.py imports from there, this reads checkpoints
  if not os.path.exists(path):
    raise errors.InputError(f'{path} does not exist; weights are {FORMATS}')
  readers = _readers(path)
  if len(readers) > 1:
    raise errors.InputError(
      f'{path} holds weights in {len(readers)} formats: '
      f'{", ".join(readers)}; keep one'
    )
  for read in readers.values():
    return read()
  if os.path.isdir(path):
    _refuse_bare_tensors(path)
    return None
  raise errors.InputError(f'{path} has no known format; weights are {FORMATS}')


def _refuse_bare_tensors(path):
  """InputError for files of tensors that came without their description."""
  for files in ('*.safetensors', 'pytorch_model*.bin', 'consolidated.*.pth'):
    found = glob.glob(os.path.join(glob.escape(path), files))
    if found:
      raise errors.InputError(
        f'{path} has {os.path.basename(min(found))} but neither '
        f'{config_json.NAME} nor {meta.PARAMS}, one of which says what model '
        'it is; copy that too'
      )


def _readers(path) -> dict:
  """{what was found: a function that reads it}."""
  found = {}
  has = lambda name: storage.is_safe_file(pathlib.Path(path) / name)
  if file := gguf_file(path):
    found[os.path.basename(file)] = lambda: gguf.source(file)
  # Mistral's repositories have one beside config.json, for other files.
  parts = os.path.join(glob.escape(os.fspath(path)), 'consolidated.*.pth')
  if has(meta.PARAMS) and (glob.glob(parts) or not has(config_json.NAME)):
    found[meta.PARAMS] = lambda: meta.source(os.fspath(path))
  # A run directory has a config.json too.
  run = os.path.isdir(os.path.join(path, 'checkpoints'))
  if has(config_json.NAME) and not run:
    found[config_json.NAME] = lambda: huggingface.source(os.fspath(path))
  return found


def as_config(path, fields, dtype) -> llama.Llama:
  """The llama.Llama with these fields; errors name the path."""
  if fields is None:
    raise errors.InputError(
      f'{path}: the metadata of this checkpoint have no model'
    )
  try:
    return llama.Llama(**fields | dict(dtype=dtype))
  except (ValueError, TypeError, KeyError, OverflowError) as error:
    raise errors.InputError(f'{path}: {error}') from None


def gguf_file(path):
  """The GGUF file that `path` is or holds, or None; refuses several."""
  if os.path.isfile(path):
    return path if os.fspath(path).endswith('.gguf') else None
  found = sorted(glob.glob(os.path.join(glob.escape(path), '*.gguf')))
  found = [storage.inside(path, os.path.basename(file)) for file in found]
  if len(found) > 1:
    raise errors.InputError(
      f'{path} holds {len(found)} .gguf files, name one: '
      + ', '.join(os.path.basename(file) for file in found[:3])
    )
  return found[0] if found else None
