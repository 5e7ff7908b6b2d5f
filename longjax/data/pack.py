"""Packing: documents to packs of a fixed length. Pure numpy.

A pack is a list of spans of documents; what the spans do not fill is padding.
Several packs share a row, or a pack takes several rows (data/row_plans.py). To
add a packing rule: its function here, and its name in RULES.
"""

import bisect
import dataclasses
import heapq
from typing import NamedTuple

import numpy as np


class DocumentSpan(NamedTuple):
  """`length` tokens of a document, from its token `start` on."""

  document: int
  start: int
  length: int


@dataclasses.dataclass(frozen=True, eq=False)
class Packs:
  """A sequence of packs, each a list of DocumentSpans.

  Spans first[i] to first[i + 1] - 1 of the three arrays are pack i.
  """

  first: np.ndarray  # int64 [packs + 1]
  document: np.ndarray  # int64 [spans]
  start: np.ndarray  # int64 [spans]
  length: np.ndarray  # int64 [spans]
  dropped: int = 0  # tokens of the documents read that are in no pack

  def __len__(self):
    return len(self.first) - 1

  def __getitem__(self, i) -> list[DocumentSpan]:
    if not 0 <= i < len(self):
      raise IndexError(i)
    here = slice(int(self.first[i]), int(self.first[i + 1]))
    columns = (self.document, self.start, self.length)
    return [
      DocumentSpan(*span) for span in zip(*(x[here].tolist() for x in columns))
    ]


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


def in_order(lengths, length: int, order) -> Packs:
  """As next_fit, of documents in the order of their sources.

  So packs that were released as such, cut at their documents (ProLong's data,
  2410.02660), become packs again. Arguments as in `whole`.
  """
  return next_fit(lengths, length, np.sort(order))


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


def sorted_packs(lengths, length: int, order, group: int) -> Packs:
  """One whole document a pack, in order of length.

  LongAlign's sorted batching (2401.18058; THUDM/LongAlign, sort_and_group.py).
  Longer documents are left out, and so are the shortest that do not fill a
  group (in its code the longest). Other arguments as in `whole`.

  Args:
    group: packs that are read together.
  """
  order = order[lengths[order] <= length]
  order = order[np.argsort(lengths[order], kind='stable')]
  order = order[len(order) % group :]
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


def jump(lengths, length: int, order, rng) -> Packs:
  """The start of a document, then a later piece of it; a document a pack.

  PoSE's rows of text (2309.10400; dwzhu-pku/PoSE, train_pose.py): the first
  piece is at most half of the pack, and the second ends anywhere in the first
  5 x length tokens. Shorter documents are left out. Other arguments as in
  `whole`.

  Args:
    rng: numpy Generator.
  """
  order = order[lengths[order] >= length]
  most = np.minimum(lengths[order], 5 * length)
  first = rng.integers(1, (length + 1) // 2 + 1, len(order))
  end = rng.integers(length, most + 1)
  sizes = np.stack([first, length - first], axis=1)
  start = np.stack([np.zeros_like(end), end - sizes[:, 1]], axis=1)
  kept = sizes.reshape(-1) > 0  # a pack of one token has no second piece
  return Packs(
    np.concatenate([[0], np.cumsum((sizes > 0).sum(1))]),
    np.repeat(order, 2)[kept],
    start.reshape(-1)[kept],
    sizes.reshape(-1)[kept],
  )


RULES = {
  'whole': whole,
  'concatenate': concatenate,
  'best_fit': best_fit,
  'next_fit': next_fit,
  'in_order': in_order,
  'sorted': sorted_packs,
  'interleave': interleave,
  'jump': jump,
}
JOINED = ('interleave', 'jump')  # the pieces of a pack are one segment


def packs(component, lengths, order, rng) -> Packs:
  """The packs of a component of a mixture.

  Args:
    component: a mixture.ComponentConfig.
    lengths: tokens of each document.
    order: numbers of the documents that it reads, in this order.
    rng: numpy Generator, which `jump` draws from.
  """
  lengths, order = np.asarray(lengths, np.int64), np.asarray(order, np.int64)
  rule, options = RULES[component.pack], {}
  if rule is interleave:
    options = dict(documents=component.documents, chunks=component.chunks)
  elif rule is sorted_packs:
    options = dict(group=component.group)
  elif rule is jump:
    options = dict(rng=rng)
  elif rule is concatenate and not component.carry:
    rule = truncate
  packed = rule(lengths, component.length, order, **options)
  dropped = int(lengths[order].sum()) - int(packed.length.sum())
  return dataclasses.replace(packed, dropped=dropped)


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
