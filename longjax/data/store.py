"""The prepared directory: tokens of whole documents, digest-checked.

  manifest.json     what made it, and the sha256 of every other file
  shard_00000.npy   uint32 [tokens], documents one after another; a document
                    never crosses shards
  documents.npy     int64 [documents, 4]: shard, start, length, source
  names.json        names of the documents

It is written under another name and renamed when complete, and it is verified
whole when it is opened: about a second per gigabyte, in bounded memory.
"""

import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from longjax import errors
from longjax.data import packages

FORMAT = 1
MANIFEST = 'manifest.json'
SHARD_TOKENS = 1 << 26
CHUNK_TOKENS = 1 << 22


class Entry(NamedTuple):
  """A tokenized document on its way into a store."""

  name: str
  source: str
  tokens: np.ndarray  # [tokens]
  text_bytes: int  # of the text in UTF-8


class Store(NamedTuple):
  """An opened, verified store."""

  directory: pathlib.Path
  manifest: dict
  digest: str  # sha256 of the manifest, so of everything
  table: np.ndarray  # int64 [documents, 4]: shard, start, length, source
  names: list[str]  # of documents
  shards: list[np.ndarray]  # memory-mapped uint32 [tokens]

  @property
  def lengths(self) -> np.ndarray:
    """Tokens of each document, int64 [documents]."""
    return self.table[:, 2]

  def tokens(self, document: int, start=0, length=None) -> np.ndarray:
    """Ids of a document from `start` on, uint32 [length], not copied."""
    shard, first, whole, _ = self.table[document].tolist()
    end = whole if length is None else min(whole, start + length)
    return self.shards[shard][first + start : first + end]

  def mask(self, document: int, start=0, length=None) -> np.ndarray:
    """Which of `tokens` are to be predicted, uint8 [length]."""
    return np.ones(len(self.tokens(document, start, length)), np.uint8)

  @property
  def sources(self) -> np.ndarray:
    """Number of the source of each document, int64 [documents]."""
    return self.table[:, 3]

  def source(self, document: int) -> str:
    """The name of the source that a document comes from."""
    return self.manifest['sources'][int(self.table[document, 3])]['name']


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
  directory = pathlib.Path(directory).resolve()
  if directory.is_dir() and any(directory.iterdir()) and not exists(directory):
    raise errors.InputError(
      f'{directory}: cannot write the store: Directory not empty'
    )
  partial = directory.with_name(f'.{directory.name}.{os.getpid()}.partial')
  try:
    _clear(partial)
    partial.mkdir(parents=True)
    written = _write_documents(partial, entries, shard_tokens)
    manifest = dict(
      format=FORMAT, vocab=vocab, tokenizer=tokenizer, **written, spec=spec
    )
    text = json.dumps(manifest, indent=1) + '\n'
    (partial / MANIFEST).write_text(text)
    _publish(partial, directory)
  except OSError as error:
    raise errors.InputError(
      f'{directory}: cannot write the store: {error.strerror or error}'
    ) from error
  finally:
    _clear(partial)


def exists(directory) -> bool:
  """Whether there is a complete store."""
  return (pathlib.Path(directory) / MANIFEST).is_file()


def open_store(directory) -> Store:
  """Opens a store; InputError names the file that is damaged or missing."""
  directory = pathlib.Path(directory)
  raw = _read(directory / MANIFEST)
  manifest = _parse(directory / MANIFEST, raw)
  for file in (*manifest['shards'], *manifest['tables']):
    _verify(directory, file)
  shards = [
    _array(directory / shard['file'], np.uint32, (shard['tokens'],))
    for shard in manifest['shards']
  ]
  for shard, ids in zip(manifest['shards'], shards):
    _check_ids(directory / shard['file'], ids, manifest['vocab'])
  table, names = _tables(directory, manifest)
  digest = hashlib.sha256(raw).hexdigest()
  return Store(directory, manifest, digest, table, names, shards)


def _write_documents(place, entries, shard_tokens) -> dict:
  """Writes shards and tables; the manifest's part about them."""
  rows, names, sources, shards, waiting = [], [], {}, [], []
  filled = 0
  for entry in entries:
    _count(sources, entry)
    number = list(sources).index(entry.source)
    rows.append((len(shards), filled, len(entry.tokens), number))
    names.append(entry.name)
    waiting.append(np.asarray(entry.tokens).astype('<u4'))
    filled += len(entry.tokens)
    if filled >= shard_tokens:
      shards.append(_write_shard(place, len(shards), waiting))
      waiting, filled = [], 0
  if waiting:
    shards.append(_write_shard(place, len(shards), waiting))
  table = np.array(rows, '<i8').reshape(-1, 4)
  np.save(place / 'documents.npy', table, allow_pickle=False)
  (place / 'names.json').write_text(json.dumps(names, indent=0) + '\n')
  tables = [_described(place / f) for f in ('documents.npy', 'names.json')]
  return dict(shards=shards, tables=tables, sources=list(sources.values()))


def _count(sources: dict, entry: Entry):
  zero = dict(name=entry.source, documents=0, tokens=0, longest=0, text_bytes=0)
  total = sources.setdefault(entry.source, zero)
  total['documents'] += 1
  total['tokens'] += len(entry.tokens)
  total['longest'] = max(total['longest'], len(entry.tokens))
  total['text_bytes'] += entry.text_bytes


def _write_shard(place, number: int, parts) -> dict:
  path = place / f'shard_{number:05}.npy'
  ids = np.concatenate(parts)
  np.save(path, ids, allow_pickle=False)
  return _described(path) | dict(tokens=len(ids))


def _described(path) -> dict:
  return dict(
    file=path.name, bytes=path.stat().st_size, sha256=packages.sha256_of(path)
  )


def _clear(partial):
  if partial.exists():
    shutil.rmtree(partial)


def _publish(partial, directory):
  """Renames; where another process was first, its store stands."""
  try:
    os.rename(partial, directory)
  except OSError:
    if not exists(directory):
      raise


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
    kinds += [(s['tokens'], int) for s in manifest['shards']]
    for file in (*manifest['shards'], *manifest['tables']):
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


def _verify(directory, file: dict):
  """Compares a file with its entry in the manifest."""
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
  if packages.sha256_of(path) != file['sha256']:
    raise errors.InputError(
      f'{path}: damaged, its sha256 is not that of the manifest; '
      f'{_again(directory)}'
    )


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
  """The documents and their names; every document lies in its shard."""
  by_name = {file['file']: file for file in manifest['tables']}
  if sorted(by_name) != ['documents.npy', 'names.json']:
    raise errors.InputError(
      f'{directory / MANIFEST}: needs documents.npy and names.json as tables, '
      f'has {sorted(by_name)}'
    )
  names = json.loads(_read(directory / 'names.json'))
  path = directory / 'documents.npy'
  table = np.array(_array(path, np.int64, (len(names), 4)))
  sizes = np.array([s['tokens'] for s in manifest['shards']], np.int64)
  shard, start, length, source = table.T
  good = (shard >= 0) & (shard < len(sizes)) & (start >= 0) & (length > 0)
  good &= (source >= 0) & (source < len(manifest['sources']))
  if not good.all() or (start + length > sizes[shard]).any():
    raise errors.InputError(f'{path}: a document lies outside its shard')
  return table, names
