"""Shards of mosaicml-streaming (MDS, version 2), read without the library.

Little-endian. uint32 number of samples; uint32 where each begins and the last
ends; the columns as JSON, so that a shard describes itself; the samples: uint32
sizes of the columns without a fixed size, then all values. ProLong's data
(arXiv:2410.02660) is released so.
"""

import itertools
import json
from collections.abc import Iterator

import numpy as np

ARRAYS = {  # in the first byte of an array whose type is not fixed
  8: 'uint8', 9: 'int8', 16: 'uint16', 17: 'int16', 18: 'float16',
  32: 'uint32', 33: 'int32', 34: 'float32', 64: 'uint64', 65: 'int64',
  66: 'float64',
}  # fmt: skip
SIGN = b'"format": "mds"'  # in the JSON of a shard
NUMBERS = tuple(ARRAYS.values())


def read(file) -> Iterator[dict]:
  """Yields the samples of a shard, mappings; ValueError where it is damaged.

  Args:
    file: opened to read bytes.
  """
  raw = file.read()
  count = int(_numbers(raw, '<u4', 0, 1)[0])
  begins = _numbers(raw, '<u4', 4, count + 1).astype(np.int64)
  head_end = 4 + 4 * (count + 1)
  if begins[-1] != len(raw) or (np.diff(begins, prepend=head_end) < 0).any():
    raise ValueError(f'{len(raw)} bytes, but samples end at {begins[-1]}')
  about = json.loads(raw[head_end : begins[0]])
  try:
    columns = list(
      zip(*(about[f'column_{k}'] for k in ('names', 'encodings', 'sizes')))
    )
  except (KeyError, TypeError) as error:
    raise ValueError('not an MDS shard') from error
  for begin, end in itertools.pairwise(begins.tolist()):
    yield _sample(raw[begin:end], columns)


def _sample(raw: bytes, columns) -> dict:
  free = sum(size is None for _, _, size in columns)
  sizes = iter(_numbers(raw, '<u4', 0, free).tolist())
  at, record = 4 * free, {}
  for name, encoding, size in columns:
    size = next(sizes) if size is None else size
    record[name] = _value(raw[at : at + size], encoding)
    at += size
  if at != len(raw):
    raise ValueError(f'a sample of {len(raw)} bytes with columns of {at}')
  return record


def _value(raw: bytes, encoding: str):
  """A value of an MDS column; None of an encoding that is not read."""
  kind, *rest = encoding.split(':')
  if kind == 'str':
    return raw.decode()
  if kind == 'json':
    return json.loads(raw)
  if kind == 'int' or kind in NUMBERS:
    return _numbers(raw, '<i8' if kind == 'int' else kind, 0, 1)[0].item()
  if kind != 'ndarray':
    return raw if kind == 'bytes' else None  # 'pkl' runs code
  if len(rest) == 2:  # a fixed shape, as '2,3'
    shape = [int(n) for n in rest[1].split(',')]
    return _array(raw, rest[0], shape, 0)
  if not raw:
    raise ValueError('an array without a shape')
  if not rest:
    dtype, raw = ARRAYS.get(raw[0], ''), raw[1:]
  else:
    dtype = rest[0]
  dims, log_bytes = raw[0] // 4, raw[0] % 4
  shape = _numbers(raw, f'<u{1 << log_bytes}', 1, dims).tolist()
  return _array(raw, dtype, shape, 1 + (dims << log_bytes))


def _array(raw: bytes, dtype: str, shape, at: int) -> np.ndarray:
  if dtype not in NUMBERS:
    raise ValueError(f'an array of {dtype!r}')
  size = int(np.prod(shape))
  if at + size * np.dtype(dtype).itemsize != len(raw):
    raise ValueError(f'{len(raw)} bytes are not {dtype} of shape {shape}')
  return _numbers(raw, dtype, at, size).reshape(shape)


def _numbers(raw: bytes, dtype: str, at: int, count: int) -> np.ndarray:
  """Little-endian numbers; ValueError where there are fewer."""
  return np.frombuffer(raw, np.dtype(dtype).newbyteorder('<'), count, at)
