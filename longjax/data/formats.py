"""File formats: what a file of a source holds, as records or as its bytes.

The ending of a name decides, and the content must agree; `.gz`, `.bz2`, `.xz`
or `.zst` may follow. A file of any other name is text, unless its content is a
known format or no text: then it is read as that, or refused. A `.json` holds
records, a list of them or one per line, as C4 and Dolma name theirs. A record
is a mapping, of which `sources` reads a field; in ArrayRecord it is a JSON
object, or the text itself. To add a data format: its reader here, and the
ending of its files in FORMATS; neither that in REFUSED nor its first bytes in
SIGNS.
"""

import codecs
import csv
import functools
import importlib.util
import io
import itertools
import lzma
import sys
import tokenize
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from longjax import errors, hub, json_text
from longjax.data import compression, mds

# Never documents: by the ending of a name, or by how a file begins.
REFUSED = {
  'an archive, which is not unpacked': (
    '.tar', '.tgz', '.tbz2', '.txz', '.zip', '.7z', '.rar', '.whl', '.jar'),
  'pickled, and unpickling runs code': ('.pkl', '.pickle', '.pt', '.pth'),
  'of weights': ('.safetensors', '.gguf', '.ckpt', '.onnx'),
  'of a format that is not read': (
    '.npz', '.h5', '.hdf5', '.tfrecord', '.idx', '.orc', '.avro', '.xlsx',
    '.sqlite', '.db', '.pdf', '.docx', '.epub'),
}  # fmt: skip
SIGNS = {
  b'PK\x03\x04': 'a zip archive, which is not unpacked',
  b'\x1f\x8b': 'compressed by gzip',
  b'\x28\xb5\x2f\xfd': 'compressed by zstd', b'\xfd7zXZ\0': 'compressed by xz',
  b'BZh91AY': 'compressed by bzip2', b'%PDF-': 'a PDF',
}  # fmt: skip
HEAD_BYTES = 1 << 9
SEARCHED = 1 << 16  # bytes of a .bin in which its true format would show
MIN_TEXT = 16  # printable bytes in a row, which ids never are
BLANK = codecs.BOM_UTF8 + b' \t\r\n'
EMPTY = object()  # a line without a record
ROWS = 64  # of a table that are made Python objects at once


class Unreadable(NamedTuple):
  """A record or file that cannot be read, and why."""

  name: str
  reason: str


class Options(NamedTuple):
  """The settings of a source that its files are read with."""

  whole: bool = False  # each is one text, whatever its format
  tokens: bool = False  # they hold token ids
  encoding: str = 'utf-8'  # of text
  dtype: str = ''  # of ids in a .bin


DEFAULT = Options()


class Format(NamedTuple):
  """How records are read: (file, opened to read bytes) -> records.

  For a record that it cannot read, a reader yields Unreadable with an empty
  name. It raises OSError, EOFError or ValueError where the records that follow
  cannot be found either.
  """

  read: Callable[[Any, Options], Iterator[Any]]
  package: str | None = None  # that must be installed
  # How a file of any name begins that has this format.
  sign: bytes | tuple[bytes, ...] = b''
  tokens: bool = False  # it holds token ids and nothing else
  anywhere: bool = True  # such files also lie among code and text


def read(
  name: str, file, options: Options = DEFAULT
) -> Iterator[tuple[str, Any] | Unreadable]:
  """The records of a file, or the bytes of one that holds no records.

  Args:
    name: of the file.
    file: opened to read bytes.
    options: see Options.

  Yields:
    (name, mapping or str) for a record, (name, bytes) for a whole file, or
    Unreadable. Where damage hides the records that follow, all of them
    together are one Unreadable.
  """
  stem, ending = _stem(name)
  try:
    with compression.opened(file, ending) as opened:
      form = _format(stem, opened, options)
      if form is None:
        yield name, opened.read()
      elif isinstance(form, str):
        yield Unreadable(name, form)
      elif form.tokens and not options.tokens:
        yield Unreadable(name, "of token ids, which kind='tokens' reads")
      else:
        for number, record in enumerate(form.read(opened, options)):
          here = f'{name}:{number}'
          if isinstance(record, Unreadable):
            yield record._replace(name=here)
          elif record is not EMPTY:
            yield here, record
  except (
    OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, csv.Error,
    NotImplementedError, MemoryError,
  ) as error:  # fmt: skip
    # Those of pyarrow are among these; the last, of damaged sizes.
    yield Unreadable(
      name, f'{type(error).__name__}: {" ".join(str(error).split())}'
    )
  except ModuleNotFoundError as error:  # in an archive: check did not know
    raise _missing(name, str(error.name)) from None


def check(names):
  """InputError if a package is missing that files of these names need."""
  for name in names:
    stem, ending = _stem(name)
    form = _by_name(stem)
    packages = form and form.package, compression.COMPRESSIONS.get(ending)
    for package in packages:
      if package and not importlib.util.find_spec(package):
        raise _missing(name, package)


def are_data_set(names) -> bool:
  """Whether files are a data set, not code or text with some records among it.

  So a directory of code stays one whatever formats are known: it may have a
  package.json, but no parquet.
  """
  forms = [_by_name(_stem(name)[0]) for name in names]
  found = [form for form in forms if form]
  return 2 * len(found) > len(forms) or not all(f.anywhere for f in found)


def _missing(name: str, package: str) -> errors.InputError:
  return errors.InputError(
    f'reading {name} needs the package {package}; pip install '
    f'{package.replace("_", "-")}'
  )


def _stem(name: str) -> tuple[str, str]:
  """(the name in small letters without it, the ending of its compression)."""
  stem = name.lower()
  for ending in compression.COMPRESSIONS:
    if stem.endswith(ending):
      return stem.removesuffix(ending), ending
  return stem, ''


def _by_name(stem: str) -> Format | None:
  return next((f for end, f in FORMATS.items() if stem.endswith(end)), None)


def _format(stem: str, file, options: Options) -> Format | str | None:
  """A format, what is wrong, or None of text: by name and content together."""
  refused = [why for why, ends in REFUSED.items() if stem.endswith(ends)]
  form, head = _by_name(stem), _head(file)
  signed = [f for f in FORMATS.values() if f.sign and head.startswith(f.sign)]
  other = [what for sign, what in SIGNS.items() if head.startswith(sign)]
  if head.startswith(hub.POINTER) and not options.whole:
    other.append(hub.LFS_POINTER)
  if (form or signed) and not (refused or other or options.whole):
    return signed[0] if signed else form
  if head[257:262] == b'ustar':
    other.append('a tar archive, which is not unpacked')
  if refused or other or signed:
    return [*refused, *other, 'binary'][0]
  is_text = options.whole or not _begins_json(file, head)
  return None if is_text else FORMATS['.json']


def _head(file) -> bytes:
  """The first bytes, which stay unread."""
  if not file.seekable():
    return file.peek(HEAD_BYTES)[:HEAD_BYTES]
  head = file.read(HEAD_BYTES)
  file.seek(0)
  return head


def _begins_json(file, head: bytes) -> bool:
  """Whether what is called text begins with records in JSON."""
  start = head.lstrip(BLANK)
  if not start.startswith((b'{"', b'[{', b'[\n', b'[ ', b'[\r')):
    return False
  if not file.seekable():
    return True
  found = _line(_first_line(file))
  file.seek(0)
  if isinstance(found, dict):
    return True
  found = _line(file.read())
  file.seek(0)
  return isinstance(found, list) and any(isinstance(x, dict) for x in found)


def _parse(raw: bytes):
  return json_text.loads(raw.removeprefix(codecs.BOM_UTF8))


def _first_line(file) -> bytes:
  """The first line that is not blank, after those that are."""
  first = b''
  while not first.strip(BLANK) and (line := file.readline()):
    first += line
  return first


def _json(file, options) -> Iterator:
  """Records one per line, in a list, or one alone; EMPTY of an empty line."""
  first = _first_line(file)
  is_whole = first.lstrip(BLANK)[:1] in (b'[', b'{')
  if not is_whole or isinstance(_line(first), dict):
    lines = first.splitlines(keepends=True)
    yield from map(_line, itertools.chain(lines, file))
    return
  rest = file.read()
  try:
    found = _parse(first + rest)
  except ValueError as error:
    if first.lstrip(BLANK)[:1] == b'{' and rest.lstrip()[:2] == b'{"':
      lines = (first + rest).splitlines(keepends=True)
      yield from map(_line, lines)  # the first line of several is damaged
      return
    yield Unreadable('', f'not JSON ({error})')
    return
  yield from found if isinstance(found, list) else [found]


def _line(line: bytes):
  """What a line holds, or EMPTY."""
  try:
    return _parse(line) if line.strip(BLANK) else EMPTY
  except UnicodeDecodeError as error:
    return Unreadable('', f'not utf-8 (byte {error.start} of {len(line)})')
  except ValueError as error:
    return Unreadable('', f'not JSON ({error})')


def _csv(file, options: Options, delimiter: str) -> Iterator:
  """A table whose first line names the columns."""
  csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
  lines = io.TextIOWrapper(file, options.encoding, newline='')
  try:
    table = csv.reader(_without_nul(lines), delimiter=delimiter, strict=True)
    columns = [c.removeprefix('\ufeff') for c in next(table, [])]
    if len(set(columns)) < len(columns):
      raise ValueError(f'two columns of one name in {", ".join(columns)}')
    if len(columns) == 1 and (by := set(columns[0]) & set(';\t|,')):
      raise ValueError(
        f'one column {columns[0]!r}: separated by {min(by)!r}, not by '
        f'{delimiter!r}'
      )
    row = None
    for row in table:
      if not row:
        yield EMPTY
      elif len(row) != len(columns):
        yield Unreadable('', f'{len(row)} fields for {len(columns)} columns')
      else:
        yield dict(zip(columns, row))
    if columns and row is None:
      raise ValueError('a table without rows')
  finally:
    lines.detach()


def _without_nul(lines) -> Iterator[str]:
  for line in lines:
    if '\0' in line:
      raise ValueError('binary, a NUL byte is no text')
    yield line


def _npy(file, options) -> Iterator[dict]:
  """Each row of a matrix of ids, or all of a vector."""
  try:
    ids = np.load(_seekable(file), allow_pickle=False)
  except (ValueError, SyntaxError, tokenize.TokenError) as error:
    raise ValueError(f'not a whole .npy array ({error})') from error
  if not isinstance(ids, np.ndarray):
    raise ValueError('not a .npy array')
  if ids.dtype.kind not in 'iu' or ids.ndim not in (1, 2):
    raise ValueError(f'{ids.dtype} of {ids.ndim} dimensions, not ids in 1 or 2')
  for row in np.atleast_2d(ids):
    yield dict(input_ids=row)


def _bin(file, options: Options) -> Iterator[dict]:
  """All of a file of ids, little-endian."""
  if not options.dtype:
    raise ValueError("ids of unknown width: set dtype='uint16' or another")
  raw, dtype = file.read(), np.dtype(options.dtype).newbyteorder('<')
  head = raw[:HEAD_BYTES].replace(b'\n', b'')
  if len(head) > MIN_TEXT and head.isascii() and head.decode().isprintable():
    raise ValueError('text, not ids')
  if mds.SIGN in raw[:SEARCHED]:
    raise ValueError('an MDS shard: its name ends in .mds')
  if len(raw) % dtype.itemsize:
    raise ValueError(f'{len(raw)} bytes, no multiple of {dtype.itemsize}')
  yield dict(input_ids=np.frombuffer(raw, dtype))


def _parquet(file, options) -> Iterator:
  import pyarrow.parquet  # pyright: ignore

  table = pyarrow.parquet.ParquetFile(_seekable(file))
  yield from _rows(table.iter_batches(ROWS))


def _arrow(file, options) -> Iterator:
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
    batch.validate(full=True)  # offsets of a damaged one lead out of memory
    for start in range(0, batch.num_rows, ROWS):
      yield from batch.slice(start, ROWS).to_pylist()


def _seekable(file):
  slow = isinstance(getattr(file, 'raw', None), compression.Bounded)
  return io.BytesIO(file.read()) if slow or not file.seekable() else file


def _array_record(file, options) -> Iterator:
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
    value = json_text.loads(text)
  except ValueError:
    return text
  return value if isinstance(value, dict) else text


FORMATS = {
  '.json': Format(_json),
  '.jsonl': Format(_json, anywhere=False),
  '.ndjson': Format(_json, anywhere=False),
  '.csv': Format(functools.partial(_csv, delimiter=',')),
  '.tsv': Format(functools.partial(_csv, delimiter='\t')),
  '.parquet': Format(_parquet, 'pyarrow', b'PAR1', anywhere=False),
  '.arrow': Format(_arrow, 'pyarrow', (b'ARROW1', b'\xff' * 4), anywhere=False),
  '.feather': Format(_arrow, 'pyarrow', anywhere=False),
  '.arrayrecord': Format(_array_record, 'array_record', anywhere=False),
  '.array_record': Format(_array_record, 'array_record', anywhere=False),
  '.mds': Format(lambda file, options: mds.read(file), anywhere=False),
  '.npy': Format(_npy, sign=b'\x93NUMPY', tokens=True),
  '.bin': Format(_bin, tokens=True),
}
