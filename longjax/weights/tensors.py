"""The tensors of a model in files, checked by name and handed out as ours.

`gguf`, `huggingface` and `meta` each turn a path into a `TensorSource`. What
is done with one does not depend on the format and stands here, once. Where the
format allows, a tensor's `read` is a view of the mapped file, so that nothing
is in memory before it is used.
"""

import functools
import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from flax import traverse_util

from longjax import errors
from longjax.weights import names

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
MAX_SIZE = 1 << 24  # of any size of a model: more is a damaged file
BLOCK = 1 << 18  # elements copied at once: they stay in cache, also transposed


class Tensor(NamedTuple):
  """A stored tensor, not read yet."""

  shape: tuple
  dtype: np.dtype  # of what `read` returns
  read: Callable[[], np.ndarray]

  @property
  def nbytes(self) -> int:
    return math.prod(self.shape) * self.dtype.itemsize


class TensorSource(NamedTuple):
  """A model in files of another format."""

  path: str
  format: str  # a column of names.TABLE: 'gguf', 'huggingface' or 'meta'
  fields: dict[str, Any]  # of a llama.Llama; 'rope' is a dict, of a rope.Rope
  tensors: dict[str, Tensor]  # by their stored names
  files: tuple[str, ...]  # everything that is read here
  window: int = 0  # tokens it was trained for, 0 if the files do not say
  family: str = 'llama'  # a key of families.FAMILIES
  streams: tuple = ()  # (hub.Range, its tensors in order) of what is not here


def mapped(path, dtype, shape, offset) -> Tensor:
  """A tensor that lies row by row in a file."""
  return Tensor(
    shape, dtype, lambda: np.memmap(path, dtype, 'r', offset, shape)
  )


# Metadata of models. Errors name the key; `prefix` stands before it.


def count(metadata, key, default=None, prefix='') -> int:
  """The value of a key that is a whole number from 1 to MAX_SIZE."""
  value = metadata.get(key)
  value = default if value is None else value
  if type(value) is not int or not 1 <= value <= MAX_SIZE:
    raise errors.InputError(
      f'needs a whole number from 1 to {MAX_SIZE} as {prefix}{key}, got '
      f'{value!r}'
    )
  return value


def positive(metadata, key, default=None, prefix='') -> float:
  """The value of a key that is a finite number above 0."""
  value = metadata.get(key)
  value = default if value is None else value
  if (
    isinstance(value, int | float)
    and not isinstance(value, bool)
    and 0 < value <= sys.float_info.max
  ):
    return float(value)
  raise errors.InputError(
    f'needs a positive number as {prefix}{key}, got {value!r:.80}'
  )


def flag(metadata, key, prefix='') -> bool:
  """The value of a key that is true or false; false if it is absent."""
  value = metadata.get(key)
  if value not in (True, False, None):
    raise errors.InputError(
      f'needs true or false as {prefix}{key}, got {value!r}'
    )
  return bool(value)


# Checks


def check(source: TensorSource):
  """Refuses missing, unknown and misshapen tensors before any is read."""
  fields, tensors = source.fields, source.tensors
  if fields['layers'] > len(tensors):  # damaged: don't list millions of names
    raise errors.InputError(
      f'{source.path}: lacks tensors: the model has {fields["layers"]} layers, '
      f'the files have {len(tensors)} tensors'
    )
  wanted = {
    names.name(row, source.format, layer): names.stored_shape(row, fields)
    for row in names.rows(fields)
    for layer in names.layers(row, fields)
  }
  for verb, wrong in (
    ('lacks', sorted(wanted.keys() - tensors.keys())),
    ('has the unknown', sorted(tensors.keys() - wanted.keys())),
  ):
    if wrong:
      raise errors.InputError(
        f'{source.path}: {verb} tensor {wrong[0]}; {len(wrong)} such, for a '
        f'Llama of {fields["layers"]} layers'
      )
  for name, shape in wanted.items():
    if tensors[name].shape != shape:
      raise errors.InputError(
        f'{source.path}: {name} has shape {tensors[name].shape}, but the '
        f'metadata require {shape}'
      )


def same(one: Tensor, other: Tensor) -> bool:
  """Whether two tensors have equal bits; read in parts."""
  if (one.shape, one.dtype) != (other.shape, other.dtype):
    return False
  a, b = one.read(), other.read()
  bits = f'u{one.dtype.itemsize}'
  return all(
    np.array_equal(a[i : i + 256].view(bits), b[i : i + 256].view(bits))
    for i in range(0, len(a), 256)
  )


def finite(array) -> bool:
  """Whether no number is NaN or infinite.

  As integers, these are the largest of their sign: two maxima cost less than
  NumPy's isfinite, for bfloat16 a tenth.
  """
  if not array.size:
    return True
  bits = array.dtype.itemsize * 8
  infinity = int(np.array(np.inf, array.dtype).view(f'u{bits // 8}'))
  return bool(
    array.view(f'i{bits // 8}').max() < infinity
    and array.view(f'u{bits // 8}').max() < infinity + (1 << (bits - 1))
  )


# Our parameters


def dtypes(source: TensorSource) -> dict[str, str]:
  """{path: the dtype in which our parameter loses nothing}.

  That of the tensors; float32 if it differs from layer to layer (float16 and
  bfloat16 do not hold each other) or is wider, as no parameter of ours is.
  """
  found = {}
  for row in names.rows(source.fields):
    kinds = {
      source.tensors[names.name(row, source.format, layer)].dtype
      for layer in names.layers(row, source.fields)
    }
    alike = len(kinds) == 1 and max(kind.itemsize for kind in kinds) <= 4
    found[row.path] = kinds.pop().name if alike else 'float32'
  return found


def matrix(source: TensorSource, row: names.Row, layer) -> np.ndarray:
  """A tensor as Hugging Face stores it, [rows, columns]; a norm is one column.

  Args:
    source: checked by `check`.
    layer: its number; None where the row is not in layers.

  Returns:
    The stored dtype. Often a view of the file: take what is needed of it by
    `copy`, and drop it.
  """
  tensor = source.tensors[names.name(row, source.format, layer)]
  array = names.to_huggingface(row, tensor.read(), source.fields, source.format)
  return array.reshape(len(array), -1)


def copy(out, array, name, path):
  """out[...] = array, by blocks; refuses what is not finite, by name."""
  rows = max(BLOCK * len(out) // max(out.size, 1), 1)
  for start in range(0, len(out), rows):
    block = slice(start, start + rows)
    with np.errstate(over='ignore'):  # is refused below
      out[block] = array[block].astype(out.dtype, copy=False)
    if not finite(out[block]):
      large = f'numbers too large for {out.dtype.name}'
      cause = large if finite(array[block]) else 'NaN or infinity'
      raise errors.InputError(f'{path}: {name} holds {cause}')


def arrays(source: TensorSource) -> dict:
  """All parameters in float32, as `llama.forward` reads them."""
  shapes = names.shapes(source.fields)
  return tree({
    row.path: parts(source, row, [(slice(None),) * len(shapes[row.path])])[0]
    for row in names.rows(source.fields)
  })  # fmt: skip


def parts(source: TensorSource, row: names.Row, indices) -> list[np.ndarray]:
  """Rectangular parts of one of our parameters, in float32.

  Args:
    source: checked by `check`.
    indices: a tuple of slices for each part, as a jax Sharding gives them;
      each tensor is read once, and of it only what the parts need.
  """
  shape = names.shapes(source.fields)[row.path]
  bounds = [
    [s.indices(size)[:2] for s, size in zip(index, shape)] for index in indices
  ]
  found = [np.empty([b - a for a, b in bound], np.float32) for bound in bounds]
  for layer in names.layers(row, source.fields):
    name = names.name(row, source.format, layer)
    array = names.to_ours(
      row, source.tensors[name].read(), source.fields, source.format
    )
    for part, bound in zip(found, bounds):
      if layer is not None:
        (first, end), *bound = bound
        if not first <= layer < end:
          continue
        part = part[layer - first]
      here = array[tuple(slice(*ab) for ab in bound)]
      copy(part, here, name, source.path)
  return found


# {'a/b': x} -> {'a': {'b': x}}.
tree = functools.partial(traverse_util.unflatten_dict, sep='/')
