"""Packing: documents to rows of exactly seq_len tokens. Pure numpy.

A row is a list of spans of documents. Targets are shifted inside a document,
also across the end of a row: the last token of a span has as target the true
next token of its document, which is the first of a later row. So every token
is predicted exactly once but for the first of each document.
"""

from typing import NamedTuple

import numpy as np

from longjax import errors
from longjax.batch import Batch
from longjax.data import positions


class Span(NamedTuple):
  """`length` tokens of a document, from its token `start` on."""

  document: int
  start: int
  length: int


class Row(NamedTuple):
  """A row before positions and layout; all [seq_len]."""

  tokens: np.ndarray  # int32
  targets: np.ndarray  # int32
  weights: np.ndarray  # float32
  segments: np.ndarray  # int32, 1.. by span, 0 is padding


class Rows:
  """A sequence of rows, each a list of Spans, computed when it is asked for.

  Attributes:
    dropped: tokens after the last full row, in no row.
  """

  def __init__(self, documents, lengths, seq_len: int):
    self._documents = np.asarray(documents)
    self._ends = np.cumsum(np.asarray(lengths, np.int64))
    self._starts = self._ends - lengths
    self._seq_len = seq_len
    total = int(self._ends[-1]) if len(self._ends) else 0
    self._rows, self.dropped = divmod(total, seq_len)

  def __len__(self):
    return self._rows

  def __getitem__(self, i: int) -> list[Span]:
    if not 0 <= i < self._rows:
      raise IndexError(i)
    first, last = i * self._seq_len, (i + 1) * self._seq_len
    a = int(np.searchsorted(self._ends, first, 'right'))
    b = int(np.searchsorted(self._starts, last, 'left'))
    spans = []
    for d in range(a, b):
      start = max(first, int(self._starts[d]))
      end = min(last, int(self._ends[d]))
      if end > start:
        begin = start - int(self._starts[d])
        spans.append(Span(int(self._documents[d]), begin, end - start))
    return spans


def concatenate(lengths, seq_len: int, order=None) -> Rows:
  """Documents end to end, cut into rows; the remainder starts the next row.

  Args:
    lengths: tokens of each document.
    seq_len: tokens of a row.
    order: document numbers in the order to take them; default as they come.

  Returns:
    Rows; the last one, if not full, is dropped.
  """
  lengths = np.asarray(lengths, np.int64)
  order = np.arange(len(lengths)) if order is None else np.asarray(order)
  return Rows(order, lengths[order], seq_len)


def row(store, spans, seq_len: int) -> Row:
  """The arrays of one row; what the spans do not fill is padding."""
  out = Row(
    np.zeros(seq_len, np.int32),
    np.zeros(seq_len, np.int32),
    np.zeros(seq_len, np.float32),
    np.zeros(seq_len, np.int32),
  )
  at = 0
  for number, (document, start, length) in enumerate(spans, 1):
    ids = store.tokens(document, start, length + 1)  # one more, to predict
    predicted = min(length, len(ids) - 1)
    out.tokens[at : at + length] = ids[:length]
    out.targets[at : at + predicted] = ids[1 : predicted + 1]
    out.weights[at : at + predicted] = 1
    out.segments[at : at + length] = number
    at += length
  return out


def batch(store, rows, seq_len: int) -> Batch:
  """Several rows (lists of spans) as a Batch in contiguous order."""
  packed = [row(store, spans, seq_len) for spans in rows]
  stacked = Row(*(np.stack(arrays) for arrays in zip(*packed)))
  index = np.arange(seq_len, dtype=np.int32)
  return Batch(
    *stacked,
    positions=positions.plain(stacked.segments),
    index=np.tile(index, (len(packed), 1)),
  )


def one_document_rows(store, seq_len: int, count: int) -> list[list[Span]]:
  """For evaluation: the starts of the first `count` documents long enough."""
  long = np.flatnonzero(store.lengths >= seq_len)[:count]
  if len(long) < count:
    raise errors.InputError(
      f'{store.directory}: {count} documents of at least {seq_len} tokens are '
      f'needed, but there are {len(long)}; the longest has '
      f'{store.lengths.max(initial=0)}'
    )
  return [[Span(int(document), 0, seq_len)] for document in long]
