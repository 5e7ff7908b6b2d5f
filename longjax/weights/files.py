"""Tensor files of others, mapped into memory: safetensors and PyTorch's.

A header is data of a stranger. Each says where its tensors lie, and is held to
the size of the file before anything is read. No pickle is executed: that of a
PyTorch file is read by an unpickler which can build tensors and nothing else.
"""

import collections
import json
import math
import os
import pathlib
import pickle
import struct
import zipfile
from typing import NamedTuple

import numpy as np

from longjax import errors
from longjax.weights.source import BFLOAT16, Tensor

DTYPES = dict(
  F64=np.dtype('f8'), F32=np.dtype('f4'), F16=np.dtype('f2'), BF16=BFLOAT16
)
HEADER_BYTES = 100_000_000  # the limit of the safetensors library
PICKLE_BYTES = 16_000_000  # of a list of tensors, ample


def inside(directory, name) -> str:
  """The path of a file that `name` says is in `directory`.

  Raises:
    InputError: it would be outside, also through a link. The snapshots of
      Hugging Face's cache link to blobs/ beside them, which is allowed.
  """
  root = pathlib.Path(directory).resolve()
  homes = [root]
  if root.parent.name == 'snapshots':
    homes.append(root.parent.parent / 'blobs')
  try:
    real = (root / str(name)).resolve()
    there = real.is_file()
  except (OSError, ValueError) as error:  # too long, or of no characters
    raise errors.InputError(
      f'{directory}: {name!r:.80} cannot be the name of a file: {error!s:.80}'
    ) from None
  if not any(real.is_relative_to(home) for home in homes):
    raise errors.InputError(
      f'{directory}: {name!r} leads out of the directory, to {real}; copy the '
      'file to where its name says'
    )
  if not there:
    raise errors.InputError(f'{directory}: lacks the file {name}')
  return str(pathlib.Path(directory) / str(name))


def load_json(path) -> dict:
  """An object of a JSON file, in which no key stands twice."""
  try:
    data = pathlib.Path(path).read_text('utf-8')
    found = json.loads(data, object_pairs_hook=_once)
  except (ValueError, RecursionError) as error:
    raise errors.InputError(f'{path}: damaged JSON: {error}') from None
  if not isinstance(found, dict):
    raise errors.InputError(f'{path}: not a JSON object')
  return found


def _once(pairs):
  """The pairs of a JSON object as a dict."""
  found = dict(pairs)
  if len(found) < len(pairs):
    raise ValueError('a name stands twice')
  return found


def mapped(path, dtype, shape, offset) -> Tensor:
  """A tensor that lies row by row in a file."""
  return Tensor(
    shape, dtype, lambda: np.memmap(path, dtype, 'r', offset, shape)
  )


# safetensors: 8 bytes of length, a JSON header, the data.


def safetensors(path) -> dict[str, Tensor]:
  """The tensors of a .safetensors file, by name."""
  size = os.path.getsize(path)
  with open(path, 'rb') as file:
    start = file.read(8)
    length = struct.unpack('<Q', start)[0] if len(start) == 8 else size
    if length > min(size - 8, HEADER_BYTES):
      raise errors.InputError(
        f'{path}: truncated or not safetensors: a header of {length:,} bytes '
        f'in a file of {size:,}'
      )
    text = file.read(length)
  try:
    header = json.loads(text, object_pairs_hook=_once)
    header.pop('__metadata__', None)
    entries = {name: _entry(name, value) for name, value in header.items()}
  except errors.InputError as error:
    raise errors.InputError(f'{path}: {error}') from None
  except (ValueError, AttributeError, RecursionError) as error:
    raise errors.InputError(f'{path}: damaged header: {error}') from None
  _check_spans(path, entries, size - 8 - length)
  return {
    name: mapped(path, dtype, shape, 8 + length + begin)
    for name, (dtype, shape, begin, _) in entries.items()
  }


def _entry(name, value):
  """(dtype, shape, begin, end) of one tensor of a header."""
  unreadable = errors.InputError(f'says of {name!r} only {value!r}'[:300])
  try:
    kind, shape, span = (value[k] for k in ('dtype', 'shape', 'data_offsets'))
    begin, end = span
    numbers = (*shape, begin, end)
  except (TypeError, KeyError, ValueError):
    raise unreadable from None
  if not all(type(n) is int and n >= 0 for n in numbers):
    raise unreadable
  if not isinstance(kind, str) or kind not in DTYPES:
    raise errors.InputError(
      f'{name} has dtype {kind!r}; read are {", ".join(DTYPES)}'
    )
  needed = math.prod(shape) * DTYPES[kind].itemsize
  if end - begin != needed:
    raise errors.InputError(
      f'{name} of {kind} {shape} needs {needed:,} bytes, the header gives it '
      f'{end - begin:,}'
    )
  return DTYPES[kind], tuple(shape), begin, end


def _check_spans(path, entries, size):
  """Tensors lie one after the other, and end where the file does."""
  at = 0
  for name, (_, _, begin, end) in sorted(
    entries.items(), key=lambda item: item[1][2:]
  ):
    if end > size:
      raise errors.InputError(
        f'{path}: truncated: {name} ends at byte {end:,} of {size:,}; copy or '
        'download it again'
      )
    if begin != at:
      raise errors.InputError(
        f'{path}: damaged header: {name} begins at byte {begin:,}, the tensor '
        f'before it ends at {at:,}'
      )
    at = end
  if at != size:
    raise errors.InputError(
      f'{path}: damaged: its tensors end at byte {at:,} of {size:,}'
    )


# PyTorch: a zip archive with a pickle of the names and a record per storage.

STORAGES = dict(
  DoubleStorage=DTYPES['F64'],
  FloatStorage=DTYPES['F32'],
  HalfStorage=DTYPES['F16'],
  BFloat16Storage=DTYPES['BF16'],
)


class _Storage(NamedTuple):
  """A record of the archive, from the pickle's persistent id."""

  dtype: np.dtype
  key: str
  count: int


class _Strided(NamedTuple):
  """A tensor as the pickle describes it; strides and offset in elements."""

  storage: _Storage
  offset: int
  shape: tuple
  stride: tuple


def _rebuild_tensor(storage, offset, size, stride, *_):
  return _Strided(storage, offset, size, stride)


def _rebuild_parameter(data, *_):
  return data


SAFE = {
  ('collections', 'OrderedDict'): collections.OrderedDict,
  ('torch._utils', '_rebuild_tensor_v2'): _rebuild_tensor,
  ('torch._utils', '_rebuild_parameter'): _rebuild_parameter,
} | {('torch', name): dtype for name, dtype in STORAGES.items()}


class _Unpickler(pickle._Unpickler):
  """Builds dicts, numbers and tensors; any other name is refused.

  Python's own and not the one in C, which allocates what a damaged memo index
  asks for.
  """

  def find_class(self, module, name):
    if (module, name) not in SAFE:
      raise errors.InputError(
        f'its pickle asks for {module}.{name}, which no file of weights needs: '
        'do not load it with torch either'
      )
    return SAFE[module, name]

  def persistent_load(self, pid):
    kind, dtype, key, _, count = pid
    if kind != 'storage' or not isinstance(dtype, np.dtype):
      raise ValueError(f'persistent id {pid!r}')
    return _Storage(dtype, str(key), int(count))


def pytorch(path) -> dict[str, Tensor]:
  """The tensors of a file that torch.save wrote (PyTorch 1.6 or later)."""
  try:
    with zipfile.ZipFile(path) as archive, open(path, 'rb') as file:
      return _pytorch(path, archive, file)
  except errors.InputError as error:
    raise errors.InputError(f'{path}: {error}') from None
  except zipfile.BadZipFile as error:
    raise errors.InputError(
      f'{path}: truncated, or not of PyTorch 1.6 or later ({error}); copy it '
      'again, or load and save it with a newer PyTorch'
    ) from None
  except Exception as error:  # a damaged pickle or zip raises anything
    raise errors.InputError(
      f'{path}: damaged: {type(error).__name__}: {error}'
    ) from None


def _pytorch(path, archive, file):
  infos = {info.filename: info for info in archive.infolist()}
  pickles = [n for n in infos if n.endswith('/data.pkl') and n.count('/') == 1]
  if len(pickles) != 1:
    raise errors.InputError('not a file of torch.save: it has no data.pkl')
  root = pickles[0].removesuffix('data.pkl')
  if infos[pickles[0]].file_size > PICKLE_BYTES:
    raise errors.InputError(
      f'its pickle has {infos[pickles[0]].file_size:,} bytes, more than a list '
      'of tensors needs'
    )
  order = infos.get(root + 'byteorder')
  if order and archive.read(order) != b'little':
    raise errors.InputError('its byte order is not little endian')
  with archive.open(pickles[0]) as pickled:
    found = _Unpickler(pickled).load()
  if not isinstance(found, dict):
    raise errors.InputError(f'holds a {type(found).__name__}, not tensors')
  return {
    _text(name): _tensor(path, file, infos, root, name, value)
    for name, value in found.items()
  }


def _text(name):
  if not isinstance(name, str):
    raise errors.InputError(f'{name!r} is no name of a tensor')
  return name


def _tensor(path, file, infos, root, name, value) -> Tensor:
  """A tensor of the archive, held to the record that it lies in."""
  if not isinstance(value, _Strided) or not isinstance(value.storage, _Storage):
    raise errors.InputError(f'{name} is not a tensor of floats')
  storage, offset, shape, stride = value
  numbers = (offset, *shape, *stride)
  if not all(type(n) is int and n >= 0 for n in numbers) or (
    len(shape) != len(stride)
  ):
    raise errors.InputError(f'{name} has shape {shape} and strides {stride}')
  dtype = storage.dtype
  info = infos.get(f'{root}data/{storage.key}')
  if info is None:
    raise errors.InputError(f'{name}: lacks the record data/{storage.key}')
  last = offset + sum((n - 1) * s for n, s in zip(shape, stride))
  if last >= storage.count or storage.count * dtype.itemsize > info.file_size:
    raise errors.InputError(
      f'{name} leads beyond its record of {info.file_size:,} bytes'
    )
  begin = _record_start(file, info, name)

  def read():
    whole = np.memmap(path, dtype, 'r', begin, (storage.count,))
    steps = [s * dtype.itemsize for s in stride]
    return np.lib.stride_tricks.as_strided(
      whole[offset:], shape, steps, writeable=False
    )

  return Tensor(tuple(shape), dtype, read)


def _record_start(file, info, name) -> int:
  """Where the bytes of a record begin in the file."""
  if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
    raise errors.InputError(f'{name}: its record is compressed')
  file.seek(info.header_offset)
  header = file.read(30)
  if header[:4] != b'PK\x03\x04':
    raise errors.InputError(f'{name}: its record has no header')
  begin = info.header_offset + 30 + sum(struct.unpack('<HH', header[26:30]))
  if begin + info.file_size > os.path.getsize(file.fileno()):
    raise errors.InputError(f'{name}: truncated: its record leads out of it')
  return begin
