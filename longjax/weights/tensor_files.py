"""Files of tensors, mapped into memory: safetensors in and out, PyTorch's in.

A file may be damaged or hostile. The libraries check headers against the size
of the file, and PyTorch's `weights_only` builds tensors and runs no code; their
errors become one line that names the file.
"""

import functools
import json
import math
import os
import pathlib
import pickle
import re
import struct
import tempfile
import zipfile

import numpy as np
import safetensors as library

from longjax import errors, hub, json_text, storage
from longjax.data import compression
from longjax.weights import names
from longjax.weights.tensors import BFLOAT16, Tensor, mapped

DTYPES = dict(
  F64=np.dtype('f8'), F32=np.dtype('f4'), F16=np.dtype('f2'), BF16=BFLOAT16
)
MOST_HEADER = 100_000_000  # bytes, the library's own bound
KINDS = {dtype.name: kind for kind, dtype in DTYPES.items()}


def load_json(path) -> dict:
  """The object of a JSON file; duplicate keys are refused."""
  try:
    found = json_text.loads(
      storage.content(path).decode(), object_pairs_hook=_once
    )
  except ValueError as error:
    raise errors.InputError(f'{path}: damaged JSON: {error}') from None
  if not isinstance(found, dict):
    raise errors.InputError(f'{path}: not a JSON object')
  return found


def _once(pairs):
  """The pairs of a JSON object as a dict."""
  found = dict(pairs)
  if len(found) < len(pairs):
    raise ValueError('duplicate key')
  return found


def write_json(path, value):
  """Writes JSON as transformers does."""
  with open(path, 'w', encoding='utf-8') as file:
    file.write(json.dumps(value, indent=2, sort_keys=True) + '\n')


def read(path) -> dict[str, Tensor]:
  """The tensors of a .safetensors file, or of one that torch.save wrote."""
  with open(path, 'rb') as file:
    if file.read(len(hub.POINTER)) == hub.POINTER:
      raise errors.InputError(f'{path}: {hub.LFS_POINTER}')
  return safetensors(path) if path.endswith('.safetensors') else pytorch(path)


def safetensors(path) -> dict[str, Tensor]:
  """The tensors of a .safetensors file, by name."""
  return {name: mapped(path, *entry) for name, entry in _entries(path)}


def streamed(file: hub.Range) -> dict[str, Tensor]:
  """The tensors of a .safetensors file on the Hub, in the file's order.

  A `read` fetches one. They lie one after the other from the header to the end.
  """
  start = file.read(0, min(file.size, 8)).tobytes()
  length = int.from_bytes(start, 'little')
  if not length < min(file.size, MOST_HEADER):
    raise errors.InputError(f'{file.name}: {file.file}: damaged header')
  with tempfile.TemporaryDirectory() as scratch:
    path = os.path.join(scratch, os.path.basename(file.file))
    with open(path, 'wb') as sparse:  # the library compares header and size
      sparse.write(start + file.read(8, 8 + length).tobytes())
      sparse.truncate(file.size)
    entries = sorted(_entries(path), key=lambda entry: entry[1][-1])

  def read(dtype, shape, offset):
    end = offset + math.prod(shape) * dtype.itemsize
    return file.read(offset, end).view(dtype).reshape(shape)

  return {
    name: Tensor(shape, dtype, functools.partial(read, dtype, shape, offset))
    for name, (dtype, shape, offset) in entries
  }


def _entries(path) -> list[tuple[str, tuple]]:
  """(name, (dtype, shape, offset)) of a .safetensors file.

  The library checks the header: sizes, and that tensors lie one after the
  other and end where the file does.
  """
  try:
    with library.safe_open(path, 'np'), open(path, 'rb') as file:
      (length,) = struct.unpack('<Q', file.read(8))
      header = json_text.loads(file.read(length), object_pairs_hook=_once)
  except (library.SafetensorError, ValueError) as error:
    reason = str(error).removeprefix('Error while deserializing header: ')
    raise errors.InputError(
      f'{path}: truncated or damaged: {reason}; copy or download it again'
    ) from None
  header.pop('__metadata__', None)
  for name, entry in header.items():
    if entry['dtype'] not in DTYPES:
      raise errors.InputError(
        f'{path}: {name} has dtype {entry["dtype"]!r}; supported: '
        f'{", ".join(DTYPES)}'
      )
  place = lambda entry: (
    DTYPES[entry['dtype']],
    tuple(entry['shape']),
    8 + length + entry['data_offsets'][0],
  )
  return [(name, place(entry)) for name, entry in header.items()]


def pytorch(path) -> dict[str, Tensor]:
  """The tensors of a file that torch.save wrote (PyTorch 1.6 or later)."""
  try:
    import torch
  except ImportError:
    raise errors.InputError(
      f'{path} is read by PyTorch: pip install torch'
    ) from None
  try:
    _check_archive(path)
    found = torch.load(path, 'cpu', weights_only=True, mmap=True)
  except errors.InputError:
    raise
  except pickle.UnpicklingError as error:
    imported = re.search(r'GLOBAL (\S+)', str(error))
    raise errors.InputError(
      f'{path}: its pickle imports {imported[1]}, which weights do not need'
      if imported
      else f'{path}: its pickle is damaged; copy or download it again'
    ) from None
  except Exception as error:  # a damaged pickle or zip raises anything
    raise errors.InputError(
      f'{path}: damaged: {type(error).__name__}: '
      f'{" ".join(str(error).split())[:200]}; copy or download it again'
    ) from None
  if not isinstance(found, dict):
    raise errors.InputError(f'{path}: holds a {type(found).__name__}')
  return {str(name): _tensor(path, name, x) for name, x in found.items()}


def _check_archive(path):
  """Refuses what PyTorch would map as if it were plain little-endian data."""
  if not zipfile.is_zipfile(path):
    raise errors.InputError(
      f'{path}: truncated, or not of PyTorch 1.6 or later; copy it again, or '
      'load and save it with a newer PyTorch'
    )
  with compression.reading_archive(path), zipfile.ZipFile(path) as archive:
    for info in archive.infolist():
      if info.compress_type != zipfile.ZIP_STORED:
        raise errors.InputError(f'{path}: {info.filename} is compressed')
      is_order = pathlib.PurePath(info.filename).name == 'byteorder'
      if is_order and archive.read(info) != b'little':
        raise errors.InputError(f'{path}: its byte order is not little')


def _tensor(path, name, value) -> Tensor:
  """A torch tensor as ours, which shares its memory."""
  import torch

  kinds = {torch.float64: 'F64', torch.float32: 'F32', torch.float16: 'F16',
           torch.bfloat16: 'BF16'}  # fmt: skip
  if not isinstance(value, torch.Tensor) or value.dtype not in kinds:
    kind = getattr(value, 'dtype', type(value).__name__)
    raise errors.InputError(
      f'{path}: {name} is {kind}; supported: tensors of {", ".join(DTYPES)}'
    )
  dtype, value = DTYPES[kinds[value.dtype]], value.detach()
  bits = torch.int16 if dtype.itemsize == 2 else value.dtype
  return Tensor(
    tuple(value.shape), dtype, lambda: value.view(bits).numpy().view(dtype)
  )


class Writer:
  """The safetensors files of a model, made at their size, to be filled.

  They are those of transformers' `save_pretrained`, byte by byte, for the same
  size of a shard. The library's writer wants the tensors of a whole file in
  memory, 5 GB by default; these are mapped.
  """

  def __init__(self, directory, fields, dtypes, shard_bytes):
    """Makes the files, and the index if there are several.

    Args:
      directory: must exist.
      fields: of the llama.Llama.
      dtypes: {path: dtype name} of our parameters.
      shard_bytes: of tensors in a file; one that is larger has its own.
    """
    self._fields, self._tensors, places = fields, {}, {}
    self._dtypes = dtypes
    for file, rows in self._plan(shard_bytes).items():
      path = os.path.join(directory, file)
      made = self._make(path, rows)
      self._tensors |= made
      places |= dict.fromkeys(made, file)
    if len({*places.values()}) > 1:
      sizes = [
        (math.prod(shape), dtype.itemsize)
        for _, dtype, shape, _ in self._tensors.values()
      ]
      total = dict(
        total_parameters=sum(n for n, _ in sizes),
        total_size=sum(n * size for n, size in sizes),
      )
      index = dict(metadata=total, weight_map=places)
      write_json(os.path.join(directory, 'model.safetensors.index.json'), index)

  def view(self, row: names.Row, layer) -> np.ndarray:
    """A tensor in its file, to be written to, heads not flattened.

    Args:
      layer: None where the row is not in layers.
    """
    path, dtype, shape, offset = self._tensors[
      names.name(row, 'huggingface', layer)
    ]
    tensor = np.memmap(path, dtype, 'r+', offset, shape)
    return tensor.reshape(names.split_shape(row, self._fields))

  def _plan(self, shard_bytes) -> dict[str, list]:
    """{file name: [(row, layer)]}, filled one after the other."""
    shards, room = [], 0
    for row, layer in _transformers_order(self._fields):
      size = math.prod(names.stored_shape(row, self._fields))
      size *= np.dtype(self._dtypes[row.path]).itemsize
      if not shards or size > room:
        shards.append([])
        room = shard_bytes
      shards[-1].append((row, layer))
      room -= size
    if len(shards) == 1:
      return {'model.safetensors': shards[0]}
    return {
      f'model-{i:05}-of-{len(shards):05}.safetensors': shard
      for i, shard in enumerate(shards, 1)
    }

  def _make(self, path, rows) -> dict[str, tuple]:
    """Makes a file; {name: (path, dtype, shape, offset)} of its tensors."""
    entries = {
      names.name(row, 'huggingface', layer): (
        np.dtype(self._dtypes[row.path]),
        names.stored_shape(row, self._fields),
      )
      for row, layer in rows
    }
    header: dict = {'__metadata__': {'format': 'pt'}}
    end = 0
    for name in sorted(entries, key=lambda n: (-entries[n][0].itemsize, n)):
      dtype, shape = entries[name]
      begin, end = end, end + math.prod(shape) * dtype.itemsize
      header[name] = dict(
        dtype=KINDS[dtype.name], shape=shape, data_offsets=[begin, end]
      )
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)
    with open(path, 'wb') as file:
      file.write(struct.pack('<Q', len(text)) + text)
      file.flush()
      _reserve(file, file.tell() + end)
    return {
      name: (path, *entry, 8 + len(text) + header[name]['data_offsets'][0])
      for name, entry in entries.items()
    }


def _transformers_order(fields) -> list:
  """(row, layer) of each tensor, in the order of transformers: layer by layer,
  and in a layer that of the table."""
  rows = names.rows(fields)
  layered = [row for row in rows if names.is_layered(row.path)]
  embedding, *others = [row for row in rows if not names.is_layered(row.path)]
  return [
    (embedding, None),
    *((row, i) for i in range(fields['layers']) for row in layered),
    *((row, None) for row in others),
  ]


def _reserve(file, size):
  """Gives a file its size, and the space on the disk.

  It is filled through a mapping, where a full disk would end the process.
  """
  file.truncate(size)
  if not hasattr(os, 'posix_fallocate'):  # a Mac
    return
  try:
    os.posix_fallocate(file.fileno(), 0, size)
  except OSError as error:
    if error.errno in errors.FULL:
      raise  # else it is a file system that cannot do it
