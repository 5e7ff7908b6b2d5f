"""What an evaluation is, and what it is given.

An evaluation is one file with an EVALUATION, which evals/table.py lists.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from longjax.data import row_plans
from longjax.evals import haystack
from longjax.evals.result_cache import ResultCache

# What an evaluation needs beside the model.
DOCUMENTS = 'held-out documents of eval.length tokens'
PROSE = 'the text of held-out documents'
NOTHING = 'nothing'


@dataclasses.dataclass(frozen=True)
class Setup:
  """What is the same for all models that are compared.

  Attributes:
    config: the whole config; `eval`, `seed`, `data.layout` and `train` are
      read.
    tokenizer: of the models.
    store: held-out documents (data.prepare.held_out), or None.
    mesh: of axes 'data' and 'seq'.
    log: called with a line about what is running.
    cache: what an interrupted evaluation has computed.
    started: prompts of which `check` has made the first, by task and length.
  """

  config: Any
  tokenizer: Any
  store: Any = None
  mesh: Any = None
  log: Callable[[str], object] = print
  cache: ResultCache = dataclasses.field(default_factory=ResultCache)
  started: dict = dataclasses.field(default_factory=dict)

  @property
  def options(self):
    """The section `eval` of the config."""
    return self.config.eval

  @property
  def samples(self) -> int:
    """Prompts of a task and length."""
    return min(self.options.samples, self.options.limit or 2**31)

  @property
  def batch(self) -> int:
    """Prompts at once."""
    data = self.mesh.shape['data'] if self.mesh else 1
    return -(-self.options.batch // data) * data

  def rows(self, source: int | None = None) -> list:
    """The first eval.length tokens of eval.documents documents, as data.pack
    has them; of one source, by its number, or of all.

    Raises:
      InputError: too few documents are as long.
    """
    options = self.options
    return row_plans.one_document_rows(
      self.store, options.length, options.documents, source
    )

  def documents(self) -> list[np.ndarray]:
    """The first eval.length tokens of eval.documents held-out documents."""
    length = self.options.length
    first = (int(row.document[0]) for row in self.rows())
    return [self.store.tokens(number, 0, length) for number in first]

  def prose(self) -> str:
    """The text of held-out documents, enough for the longest prompt."""
    if self.store is None:
      return ''
    most = max(self.options.lengths)
    return haystack.text(self.store, self.tokenizer, most)


class Point(NamedTuple):
  """A score."""

  value: float | None
  low: float | None = None  # of its 95 % interval
  high: float | None = None
  each: tuple[float, ...] = ()  # the samples that it is the mean of


class Axis(NamedTuple):
  """What a figure shows: scores over the number at the end of their names."""

  x: str = 'context (tokens)'
  y: str = 'score (%)'
  log: bool = True


def one_result(parts: dict) -> dict:
  """{part: its results} as one result: the union."""
  return {key: x for result in parts.values() for key, x in result.items()}


class Evaluation(NamedTuple):
  """An evaluation."""

  name: str  # as eval.tasks and --tasks have it
  title: str  # of its section in the report
  needs: str  # DOCUMENTS, PROSE or NOTHING
  # (language_model.LM, Setup, part) -> its results, as JSON has them.
  run: Callable
  scores: Callable  # its results -> {'task/length' or the like: Point}
  columns: tuple[str, ...] = ('task', 'tokens')  # parts of the scores' names
  percent: bool = False  # scores are shares
  axis: Axis | None = None  # of its figure
  heat: bool = False  # the figure is a map over length and depth
  # ({name of a model: its results}, section `eval`) -> paragraphs above the
  # table, paragraphs below it.
  text: Callable = lambda results, options: ([], [])
  # (Setup, part): raises InputError for what could not be run.
  check: Callable = lambda setup, part: None
  least: int = 1  # tokens of DOCUMENTS that it needs
  parts: tuple[str, ...] = ()  # what may follow a slash: ruler/vt
  # {part: (what is invented, name in eval.files of what takes its place)}
  stand_ins: Mapping[str, tuple[str, str]] = {}
  any_part: bool = False  # something has to follow: lm_eval/arc_easy
  merge: Callable = one_result  # {part: its results} -> results to render


def means(points: dict) -> dict:
  """{number at the end of a name: mean Point} where all tasks have one.

  Args:
    points: {'task/length' or 'length': Point}.
  """
  at, tasks = {}, {key.rpartition('/')[0] for key in points}
  for key, point in points.items():
    last = key.rpartition('/')[2]
    if last.isdecimal() and point.value is not None:
      at.setdefault(int(last), []).append(point)
  mean = lambda xs: None if None in xs else math.fsum(xs) / len(xs)
  return {
    number: Point(
      *(mean(column) for column in list(zip(*found))[:3])  # pyright: ignore
    )
    for number, found in sorted(at.items())
    if len(found) == len(tasks)
  }


def invented(evaluation: Evaluation, part: str, options) -> str:
  """What is invented in place of the data of a part; '' if nothing is."""
  what, data = evaluation.stand_ins.get(part, ('', ''))
  return '' if data and options.files[data] else what


def describe_documents(options) -> str:
  """The held-out documents of a section `eval`."""
  plural = 's' if options.documents > 1 else ''
  return f'{options.documents} held-out document{plural} ({sources(options)})'


def sources(options) -> str:
  """The names of the sources of a section `eval`."""
  return ', '.join(sorted(options.sources))
