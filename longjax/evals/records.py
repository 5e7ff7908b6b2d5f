"""Questions of a published data set, read from the file that eval.files names.

A benchmark says which fields its records have and makes a prompt of one; it
asks all of them, or those that fit a length.
"""

import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping

from longjax.data import formats
from longjax.errors import InputError
from longjax.evals import prompts
from longjax.evals.evaluation import NOTHING, Evaluation
from longjax.evals.prompts import Room, Sample, Task


def evaluation(
  name: str, title: str, where: str, make: Callable, fields, count: int,
  judge: Callable,
) -> Evaluation:  # fmt: skip
  """The evaluation of one data set.

  Args:
    name: of the evaluation, and of its file in eval.files.
    title: of its section in the report.
    where: the file is found.
    make: (record, Room) -> Prompt.
    fields: of a record that `make` reads.
    count: tokens of an answer.
    judge: (answer, references) -> 0 to 1.
  """
  stream = functools.partial(_stream, name, where, make, fields)
  task = Task(stream, count, judge, data=name, cut=None, whole=True)
  return prompts.evaluation(name, title, {name: task}, NOTHING)


def _stream(name, where, make, fields, room: Room) -> Iterator[Sample]:
  path = room.source.files.get(name)
  if not path:
    raise InputError(f'needs its data: set config.eval.files.{name} to {where}')
  for record in read(name, path, fields):
    prompt = make(record, room)
    ids = room.encode(prompt.text, prompt.prefix)
    if len(ids) + room.count <= room.length:
      yield Sample(ids, prompt.references)


def read(name: str, path: str, fields) -> Iterator[Mapping]:
  """The records of a .json, .jsonl or .parquet file.

  Raises:
    InputError: it cannot be read, or a record lacks a field.
  """
  where = f'config.eval.files.{name}: {path}'
  try:
    with pathlib.Path(path).expanduser().open('rb') as file:
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
