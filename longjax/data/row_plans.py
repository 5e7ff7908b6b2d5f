"""Packs to rows, and rows to batches. Pure numpy.

Targets are shifted inside a document, also across the end of a row: the target
of the last token of a span is the next token of its document, or of its pack
where the documents of a pack are joined. So every token is predicted exactly
once but for the first of each document (of each pack, where joined), wherever
rows or segments are cut.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from longjax import errors, flops
from longjax.batch import Batch
from longjax.data import pack, positions


class RowPlan(NamedTuple):
  """The spans of documents in a row, before a token is read; arrays [spans].

  Spans lie in the order of their columns; padding lies between and after them.
  """

  column: np.ndarray  # int64, of the first token
  document: np.ndarray  # int64
  start: np.ndarray  # int64, token of the document
  length: np.ndarray  # int64
  new_segment: np.ndarray  # bool, whether a segment begins here
  # int64, the token that the last one of the span predicts: of its document,
  # or the first of the next span of a joined pack.
  next_document: np.ndarray
  next_start: np.ndarray

  def jumps(self) -> np.ndarray:
    """int64 [jumps]: columns inside a segment where another text begins."""
    return self.column[~self.new_segment]

  def squared_lengths(self, window: int = 0) -> float:
    """The sum of length^2 over segments, to which attention is proportional;
    of layers with a window as flops.within."""
    lengths = np.bincount(np.cumsum(self.new_segment), self.length)
    return float(flops.within(lengths, window))


def of_packs(
  packed: Sequence[list[pack.DocumentSpan]],
  length: int,
  seq_len: int,
  joined: bool = False,
) -> list[RowPlan]:
  """The rows that packs fill one after another.

  Args:
    packed: packs that together are whole rows.
    length: tokens of a pack.
    seq_len: tokens of a row.
    joined: whether the documents of a pack are one segment.
  """
  spans = np.array([s for p in packed for s in p], np.int64).reshape(-1, 3)
  document, start, size = spans.T
  counts = np.array([len(p) for p in packed], np.int64)
  first = np.cumsum(counts) - counts  # span of each pack
  before = np.cumsum(size) - size
  inside = before - np.repeat(before[first], counts)
  column = np.repeat(np.arange(len(packed)) * length, counts) + inside
  new_segment = np.full(len(column), not joined)
  new_segment[first] = True
  next_document, next_start = document.copy(), start + size
  if joined:
    inner = np.flatnonzero(~new_segment)  # follow a span of their own pack
    next_document[inner - 1] = document[inner]
    next_start[inner - 1] = start[inner]
  plan = RowPlan(
    column, document, start, size, new_segment, next_document, next_start
  )
  plan = cut_segments(plan, seq_len)
  row = plan.column // seq_len
  plan = plan._replace(column=plan.column % seq_len)
  rows = range(len(packed) * length // seq_len)
  return [RowPlan(*(x[row == r] for x in plan)) for r in rows]


def cut_segments(plan: RowPlan, every: int) -> RowPlan:
  """The same tokens, with a new segment at every multiple of `every`."""
  begin, end = plan.column, plan.column + plan.length
  first = begin // every  # of the pieces that a span is cut into
  pieces = (end - 1) // every - first + 1
  piece = np.arange(pieces.sum()) - np.repeat(
    np.cumsum(pieces) - pieces, pieces
  )
  begin, end, first = (np.repeat(x, pieces) for x in (begin, end, first))
  plan = RowPlan(*(np.repeat(x, pieces) for x in plan))
  column = np.maximum(begin, (first + piece) * every)
  start = plan.start + column - begin
  length = np.minimum(end, (first + piece + 1) * every) - column
  last = column + length == end  # others are followed by their next piece
  return RowPlan(
    column,
    plan.document,
    start,
    length,
    plan.new_segment & (piece == 0) | (column % every == 0),
    np.where(last, plan.next_document, plan.document),
    np.where(last, plan.next_start, start + length),
  )


def read_row(store, plan: RowPlan, seq_len: int) -> Batch:
  """A row in the order of its text, positions plain.

  Args:
    store: a store.Store.
    plan: of the row.
    seq_len: its tokens.

  Returns:
    A Batch of [seq_len] arrays. Segments count from 1; padding is 0 in all.
  """
  tokens, targets, segments = np.zeros((3, seq_len), np.int32)
  weights = np.zeros(seq_len, np.float32)
  segment = 0
  for column, document, start, length, new, *following in zip(
    *(x.tolist() for x in plan)
  ):
    ids = store.tokens(document, start, length + 1)  # one more, to predict
    mask = store.mask(document, start, length + 1)
    predicted = min(length, len(ids) - 1)
    tokens[column : column + length] = ids[:length]
    targets[column : column + predicted] = ids[1 : predicted + 1]
    weights[column : column + predicted] = mask[1 : predicted + 1]
    segment += new
    segments[column : column + length] = segment
    if following != [document, start + length]:
      last, (document, start) = column + length - 1, following
      targets[last] = store.tokens(document, start, 1)[0]
      weights[last] = store.mask(document, start, 1)[0]
  index = np.arange(seq_len, dtype=np.int32)
  return Batch(
    tokens, targets, weights, segments, positions.plain(segments), index
  )


def batch(store, plans: Sequence[RowPlan], seq_len: int) -> Batch:
  """Several rows as a Batch in contiguous order, positions plain."""
  rows = [read_row(store, plan, seq_len) for plan in plans]
  return Batch(*(np.stack(arrays) for arrays in zip(*rows)))


def one_document_rows(
  store, seq_len: int, count: int, source: int | None = None
) -> list[RowPlan]:
  """For evaluation: the starts of the first `count` documents long enough, of
  one source by its number or of all."""
  name, lengths = '', store.lengths
  if source is not None:
    name = f' of source {store.manifest["sources"][source]["name"]}'
    lengths = np.where(store.sources == source, lengths, 0)
  long = np.flatnonzero(lengths >= seq_len)[:count]
  if len(long) < count:
    raise errors.InputError(
      f'{store.directory}: {count} documents{name} of at least {seq_len} '
      f'tokens are needed, but there are {len(long)}; the longest has '
      f'{lengths.max(initial=0)}'
    )
  spans = [[pack.DocumentSpan(int(d), 0, seq_len)] for d in long]
  return of_packs(spans, seq_len, seq_len)
