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
threads that read ahead. Nothing is ever read unverified, only later;
launch/prepare.py verifies an existing store whole.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
import threading
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from longjax import errors
from longjax.data import downloads

FORMAT = 2
MANIFEST = 'manifest.json'
PART = 'part.json'
PART_FORMAT = 2  # of the parts that a killed preparation leaves
SHARD_TOKENS = 1 << 24
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
  lock: Any = dataclasses.field(default_factory=threading.Lock)

  @property
  def lengths(self) -> np.ndarray:
    """Tokens of each document, int64 [documents]."""
    return self.table[:, 2]

  @property
  def sources(self) -> np.ndarray:
    """Number of the source of each document, int64 [documents]."""
    return self.table[:, 3]

  @property
  def names(self) -> list[str]:
    """Names of all documents."""
    return [self.name(i) for i in range(len(self.table))]

  def name(self, document: int) -> str:
    start = int(self.table[document - 1, 5]) if document else 0
    return bytes(self.text[start : int(self.table[document, 5])]).decode()

  def source(self, document: int) -> str:
    """The name of the source that a document comes from."""
    return self.manifest['sources'][int(self.sources[document])]['name']

  def tokens(self, document: int, start=0, length=None) -> np.ndarray:
    """Ids of a document from `start` on, uint32 [length], not copied."""
    (tokens, _), columns = self._locate(document, start, length)
    return tokens[columns]

  def mask(self, document: int, start=0, length=None) -> np.ndarray:
    """Which of `tokens` are to be predicted, uint8 [length]."""
    (_, mask), columns = self._locate(document, start, length)
    if mask is None:
      return np.broadcast_to(np.uint8(1), (columns.stop - columns.start,))
    return mask[columns]

  def verify(self):
    """Reads everything; InputError names the file that is damaged."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      list(pool.map(self._shard, range(len(self.shards))))

  def _locate(self, document, start, length):
    """(shard, its columns that hold this part of a document)."""
    shard, first, whole = self.table[document, :3].tolist()
    end = whole if length is None else min(whole, start + length)
    return self._shard(shard), slice(first + start, first + max(start, end))

  def _shard(self, number: int):
    """(tokens, mask or None), verified when first asked for."""
    if self.shards[number] is None:
      shard = _verified(self.directory, self.manifest, number)
      with self.lock:  # two threads may have done the work: keep one
        self.shards[number] = shard
    return self.shards[number]


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
  try:
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
      dir=directory.parent, prefix=f'.{directory.name}.'
    ) as partial:
      partial = pathlib.Path(partial)
      write_part(partial / 'part', entries, shard_tokens)
      metadata = dict(vocab=vocab, tokenizer=tokenizer, spec=spec)
      assemble(partial, ['part'], directory, metadata)
  except OSError as error:
    raise errors.InputError(
      f'{directory}: cannot write the store: {error.strerror or error}'
    ) from error


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
  empty = not directory.exists() or (
    directory.is_dir() and not any(directory.iterdir())
  )
  if not empty and not exists(directory):
    raise errors.InputError(
      f'{directory}: cannot write the store: it is not an empty directory'
    )


def exists(directory) -> bool:
  """Whether there is a complete store."""
  return (pathlib.Path(directory) / MANIFEST).is_file()


def clear(directory):
  """Removes a directory of ours, if it exists."""
  if directory.exists():
    shutil.rmtree(directory)


def write_part(place, entries: Iterable[Entry], shard_tokens=SHARD_TOKENS):
  """Writes some documents into the directory `place`, which must not exist.

  Entries may be a generator that returns JSON about what it left out.
  """
  place.mkdir()
  table, names, text_bytes, shards, waiting = [], [], {}, [], []
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
    row = (len(shards), filled, len(ids), source, _token_digest(ids), named)
    table.append(row)
    waiting.append((ids, entry.mask))
    filled += len(ids)
    if filled >= shard_tokens:
      shards.append(_write_shard(place, len(shards), waiting))
      waiting, filled = [], 0
  if waiting:
    shards.append(_write_shard(place, len(shards), waiting))
  (place / 'names.txt').write_bytes(b''.join(names))
  _save(place / 'documents.npy', np.array(table, '<i8').reshape(-1, 6))
  part = dict(shards=shards, text_bytes=text_bytes, left_out=left_out)
  (place / PART).write_text(json.dumps(part))


def assemble(partial, parts, directory, metadata: dict, drop=None):
  """Makes one store of parts and renames it into place.

  The parts stay whole, so that a killed process can start again.

  Args:
    partial: the directory that holds the parts, beside `directory`.
    parts: their names in it, in order.
    directory: where the store shall be.
    metadata: vocab, tokenizer and spec, for the manifest.
    drop: bool [documents of all parts], those to leave out, or None.
  """
  made = partial / 'store'
  clear(made)
  made.mkdir()
  tables, text_bytes, shards, left_out = [np.zeros((0, 6), '<i8')], {}, [], []
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
      tables.append(table)
      names.write((place / 'names.txt').read_bytes())
      for shard in part['shards']:
        shards.append(_link_shard(place, made, shard, len(shards)))
      left_out += part['left_out'] or []
  table = np.concatenate(tables)
  sources = _count(table, text_bytes, drop)
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


def open_store(directory) -> Store:
  """Opens a store; InputError names the file that is damaged or missing."""
  path = local(directory) / MANIFEST
  try:
    raw = path.read_bytes()
    return _open(path.parent, json.loads(raw), hashlib.sha256(raw).hexdigest())
  except OSError as error:
    raise errors.InputError(
      f'{error.filename or path}: {error.strerror or error}; '
      'launch/prepare.py --out DIR makes such data'
    ) from error
  except errors.InputError:
    raise
  except (ValueError, TypeError, KeyError) as error:
    raise errors.InputError(
      f'{path}: not a manifest of prepared data '
      f'({type(error).__name__}: {error})'
    ) from error


def _open(directory, manifest, digest: str) -> Store:
  if manifest['format'] != FORMAT:
    raise errors.InputError(
      f'{directory / MANIFEST}: format {manifest["format"]}, but this program '
      f'reads {FORMAT}; make it again with launch/prepare.py'
    )
  shards = manifest['shards']
  masks = [shard['mask'] for shard in shards if 'mask' in shard]
  for file in (*shards, *masks, *manifest['tables']):
    _check(directory, file, whole=file in manifest['tables'])
  path, names = (directory / file for file in TABLES)
  documents = sum(source['documents'] for source in manifest['sources'])
  table = _array(path, np.int64, (documents, 6))
  text: Any = np.memmap(names, np.uint8, 'r') if names.stat().st_size else []
  sizes = np.array([shard['tokens'] for shard in shards], np.int64)
  shard, start, length, source, _, named = table.T
  good = (shard >= 0) & (shard < len(sizes)) & (start >= 0) & (length > 0)
  good &= (source >= 0) & (source < len(manifest['sources']))
  good &= (np.diff(named, prepend=0) >= 0) & (named <= len(text))
  if not good.all() or (start + length > sizes[shard]).any():
    raise errors.InputError(f'{path}: a document lies outside its shard')
  store = Store(directory, manifest, digest, table, text, [None] * len(shards))
  if sum(file['bytes'] for file in shards) <= VERIFY_BYTES:
    store.verify()
  return store


def _token_digest(ids) -> int:
  """64 bits that decide whether two documents have equal tokens."""
  short = hashlib.sha256(ids.data).digest()[:8]
  return int.from_bytes(short, 'little', signed=True)


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


def _check(directory, file: dict, whole: bool):
  """Compares a file's place, size and, if whole, content with the manifest."""
  path = directory / file['file']
  if path.resolve() != directory.resolve() / path.name:
    raise errors.InputError(
      f'{directory / MANIFEST}: {file["file"]!r} is outside its directory'
    )
  wrong = ''
  if not path.is_file():
    wrong = 'missing'
  elif path.stat().st_size != file['bytes']:
    wrong = f'{path.stat().st_size} bytes instead of {file["bytes"]}'
  elif whole and downloads.sha256_of(path) != file['sha256']:
    wrong = 'damaged, its sha256 is not that of the manifest'
  if wrong:
    raise errors.InputError(
      f'{path}: {wrong}; delete {directory} and make it again with '
      'launch/prepare.py'
    )


def _verified(directory, manifest, number: int):
  """(tokens, mask or None) of a shard whose content is that of the manifest."""
  shard = manifest['shards'][number]
  path, shape, mask = directory / shard['file'], (shard['tokens'],), None
  _check(directory, shard, whole=True)
  tokens = _array(path, np.uint32, shape)
  if tokens.max(initial=0) >= manifest['vocab']:
    raise errors.InputError(
      f'{path}: {np.count_nonzero(tokens >= manifest["vocab"])} of '
      f'{len(tokens)} token ids are outside the vocabulary of '
      f'{manifest["vocab"]} (the largest is {tokens.max()})'
    )
  if 'mask' in shard:
    _check(directory, shard['mask'], whole=True)
    mask = _array(directory / shard['mask']['file'], np.uint8, shape)
  return tokens, mask


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
