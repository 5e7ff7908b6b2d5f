"""The header of a GGUF file: its metadata and where its tensors lie.

The `gguf` package parses it; this file refuses what is damaged in one line.
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import functools
import math
import os

import gguf
import numpy as np

from longjax import errors, storage


class Reader(gguf.GGUFReader):
  """Refuses what leaves the file, where slices of it would come back short."""

  def _get(self, offset, dtype, count=1, override_order=None):
    if self.byte_order != 'I':
      raise errors.InputError(
        "is big endian; convert it with the gguf package's gguf-convert-endian"
      )
    offset, count = int(offset), int(count)
    if offset + count * np.dtype(dtype).itemsize > len(self.data):
      raise errors.InputError(
        'truncated or damaged: its header leads beyond its '
        f'{len(self.data):,} bytes; copy or download it again'
      )
    if not count:
      return np.empty(0, dtype)
    # A vocabulary has 100,000 strings: the slices of a memmap take seconds.
    return np.frombuffer(self.data, dtype, count, offset)

  def _build_tensors(self, start_offs, fields):
    for field in fields:
      *_, dims, kind, offset = field.parts
      try:
        kind = gguf.GGMLQuantizationType(kind[0])
      except ValueError:
        raise errors.InputError(
          f'{field.name} has the unknown quantization type {kind[0]}'
        ) from None
      values, size = gguf.GGML_QUANT_SIZES[kind]
      tensor_bytes = math.prod(dims.tolist()) * size // values
      end = start_offs + int(offset[0]) + tensor_bytes
      if end > len(self.data):
        raise errors.InputError(
          f'truncated: {field.name} ends at byte {end:,} of a file of '
          f'{len(self.data):,}; copy or download it again'
        )
    super()._build_tensors(start_offs, fields)


def read(path) -> Reader:
  """The header of a file, parsed once however many ask for it.

  Raises:
    InputError: it is no whole GGUF file of this machine's byte order; the
      error does not name the path.
  """
  try:
    storage.check_file(path)
    found = os.stat(path)
    with open(path, 'rb') as file:
      magic = file.read(4)
  except OSError as error:
    raise errors.InputError(error.strerror) from None
  if magic != b'GGUF':
    raise errors.InputError(
      f'not a GGUF file, it starts with {magic!r} instead of GGUF'
    )
  return _read(str(path), found.st_ino, found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=1)
def _read(path: str, *_stamp) -> Reader:
  try:
    return Reader(path)
  except errors.InputError:
    raise
  except (
    ValueError, IndexError, KeyError, OverflowError, RecursionError
  ) as error:  # fmt: skip
    raise errors.InputError(f'damaged GGUF header: {error}') from error
