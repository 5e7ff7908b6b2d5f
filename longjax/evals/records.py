"""Records of published data sets, and the prompts that they become.

eval.files says where a data set is: a file, or a directory in which a split is
one or several files; here or on the Hub, hf://datasets/ORG/NAME/PATH. A task is
a DataSet, a function from a record to a prompt, and a score.
"""

import contextlib
import functools
import pathlib
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from longjax import hub, storage
from longjax.data import compression, formats
from longjax.errors import InputError
from longjax.evals.evaluation import NOTHING
from longjax.evals.prompts import Prompt, PromptSpec, Sample, Task

FILE = r'([-/].*)?\.(json|jsonl|csv|parquet)(\.gz|\.zst)?'
ARCHIVE = '.zip'
CHARS = 32  # of a token at most, so that books are not encoded whole


class DataSet(NamedTuple):
  """A published data set, or a part of it."""

  name: str  # of its key in eval.files
  where: str  # what the key names is found
  fields: tuple[str, ...] = ()  # of a record that are read
  # Of a directory: the files SPLIT.jsonl, SPLIT-00000-of-00002.parquet,
  # SPLIT/0000.parquet or the like; '' where the key names a file.
  split: str = ''
  files: int = 0  # of the split that are read; 0 is all


def task(
  data: DataSet, make: Callable, count: int, score: Callable, stop=(),
  rows: Callable | None = None, **more,
) -> Task:  # fmt: skip
  """The task that a data set is.

  Args:
    data: what it is.
    make: (record, PromptSpec) -> Prompt or Sample, or None for what is not
      asked.
    count: tokens of an answer.
    score: (answer, references) -> 0 to 1, or several such for Task.combine.
    stop: an answer ends before these.
    rows: (data, PromptSpec) -> records; without it all in order.
    more: fields of Task.
  """
  stream = functools.partial(_stream, data, make, rows or in_order)
  fields: dict[str, Any] = dict(cut=None, whole=True, needs=NOTHING) | more
  return Task(stream, count, score, stop, data=data.name, **fields)


def _stream(
  data: DataSet, make: Callable, rows: Callable, spec: PromptSpec
) -> Iterator[Sample]:
  for made in _made(data, make, rows, spec):
    if isinstance(made, Prompt):
      made = Sample(spec.encode(made.text, made.prefix), made.references)
    if len(made.prompt) + spec.count <= spec.length:
      yield made


def _made(
  data: DataSet, make: Callable, rows: Callable, spec: PromptSpec
) -> Iterator[Prompt | Sample]:
  """InputError where a field of a record has no such value."""
  try:
    found = (make(record, spec) for record in rows(data, spec))
    yield from (one for one in found if one is not None)
  except InputError:
    raise
  except (ValueError, TypeError, LookupError, AttributeError) as error:
    raise InputError(
      f'config.eval.files.{data.name}: a record is not one of '
      f'{data.where}: {type(error).__name__} {error}'
    ) from None


def texts(value) -> tuple[str, ...]:
  """A text or several; ValueError if it is neither, or none."""
  found = (value,) if isinstance(value, str) else tuple(value)
  if not found or not all(isinstance(x, str) for x in found):
    raise ValueError(f'{value!r:.60} is no text, nor a list of them')
  return found


def cut(
  spec: PromptSpec, text: str, prefix='', fill: Callable = str, drop=None
) -> str:
  """fill(text) without the last tokens of the text, if it is too long.

  Args:
    spec: what the prompt is made for.
    text: what may be cut.
    prefix: with which the answer begins.
    fill: text -> what a user says.
    drop: (ids or text, excess) -> what to keep, instead of the first.

  Raises:
    InputError: without any text it is still too long.
  """
  drop = drop or (lambda ids, excess: ids[:-excess])
  beyond = len(text) - CHARS * spec.length
  if beyond > 0:
    text = drop(text, beyond)
  size = lambda: len(spec.encode(fill(text), prefix)) + spec.count
  cuts = 0
  while (excess := size() - spec.length) > 0:
    ids = spec.tokenizer.encode(text)
    more = max(cuts - 1, 0)  # what was decoded may have more tokens
    if excess + more >= len(ids):
      raise InputError(
        f'a prompt has no room in eval.lengths {spec.length}: without the text '
        f'that may be cut it takes {spec.length + excess - len(ids)} tokens; '
        'use longer --lengths'
      )
    text = spec.tokenizer.decode(drop(ids, excess + more))
    cuts += 1
  return fill(text)


def path(data: DataSet, spec: PromptSpec) -> str:
  """What eval.files has of a data set; InputError if it has nothing."""
  found = spec.source.files.get(data.name)
  if not found:
    raise InputError(
      f'needs its data: set config.eval.files.{data.name} to {data.where}'
    )
  return found


def in_order(data: DataSet, spec: PromptSpec) -> Iterator[Mapping]:
  """The records of a data set in order; see `path` and `read`."""
  return read(data, path(data, spec))


def read(data: DataSet, path: str) -> Iterator[Mapping]:
  """The records of a file, or of the split of a directory.

  Raises:
    InputError: it cannot be read, or a record lacks a field.
  """
  where = f'config.eval.files.{data.name}: {path}: '
  try:
    for name, opener in files(data, path):
      with opener() as file:
        for record in formats.read(name, file):
          yield _checked(record, data.fields)
  except (InputError, OSError) as error:
    reason = getattr(error, 'strerror', '') or str(error)
    reason = reason.removeprefix(f'{path}: ')
    raise InputError(f'{where}{reason}; set it to {data.where}') from None


@functools.lru_cache(4)
def cached(data: DataSet, path: str) -> list[Mapping]:
  """The same as a list, read once: examples that prompts share."""
  return list(read(data, path))


def _checked(record, fields) -> Mapping:
  if isinstance(record, formats.Unreadable):
    raise InputError(record.reason)
  at, content = record
  if not isinstance(content, Mapping):
    raise InputError(f'{at} has no fields')
  lacking = [field for field in fields if field not in content]
  if lacking:
    raise InputError(f'{at} has no field {lacking[0]!r}')
  return content


def files(data: DataSet, path: str) -> list[tuple[str, Callable]]:
  """(name, opener) of a file, or of those of a split.

  Raises:
    InputError: there are none, or they are no regular files.
    OSError: there is no such path.
  """
  root = hub.resolve(path, functools.partial(_of_split, data))
  root = pathlib.Path(root).expanduser()
  root.stat()
  if not data.split:
    storage.check_file(root)
    return [(str(path), functools.partial(root.open, 'rb'))]
  first = data.split.partition('/')[0]
  found = _of_split(
    data, [p.relative_to(root).as_posix() for p in
           (*root.glob(f'{first}*'), *root.glob(f'{first}*/**/*'))]
  )  # fmt: skip
  if not found:
    raise InputError(f'it has no {data.split}.jsonl, .parquet or the like')
  for name in found:
    storage.check_file(root / name)
  if found == [first + ARCHIVE]:
    return [
      (name, functools.partial(_member, root / found[0], name))
      for name in _members(root / found[0], data)
    ]
  return [(n, functools.partial((root / n).open, 'rb')) for n in found]


def _of_split(data: DataSet, names) -> list[str]:
  """Of names those of the split, or of the archive that has it."""
  begins = re.compile(re.escape(data.split) + FILE)
  found = sorted(name for name in names if begins.fullmatch(name))
  archive = data.split.partition('/')[0] + ARCHIVE
  found = found or [name for name in names if name == archive]
  return found[: data.files or None]


def _members(archive: pathlib.Path, data: DataSet) -> list[str]:
  """The files of a split in an archive."""
  with (
    compression.reading_archive(archive.name),
    zipfile.ZipFile(archive) as opened,
  ):
    names = _of_split(data, opened.namelist())
  if not names:
    raise InputError(f'{archive.name} has no {data.split}.jsonl or the like')
  return names


@contextlib.contextmanager
def _member(archive: pathlib.Path, name: str):
  """A file in an archive, opened to read bytes."""
  with zipfile.ZipFile(archive) as opened:
    entry = opened.getinfo(name)
    if entry.file_size > compression.limit(entry.compress_size):
      raise InputError(f'{name} in {archive.name} expands too much')
    with (
      compression.reading_archive(f'{name} in {archive.name}'),
      opened.open(entry) as file,
    ):
      yield file
