"""Documents to a store: fetch, read, tokenize, write, or open what exists.

A large corpus is read in units of about 64 MB, by as many processes as there
are cores. Each unit becomes a part of the store, complete or absent, so the
same command resumes after it was killed.
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
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from longjax import cache, errors, hub, progress, storage
from longjax.data import (
  chat,
  downloads,
  duplicates,
  entries,
  parts,
  reading,
  sources,
  store,
)
from longjax.data import tokenizer as tokenizers

LOG_SECONDS = 10
READING = 2  # counts up when the same files give other documents
SMALL_BYTES = 1 << 25  # of files: below, one process is quicker
# Counts of a reading.Tally.
LEFT_OUT = ('bad', 'short', 'language', 'where', 'no_documents')


class Job(NamedTuple):
  """A unit and where its part, or what it gives to buckets, goes."""

  unit: reading.Unit
  place: pathlib.Path
  buckets: int = 0


def prepare(config, tokenizer, log=print, directory='') -> store.Store:
  """The training data of a config.

  Args:
    config: its `data` section is read.
    tokenizer: a data.tokenizer.Tokenizer.
    log: called with lines about what is made.
    directory: where to make it; default data.directory, which must then hold
      a store, or else a place in the cache named by everything it is made of.

  Returns:
    The opened store.
  """
  wanted = sources.rooted(config.data.sources, config.data.root)
  if config.data.directory and not directory:
    made = _open(config.data.directory, tokenizer)
    if wanted and _spec(wanted, tokenizer) != made.manifest['spec']:
      log(f'{made.directory} was made from other sources than data.sources')
    return made
  return _prepare('data.sources', wanted, tokenizer, log, directory)


def held_out(config, tokenizer, log=print) -> store.Store:
  """The documents to evaluate on, as `prepare` from `eval.sources`."""
  return _prepare('eval.sources', config.eval.sources, tokenizer, log, '')


def find_tokenizer(config, log=print) -> tokenizers.Tokenizer:
  """The tokenizer of a config: data.tokenizer, or that of the weights.

  Random weights come with bytes.
  """
  spec = config.data.tokenizer or config.weights
  if spec in ('', 'random', 'bytes'):
    return tokenizers.load('bytes')
  try:
    return tokenizers.load(downloads.locate(spec, log, hub.of_tokenizer))
  except errors.InputError as error:
    if config.data.tokenizer:
      raise
    raise errors.InputError(
      f'{error}; name one with --config.data.tokenizer'
    ) from error


def report(made: store.Store) -> str:
  """A table by source, and a line for each of which something is left out."""
  keys = ('documents', 'tokens', 'longest', 'text_bytes')
  rows = [[s['name'], *(s[k] for k in keys)] for s in made.manifest['sources']]
  totals = [sum(column) for column in list(zip(*rows))[1:]]
  totals[2] = max(row[3] for row in rows)
  lines = [f'{"source":24}' + ''.join(f'{k:>14}' for k in (*keys[:3], 'bytes'))]
  for name, *counts in (*rows, ['all', *totals]):
    lines.append(f'{name:24}' + ''.join(f'{n:>14,}' for n in counts))
  for source in sorted(made.manifest['sources'], key=lambda s: s['name']):
    tallies = [
      t for t in made.manifest['left_out'] if t['source'] == source['name']
    ]
    counts = {key: sum(t.get(key, 0) for t in tallies) for key in LEFT_OUT}
    counts['duplicates'] = source.get('duplicates', 0)
    if any(counts.values()):
      text = ', '.join(f'{n} {key}' for key, n in counts.items() if n)
      lines.append(f'{source["name"]}: left out {text}')
      for named in ('named', 'also_named'):
        lines += [f'  {line}' for t in tallies for line in t.get(named, [])]
  return '\n'.join(lines)


def _prepare(key, wanted, tokenizer, log, directory) -> store.Store:
  if not wanted:
    made = ', or set data.directory' if key == 'data.sources' else ''
    raise errors.InputError(
      f'{key} is empty: name the documents as in longjax/data/sources.py{made}'
    )
  spec = _spec(wanted, tokenizer)
  place = storage.real(store.local(directory or _cached(spec, tokenizer)))
  store.refuse_other(place)
  if not store.exists(place):
    with errors.of_disk(f'{place}: cannot write the store'):
      _make(place, wanted, tokenizer, spec, log)
  made = _open(place, tokenizer)
  if made.manifest['spec'] != spec:
    raise errors.InputError(
      f'{place}: holds a store made from other sources; choose another '
      'directory'
    )
  return made


def _open(directory, tokenizer) -> store.Store:
  made = store.open_store(directory)
  if made.manifest['tokenizer'] != tokenizer.digest:
    raise errors.InputError(
      f'{made.directory}: was made with another tokenizer (digest '
      f'{made.manifest["tokenizer"][:12]}, this one is '
      f'{tokenizer.digest[:12]}); set data.tokenizer, or make it again with '
      'launch/prepare.py'
    )
  return made


def _spec(wanted, tokenizer) -> list:
  """Everything the documents are made of, as JSON reads it back."""
  prints = []
  for name in sorted(wanted):
    prints.append(sources.fingerprint(name, wanted[name]))
    template = prints[-1][1]['template']
    if template:
      text = chat.source(template, tokenizer)
      if template not in chat.TEMPLATES:
        prints[-1].append(hashlib.sha256(text.encode()).hexdigest())
  return json.loads(json.dumps(prints))


def _cached(spec, tokenizer) -> pathlib.Path:
  whole = json.dumps(
    [spec, tokenizer.digest, parts.FORMAT, READING], sort_keys=True
  )
  name = hashlib.sha256(whole.encode()).hexdigest()[:12]
  return cache.directory() / 'prepared' / name


def _make(place, wanted, tokenizer, spec, log):
  """Makes the store, or resumes where a killed process left off."""
  metadata = dict(vocab=tokenizer.vocab, tokenizer=tokenizer.digest, spec=spec)
  paths = {name: wanted[name].get('path', '') for name in sorted(wanted)}
  if fetched := {
    n: hub.RESOLVED[p] for n, p in paths.items() if hub.is_name(p)
  }:
    metadata['hub'] = fetched
  partial = place.with_name(f'.{place.name}.partial')
  place.parent.mkdir(parents=True, exist_ok=True)
  with _locked(place.with_name(f'.{place.name}.lock'), log):
    if store.exists(place):
      return  # another process made it while we waited
    log(f'preparing {", ".join(sorted(wanted))} into {place}')
    _begin(partial, metadata, log)
    _check_chats(wanted, tokenizer, log)
    run = lambda jobs: _run([Job(*job) for job in jobs], tokenizer, log)
    units = []
    for name in sorted(wanted):
      of_source = sources.units(name, wanted[name], log)
      if of_source[0].settings['group']:
        of_source = reading.regroup(of_source, partial, run)
      units += of_source
    jobs = [Job(u, partial / f'part_{i:05}') for i, u in enumerate(units)]
    _run(jobs, tokenizer, log)
    for name in wanted:
      _check_source([job for job in jobs if job.unit.source == name], log)
    drop = duplicates.find(
      [(job.place, job.unit.settings['duplicates']) for job in jobs]
    )
    names = [job.place.name for job in jobs]
    made_by = {
      unit.source: unit.settings['tokenizer'] or 'unknown'
      for unit in units
      if unit.settings['kind'] == 'tokens'
    }
    parts.assemble(partial, names, place, metadata, drop, made_by)
    parts.clear(partial)


def _check_chats(wanted, tokenizer, log):
  """Names templates with which a model does not learn to end an answer."""
  for name in sorted(wanted):
    settings = sources.check(name, wanted[name])
    chats = settings['kind'] == 'chat' and settings['loss'] == 'answers'
    if chats and not chat.learns_end(tokenizer, settings['template']):
      log(
        f'{name}: answers are learned without their end: the generation blocks '
        f'of the chat template {settings["template"]!r} leave it out'
      )


@contextlib.contextmanager
def _locked(path, log):
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


def _begin(partial, metadata, log):
  """An empty directory for parts, or that of an earlier try of the same."""
  head = partial / 'about.json'
  text = json.dumps(metadata | dict(part_format=parts.PART_FORMAT))
  if head.is_file() and head.read_text() == text:
    count = sum(1 for path in partial.glob('part_*') if path.suffix == '')
    log(f'resuming in {partial}: {count} parts are complete')
  else:
    parts.clear(partial)
    partial.mkdir()
    head.write_text(text)
  for path in partial.glob('*.tmp'):
    parts.clear(path)


def _run(jobs, tokenizer, log):
  """Does what is left to do, on all cores if it is much."""
  jobs = [job for job in jobs if not job.place.exists()]
  sizes = [
    sum(file.size for _, files in job.unit.groups for file in files)
    for job in jobs
  ]
  workers = min(os.cpu_count() or 1, len(jobs))
  count = 0
  bar = progress.Progress('reading', sum(sizes), log, every_seconds=LOG_SECONDS)
  if workers > 1 and sum(sizes) > SMALL_BYTES:
    results = _in_processes(jobs, tokenizer, workers)
  else:
    results = ((i, _write(job, tokenizer)) for i, job in enumerate(jobs))
  for i, made in results:
    count += made
    bar.add(sizes[i])
  if jobs and not jobs[0].buckets:
    log(f'tokenized {len(jobs)} parts, {count:,} tokens')


def _in_processes(jobs, tokenizer, workers) -> Iterator[tuple[int, int]]:
  """Yields (number of a job, its tokens) as processes finish them."""
  tokens_dir = jobs[0].place.parent / 'tokenizer'
  tokenizer.save(tokens_dir)
  assert tokenizers.load(tokens_dir).digest == tokenizer.digest
  pool = concurrent.futures.ProcessPoolExecutor(
    workers,
    # A fork would copy locks that threads of ours hold.
    mp_context=multiprocessing.get_context('spawn'),
    initializer=_start,
    initargs=(tokens_dir,),
  )
  try:
    futures = {pool.submit(_write, job): i for i, job in enumerate(jobs)}
    for future in concurrent.futures.as_completed(futures):
      yield futures[future], future.result()
  except concurrent.futures.process.BrokenProcessPool as error:
    raise errors.InputError(
      'a tokenizer process was killed, perhaps because memory ran out; the '
      'complete parts are kept: run the same command to resume'
    ) from error
  finally:
    pool.shutdown(cancel_futures=True)


_worker: dict[str, Any] = {}


def _start(tokens_dir):
  """Of each process: one thread, and the tokenizer."""
  threading.Thread(target=_end_with_parent, daemon=True).start()
  os.environ['TOKENIZERS_PARALLELISM'] = 'false'
  _worker['tokenizer'] = tokenizers.load(tokens_dir)


def _end_with_parent():
  """A process that was killed leaves none behind that writes."""
  parent = multiprocessing.parent_process()
  assert parent is not None
  parent.join()
  os._exit(1)


def _write(job: Job, tokenizer=None) -> int:
  """Makes a part, in one piece; the tokens in it."""
  if job.buckets:
    reading.spill(job.unit, job.place, job.buckets)
    return 0
  partial = job.place.with_suffix('.tmp')
  made = entries.of_unit(job.unit, tokenizer or _worker['tokenizer'], partial)
  parts.write(partial, made)
  os.rename(partial, job.place)
  table = np.load(job.place / 'documents.npy', allow_pickle=False)
  return int(table[:, 2].sum())


def _check_source(jobs, log):
  """InputError if a source gave nothing, or too much that is bad."""
  unit, count = jobs[0].unit, 0
  total = reading.Tally(unit.source)
  for job in jobs:
    count += len(np.load(job.place / 'documents.npy', allow_pickle=False))
    part = json.loads((job.place / parts.PART).read_text())
    for tally in part['left_out']:
      total.merge(tally)
  sources.require_documents(unit.settings, total, count)
  if total.bad:
    log(
      f'{unit.source}: left out {total.bad} of {total.read} files or records '
      f'that cannot be read: {"; ".join(total.named)}'
    )
  if total.no_documents:
    log(
      f'{unit.source}: {total.no_documents} files hold no documents: '
      f'{"; ".join(total.also_named)}'
    )
