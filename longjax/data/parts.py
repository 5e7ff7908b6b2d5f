"""Parts of a store: each written in one piece, then assembled into one.

A part is a directory with shards, documents.npy and names.txt as a store has
them, and part.json: its shards, bytes of text by source, what was left out.
"""

import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from longjax.data import downloads

FORMAT = 2
MANIFEST = 'manifest.json'
PART = 'part.json'
PART_FORMAT = 3  # of the parts that a killed preparation leaves
SHARD_TOKENS = 1 << 24
TABLES = ('documents.npy', 'names.txt')
COLUMNS = 6  # of documents.npy; one more where a file is indexed


class Entry(NamedTuple):
  """A tokenized document on its way into a store."""

  name: str
  source: str
  tokens: np.ndarray  # [tokens]
  text_bytes: int  # of the text in UTF-8
  mask: np.ndarray | None = None  # [tokens], 1: to be predicted; None is all
  # (file, byte of the first id, byte of the mask or -1): not to be copied.
  place: tuple[str, int, int] | None = None


def exists(directory) -> bool:
  """Whether there is a complete store."""
  return (pathlib.Path(directory) / MANIFEST).is_file()


def clear(directory):
  """Removes a directory of ours, if it exists."""
  if directory.exists():
    shutil.rmtree(directory)


def write(place, entries: Iterable[Entry], shard_tokens=SHARD_TOKENS):
  """Writes some documents into the directory `place`, which must not exist.

  Entries may be a generator that returns JSON about what it left out.
  """
  place.mkdir()
  table, names, text_bytes, shards, waiting = [], [], {}, [], []
  indexed: dict[str, int] = {}
  filled = named = 0
  left_out = None

  def iterate():
    nonlocal left_out
    left_out = yield from entries

  for entry in iterate():
    text_bytes.setdefault(entry.source, 0)
    text_bytes[entry.source] += entry.text_bytes
    ids = np.ascontiguousarray(entry.tokens).astype('<u4')
    names.append(entry.name.encode('utf-8', 'replace'))
    named += len(names[-1])
    source = list(text_bytes).index(entry.source)
    # 64 bits that decide whether two documents have equal tokens.
    short = hashlib.sha256(ids.data).digest()[:8]
    digest = int.from_bytes(short, 'little', signed=True)
    same = (len(ids), source, digest, named)
    if entry.place:
      file, first, mask = entry.place
      number = indexed.setdefault(file, len(indexed))
      table.append((-1 - number, first, *same, mask))
      continue
    table.append((len(shards), filled, *same, -1))
    waiting.append((ids, entry.mask))
    filled += len(ids)
    if filled >= shard_tokens:
      shards.append(_write_shard(place, len(shards), waiting))
      waiting, filled = [], 0
  if waiting:
    shards.append(_write_shard(place, len(shards), waiting))
  (place / 'names.txt').write_bytes(b''.join(names))
  rows = np.array(table, '<i8').reshape(-1, COLUMNS + 1)
  shard = rows[:, 0]
  rows[:, 0] = np.where(shard < 0, len(shards) - 1 - shard, shard)
  shards += [_described(pathlib.Path(file)) | dict(indexed=True, file=file)
             for file in indexed]  # fmt: skip
  _save(place / 'documents.npy', rows if indexed else rows[:, :COLUMNS])
  part = dict(shards=shards, text_bytes=text_bytes, left_out=left_out)
  (place / PART).write_text(json.dumps(part))


def assemble(
  partial, parts, directory, metadata: dict, drop=None, made_by=None
):
  """Makes one store of parts and renames it into place.

  The parts stay whole, so that a killed process can start again.

  Args:
    partial: the directory that holds the parts, beside `directory`.
    parts: their names in it, in order.
    directory: where the store shall be.
    metadata: vocab, tokenizer and spec, for the manifest.
    drop: bool [documents of all parts], those to leave out, or None.
    made_by: tokenizers of the sources that were given as ids, by name.
  """
  made = partial / 'store'
  clear(made)
  made.mkdir()
  tables, text_bytes, shards, left_out = [], {}, [], []
  with open(made / 'names.txt', 'wb') as names:
    for place in (partial / name for name in parts):
      part = json.loads((place / PART).read_text())
      for source, size in part['text_bytes'].items():
        text_bytes[source] = text_bytes.get(source, 0) + size
      numbers = [list(text_bytes).index(s) for s in part['text_bytes']]
      table = np.load(place / 'documents.npy', allow_pickle=False)
      table[:, 0] += len(shards)
      table[:, 3] = np.array(numbers, int)[table[:, 3]]
      table[:, 5] += names.tell()
      without = COLUMNS + 1 - table.shape[1]
      tables.append(np.pad(table, ((0, 0), (0, without)), constant_values=-1))
      names.write((place / 'names.txt').read_bytes())
      for shard in part['shards']:
        shards.append(_link_shard(place, made, shard, len(shards)))
      left_out += part['left_out'] or []
  table = np.concatenate([np.zeros((0, COLUMNS + 1), '<i8'), *tables])
  if not any('indexed' in shard for shard in shards):
    table = np.ascontiguousarray(table[:, :COLUMNS])
  sources = _count(table, text_bytes, drop)
  for source in sources:
    if made_by and source['name'] in made_by:
      source['tokenizer'] = made_by[source['name']]
  if drop is not None:
    table = _without(table, drop, made / 'names.txt')
  _save(made / 'documents.npy', table)
  manifest = dict(
    format=FORMAT,
    **metadata,
    sources=sources,
    left_out=left_out,
    shards=shards,
    tables=[_described(made / file) for file in TABLES],
  )
  (made / MANIFEST).write_text(json.dumps(manifest, indent=1) + '\n')
  try:
    os.rename(made, directory)
  except OSError:  # another process was first: its store is as good
    if not exists(directory):
      raise


def _write_shard(place, number: int, documents) -> dict:
  """Tokens, and masks where some tokens are not to be predicted."""
  tokens = np.concatenate([ids for ids, _ in documents])
  shard = _save(place / f'shard_{number:05}.npy', tokens)
  shard['tokens'] = len(tokens)
  if any(mask is not None for _, mask in documents):
    mask = np.concatenate(
      [np.ones(len(ids), np.uint8) if m is None else m for ids, m in documents]
    ).astype(np.uint8)
    assert len(mask) == len(tokens), 'a mask has one value per token'
    shard['mask'] = _save(place / f'mask_{number:05}.npy', mask)
  return shard


def _save(path, array) -> dict:
  np.save(path, array, allow_pickle=False)
  return _described(path)


def _described(path) -> dict:
  return dict(
    file=path.name, bytes=path.stat().st_size, sha256=downloads.sha256_of(path)
  )


def _link_shard(place, made, shard: dict, number: int) -> dict:
  """Links the files of a shard of a part into the store, under a new number."""
  shard = dict(shard)
  if 'indexed' in shard:
    return shard
  for file, kind in ((shard, 'shard'), (shard.get('mask'), 'mask')):
    if file:
      old, new = place / file['file'], f'{kind}_{number:05}.npy'
      file['file'] = new
      try:
        os.link(old, made / new)
      except OSError:  # a file system without links
        shutil.copyfile(old, made / new)
  return shard


def _count(table, text_bytes: dict[str, int], drop) -> list[dict]:
  """What the manifest tells of each source."""
  sources = []
  for number, (name, size) in enumerate(text_bytes.items()):
    of_source = table[:, 3] == number
    kept = of_source if drop is None else of_source & ~drop
    lengths = table[kept, 2]
    source: dict[str, Any] = dict(
      name=name,
      documents=len(lengths),
      tokens=int(lengths.sum()),
      longest=int(lengths.max(initial=0)),
      text_bytes=size,
    )
    if drop is not None:
      source['duplicates'] = int((of_source & drop).sum())
    # By length: {'4096': documents of 4,096 to 8,191 tokens, ...}.
    powers = np.floor(np.log2(np.maximum(lengths, 1))).astype(int)
    counts = np.bincount(powers, minlength=1)
    source['histogram'] = {
      str(1 << p): int(n) for p, n in enumerate(counts) if n
    }
    sources.append(source)
  return sources


def _without(table, drop, names) -> np.ndarray:
  """The table, and the file of names, without the documents to drop."""
  text, begin = names.read_bytes(), np.insert(table[:, 5], 0, 0)
  kept = [text[begin[i] : begin[i + 1]] for i in np.flatnonzero(~drop)]
  names.write_bytes(b''.join(kept))
  table = table[~drop]
  table[:, 5] = np.cumsum([len(name) for name in kept])
  return table
