"""File formats: what a file of a source holds, as records or as its bytes.

The ending of a name decides; `.gz` or `.zst` may follow. A file of any other
name is text; but a compressed `.json` is jsonl, as C4 and Dolma name theirs.
Directories that `datasets.save_to_disk` wrote hold .arrow files. A record is a
mapping, of which `sources` reads a field; in ArrayRecord it is a JSON object,
or the text itself. To add a format, write its reader and add it to FORMATS.
"""

import contextlib
import gzip
import importlib.util
import io
import json
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from longjax import errors

COMPRESSIONS = {'.gz': None, '.zst': 'pyarrow'}  # ending: package
# Beside the .arrow files of a saved data set; not documents.
ARROW_METADATA = ('state.json', 'dataset_info.json', 'dataset_dict.json')
EMPTY = object()  # a line without a record
ROWS = 64  # of a table that are made Python objects at once


class Unreadable(NamedTuple):
  """A record or file that cannot be read, and why."""

  name: str
  reason: str


class Format(NamedTuple):
  """How records are read: (file, opened to read bytes) -> records.

  For a record that it cannot read, a reader yields Unreadable with an empty
  name. It raises OSError, EOFError or ValueError where the records that follow
  cannot be found either.
  """

  read: Callable[[Any], Iterator[Any]]
  package: str | None = None  # that must be installed


def read(
  name: str, file, whole=False
) -> Iterator[tuple[str, Any] | Unreadable]:
  """The records of a file, or the bytes of one that holds no records.

  Args:
    name: of the file; its ending decides.
    file: opened to read bytes.
    whole: whether it is one document, whatever its format.

  Yields:
    (name, mapping or str) for a record, (name, bytes) for a whole file, or
    Unreadable. Where damage hides the records that follow, all of them
    together are one Unreadable.
  """
  form, compression = _format(name)
  try:
    with _decompressed(file, compression) as opened:
      if whole or not form:
        yield name, opened.read()
        return
      for number, record in enumerate(form.read(opened)):
        here = f'{name}:{number}'
        if isinstance(record, Unreadable):
          yield record._replace(name=here)
        elif record is not EMPTY:
          yield here, record
  except (OSError, EOFError, ValueError, zlib.error) as error:
    # pyarrow's errors are ValueErrors and OSErrors.
    yield Unreadable(
      name, f'{type(error).__name__}: {" ".join(str(error).split())}'
    )
  except ModuleNotFoundError as error:  # in an archive: check did not know
    raise _missing(name, str(error.name)) from None


def check(names):
  """InputError if a package is missing that files of these names need."""
  for name in names:
    form, compression = _format(name)
    for package in (form and form.package, COMPRESSIONS.get(compression)):
      if package and not importlib.util.find_spec(package):
        raise _missing(name, package)


def _missing(name: str, package: str) -> errors.InputError:
  return errors.InputError(
    f'reading {name} needs the package {package}; pip install '
    f'{package.replace("_", "-")}'
  )


def _format(name: str) -> tuple[Format | None, str]:
  """(the format or None, the ending of its compression or '')."""
  stem, compression = name.lower(), ''
  for ending in COMPRESSIONS:
    if stem.endswith(ending):
      stem, compression = stem.removesuffix(ending), ending
  if compression and stem.endswith('.json'):
    stem += 'l'
  form = next(
    (f for ending, f in FORMATS.items() if stem.endswith(ending)), None
  )
  return form, compression


@contextlib.contextmanager
def _decompressed(file, compression: str):
  if compression == '.gz':
    with gzip.open(file) as opened:
      yield opened
  elif compression == '.zst':
    import pyarrow  # pyright: ignore

    with io.BufferedReader(pyarrow.input_stream(file, 'zstd')) as opened:
      yield opened
  else:
    yield file


def _jsonl(file) -> Iterator:
  """Yields what each line holds, or EMPTY."""
  for line in file:
    try:
      yield json.loads(line) if line.strip() else EMPTY
    except UnicodeDecodeError as error:
      yield Unreadable('', f'not utf-8 (byte {error.start} of {len(line)})')
    except (ValueError, RecursionError) as error:
      yield Unreadable('', f'not JSON ({error})')


def _parquet(file) -> Iterator:
  import pyarrow.parquet  # pyright: ignore

  yield from _rows(
    pyarrow.parquet.ParquetFile(_seekable(file)).iter_batches(ROWS)
  )


def _arrow(file) -> Iterator:
  """Both forms: a stream, and a file that ends with a table of contents."""
  import pyarrow  # pyright: ignore

  file = _seekable(file)
  try:
    batches = pyarrow.ipc.open_stream(file)
  except pyarrow.ArrowInvalid:
    file.seek(0)
    table = pyarrow.ipc.open_file(file)
    batches = map(table.get_batch, range(table.num_record_batches))
  yield from _rows(batches)


def _rows(batches) -> Iterator[dict]:
  for batch in batches:
    for start in range(0, batch.num_rows, ROWS):
      yield from batch.slice(start, ROWS).to_pylist()


def _seekable(file):
  slow = isinstance(file, gzip.GzipFile) or not file.seekable()
  return io.BytesIO(file.read()) if slow else file


def _array_record(file) -> Iterator:
  from array_record.python import array_record_module  # pyright: ignore

  if not hasattr(file, 'name'):
    raise ValueError('ArrayRecord files inside archives are not read')
  try:
    reader = array_record_module.ArrayRecordReader(str(file.name))
    for _ in range(reader.num_records()):
      try:
        yield _json_or_text(reader.read())
      except UnicodeDecodeError as error:
        yield Unreadable('', f'not utf-8 (byte {error.start})')
    reader.close()  # of a file that was cut, this alone complains
  except (RuntimeError, IndexError) as error:
    raise ValueError(f'not a whole ArrayRecord file ({error})') from error


def _json_or_text(raw: bytes):
  text = raw.decode()
  try:
    value = json.loads(text)
  except ValueError:
    return text
  return value if isinstance(value, dict) else text


FORMATS = {
  '.jsonl': Format(_jsonl),
  '.ndjson': Format(_jsonl),
  '.parquet': Format(_parquet, 'pyarrow'),
  '.arrow': Format(_arrow, 'pyarrow'),
  '.arrayrecord': Format(_array_record, 'array_record'),
  '.array_record': Format(_array_record, 'array_record'),
}
