"""Texts with labels, of which HELMET draws examples and questions.

Given the same rows and seeds, the draws are those of load_icl in its data.py.
"""

import functools
import math
import random
from collections.abc import Iterable
from typing import NamedTuple

from longjax.evals import draws, records
from longjax.evals.prompts import PromptSpec


class Labelled(NamedTuple):
  """A data set of texts with labels."""

  data: records.DataSet  # its training split
  field: str  # of the label
  labels: int
  test: str = 'test'  # the split that is asked; '' is a tenth of the training


Row = tuple[str, int]  # text, label


def data_set(
  name: str, where: str, field: str, labels: int, test='test'
) -> Labelled:
  """One whose training split is `train`; see records.DataSet, Labelled."""
  where += ', or a copy of that directory'
  data = records.DataSet(name, where, ('text', field), 'train')
  return Labelled(data, field, labels, test)


def balanced(rows: Iterable[Row], count: int, seed: int) -> list[Row]:
  """`count` rows, in rounds that have each label once in random order."""
  rng, by_label = random.Random(seed), {}
  for row in rows:
    by_label.setdefault(row[1], []).append(row)
  rounds = [[] for _ in range(math.ceil(count / len(by_label)))]
  for same in by_label.values():
    order = rng.sample(range(len(same)), len(rounds) % len(same))
    while len(order) < len(rounds):
      more = min(len(rounds) - len(order), len(same))
      order += rng.sample(range(len(same)), more)
    for here, i in zip(rounds, order):
      here.append(same[i])
  for here in rounds:
    rng.shuffle(here)
  return [row for here in rounds for row in here][:count]


@functools.lru_cache(2)
def splits(of: Labelled, path: str, seed: int) -> tuple[list[Row], list[Row]]:
  """(rows of examples, rows to ask in the order of the file)."""

  def read(split: str) -> list[Row]:
    found = records.read(of.data._replace(split=split), path)
    return [(x['text'], int(x[of.field])) for x in found]

  train = read(of.data.split)
  if of.test:
    return train, read(of.test)
  order, count = draws.permuted(train, seed), math.ceil(0.1 * len(train))
  return order[count:], order[:count]


def asked(rows: list[Row], count: int, seed: int) -> list[Row]:
  """The rows, or `count` with each label as often where there are more."""
  if len(rows) <= count:
    return rows
  return balanced(draws.permuted(rows, seed), count, seed)


def rows(of: Labelled, count: int, data: records.DataSet, spec: PromptSpec):
  """{'train': rows of examples, 'text', 'label'} of what is asked."""
  train, test = splits(of, records.path(data, spec), spec.seed)
  for text, label in asked(test, count, spec.seed):
    yield dict(train=train, text=text, label=label)
