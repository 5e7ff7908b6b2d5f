"""The prepared directory: tokens of whole documents, digest-checked.

  manifest.json     what made it, counts, and the sha256 of every other file
  shard_00000.npy   uint32 [tokens], documents one after another; a document
                    never crosses shards
  mask_00000.npy    uint8 [tokens], 1 where a token is to be predicted; only
                    for shards in which some are not (chat)
  documents.npy     int64 [documents, 6]: shard, start, length, source, digest
                    of the tokens, end of its name in names.txt
  names.txt         names of the documents, one after another

It is made in parts, each complete or absent, and renamed when complete. When
it is opened all sizes and the tables are verified. Tokens are too if they are
fewer than VERIFY_BYTES; a larger store, of which a host reads a share, has each
shard verified when it is first read, at about a second per gigabyte, by the
threads that read ahead. Nothing is ever read unverified, only later; running
launch/prepare.py on a store verifies it whole.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import threading
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from longjax import errors
from longjax.data import downloads

FORMAT = 2
MANIFEST = 'manifest.json'
PART = 'part.json'
SHARD_TOKENS = 1 << 24
CHUNK_TOKENS = 1 << 22
VERIFY_BYTES = 1 << 30
TABLES = ('documents.npy', 'names.txt')


class Entry(NamedTuple):
  """A tokenized document on its way into a store."""

  name: str
  source: str
  tokens: np.ndarray  # [tokens]
  text_bytes: int  # of the text in UTF-8
  mask: np.ndarray | None = None  # [tokens], 1: to be predicted; None is all


@dataclasses.dataclass(frozen=True, eq=False)
class Store:
  """An opened store."""

  directory: pathlib.Path
  manifest: dict
  digest: str  # sha256 of the manifest, so of everything
  table: np.ndarray  # int64 [documents, 6], memory-mapped
  text: Any  # names.txt, memory-mapped uint8
  shards: list  # of (tokens, mask or None), or None until it is verified
  lock: threading.Lock

  @property
  def lengths(self) -> np.ndarray:
    """Tokens of each document, int64 [documents]."""
    return self.table[:, 2]

  @property
  def sources(self) -> np.ndarray:
    """Number of the source of each document, int64 [documents]."""
    return self.table[:, 3]

  def tokens(self, document: int, start=0, length=None) -> np.ndarray:
    """Ids of a document from `start` on, uint32 [length], not copied."""
    tokens, _, span = self._at(document, start, length)
    return tokens[span]

  def mask(self, document: int, start=0, length=None) -> np.ndarray:
    """Which of `tokens` are to be predicted, uint8 [length]."""
    _, mask, span = self._at(document, start, length)
    if mask is None:
      return np.broadcast_to(np.uint8(1), (span.stop - span.start,))
    return mask[span]

  def source(self, document: int) -> str:
    """The name of the source that a document comes from."""
    return self.manifest['sources'][int(self.sources[document])]['name']

  @property
  def names(self) -> 'Names':
    """Of the documents, a sequence."""
    return Names(self.table[:, 5], self.text)

  def verify(self):
    """Reads everything; InputError names the file that is damaged."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      list(pool.map(self._shard, range(len(self.shards))))

  def _at(self, document, start, length):
    """(tokens, mask, slice of both) of a part of a document."""
    shard, first, whole = self.table[document, :3].tolist()
    end = whole if length is None else min(whole, start + length)
    tokens, mask = self._shard(shard)
    return tokens, mask, slice(first + start, first + max(start, end))

  def _shard(self, number: int):
    """A shard, verified when it is first asked for."""
    found = self.shards[number]
    if found is None:
      found = _verified(self.directory, self.manifest, number)
      with self.lock:  # two threads may have done the work: keep one
        self.shards[number] = found
    return found


def write(
  directory,
  entries: Iterable[Entry],
  *,
  vocab: int,
  tokenizer: str,
  spec,
  shard_tokens: int = SHARD_TOKENS,
):
  """Makes a store that appears in one piece.

  Args:
    directory: where; must not exist, or be empty.
    entries: the documents.
    vocab: number of ids that the tokenizer has.
    tokenizer: digest of the tokenizer.
    spec: what the store is made from, for the manifest; JSON.
    shard_tokens: a shard ends after the document that reaches this.
  """
  directory = local(directory).resolve()
  refuse_other(directory)
  partial = directory.with_name(f'.{directory.name}.{os.getpid()}.partial')
  try:
    clear(partial)
    partial.mkdir(parents=True)
    write_part(partial / 'part', entries, shard_tokens)
    about = dict(vocab=vocab, tokenizer=tokenizer, spec=spec)
    assemble(partial, ['part'], directory, about)
  except OSError as error:
    raise errors.InputError(
      f'{directory}: cannot write the store: {error.strerror or error}'
    ) from error
  finally:
    clear(partial)


def local(directory) -> pathlib.Path:
  """A directory on a disk; InputError for one in a bucket."""
  if '://' in str(directory):
    raise errors.InputError(
      f'{directory}: a store lies on a disk, only its sources may lie in a '
      'bucket; name a local directory'
    )
  return pathlib.Path(directory)


def refuse_other(directory):
  """InputError if a store may not be written there."""
  if not directory.exists() or exists(directory):
    return
  if not directory.is_dir() or any(directory.iterdir()):
    kind = 'Directory not empty' if directory.is_dir() else 'Not a directory'
    raise errors.InputError(f'{directory}: cannot write the store: {kind}')


def write_part(place, entries: Iterable[Entry], shard_tokens=SHARD_TOKENS):
  """Writes some documents into the directory `place`, which must not exist.

  Entries may be a generator that returns JSON about what it left out.
  """
  place.mkdir()
  rows, sources, shards, waiting = [], {}, [], []
  filled = named = 0
  entries, told = _returning(entries)
  with open(place / 'names.txt', 'wb') as names:
    for entry in entries:
      _count(sources, entry)
      number, ids = list(sources).index(entry.source), _ids(entry)
      named += names.write(entry.name.encode('utf-8', 'replace'))
      row = (len(shards), filled, len(ids), number, _digest(ids), named)
      rows.append(row)
      waiting.append((ids, entry.mask))
      filled += len(ids)
      if filled >= shard_tokens:
        shards.append(_write_shard(place, len(shards), waiting))
        waiting, filled = [], 0
  if waiting:
    shards.append(_write_shard(place, len(shards), waiting))
  table = np.array(rows, '<i8').reshape(-1, 6)
  np.save(place / 'documents.npy', table, allow_pickle=False)
  part = dict(shards=shards, sources=list(sources.values()), left_out=told[0])
  (place / PART).write_text(json.dumps(part))


def assemble(partial, parts, directory, about: dict, drop=None):
  """Makes one store of parts and renames it into place.

  Args:
    partial: the directory that holds the parts, beside `directory`.
    parts: their names in it, in order.
    directory: where the store shall be.
    about: vocab, tokenizer and spec, for the manifest.
    drop: bool [documents of all parts], those to leave out, or None.
  """
  made = partial / 'store'
  clear(made)
  made.mkdir()
  tables, sources, shards, left_out = [], {}, [], []
  named = 0
  with open(made / 'names.txt', 'wb') as names:
    for name in parts:
      part = json.loads((partial / name / PART).read_text())
      table = np.load(partial / name / 'documents.npy', allow_pickle=False)
      names.write((partial / name / 'names.txt').read_bytes())
      numbers = [_merge(sources, source) for source in part['sources']]
      table[:, 0] += len(shards)
      table[:, 5] += named
      if len(table):
        named = int(table[-1, 5])
        table[:, 3] = np.array(numbers)[table[:, 3]]
        tables.append(table)
      for shard in part['shards']:
        shards.append(_take_shard(partial / name, made, shard, len(shards)))
      left_out += part['left_out'] or []
  table = np.concatenate(tables) if tables else np.zeros((0, 6), '<i8')
  if drop is not None:
    table = _dropped(table, drop, made, sources)
  np.save(made / 'documents.npy', table, allow_pickle=False)
  for number, source in enumerate(sources.values()):
    source['histogram'] = histogram(table[table[:, 3] == number, 2])
  manifest = dict(
    format=FORMAT,
    **about,
    sources=list(sources.values()),
    left_out=left_out,
    shards=shards,
    tables=[_described(made / file) for file in TABLES],
  )
  (made / MANIFEST).write_text(json.dumps(manifest, indent=1) + '\n')
  _publish(made, directory)


def histogram(lengths) -> dict[str, int]:
  """Documents by length: {'4096': those of 4,096 to 8,191 tokens, ...}."""
  powers = np.floor(np.log2(np.maximum(lengths, 1))).astype(int)
  counts = np.bincount(powers, minlength=1)
  return {str(1 << p): int(n) for p, n in enumerate(counts) if n}


def exists(directory) -> bool:
  """Whether there is a complete store."""
  return (pathlib.Path(directory) / MANIFEST).is_file()


def open_store(directory) -> Store:
  """Opens a store; InputError names the file that is damaged or missing."""
  directory = local(directory)
  raw = _read(directory / MANIFEST)
  manifest = _parse(directory / MANIFEST, raw)
  for file in _files(manifest):
    _check_size(directory, file)
  for file in manifest['tables']:
    _check_digest(directory, file)
  table, text = _tables(directory, manifest)
  store = Store(
    directory,
    manifest,
    hashlib.sha256(raw).hexdigest(),
    table,
    text,
    [None] * len(manifest['shards']),
    threading.Lock(),
  )
  if sum(file['bytes'] for file in manifest['shards']) <= VERIFY_BYTES:
    store.verify()
  return store


def clear(directory):
  """Removes a directory of ours, if it is there."""
  if directory.exists():
    shutil.rmtree(directory)


class Names(Sequence):
  """The names of the documents of a store, read when asked for."""

  def __init__(self, ends, text):
    self._ends, self._text = ends, text

  def __len__(self):
    return len(self._ends)

  def __getitem__(self, document):
    if not 0 <= document < len(self):
      raise IndexError(document)
    start = int(self._ends[document - 1]) if document else 0
    return bytes(self._text[start : int(self._ends[document])]).decode()


def _returning(entries):
  """(an iterator, a list that holds what a generator returns at its end)."""
  told = [None]

  def iterate():
    told[0] = yield from entries

  return iterate(), told


def _ids(entry) -> np.ndarray:
  return np.ascontiguousarray(entry.tokens).astype('<u4')


def _digest(ids) -> int:
  """64 bits that say whether two documents have equal tokens."""
  short = hashlib.sha256(ids.data).digest()[:8]
  return int.from_bytes(short, 'little', signed=True)


def _count(sources: dict, entry: Entry):
  zero = dict(name=entry.source, documents=0, tokens=0, longest=0, text_bytes=0)
  total = sources.setdefault(entry.source, zero)
  total['documents'] += 1
  total['tokens'] += len(entry.tokens)
  total['longest'] = max(total['longest'], len(entry.tokens))
  total['text_bytes'] += entry.text_bytes


def _merge(sources: dict, source: dict) -> int:
  """Adds the counts of a part; the number of its source in the whole."""
  total = sources.setdefault(source['name'], dict.fromkeys(source, 0))
  for key, value in source.items():
    total[key] = max(total[key], value) if key == 'longest' else (
      value if key == 'name' else total[key] + value
    )  # fmt: skip
  return list(sources).index(source['name'])


def _write_shard(place, number: int, parts) -> dict:
  """Tokens, and masks where some tokens are not to be predicted."""
  shard = _write_array(
    place / f'shard_{number:05}.npy', np.concatenate([x for x, _ in parts])
  )
  shard['tokens'] = sum(len(ids) for ids, _ in parts)
  if any(mask is not None for _, mask in parts):
    masks = [np.ones(len(x), np.uint8) if m is None else m for x, m in parts]
    mask = np.concatenate(masks).astype(np.uint8)
    assert len(mask) == shard['tokens'], 'a mask has one value per token'
    shard['mask'] = _write_array(place / f'mask_{number:05}.npy', mask)
  return shard


def _write_array(path, array) -> dict:
  np.save(path, array, allow_pickle=False)
  return _described(path)


def _take_shard(place, made, shard: dict, number: int) -> dict:
  """Links the files of a shard of a part into the store, under a new number.

  The part stays whole, so that a killed process can start again.
  """
  shard = dict(shard, file=_take(place, made, shard, f'shard_{number:05}.npy'))
  if 'mask' in shard:
    file = _take(place, made, shard['mask'], f'mask_{number:05}.npy')
    shard['mask'] = dict(shard['mask'], file=file)
  return shard


def _take(place, made, file: dict, name: str) -> str:
  try:
    os.link(place / file['file'], made / name)
  except OSError:  # a file system without links
    shutil.copyfile(place / file['file'], made / name)
  return name


def _dropped(table, drop, made, sources: dict) -> np.ndarray:
  """The table and names.txt without some documents, which are counted."""
  text = (made / 'names.txt').read_bytes()
  begins = np.insert(table[:-1, 5], 0, 0) if len(table) else table[:, 5]
  keep = np.flatnonzero(~drop)
  kept = [text[b:e] for b, e in zip(begins[keep], table[keep, 5])]
  (made / 'names.txt').write_bytes(b''.join(kept))
  for number, source in enumerate(sources.values()):
    gone = drop & (table[:, 3] == number)
    left = table[~drop & (table[:, 3] == number), 2]
    source['documents'] -= int(gone.sum())
    source['tokens'] -= int(table[gone, 2].sum())
    source['longest'] = int(left.max(initial=0))
    source['duplicates'] = int(gone.sum())
  table = table[keep]
  table[:, 5] = np.cumsum([len(name) for name in kept])
  return table


def _described(path) -> dict:
  return dict(
    file=path.name, bytes=path.stat().st_size, sha256=downloads.sha256_of(path)
  )


def _publish(made, directory):
  """Renames; where another process was first, its store stands."""
  try:
    os.rename(made, directory)
  except OSError:
    if not exists(directory):
      raise


def _files(manifest) -> list[dict]:
  masks = [shard['mask'] for shard in manifest['shards'] if 'mask' in shard]
  return [*manifest['shards'], *masks, *manifest['tables']]


def _read(path) -> bytes:
  try:
    return path.read_bytes()
  except OSError as error:
    raise errors.InputError(
      f'{path}: {error.strerror}; launch/prepare.py --out DIR makes such data'
    ) from error


def _parse(path, raw: bytes) -> dict:
  """The manifest, in which what the reader relies on has the right type."""
  try:
    manifest = json.loads(raw)
    if manifest['format'] != FORMAT:
      raise errors.InputError(
        f'{path}: format {manifest["format"]}, but this program reads '
        f'{FORMAT}; make it again with launch/prepare.py'
      )
    kinds = [(manifest['vocab'], int), (manifest['tokenizer'], str)]
    kinds += [(s['name'], str) for s in manifest['sources']]
    kinds += [(s['documents'], int) for s in manifest['sources']]
    kinds += [(s['tokens'], int) for s in manifest['shards']]
    for file in _files(manifest):
      kinds += [(file['file'], str), (file['bytes'], int)]
      kinds += [(file['sha256'], str)]
    if not all(isinstance(value, kind) for value, kind in kinds):
      raise TypeError('a value has the wrong type')
  except (ValueError, TypeError, KeyError) as error:
    if isinstance(error, errors.InputError):
      raise
    raise errors.InputError(
      f'{path}: not a manifest of prepared data '
      f'({type(error).__name__}: {error})'
    ) from error
  return manifest


def _check_size(directory, file: dict):
  """Compares name and size of a file with its entry in the manifest."""
  path = directory / file['file']
  plain = pathlib.PurePath(file['file']).name == file['file']
  if not plain or path.resolve().parent != directory.resolve():
    raise errors.InputError(
      f'{directory / MANIFEST}: {file["file"]!r} is outside its directory'
    )
  if not path.is_file():
    raise errors.InputError(f'{path}: missing; {_again(directory)}')
  size = path.stat().st_size
  if size != file['bytes']:
    raise errors.InputError(
      f'{path}: {size} bytes instead of {file["bytes"]}; {_again(directory)}'
    )


def _check_digest(directory, file: dict):
  path = directory / file['file']
  if downloads.sha256_of(path) != file['sha256']:
    raise errors.InputError(
      f'{path}: damaged, its sha256 is not that of the manifest; '
      f'{_again(directory)}'
    )


def _verified(directory, manifest, number: int):
  """(tokens, mask or None) of a shard whose content is that of the manifest."""
  shard = manifest['shards'][number]
  shape, mask = (shard['tokens'],), None
  _check_digest(directory, shard)
  tokens = _array(directory / shard['file'], np.uint32, shape)
  _check_ids(directory / shard['file'], tokens, manifest['vocab'])
  if 'mask' in shard:
    _check_digest(directory, shard['mask'])
    mask = _array(directory / shard['mask']['file'], np.uint8, shape)
  return tokens, mask


def _again(directory) -> str:
  return f'delete {directory} and make it again with launch/prepare.py'


def _array(path, dtype, shape) -> np.ndarray:
  """A memory-mapped .npy of the given type and shape."""
  try:
    array = np.load(path, mmap_mode='r', allow_pickle=False)
  except (ValueError, OSError) as error:
    raise errors.InputError(f'{path}: not a .npy array ({error})') from error
  if array.dtype != np.dtype(dtype).newbyteorder('<') or array.shape != shape:
    raise errors.InputError(
      f'{path}: {array.dtype} {array.shape}, but the manifest needs '
      f'{np.dtype(dtype)} {shape}'
    )
  return array


def _check_ids(path, ids, vocab: int):
  outside, largest = 0, 0
  for start in range(0, len(ids), CHUNK_TOKENS):
    chunk = ids[start : start + CHUNK_TOKENS]
    outside += int(np.count_nonzero(chunk >= vocab))
    largest = max(largest, int(chunk.max()))
  if outside:
    raise errors.InputError(
      f'{path}: {outside} of {len(ids)} token ids are outside the vocabulary '
      f'of {vocab} (the largest is {largest})'
    )


def _tables(directory, manifest):
  """(documents, their names); every document lies in its shard."""
  by_name = {file['file']: file for file in manifest['tables']}
  if sorted(by_name) != sorted(TABLES):
    raise errors.InputError(
      f'{directory / MANIFEST}: needs {" and ".join(TABLES)} as tables, has '
      f'{sorted(by_name)}'
    )
  path = directory / 'documents.npy'
  documents = sum(s['documents'] for s in manifest['sources'])
  table = _array(path, np.int64, (documents, 6))
  names = directory / 'names.txt'
  text = np.memmap(names, np.uint8, 'r') if names.stat().st_size else []
  sizes = np.array([s['tokens'] for s in manifest['shards']], np.int64)
  shard, start, length, source, _, named = table.T
  good = (shard >= 0) & (shard < len(sizes)) & (start >= 0) & (length > 0)
  good &= (source >= 0) & (source < len(manifest['sources']))
  good &= np.diff(named, prepend=0) >= 0
  inside = good.all() and not (start + length > sizes[shard]).any()
  if not inside or (len(named) and named[-1] != len(text)):
    raise errors.InputError(f'{path}: a document lies outside its shard')
  return table, text
