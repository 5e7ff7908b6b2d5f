"""Reads documents that are given as token ids.

A record has the ids in the field that a source's `text` names and may have

  indices           pairs [begin, end): the documents in it, as in ProLong's
                    packs; what lies in none is left out
  mask, loss_mask   1 for each token that is to be predicted, aligned with the
                    ids, unshifted (ProLong, arXiv:2410.02660)
  labels            the ids again, -100 where no prediction is asked
  attention_mask    0 for padding, which is left out
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from longjax.data import mds

DTYPES = ('uint8', 'uint16', 'uint32', 'uint64', 'int16', 'int32', 'int64')
MASKS = ('mask', 'loss_mask', 'labels')
IGNORED = -100  # in labels
SHORTEST = 2  # tokens: one alone predicts nothing
SHOWN = 8  # fields that are named


class TokenDocument(NamedTuple):
  """A document."""

  ids: np.ndarray  # [tokens]
  mask: np.ndarray | None = None  # [tokens], 1: to be predicted; None is all
  # Where they lie in a file that need not be copied: its path, the byte of the
  # first id, and that of the mask or -1.
  place: tuple[str, int, int] | None = None


def indexed(path, settings) -> Iterator[str | list[TokenDocument]] | None:
  """The documents of each sample of an MDS shard, of which none is copied.

  Args:
    path: of a shard on a disk.
    settings: of the source.

  Returns:
    As `documents`, of each sample; or None of a shard that must be copied: its
    ids are not of 32 bits, its mask not of bytes, or it has padding or labels.
  """
  try:
    shard = mds.find(np.memmap(path, np.uint8, 'r'))
  except (ValueError, OSError):
    return None  # formats.read says why
  encodings = {name: encoding for name, encoding, _ in shard.columns}
  others = {*MASKS, 'attention_mask'} - {'mask'}
  fits = encodings.get(settings['text']) in ('ndarray:uint32', 'ndarray:int32')
  fits &= encodings.get('mask', 'ndarray:uint8') == 'ndarray:uint8'
  if not fits or others & encodings.keys():
    return None
  return _of_shard(shard, str(path), settings)


def _of_shard(
  shard, path: str, settings
) -> Iterator[str | list[TokenDocument]]:
  """`documents` of each sample of a shard, up to one that is damaged."""
  try:
    for arrays in mds.arrays(shard):
      record = {name: mds.view(shard, array) for name, array in arrays.items()}
      places = path, {name: array.at for name, array in arrays.items()}
      yield documents(record, settings, places)
  except ValueError as error:
    yield f'damaged: {error}'


def documents(record, settings, places=None) -> str | list[TokenDocument]:
  """The documents of a record, or what is wrong with it.

  Args:
    record: a mapping, or what else a file held.
    settings: of the source, with `text`, `loss` and `dtype`.
    places: (path, byte of each field) where they lie in a file.
  """
  if not isinstance(record, Mapping):
    return 'text, not a record with token ids'
  raw = record.get(settings['text'])
  if isinstance(raw, bytes) and settings['dtype']:
    raw = np.frombuffer(raw, np.dtype(settings['dtype']).newbyteorder('<'))
  ids = _integers(raw)
  if ids is None:
    return lacks(record, settings['text'], list, int)
  try:
    keep = _aligned(record, 'attention_mask', ids)  # 0 is padding
    mask = _mask(record, ids) if settings['loss'] != 'all' else None
    spans = _spans(record, len(ids))
  except ValueError as error:
    return f'wrong: {error}'
  made = []
  for begin, end in spans:
    inside = slice(begin, end)
    if keep is not None:
      inside = begin + np.flatnonzero(keep[inside])
    place = None
    if places:
      path, at = places
      of_mask = -1 if mask is None else at['mask'] + begin
      place = (path, at[settings['text']] + 4 * begin, of_mask)
    made.append(
      TokenDocument(ids[inside], None if mask is None else mask[inside], place)
    )
  return made


def lacks(record: Mapping, field: str, kind: type, each: type | None = None):
  """Why a record has not the field, and which key would name it."""
  found = ', '.join(repr(str(k)[:40]) for k in list(record)[:SHOWN]) or 'none'
  if len(record) > SHOWN:
    found += f' and {len(record) - SHOWN} more'
  if field in record:
    needed = {str: 'text', list: 'a list of messages'}[kind]
    needed = 'a list of token ids' if each else needed
    value = type(record[field]).__name__
    return f'a record whose field {field!r} is {value}, not {needed}'
  fit = [k for k, v in record.items() if _fits(v, kind, each)]
  fit.sort(key=lambda key: -len(record[key]))
  nested = kind is str and any(_fits(v, list, None) for v in record.values())
  cure = f': set text={fit[0]!r}' if fit and not nested else ''
  return f'without a field {field!r}, but has {found}{cure}'


def _fits(value, kind: type, each) -> bool:
  if each is int:
    return _integers(value) is not None
  if kind is list:
    return (
      isinstance(value, list) and bool(value) and isinstance(value[0], dict)
    )
  return isinstance(value, kind)


def _integers(value) -> np.ndarray | None:
  """[n] of a list or array of whole numbers, else None."""
  if isinstance(value, list):
    if not all(type(x) is int and abs(x) < 2**63 for x in value):
      return None
    value = np.array(value, np.int64)
  if not isinstance(value, np.ndarray) or value.ndim != 1:
    return None
  return value if value.dtype.kind in 'iu' else None


def _aligned(record, key: str, ids) -> np.ndarray | None:
  """The numbers of a field, one for each id; None if it has none."""
  if record.get(key) is None:
    return None
  value = record[key]
  if isinstance(value, list) and all(type(x) is bool for x in value):
    value = [int(x) for x in value]
  numbers = _integers(value)
  if numbers is None or len(numbers) != len(ids):
    size = 'no' if numbers is None else len(numbers)
    raise ValueError(f'{key} has {size} whole numbers for {len(ids)} ids')
  return numbers


def _mask(record, ids) -> np.ndarray | None:
  """uint8 [tokens], 1: to be predicted; None is all."""
  given = [(key, _aligned(record, key, ids)) for key in MASKS]
  given = [(key, value) for key, value in given if value is not None]
  if len(given) > 1:
    raise ValueError(f'it has {" and ".join(key for key, _ in given)}')
  if not given:
    return None
  key, value = given[0]
  if key == 'labels':
    learned = value != IGNORED
    if (value[learned] != ids[learned]).any():
      at = int(np.flatnonzero(learned & (value != ids))[0])
      raise ValueError(
        f'label {value[at]} of token {at} is neither its id {ids[at]} nor '
        f'{IGNORED}; labels are not shifted'
      )
    return learned.astype(np.uint8)
  if not np.isin(value, (0, 1)).all():
    raise ValueError(f'{key} has values other than 0 and 1')
  return value.astype(np.uint8)


def _spans(record, length: int) -> list[tuple[int, int]]:
  """Begin and end of each document."""
  spans = record.get('indices')
  if spans is None:
    return [(0, length)]
  try:
    spans = np.asarray(spans)
    fit = spans.ndim == 2 and spans.shape[1] == 2 and spans.dtype.kind in 'iu'
  except ValueError:
    fit = False
  if not fit:
    raise ValueError('indices are not pairs of whole numbers')
  spans = spans.astype(np.int64)
  begin, end = spans.T
  order = np.argsort(begin, kind='stable')
  apart = (begin[order][1:] >= end[order][:-1]).all()
  if not ((begin >= 0) & (begin <= end) & (end <= length)).all() or not apart:
    raise ValueError(
      f'indices {spans[:4].tolist()} overlap or leave the {length} ids'
    )
  return [(int(a), int(b)) for a, b in spans]
