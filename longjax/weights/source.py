"""What a reader makes of files: the fields of a Llama and tensors to read.

`gguf`, `huggingface` and `meta` each turn a path into a `Source`. Everything
that is done with one stands here, once: checking its tensors by name, and
handing out our parameters a layer at a time. A tensor's `read` is a view of
the file where the format allows, so nothing is in memory before it is used.
"""

import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from longjax import errors, rope
from longjax.weights import names

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
BLOCK = 1 << 18  # elements copied at once: they stay in cache, also transposed


class Tensor(NamedTuple):
  """A stored tensor, not read yet."""

  shape: tuple
  dtype: np.dtype  # of what `read` returns
  read: Callable[[], np.ndarray]

  @property
  def nbytes(self) -> int:
    return math.prod(self.shape) * self.dtype.itemsize


class Source(NamedTuple):
  """Weights in files of others."""

  path: str
  format: str  # a column of names.TABLE: 'gguf', 'huggingface' or 'meta'
  fields: dict[str, Any]  # of a llama.Llama; 'rope' is a dict, of a rope.Rope
  tensors: dict[str, Tensor]  # by their stored names
  files: tuple[str, ...]  # everything that was read
  window: int = 0  # tokens it was trained for, 0 if the files do not say


def count(metadata, key, default=None, prefix='') -> int:
  """What metadata give as a number of layers, heads ...; errors name the key.

  Args:
    metadata: of a model, a dict.
    key: of it.
    default: where it is not told, or None.
    prefix: of the key, in errors.
  """
  value = metadata.get(key)
  value = default if value is None else value
  if type(value) is not int or value < 1:
    raise errors.InputError(
      f'needs a whole number as {prefix}{key}, got {value!r}'
    )
  return value


def positive(metadata, key, default=None, prefix='') -> float:
  """What metadata give as a number above 0; arguments as for `count`."""
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
  """What metadata give as true or false; false where it is not told."""
  value = metadata.get(key)
  if value not in (True, False, None):
    raise errors.InputError(
      f'needs true or false as {prefix}{key}, got {value!r}'
    )
  return bool(value)


def check(source: Source):
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
        f'{source.path}: {name} has shape {tensors[name].shape}, the metadata '
        f'wants {shape}'
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


def is_plain_rope(tensor: Tensor, fields) -> bool:
  """Whether a tensor holds the unscaled frequencies of our base, rounded.

  Old files store them; scaling came later than the habit.
  """
  base = fields['rope']['base']
  wanted, _ = rope.frequencies(rope.Rope(base=base), fields['head_dim'])
  return tensor.shape == wanted.shape and np.allclose(
    tensor.read().astype('f8'), wanted, rtol=1e-2, atol=1e-6
  )


def shapes(fields) -> dict[str, tuple]:
  """{path: shape} of our parameters, layers stacked in front."""
  return {
    row.path: (
      *((fields['layers'],) if names.is_layered(row.path) else ()),
      *names.sizes(row.dims, fields),
    )
    for row in names.rows(fields)
  }


def dtypes(source: Source) -> dict[str, str]:
  """{path: dtype} in which nothing of ours is lost.

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


def layer(source: Source, row, number) -> np.ndarray:
  """One layer of our parameter, in the stored dtype.

  Args:
    source: checked by `check`.
    row: of names.TABLE.
    number: of the layer; None where the row is outside of them.

  Returns:
    Shape `names.sizes(row.dims, source.fields)`. Often a view of the file:
    take what is needed of it by `copy`, and let it go.
  """
  tensor = source.tensors[names.name(row, source.format, number)]
  return names.ours(row, tensor.read(), source.fields, source.format)


def matrix(source: Source, row, number) -> np.ndarray:
  """The tensor of a layer as Hugging Face stores it, [rows, columns].

  A vector is one column. Otherwise as `layer`.
  """
  tensor = source.tensors[names.name(row, source.format, number)]
  array = names.huggingfaces(row, tensor.read(), source.fields, source.format)
  return array.reshape(len(array), -1)


def copy(out, array, name, path):
  """out[...] = array, by blocks; refuses what is not finite, by name."""
  rows = max(BLOCK * len(out) // max(out.size, 1), 1)
  for start in range(0, len(out), rows):
    block = slice(start, start + rows)
    with np.errstate(over='ignore'):  # is refused below
      out[block] = array[block].astype(out.dtype, copy=False)
    if not finite(out[block]):
      large = finite(array[block])
      cause = (
        f'numbers too large for {out.dtype.name}'
        if large
        else ('NaN or infinity')
      )
      raise errors.InputError(f'{path}: {name} holds {cause}')


def finite(array) -> bool:
  """Whether all numbers are.

  As integers, NaN and infinity are the largest of their sign: two maxima cost
  less than NumPy's isfinite, for bfloat16 a tenth.
  """
  if not array.size:
    return True
  bits = array.dtype.itemsize * 8
  infinity = int(np.array(np.inf, array.dtype).view(f'u{bits // 8}'))
  return bool(
    array.view(f'i{bits // 8}').max() < infinity
    and array.view(f'u{bits // 8}').max() < infinity + (1 << (bits - 1))
  )


def arrays(source: Source) -> dict:
  """All parameters in float32, as `llama.forward` reads them."""
  whole = {p: (slice(None),) * len(s) for p, s in shapes(source.fields).items()}
  return tree({
    row.path: parts(source, row, [whole[row.path]])[0]
    for row in names.rows(source.fields)
  })  # fmt: skip


def parts(source: Source, row, indices) -> list[np.ndarray]:
  """Rectangular parts of one of our parameters, in float32.

  Args:
    source: checked by `check`.
    row: of names.TABLE.
    indices: a tuple of slices for each part, as a jax Sharding gives them;
      each tensor is read once, and of it only what the parts need.
  """
  shape = shapes(source.fields)[row.path]
  stacked = names.is_layered(row.path)
  bounds = [
    [s.indices(size)[:2] for s, size in zip(index, shape)] for index in indices
  ]
  found = [np.empty([b - a for a, b in bound], np.float32) for bound in bounds]
  for number in names.layers(row, source.fields):
    array = layer(source, row, number)
    for part, bound in zip(found, bounds):
      if stacked:
        (first, end), *bound = bound
        if not first <= number < end:
          continue
        part = part[number - first]
      here = array[tuple(slice(*ab) for ab in bound)]
      name = names.name(row, source.format, number)
      copy(part, here, name, source.path)
  return found


def tree(flat: dict) -> dict:
  """{'a/b': x} -> {'a': {'b': x}}."""
  nested: dict = {}
  for path, value in flat.items():
    *parents, key = path.split('/')
    into = nested
    for parent in parents:
      into = into.setdefault(parent, {})
    into[key] = value
  return nested
