"""Weights in: `params, config = weights.load(path)`, whatever the format."""

import glob
import os

from longjax import errors, llama, rope
from longjax.weights import gguf


def load(path, *, dtype='float32'):
  """Loads a model.

  Args:
    path: a .gguf file, a directory with exactly one, or a longjax checkpoint
      or run directory.
    dtype: of the config that is returned, that is of matmuls: 'float32' or
      'bfloat16'. Parameters are float32 always.

  Returns:
    params: dict of numpy arrays, layers stacked; the caller places them.
    config: the `llama.Llama` that reads them.
  """
  file = gguf_file(path)
  if file:
    params, fields = gguf.read(file)
    return params, _config(file, fields, dtype)
  if os.path.isdir(path):
    from longjax import checkpoint  # late: Orbax takes seconds to import

    params, about = checkpoint.load_params(path)
    if 'model' not in about:
      raise errors.InputError(f'{path}: a checkpoint that names no model')
    return params, _config(path, about['model'], dtype)
  problem = 'has no known format' if os.path.exists(path) else 'does not exist'
  raise errors.InputError(
    f'{path} {problem}; weights are a .gguf file, a directory with one, or a '
    'longjax checkpoint or run directory'
  )


def _config(path, fields, dtype):
  """The llama.Llama with these fields; errors name the path."""
  try:
    settings = rope.Rope(**fields['rope'])
    return llama.Llama(**(fields | dict(rope=settings, dtype=dtype)))
  except (ValueError, TypeError, KeyError) as error:
    raise errors.InputError(f'{path}: {error}') from None


def gguf_file(path):
  """The GGUF file that `path` is or holds, or None; refuses several."""
  if os.path.isfile(path):
    return path if os.fspath(path).endswith('.gguf') else None
  found = sorted(glob.glob(os.path.join(glob.escape(path), '*.gguf')))
  if len(found) > 1:
    raise errors.InputError(
      f'{path} holds {len(found)} .gguf files, name one: '
      + ', '.join(os.path.basename(file) for file in found[:3])
    )
  return found[0] if found else None
