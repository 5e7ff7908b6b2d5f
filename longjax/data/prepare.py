"""Documents to a store: fetch, read, tokenize, write, or open what is there.

A large corpus is read in units of about 64 MB, by as many processes as there
are cores. Each unit becomes a part of the store, complete or absent, so a run
that was killed goes on where it was: give the same command again.
"""

import concurrent.futures
import contextlib
import fcntl
import hashlib
import json
import multiprocessing
import os
import pathlib
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from longjax import cache, errors
from longjax.data import chat, downloads, formats, sources, store, tokenizer

BATCH_CHARS = 1 << 21  # of text tokenized at once
LOG_SECONDS = 10
SMALL_BYTES = 1 << 25  # of files: below, one process is quicker
PERMUTATIONS = 128  # of MinHash
SIMILAR = 0.8  # share of common 5-word sequences that makes two documents one


class Job(NamedTuple):
  """A unit and where its part goes."""

  unit: sources.Unit
  place: pathlib.Path


def prepare(config, tokens, log=print, directory='') -> store.Store:
  """The training data of a config.

  Args:
    config: its `data` section is read.
    tokens: a tokenizer.Tokenizer.
    log: called with lines about what is made.
    directory: where to make it; default data.directory, which must then hold
      a store, or else a place in the cache named by everything it is made of.

  Returns:
    The opened store.
  """
  wanted = config.data.sources
  if config.data.directory and not directory:
    made = _open(config.data.directory, tokens)
    if wanted and _spec(wanted) != made.manifest['spec']:
      log(f'{made.directory} was made from other sources than data.sources')
    return made
  return _prepare('data.sources', wanted, tokens, log, directory)


def held_out(config, tokens, log=print) -> store.Store:
  """The documents to evaluate on, as `prepare` from `eval.sources`."""
  return _prepare('eval.sources', config.eval.sources, tokens, log, '')


def find_tokenizer(config, log=print) -> tokenizer.Tokenizer:
  """The tokenizer of a config: data.tokenizer, or that of the weights.

  Random weights come with bytes.
  """
  spec = config.data.tokenizer or config.weights
  if spec in ('', 'random'):
    spec = 'bytes'
  try:
    return tokenizer.load(
      spec if spec == 'bytes' else downloads.locate(spec, log)
    )
  except errors.InputError as error:
    if config.data.tokenizer:
      raise
    raise errors.InputError(
      f'{error}; say where one is with --config.data.tokenizer'
    ) from error


def _prepare(key, wanted, tokens, log, directory) -> store.Store:
  if not wanted:
    made = ', or set data.directory' if key == 'data.sources' else ''
    raise errors.InputError(
      f'{key} is empty: name the documents, as longjax/data/sources.py says'
      f'{made}'
    )
  spec = _spec(wanted)
  place = store.local(directory or _place(spec, tokens)).resolve()
  store.refuse_other(place)
  if not store.exists(place):
    try:
      _make(place, wanted, tokens, spec, log)
    except OSError as error:
      raise errors.InputError(
        f'{place}: cannot write the store: '
        f'{error.strerror or f"is the disk full? {error}"}'
      ) from error
  made = _open(place, tokens)
  if made.manifest['spec'] != spec:
    raise errors.InputError(
      f'{place}: holds a store made from other sources; choose another '
      'directory'
    )
  return made


def _open(directory, tokens) -> store.Store:
  made = store.open_store(directory)
  if made.manifest['tokenizer'] != tokens.digest:
    raise errors.InputError(
      f'{made.directory}: was made with another tokenizer (digest '
      f'{made.manifest["tokenizer"][:12]}, this one is {tokens.digest[:12]}); '
      'set data.tokenizer, or make it again with launch/prepare.py'
    )
  if made.manifest['vocab'] != tokens.vocab:
    raise errors.InputError(
      f'{made.directory}: was made for {made.manifest["vocab"]} ids, but the '
      f'tokenizer has a vocabulary of {tokens.vocab}'
    )
  return made


def _spec(wanted) -> list:
  """Everything the documents are made of, as JSON reads it back."""
  parts = [sources.fingerprint(name, wanted[name]) for name in sorted(wanted)]
  return json.loads(json.dumps(parts))


def _place(spec, tokens) -> pathlib.Path:
  whole = json.dumps([spec, tokens.digest, store.FORMAT], sort_keys=True)
  name = hashlib.sha256(whole.encode()).hexdigest()[:12]
  return cache.directory() / 'prepared' / name


def _make(place, wanted, tokens, spec, log):
  """Makes the store, or goes on making it where a killed process left off."""
  about = dict(vocab=tokens.vocab, tokenizer=tokens.digest, spec=spec)
  partial = place.with_name(f'.{place.name}.partial')
  place.parent.mkdir(parents=True, exist_ok=True)
  with _alone(place.with_name(f'.{place.name}.lock'), log):
    if store.exists(place):
      return  # another process made it while we waited
    log(f'preparing {", ".join(sorted(wanted))} into {place}')
    _begin(partial, about, log)
    units = [
      unit
      for name in sorted(wanted)
      for unit in sources.units(name, wanted[name], log)
    ]
    jobs = [Job(u, partial / f'part_{i:05}') for i, u in enumerate(units)]
    _run([job for job in jobs if not job.place.exists()], tokens, log)
    parts = [job.place.name for job in jobs]
    for name in wanted:
      _finish(partial, jobs, name, log)
    drop = _duplicates(partial, jobs)
    store.assemble(partial, parts, place, about, drop)
    store.clear(partial)


@contextlib.contextmanager
def _alone(path, log):
  """Holds a lock, for which another process on this machine must wait."""
  with open(path, 'w') as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      log(f'waiting for another process, which holds {path}')
      fcntl.flock(lock, fcntl.LOCK_EX)
    try:
      yield
    finally:
      path.unlink(missing_ok=True)


def _begin(partial, about, log):
  """An empty directory for parts, or that of an earlier try of the same."""
  head = partial / 'about.json'
  text = json.dumps(about)
  if head.is_file() and head.read_text() == text:
    parts = sum(1 for path in partial.glob('part_*') if path.suffix == '')
    log(f'going on in {partial}: {parts} parts are there')
  else:
    store.clear(partial)
    partial.mkdir()
    head.write_text(text)
  for path in partial.glob('*.tmp'):
    store.clear(path)


def _run(jobs, tokens, log):
  """Does what is left to do, on all cores if it is much."""
  size = sum(
    f.size for job in jobs for _, files in job.unit.groups for f in files
  )
  workers = min(os.cpu_count() or 1, len(jobs))
  began = said = time.monotonic()
  done = count = 0
  run = _in_processes if workers > 1 and size > SMALL_BYTES else _here
  for came in run(jobs, tokens, workers):
    done, count, now = done + 1, count + came, time.monotonic()
    if now - said > LOG_SECONDS or done == len(jobs):
      said = now
      log(
        f'{done} of {len(jobs)} parts, {count:,} tokens, '
        f'{count / max(now - began, 1e-3):,.0f} tokens/s'
      )


def _here(jobs, tokens, workers) -> Iterator[int]:
  """Yields the tokens of each part, made by this process."""
  return (_write(job, tokens) for job in jobs)


def _in_processes(jobs, tokens, workers) -> Iterator[int]:
  """The same from several processes, as they finish."""
  tokens_dir = jobs[0].place.parent / 'tokenizer'
  tokens.save(tokens_dir)
  assert tokenizer.load(tokens_dir).digest == tokens.digest
  pool = concurrent.futures.ProcessPoolExecutor(
    workers,
    # A fork would copy locks that threads of ours hold.
    mp_context=multiprocessing.get_context('spawn'),
    initializer=_start,
    initargs=(tokens_dir,),
  )
  try:
    futures = [pool.submit(_write, job) for job in jobs]
    for future in concurrent.futures.as_completed(futures):
      yield future.result()
  except concurrent.futures.process.BrokenProcessPool as error:
    raise errors.InputError(
      'a process that tokenizes was killed, perhaps for want of memory; the '
      'parts that are done are kept: run the same command again'
    ) from error
  finally:
    pool.shutdown(cancel_futures=True)


_worker: dict[str, Any] = {}


def _start(tokens_dir):
  """Of each process: one thread, and the tokenizer."""
  threading.Thread(target=_end_with_parent, daemon=True).start()
  os.environ['TOKENIZERS_PARALLELISM'] = 'false'
  _worker['tokens'] = tokenizer.load(tokens_dir)


def _end_with_parent():
  """A process that was killed leaves none behind that writes."""
  parent = multiprocessing.parent_process()
  assert parent is not None
  parent.join()
  os._exit(1)


def _write(job: Job, tokens=None) -> int:
  """Makes a part, in one piece; the tokens in it."""
  partial = job.place.with_suffix('.tmp')
  told = [0]
  entries = _entries(job.unit, tokens or _worker['tokens'], told, partial)
  store.write_part(partial, entries)
  os.rename(partial, job.place)
  return told[0]


def _entries(unit: sources.Unit, tokens, told, place) -> Iterator[store.Entry]:
  """Yields the documents of a unit, tokenized; returns what was left out."""
  tally, signatures = sources.Tally(unit.source), []
  near = unit.settings['duplicates'] == 'near'
  for group in _groups(sources.read(unit, tally)):
    for document, entry in _encoded(group, unit, tokens, tally):
      told[0] += len(entry.tokens)
      if near:
        signatures.append(_signature(_words(document)))
      yield entry
  if near:
    np.save(place / 'signatures.npy', np.array(signatures))
  return [vars(tally)]


def _encoded(group, unit, tokens, tally) -> Iterator[tuple]:
  """Yields (document, entry); counts those that give no tokens."""
  if unit.settings['kind'] == 'chat':
    yield from _chats(group, unit, tokens, tally)
    return
  encoded = tokens.encode_batch([d.text for d in group], group[0].special)
  for document, ids in zip(group, encoded):
    ids = _with_ends(ids, tokens)
    if not len(ids):  # nothing that this tokenizer knows
      tally.short += 1
      continue
    size = len(document.text.encode('utf-8', 'replace'))
    yield document, store.Entry(document.name, unit.source, ids, size)


def _chats(group, unit, tokens, tally) -> Iterator[tuple]:
  settings = unit.settings
  for document in group:
    try:
      made = chat.encode(
        document.messages, tokens, settings['template'], settings['loss']
      )
    except errors.InputError as error:
      tally.read -= 1
      tally.add(formats.Bad(document.name, f'not a conversation ({error})'))
      tally.check(settings['max_bad'])
      continue
    said = (message['content'] for message in document.messages)
    size = sum(len(text.encode('utf-8', 'replace')) for text in said)
    entry = store.Entry(
      document.name, unit.source, made.tokens, size, made.weights
    )
    yield document, entry


def _words(document) -> str:
  """The text, or what is said in a conversation."""
  if not document.messages:
    return document.text
  return '\n'.join(message['content'] for message in document.messages)


def _finish(partial, jobs, name, log):
  """InputError if a source gave nothing, or too much that is bad."""
  mine = [job for job in jobs if job.unit.source == name]
  tally, count = sources.Tally(name), 0
  for job in mine:
    part = json.loads((job.place / store.PART).read_text())
    count += sum(source['documents'] for source in part['sources'])
    for told in part['left_out']:
      tally.read += told['read']
      tally.bad += told['bad']
      tally.named = [*tally.named, *told['named']][: sources.NAMED]
  sources.finish(mine[0].unit.settings, tally, count)
  if tally.bad:
    log(
      f'{name}: left out {tally.bad} of {tally.read} files or records that '
      f'cannot be read: {"; ".join(tally.named)}'
    )


def _duplicates(partial, jobs):
  """bool [documents]: those equal or near to one before; None if all stay."""
  if all(_how(job) == 'keep' for job in jobs):
    return None
  seen, drop = set(), []
  near = _near() if any(_how(job) == 'near' for job in jobs) else None
  for job in jobs:
    how = _how(job)
    digests = np.load(job.place / 'documents.npy', allow_pickle=False)[:, 4]
    if near and how == 'near':
      signatures = np.load(job.place / 'signatures.npy', allow_pickle=False)
    for i, digest in enumerate(digests.tolist()):
      double = how != 'keep' and digest in seen
      if near and how == 'near' and not double:
        double = near(signatures[i], len(drop))
      seen.add(digest)
      drop.append(double)
  return np.array(drop)


def _how(job) -> str:
  return job.unit.settings['duplicates']


def _near():
  """near(signature, number): whether one like it was there before."""
  import datasketch  # pyright: ignore

  index = datasketch.MinHashLSH(threshold=SIMILAR, num_perm=PERMUTATIONS)

  def near(signature, number) -> bool:
    this = datasketch.MinHash(num_perm=PERMUTATIONS)
    this.hashvalues = signature
    if index.query(this):
      return True
    index.insert(number, this)
    return False

  return near


def _signature(text: str) -> np.ndarray:
  """MinHash of the sequences of five words."""
  import datasketch  # pyright: ignore

  words = text.split()
  made = datasketch.MinHash(num_perm=PERMUTATIONS)
  count = max(1, len(words) - 4)
  made.update_batch(
    ' '.join(words[i : i + 5]).encode('utf-8', 'replace') for i in range(count)
  )
  return made.hashvalues


def _groups(documents) -> Iterator[list]:
  """Documents in lists of about BATCH_CHARS, to tokenize at once."""
  group, chars = [], 0
  for document in documents:
    group.append(document)
    chars += len(document.text) or len(str(document.messages))
    if chars >= BATCH_CHARS:
      yield group
      group, chars = [], 0
  if group:
    yield group


def _with_ends(ids, tokens) -> np.ndarray:
  ends = (tokens.document_start, tokens.document_end)
  before, after = ([] if i is None else [i] for i in ends)
  return np.concatenate([np.array(x, np.int32) for x in (before, ids, after)])
