"""Questions of a published data set, read from the file that eval.files names.

A benchmark says which fields its records have and makes a prompt of one; it
asks all of them, or those that fit a length.
"""

import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from longjax import storage
from longjax.data import formats
from longjax.errors import InputError
from longjax.evals import prompts
from longjax.evals.evaluation import NOTHING, Evaluation
from longjax.evals.prompts import Prompt, PromptSpec, Sample, Task


class DataSet(NamedTuple):
  """A published data set, one file of it."""

  name: str  # of the evaluation, and of the file in eval.files
  title: str  # of its section in the report
  where: str  # the file is found
  fields: tuple[str, ...]  # of a record that are read


def evaluation(
  data: DataSet, make: Callable, count: int, judge: Callable, stop=()
) -> Evaluation:
  """The evaluation of a data set.

  Args:
    data: what it is.
    make: (record, PromptSpec) -> Prompt, or None for what is not asked.
    count: tokens of an answer.
    judge: (answer, references) -> 0 to 1.
    stop: an answer ends before these.
  """
  stream = functools.partial(_stream, data, make)
  task = Task(stream, count, judge, stop, data=data.name, cut=None, whole=True)
  return prompts.evaluation(data.name, data.title, {data.name: task}, NOTHING)


def _stream(
  data: DataSet, make: Callable, spec: PromptSpec
) -> Iterator[Sample]:
  file = path(data.name, spec, data.where)
  for record in read(data.name, file, data.fields):
    prompt = _made(data, make, record, spec)
    if prompt is None:
      continue
    ids = spec.encode(prompt.text, prompt.prefix)
    if len(ids) + spec.count <= spec.length:
      yield Sample(ids, prompt.references)


def path(name: str, spec: PromptSpec, where: str) -> str:
  """eval.files.NAME, which is to be found in `where`; InputError without it."""
  found = spec.source.files.get(name)
  if not found:
    raise InputError(f'needs its data: set config.eval.files.{name} to {where}')
  return found


def _made(
  data: DataSet, make: Callable, record, spec: PromptSpec
) -> Prompt | None:
  """The prompt of a record; InputError where a field has no such value."""
  try:
    return make(record, spec)
  except InputError:
    raise
  except (ValueError, TypeError, LookupError, AttributeError) as error:
    raise InputError(
      f'config.eval.files.{data.name}: a record is not one of '
      f'{data.where}: {error}'
    ) from None


def read(name: str, path: str, fields) -> Iterator[Mapping]:
  """The records of a .json, .jsonl or .parquet file.

  Raises:
    InputError: it cannot be read, or a record lacks a field.
  """
  where = f'config.eval.files.{name}: {path}'
  file_path = pathlib.Path(path).expanduser()
  try:
    storage.check_file(file_path)
    with file_path.open('rb') as file:
      for record in formats.read(path, file):
        if isinstance(record, formats.Unreadable):
          raise InputError(f'{where}: {record.reason}')
        at, content = record
        lacking = [f for f in fields if not isinstance(content, Mapping)
                   or f not in content]  # fmt: skip
        if lacking:
          raise InputError(f'{where}: {at} has no field {lacking[0]!r}')
        yield content
  except OSError as error:
    raise InputError(f'{where}: {error.strerror}') from None
