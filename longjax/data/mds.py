"""Shards of mosaicml-streaming (MDS, version 2), read without the library.

Little-endian. uint32 number of samples; uint32 where each begins and the last
ends; the columns as JSON, so that a shard describes itself; the samples: uint32
sizes of the columns without a fixed size, then all values. ProLong's data
(arXiv:2410.02660) is released so.
"""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from longjax import json_text

ARRAYS = {  # in the first byte of an array whose type is not fixed
  8: 'uint8', 9: 'int8', 16: 'uint16', 17: 'int16', 18: 'float16',
  32: 'uint32', 33: 'int32', 34: 'float32', 64: 'uint64', 65: 'int64',
  66: 'float64',
}  # fmt: skip
SIGN = b'"format": "mds"'  # in the JSON of a shard
NUMBERS = tuple(ARRAYS.values())
MAX_HEAD = 256  # bytes before the values of an array


class Shard(NamedTuple):
  """A shard whose samples were found, but not read."""

  raw: Any  # its bytes, or uint8 [bytes]
  columns: list  # (name, encoding, bytes of a value or None)
  samples: list  # (begin, end), bytes


class Array(NamedTuple):
  """Where the values of an array lie in a shard."""

  at: int  # byte
  dtype: str
  shape: list


def read(file) -> Iterator[dict]:
  """Yields the samples of a shard, mappings; ValueError where it is damaged.

  Args:
    file: opened to read bytes.
  """
  shard = find(file.read())
  for begin, end in shard.samples:
    cuts = _cuts(shard, begin, end)
    yield {
      name: _value(shard.raw[at : at + size], encoding)
      for name, encoding, at, size in cuts
    }


def arrays(shard: Shard) -> Iterator[dict[str, Array]]:
  """Yields where the arrays of each sample lie; ValueError as in `read`."""
  for begin, end in shard.samples:
    found = {}
    for name, encoding, at, size in _cuts(shard, begin, end):
      if encoding.startswith('ndarray'):
        head = bytes(shard.raw[at : at + min(size, MAX_HEAD)])
        dtype, shape, first = _shape(head, encoding, size)
        found[name] = Array(at + first, dtype, shape)
    yield found


def view(shard: Shard, array: Array) -> np.ndarray:
  """An array of a shard whose bytes are an array, not copied."""
  dtype = np.dtype(array.dtype).newbyteorder('<')
  end = array.at + int(np.prod(array.shape)) * dtype.itemsize
  return shard.raw[array.at : end].view(dtype).reshape(array.shape)


def find(raw) -> Shard:
  """The samples of a shard; ValueError where it is damaged.

  Args:
    raw: its bytes, or uint8 [bytes].
  """
  count = int(_numbers(raw, '<u4', 0, 1)[0])
  begins = _numbers(raw, '<u4', 4, count + 1).astype(np.int64)
  head_end = 4 + 4 * (count + 1)
  if begins[-1] != len(raw) or (np.diff(begins, prepend=head_end) < 0).any():
    raise ValueError(f'{len(raw)} bytes, but samples end at {begins[-1]}')
  about = json_text.loads(bytes(raw[head_end : begins[0]]))
  try:
    columns = list(
      zip(*(about[f'column_{k}'] for k in ('names', 'encodings', 'sizes')))
    )
  except (KeyError, TypeError) as error:
    raise ValueError('not an MDS shard') from error
  return Shard(raw, columns, list(itertools.pairwise(begins.tolist())))


def _cuts(shard: Shard, begin: int, end: int) -> list:
  """(name, encoding, byte, bytes) of the values of a sample."""
  free = sum(size is None for _, _, size in shard.columns)
  sizes = iter(_numbers(shard.raw, '<u4', begin, free).tolist())
  at, cuts = begin + 4 * free, []
  for name, encoding, size in shard.columns:
    size = next(sizes) if size is None else size
    cuts.append((name, encoding, at, size))
    at += size
  if at != end:
    raise ValueError(
      f'a sample of {end - begin} bytes with columns of {at - begin}'
    )
  return cuts


def _value(raw: bytes, encoding: str):
  """A value of an MDS column; None of an encoding that is not read."""
  kind, *_ = encoding.split(':')
  if kind == 'str':
    return raw.decode()
  if kind == 'json':
    return json_text.loads(raw)
  if kind == 'int' or kind in NUMBERS:
    return _numbers(raw, '<i8' if kind == 'int' else kind, 0, 1)[0].item()
  if kind != 'ndarray':
    return raw if kind == 'bytes' else None  # 'pkl' runs code
  dtype, shape, at = _shape(raw, encoding, len(raw))
  return _numbers(raw, dtype, at, int(np.prod(shape))).reshape(shape)


def _shape(raw: bytes, encoding: str, size: int) -> tuple[str, list, int]:
  """(dtype, shape, byte of the first value) of an array of so many bytes.

  `raw` may be their first MAX_HEAD alone.
  """
  _, *rest = encoding.split(':')
  if len(rest) == 2:  # a fixed shape, as '2,3'
    dtype, shape, at = rest[0], [int(n) for n in rest[1].split(',')], 0
  elif not raw:
    raise ValueError('an array without a shape')
  else:
    at = 0 if rest else 1
    dtype = rest[0] if rest else ARRAYS.get(raw[0], '')
    (form,) = _numbers(raw, 'u1', at, 1).tolist()
    dims, log_bytes = form // 4, form % 4
    shape = _numbers(raw, f'<u{1 << log_bytes}', at + 1, dims).tolist()
    at += 1 + (dims << log_bytes)
  if dtype not in NUMBERS:
    raise ValueError(f'an array of {dtype!r}')
  if at + int(np.prod(shape)) * np.dtype(dtype).itemsize != size:
    raise ValueError(f'{size} bytes are not {dtype} of shape {shape}')
  return dtype, shape, at


def _numbers(raw, dtype: str, at: int, count: int) -> np.ndarray:
  """Little-endian numbers; ValueError where there are fewer."""
  return np.frombuffer(raw, np.dtype(dtype).newbyteorder('<'), count, at)
