"""Files of records: jsonl, parquet, arrow and ArrayRecord, compressed or not.

The end of a file's name says what it is; `.gz` or `.zst` may follow. Any other
file is text; but a compressed `.json` is jsonl, as C4 and Dolma name theirs.
Directories that `datasets.save_to_disk` wrote hold .arrow files. A record is a
mapping, of which `sources` reads a field; in ArrayRecord it is a JSON object,
or the text itself.
"""

import contextlib
import gzip
import importlib.util
import io
import json
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from longjax import errors

# What packages must be there to read a file with this ending.
NEEDS = {
  '.jsonl': None,
  '.ndjson': None,
  '.parquet': 'pyarrow',
  '.arrow': 'pyarrow',
  '.arrayrecord': 'array_record',
  '.array_record': 'array_record',
}
COMPRESSED = {'.gz': None, '.zst': 'zstandard'}
# Beside the .arrow files of a saved data set; not documents.
ARROW_META = ('state.json', 'dataset_info.json', 'dataset_dict.json')
CHUNK_BYTES = 1 << 20


class Bad(NamedTuple):
  """A record or file that cannot be read, and why."""

  name: str
  reason: str


def endings(name: str) -> tuple[str, str]:
  """(what the file is, how it is compressed), each an ending or ''."""
  stem, packed = name.lower(), ''
  for ending in COMPRESSED:
    if stem.endswith(ending):
      stem, packed = stem.removesuffix(ending), ending
  if packed and stem.endswith('.json'):
    return '.jsonl', packed
  kind = next((e for e in NEEDS if stem.endswith(e)), '')
  return kind, packed


def check(source: str, names):
  """InputError if a package is missing that these files need."""
  for name in names:
    kind, packed = endings(name)
    for package in (NEEDS.get(kind), COMPRESSED.get(packed)):
      if package and not importlib.util.find_spec(package):
        raise errors.InputError(
          f'source {source!r}: reading {name} needs the package {package}; '
          f'pip install {package.replace("_", "-")}'
        )


def read(
  name: str, location, handle, whole=False
) -> Iterator[tuple[str, Any] | Bad]:
  """The records of a file of records, or the bytes of any other.

  Args:
    name: of the file; its ending decides.
    location: its path, or None where it is only in memory.
    handle: it, opened to read bytes.
    whole: whether it is not to be taken apart, whatever it is.

  Yields:
    (name, mapping or str) for a record, (name, bytes) for a whole file, or
    Bad. What follows a damage that hides where records begin is one Bad.
  """
  kind, packed = endings(name)
  try:
    with _decompressed(handle, packed) as opened:
      if whole:
        yield name, opened.read()
      elif kind in ('.jsonl', '.ndjson'):
        yield from _jsonl(name, opened)
      elif kind == '.parquet':
        yield from _parquet(name, _seekable(opened, packed))
      elif kind == '.arrow':
        yield from _arrow(name, _seekable(opened, packed))
      elif kind:
        yield from _array_record(name, location)
      else:
        yield name, opened.read()
  except (OSError, EOFError, ValueError, zlib.error) as error:
    # pyarrow's errors are ValueErrors and OSErrors.
    yield Bad(name, f'{type(error).__name__}: {" ".join(str(error).split())}')
  except ModuleNotFoundError as error:  # of what `check` could not know
    raise errors.InputError(
      f'reading {name} needs the package {error.name}; pip install '
      f'{str(error.name).replace("_", "-")}'
    ) from None


def _jsonl(name, opened) -> Iterator:
  for number, line in enumerate(opened):
    here = f'{name}:{number}'
    if not line.strip():
      continue
    try:
      yield here, json.loads(line)
    except UnicodeDecodeError as error:
      yield Bad(here, f'not utf-8 (byte {error.start} of {len(line)})')
    except (ValueError, RecursionError) as error:
      yield Bad(here, f'not JSON ({error})')


def _parquet(name, opened) -> Iterator:
  import pyarrow.parquet  # pyright: ignore

  file = pyarrow.parquet.ParquetFile(opened)
  yield from _rows(name, file.iter_batches(batch_size=64))


def _arrow(name, opened) -> Iterator:
  import pyarrow  # pyright: ignore

  try:
    batches = pyarrow.ipc.open_stream(opened)
  except pyarrow.ArrowInvalid:  # the other of the two forms
    opened.seek(0)
    file = pyarrow.ipc.open_file(opened)
    batches = map(file.get_batch, range(file.num_record_batches))
  yield from _rows(name, batches)


def _rows(name, batches) -> Iterator:
  number = 0
  for batch in batches:
    for start in range(0, batch.num_rows, 64):
      for row in batch.slice(start, 64).to_pylist():
        yield f'{name}:{number}', row
        number += 1


def _array_record(name, location) -> Iterator:
  from array_record.python import array_record_module  # pyright: ignore

  if location is None:
    raise ValueError('ArrayRecord files inside archives are not read')
  try:
    reader = array_record_module.ArrayRecordReader(str(location))
    for number in range(reader.num_records()):
      here = f'{name}:{number}'
      try:
        yield here, _payload(reader.read())
      except UnicodeDecodeError as error:
        yield Bad(here, f'not utf-8 (byte {error.start})')
    reader.close()  # of a file that was cut, this alone complains
  except (RuntimeError, IndexError) as error:
    raise ValueError(f'not a whole ArrayRecord file ({error})') from error


def _payload(raw: bytes):
  """A JSON object, or the text that the record is."""
  text = raw.decode()
  try:
    value = json.loads(text)
  except ValueError:
    return text
  return value if isinstance(value, dict) else text


def _seekable(opened, packed):
  return io.BytesIO(opened.read()) if packed else opened


@contextlib.contextmanager
def _decompressed(handle, packed: str):
  if packed == '.gz':
    with gzip.open(handle) as opened:
      yield opened
  elif packed == '.zst':
    with io.BufferedReader(_Zstandard(handle), CHUNK_BYTES) as opened:
      yield opened
  else:
    yield handle


class _Zstandard(io.RawIOBase):
  """A .zst file as bytes; unlike the library's own, says if it was cut."""

  def __init__(self, handle):
    import zstandard  # pyright: ignore

    self._handle, self._library, self._left = handle, zstandard, b''
    self._frame, self._rest = None, b''

  def readable(self):
    return True

  def readinto(self, buffer):
    while not self._left:
      raw = self._rest or self._handle.read(CHUNK_BYTES)
      self._rest = b''
      if not raw:
        if self._frame is not None:
          raise EOFError('the file ends inside a zstd frame')
        return 0
      if self._frame is None:
        self._frame = self._library.ZstdDecompressor().decompressobj()
      try:
        self._left = self._frame.decompress(raw)
      except self._library.ZstdError as error:
        raise EOFError(str(error)) from error
      if self._frame.eof:
        self._rest, self._frame = self._frame.unused_data, None
    count = min(len(buffer), len(self._left))
    buffer[:count] = self._left[:count]
    self._left = self._left[count:]
    return count
