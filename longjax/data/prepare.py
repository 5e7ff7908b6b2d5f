"""Documents to a store: fetch, read, tokenize, write, or open what is there."""

import hashlib
import json
import pathlib
import time
from collections.abc import Iterator

import numpy as np

from longjax import errors
from longjax.data import packages, sources, store, tokenizer

BATCH_CHARS = 1 << 23  # of text tokenized at once
LOG_SECONDS = 10


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
  return tokenizer.load(spec if spec == 'bytes' else packages.locate(spec, log))


def _prepare(key, wanted, tokens, log, directory) -> store.Store:
  if not wanted:
    raise errors.InputError(
      f'{key} is empty: it names the documents, as longjax/data/sources.py says'
    )
  spec = _spec(wanted)
  place = pathlib.Path(directory) if directory else _place(spec, tokens)
  if not store.exists(place):
    log(f'preparing {", ".join(sorted(wanted))} into {place}')
    store.write(
      place,
      _tokenized(wanted, tokens, log),
      vocab=tokens.vocab,
      tokenizer=tokens.digest,
      spec=spec,
    )
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
  return packages.cache_dir() / 'prepared' / name


def _tokenized(wanted, tokens, log) -> Iterator[store.Entry]:
  """Yields the documents of all sources, tokenized, with their ends."""
  for name in sorted(wanted):
    began = said = time.monotonic()
    documents = count = 0
    for group in _groups(sources.documents(name, wanted[name], log)):
      special = group[0].special
      encoded = tokens.encode_batch([d.text for d in group], special)
      for document, ids in zip(group, encoded):
        ids = _with_ends(ids, tokens)
        text_bytes = len(document.text.encode())
        yield store.Entry(document.name, name, ids, text_bytes)
        documents, count = documents + 1, count + len(ids)
      if time.monotonic() - said > LOG_SECONDS:
        said = time.monotonic()
        log(_progress(name, documents, count, said - began))
    log(_progress(name, documents, count, time.monotonic() - began))


def _progress(name, documents, count, seconds) -> str:
  return (
    f'{name}: {documents} documents, {count:,} tokens, '
    f'{count / max(seconds, 1e-3):,.0f} tokens/s'
  )


def _groups(documents) -> Iterator[list]:
  """Documents in lists of about BATCH_CHARS, to tokenize at once."""
  group, chars = [], 0
  for document in documents:
    group.append(document)
    chars += len(document.text)
    if chars >= BATCH_CHARS:
      yield group
      group, chars = [], 0
  if group:
    yield group


def _with_ends(ids, tokens) -> np.ndarray:
  ends = (tokens.document_start, tokens.document_end)
  before, after = ([] if i is None else [i] for i in ends)
  return np.concatenate([np.array(x, np.int32) for x in (before, ids, after)])
