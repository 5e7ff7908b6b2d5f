"""The prepared directory: tokens of whole documents, digest-checked.

  manifest.json     what made it, counts, and the sha256 of every other file
  shard_00000.npy   uint32 [tokens], documents one after another; a document
                    never crosses shards
  mask_00000.npy    uint8 [tokens], 1 where a token is to be predicted; only
                    for shards in which some are not (chat)
  documents.npy     int64 [documents, 6]: shard, start, length, source, digest
                    of the tokens, end of its name in names.txt
                    [documents, 7] if shards are files of others, which are
                    indexed where they lie (MDS): of these, start is the byte of
                    the first id, and the seventh that of the mask, or -1
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
import os
import pathlib
import tempfile
import threading
from collections.abc import Iterable
from typing import Any

import numpy as np

from longjax import errors, json_text, progress, storage
from longjax.data import downloads, parts

VERIFY_BYTES = 1 << 30
Entry = parts.Entry
exists = parts.exists


@dataclasses.dataclass(frozen=True, eq=False)
class Store:
  """An opened store."""

  directory: pathlib.Path
  manifest: dict
  digest: str  # sha256 of the manifest, so of everything
  table: np.ndarray  # int64 [documents, 6 or 7], memory-mapped
  text: Any  # names.txt, memory-mapped uint8
  # Of (tokens, mask or None), of (bytes, None) where a file is indexed, or None
  # until it is verified.
  shards: list
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
    (tokens, _), first, start, end = self._locate(document, start, length)
    if tokens.dtype == np.uint8:
      return tokens[first + 4 * start : first + 4 * end].view('<u4')
    return tokens[first + start : first + end]

  def mask(self, document: int, start=0, length=None) -> np.ndarray:
    """Which of `tokens` are to be predicted, uint8 [length]."""
    (tokens, mask), first, start, end = self._locate(document, start, length)
    if tokens.dtype == np.uint8:
      mask, first = tokens, int(self.table[document, parts.COLUMNS])
    if mask is None or first < 0:
      return np.broadcast_to(np.uint8(1), (end - start,))
    return mask[first + start : first + end]

  def verify(self, log=print):
    """Reads everything; InputError names the file that is damaged."""
    sizes = [shard['bytes'] for shard in self.manifest['shards']]
    bar = progress.Progress('verifying', sum(sizes), log)

    def check(number):
      self._shard(number)
      bar.add(sizes[number])

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      list(pool.map(check, range(len(sizes))))

  def _locate(self, document, start, length):
    """(shard, place of the document in it, first and last of its tokens)."""
    shard, first, whole = self.table[document, :3].tolist()
    end = whole if length is None else min(whole, start + length)
    return self._shard(shard), first, start, max(start, end)

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
  shard_tokens: int = parts.SHARD_TOKENS,
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
  directory = storage.real(local(directory))
  refuse_other(directory)
  with errors.of_disk(f'{directory}: cannot write the store'):
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
      dir=directory.parent, prefix=f'.{directory.name}.'
    ) as partial:
      partial = pathlib.Path(partial)
      parts.write(partial / 'part', entries, shard_tokens)
      metadata = dict(vocab=vocab, tokenizer=tokenizer, spec=spec)
      parts.assemble(partial, ['part'], directory, metadata)


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


def open_store(directory) -> Store:
  """Opens a store; InputError names the file that is damaged or missing."""
  path = local(directory) / parts.MANIFEST
  try:
    raw = path.read_bytes()
    return _open(
      path.parent, json_text.loads(raw), hashlib.sha256(raw).hexdigest()
    )
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
  if manifest['format'] != parts.FORMAT:
    raise errors.InputError(
      f'{directory / parts.MANIFEST}: format {manifest["format"]}, but this '
      f'program reads {parts.FORMAT}; make it again with launch/prepare.py'
    )
  shards = manifest['shards']
  masks = [shard['mask'] for shard in shards if 'mask' in shard]
  for file in (*shards, *masks, *manifest['tables']):
    _check(directory, file, whole=file in manifest['tables'])
  path, names = (directory / file for file in parts.TABLES)
  documents = sum(source['documents'] for source in manifest['sources'])
  indexed = np.array(['indexed' in shard for shard in shards], bool)
  columns = parts.COLUMNS + indexed.any()
  table = _array(path, np.int64, (documents, columns))
  text: Any = np.memmap(names, np.uint8, 'r') if names.stat().st_size else []
  sizes = np.array([s.get('tokens', s['bytes']) for s in shards], np.int64)
  width = np.where(indexed, 4, 1)
  shard, start, length, source, _, named = table.T[: parts.COLUMNS]
  good = (shard >= 0) & (shard < len(sizes)) & (start >= 0) & (length > 0)
  good &= (source >= 0) & (source < len(manifest['sources']))
  good &= (np.diff(named, prepend=0) >= 0) & (named <= len(text))
  inside = good.all() and (start + width[shard] * length <= sizes[shard]).all()
  if indexed.any() and inside:
    inside = (table[:, -1] + length <= sizes[shard])[indexed[shard]].all()
  if not inside:
    raise errors.InputError(f'{path}: a document lies outside its shard')
  store = Store(directory, manifest, digest, table, text, [None] * len(shards))
  if sum(file['bytes'] for file in shards) <= VERIFY_BYTES:
    store.verify()
  return store


def _check(directory, file: dict, whole: bool):
  """Compares a file's place, size and, if whole, content with the manifest."""
  path = directory / file['file']
  outside = storage.real(path) != storage.real(directory) / path.name
  if outside and 'indexed' not in file:
    raise errors.InputError(
      f'{directory / parts.MANIFEST}: {file["file"]!r} is outside its directory'
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
  path, shape, mask = directory / shard['file'], (shard.get('tokens'),), None
  _check(directory, shard, whole=True)
  if 'indexed' in shard:  # its ids were compared when it was indexed
    return np.memmap(path, np.uint8, 'r'), None
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


# numpy parses a header with ast, which fails at times in several threads of
# CPython before 3.11.8 and 3.12.2 (python/cpython issue 106905).
_parsing = threading.Lock()


def _array(path, dtype, shape) -> np.ndarray:
  """A memory-mapped .npy of the given type and shape."""
  try:
    with _parsing:
      array = np.load(path, mmap_mode='r', allow_pickle=False)
  except (ValueError, OSError) as error:
    raise errors.InputError(f'{path}: not a .npy array ({error})') from error
  if array.dtype != np.dtype(dtype).newbyteorder('<') or array.shape != shape:
    raise errors.InputError(
      f'{path}: {array.dtype} {array.shape}, but the manifest needs '
      f'{np.dtype(dtype)} {shape}'
    )
  return array
