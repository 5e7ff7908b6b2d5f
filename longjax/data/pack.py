"""Packing: documents to packs of exactly so many tokens. Pure numpy.

A pack is a list of spans of documents; what the spans do not fill is padding.
Several packs make a row, or a pack makes several rows (data/mixture.py). Then
targets are shifted inside a document, also across the end of a row: the last
token of a span has as target the true next token of its document. So every
token is predicted exactly once but for the first of each document.
"""

import bisect
import dataclasses
import heapq
from collections.abc import Sequence
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


@dataclasses.dataclass(frozen=True, eq=False)
class Packs:
  """A sequence of packs, each a list of Spans.

  Spans first[i] to first[i + 1] - 1 of the three arrays are pack i.
  """

  first: np.ndarray  # int64 [packs + 1]
  document: np.ndarray  # int64 [spans]
  start: np.ndarray  # int64 [spans]
  length: np.ndarray  # int64 [spans]
  dropped: int = 0  # tokens of the documents read that are in no pack

  def __len__(self):
    return len(self.first) - 1

  def __getitem__(self, i) -> list[Span]:
    if not 0 <= i < len(self):
      raise IndexError(i)
    here = slice(int(self.first[i]), int(self.first[i + 1]))
    columns = (self.document, self.start, self.length)
    return [Span(*span) for span in zip(*(x[here].tolist() for x in columns))]


def whole(lengths, length: int, order) -> Packs:
  """One document a pack: each piece of exactly `length` that it has.

  ProLong's long domains (2410.02660, README): a document shorter than the pack
  is dropped, as is what is left of a longer one.

  Args:
    lengths: tokens of each document, int [documents].
    length: tokens of a pack.
    order: numbers of the documents to take, in this order.
  """
  pieces = lengths[order] // length
  document = np.repeat(order, pieces)
  begin = np.cumsum(pieces) - pieces
  piece = np.arange(len(document)) - np.repeat(begin, pieces)
  full = np.full(len(document), length)
  return Packs(np.arange(len(document) + 1), document, piece * length, full)


def concatenate(lengths, length: int, order) -> Packs:
  """Documents end to end; what does not fit starts the next pack.

  Arguments as in `whole`. The last pack, if not full, is dropped.
  """
  ends = np.cumsum(lengths[order])
  packs = int(ends[-1]) // length if len(ends) else 0
  cuts = np.concatenate([ends, np.arange(packs + 1) * length])
  cuts.sort(kind='stable')  # merges two sorted runs
  cuts = cuts[np.insert(np.diff(cuts) > 0, 0, True)]
  cuts = cuts[cuts <= packs * length]
  begin = cuts[:-1]
  at = np.searchsorted(ends, begin, 'right')
  start = begin - (ends - lengths[order])[at]
  first = np.searchsorted(begin, np.arange(packs + 1) * length)
  return Packs(first, order[at], start, np.diff(cuts))


def truncate(lengths, length: int, order) -> Packs:
  """Documents end to end; what does not fit in the pack is dropped.

  ProLong's fine-tuning data (2410.02660, appendix). Arguments as in `whole`.
  """
  ends = np.cumsum(lengths[order])
  first, taken = [0], []
  at, before = 0, 0
  while at < len(order) and ends[-1] - before >= length:
    # The document in which the pack becomes full.
    last = int(np.searchsorted(ends, before + length))
    here = lengths[order[at : last + 1]].copy()
    here[-1] -= ends[last] - before - length
    taken.append(here)
    at, before = last + 1, int(ends[last])
    first.append(at)
  document = order[:at]
  taken = np.concatenate(taken) if taken else np.zeros(0, np.int64)
  return Packs(np.array(first), document, np.zeros_like(document), taken)


def next_fit(lengths, length: int, order) -> Packs:
  """Whole documents; one that does not fit begins the next pack.

  LongAlign (2401.18058). Longer documents are left out. Arguments as in
  `whole`.
  """
  order = order[lengths[order] <= length]
  ends = np.cumsum(lengths[order])
  first, before = [0], 0
  while first[-1] < len(order):
    at = int(np.searchsorted(ends, before + length, 'right'))
    first.append(at)
    before = int(ends[at - 1])
  return _complete(first, order, lengths)


def best_fit(lengths, length: int, order) -> Packs:
  """Only documents longer than a pack are cut: best-fit decreasing.

  2404.10830, section 3. Longer documents give full packs and a rest; each
  rest or document goes into the fullest pack that has room for it, the longest
  first. Arguments as in `whole`.
  """
  full = whole(lengths, length, order)
  rest = lengths[order] % length
  short, rest = order[rest > 0], rest[rest > 0]
  longest = np.argsort(-rest, kind='stable')
  bins = _best_fit(rest[longest].tolist(), length)
  by_bin = np.argsort(bins, kind='stable')
  document = short[longest][by_bin]
  tokens = rest[longest][by_bin]
  count = np.bincount(bins, minlength=0)
  first = np.concatenate([full.first, len(full) + np.cumsum(count)])
  return Packs(
    first,
    np.concatenate([full.document, document]),
    np.concatenate([full.start, lengths[document] - tokens]),
    np.concatenate([full.length, tokens]),
  )


def sorted_packs(lengths, length: int, order) -> Packs:
  """One whole document a pack, in order of length.

  LongAlign's sorted batching (2401.18058). Longer documents are left out.
  Arguments as in `whole`.
  """
  order = order[lengths[order] <= length]
  order = order[np.argsort(lengths[order], kind='stable')]
  return _complete(np.arange(len(order) + 1), order, lengths)


def interleave(
  lengths, length: int, order, documents: int, chunks: int
) -> Packs:
  """Chunk 1 of each of `documents` documents, then chunk 2 of each, ...

  LongSkywork (2406.00605). A document gives its first length / documents
  tokens; shorter ones are left out. Other arguments as in `whole`.
  """
  share = length // documents
  chunk = share // chunks
  order = order[lengths[order] >= share]
  packs = len(order) // documents
  used = order[: packs * documents].reshape(packs, 1, documents)
  document = np.tile(used, (1, chunks, 1)).reshape(-1)
  start = np.tile(np.repeat(np.arange(chunks) * chunk, documents), packs)
  first = np.arange(packs + 1) * documents * chunks
  every = np.full(len(document), chunk)
  return Packs(first, document, start, every)


RULES = {
  'whole': whole,
  'concatenate': concatenate,
  'best_fit': best_fit,
  'next_fit': next_fit,
  'sorted': sorted_packs,
  'interleave': interleave,
}


def packs(part, lengths, order) -> Packs:
  """The packs of a part of a mixture.

  Args:
    part: a mapping as data/mixture.py describes it, with all keys.
    lengths: tokens of each document.
    order: numbers of the documents that it reads, in this order.
  """
  lengths, order = np.asarray(lengths, np.int64), np.asarray(order, np.int64)
  rule, more = RULES[part['pack']], {}
  if rule is interleave:
    more = dict(documents=part['documents'], chunks=part['chunks'])
  elif rule is concatenate and not part['carry']:
    rule = truncate
  made = rule(lengths, part['length'], order, **more)
  dropped = int(lengths[order].sum()) - int(made.length.sum())
  return dataclasses.replace(made, dropped=dropped)


class Plan(NamedTuple):
  """What a row holds, before a token is read; int64 [spans] arrays.

  Spans lie in order of `at`; padding lies between and after them.
  """

  at: np.ndarray  # column of the first token
  document: np.ndarray
  start: np.ndarray  # token of the document
  length: np.ndarray
  fresh: np.ndarray  # bool: whether a segment begins here

  def squares(self) -> float:
    """The sum of length^2 over segments: what attention costs."""
    segment = np.cumsum(self.fresh)
    return float(np.square(np.bincount(segment, self.length)).sum())


def rows(packed: Sequence[list[Span]], length: int, seq_len: int, joined=False):
  """The rows that packs of `length` tokens fill one after another.

  Args:
    packed: lists of Spans; their lengths add up to whole rows.
    length: tokens of a pack.
    seq_len: tokens of a row.
    joined: whether the documents of a pack are one segment.

  Returns:
    A list of Plans.
  """
  spans = np.array([s for p in packed for s in p], np.int64).reshape(-1, 3)
  document, start, size = spans.T
  counts = np.array([len(p) for p in packed], np.int64)
  begin = np.cumsum(counts) - counts  # the first span of each pack
  before = np.cumsum(size) - size
  inside = before - np.repeat(before[begin], counts)
  at = np.repeat(np.arange(len(packed)) * length, counts) + inside
  fresh = np.full(len(at), not joined)
  fresh[begin] = True
  whole = cut(Plan(at, document, start, size, fresh), seq_len)
  row = whole.at // seq_len
  parts = [Plan(*(x[row == r] for x in whole)) for r in range(
    len(packed) * length // seq_len
  )]  # fmt: skip
  return [p._replace(at=p.at % seq_len) for p in parts]


def cut(plan: Plan, every: int) -> Plan:
  """The same tokens, with new segments at every multiple of `every`."""
  at, length = plan.at, plan.length
  pieces = (at + length - 1) // every - at // every + 1
  number = np.arange(pieces.sum()) - np.repeat(
    np.cumsum(pieces) - pieces, pieces
  )
  at, document, start, length, fresh = (np.repeat(x, pieces) for x in plan)
  begin = np.maximum(at, (at // every + number) * every)
  end = np.minimum(at + length, (at // every + number + 1) * every)
  fresh &= number == 0
  fresh |= begin % every == 0
  return Plan(begin, document, start + begin - at, end - begin, fresh)


class Row(NamedTuple):
  """A row before positions and layout; all [seq_len]."""

  tokens: np.ndarray  # int32
  targets: np.ndarray  # int32
  weights: np.ndarray  # float32
  segments: np.ndarray  # int32, 1.., 0 is padding


def row(store, plan: Plan, seq_len: int) -> Row:
  """The arrays of one row."""
  out = Row(
    np.zeros(seq_len, np.int32),
    np.zeros(seq_len, np.int32),
    np.zeros(seq_len, np.float32),
    np.zeros(seq_len, np.int32),
  )
  segments = np.cumsum(plan.fresh).tolist()
  for at, document, start, length, fresh, segment in zip(
    *(x.tolist() for x in plan), segments
  ):
    ids = store.tokens(document, start, length + 1)  # one more, to predict
    mask = store.mask(document, start, length + 1)
    predicted = min(length, len(ids) - 1)
    out.tokens[at : at + length] = ids[:length]
    out.targets[at : at + predicted] = ids[1 : predicted + 1]
    out.weights[at : at + predicted] = mask[1 : predicted + 1]
    out.segments[at : at + length] = segment
    if not fresh:  # the segment goes on with another document
      out.targets[at - 1] = ids[0]
      out.weights[at - 1] = mask[0] if start else 0
  return out


def batch(store, plans, seq_len: int) -> Batch:
  """Several rows as a Batch in contiguous order, positions plain."""
  packed = [row(store, plan, seq_len) for plan in plans]
  stacked = Row(*(np.stack(arrays) for arrays in zip(*packed)))
  index = np.arange(seq_len, dtype=np.int32)
  return Batch(
    *stacked,
    positions=positions.plain(stacked.segments),
    index=np.tile(index, (len(packed), 1)),
  )


def one_document_rows(store, seq_len: int, count: int) -> list[Plan]:
  """For evaluation: the starts of the first `count` documents long enough."""
  long = np.flatnonzero(store.lengths >= seq_len)[:count]
  if len(long) < count:
    raise errors.InputError(
      f'{store.directory}: {count} documents of at least {seq_len} tokens are '
      f'needed, but there are {len(long)}; the longest has '
      f'{store.lengths.max(initial=0)}'
    )
  return rows([[Span(int(d), 0, seq_len)] for d in long], seq_len, seq_len)


def _complete(first, order, lengths) -> Packs:
  """Packs of whole documents."""
  return Packs(first, order, np.zeros_like(order), lengths[order])


def _best_fit(items: list[int], length: int) -> np.ndarray:
  """The bin of each item; items fall from one to the next.

  Bins of equal room are kept in a list under that room. Which rooms there are
  is kept sorted; since items only become smaller, rooms too small for the
  present one may suit a later one.
  """
  rooms: list[int] = []  # sorted, each once
  with_room: dict[int, list[int]] = {}
  bins, count = np.empty(len(items), np.int64), 0
  for i, item in enumerate(items):
    at = bisect.bisect_left(rooms, item)
    if at == len(rooms):
      number, room = count, length
      count += 1
    else:
      room = rooms[at]
      number = heapq.heappop(with_room[room])
      if not with_room[room]:
        del with_room[room], rooms[at]
    bins[i] = number
    left = room - item
    if left:
      if left not in with_room:
        with_room[left] = []
        bisect.insort(rooms, left)
      heapq.heappush(with_room[left], number)
  return bins
