"""Mixtures: which documents make up which share of the rows, packed how.

`data.mix` names the parts of a mixture. ProLong's second stage (2410.02660,
table 9) reads, over sources that the user names in `data.sources`:

  long = dict(pack='whole', length=524_288)
  middle = dict(pack='whole', length=65_536, max_length=524_288)
  config.data.mix = dict(
    code=dict(weight=0.15, **long),
    code_64k=dict(sources=('code',), weight=0.15, **middle),
    books=dict(weight=0.05, **long),
    books_64k=dict(sources=('books',), weight=0.25, **middle),
    textbooks=dict(weight=0.03, **long),
    web=dict(sources=('fineweb', 'fineweb_edu'), weight=0.20, length=65_536),
    ...
  )

A part is a mapping with these keys, and no other:

  weight      its share of the rows, relative to the sum of all weights
  sources     names in data.sources; default: the one that has the part's name
  pack        'concatenate' unless given; see below
  length      tokens of a pack, default train.seq_len. A shorter one divides
              the row, which holds several packs that do not see each other; a
              longer one is a multiple, and lies in consecutive rows (Focused
              Transformer, 2307.03170: the K rows of a document)
  min_length  documents shorter than this are left out
  max_length  documents at least as long as this are left out; 0 is none
  carry       concatenate: the rest of a document that did not fit starts the
              next pack (True), or is dropped (False, ProLong's SFT)
  masked      the documents of a pack do not see each other (True)
  documents   interleave: how many share a pack
  chunks      interleave: pieces of each of them

Parts may read the same documents: long ones are up-sampled (Llama 2 Long,
2309.16039, 4.2) by a part that reads only them (min_length) at a weight above
their share. A part with too little data is read again, in another order each
time, and the summary says so.

  whole        documents at least as long as the pack, cut into pieces of
               exactly its length; what is left of each is dropped
  concatenate  documents in random order, one after another
  best_fit     only documents longer than the pack are cut; best-fit decreasing
               (2404.10830), the rest of a pack is padding
  next_fit     whole documents in random order, a new pack where one does not
               fit; longer ones are left out (LongAlign, 2401.18058)
  sorted       one document in a pack, the rows of a step of like length, steps
               in random order; longer ones are left out (LongAlign)
  interleave   chunk 1 of each of several documents, then chunk 2, ... in one
               segment (LongSkywork, 2406.00605, chunk-interleaved pretraining)
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from longjax import errors
from longjax.data import pack

DEFAULTS = dict(
  weight=1.0,
  sources=(),
  pack='concatenate',
  length=0,
  min_length=0,
  max_length=0,
  carry=True,
  masked=True,
  documents=2,
  chunks=2,
)


class Part(NamedTuple):
  """A part of a mixture over the documents of a store."""

  name: str
  weight: float  # all weights sum to 1
  packs: pack.Packs
  length: int  # tokens of a pack
  documents: int  # of those that it may read
  by_step: bool  # packs that follow each other stay in one step
  joined: bool  # the documents of a pack see each other


def check(config) -> dict[str, dict]:
  """The parts of data.mix with all keys; InputError where they cannot be."""
  seq_len = config.train.seq_len
  mix = config.data.mix or dict(all=dict(sources=('*',)))
  full = {name: _check(name, part, seq_len) for name, part in mix.items()}
  total = sum(part['weight'] for part in full.values())
  for part in full.values():
    part['weight'] /= total
  rows = group(full, config)
  if config.train.batch % rows:
    raise errors.InputError(
      f'train.batch {config.train.batch} is not a multiple of {rows}, the rows '
      f'that a pack of data.mix lies in'
    )
  for name, part in full.items():
    if rows * seq_len % part['length']:
      raise errors.InputError(
        f'data.mix.{name}: packs of {part["length"]} tokens do not divide the '
        f'{rows} rows of {seq_len} that are read at once'
      )
  return full


def group(parts: Mapping, config) -> int:
  """Rows that are read at once: as many as the longest pack needs."""
  if any(part['pack'] == 'sorted' for part in parts.values()):
    return config.train.batch
  longest = max(part['length'] for part in parts.values())
  return max(1, longest // config.train.seq_len)


def parts(store, config) -> list[Part]:
  """Packs the documents of a store; says which part has none."""
  rng = np.random.default_rng(config.seed)
  return [
    _part(name, part, store, rng.permutation(len(store.lengths)))
    for name, part in check(config).items()
  ]


def _check(name: str, part: Any, seq_len: int) -> dict:
  if not isinstance(part, Mapping) and not hasattr(part, 'to_dict'):
    raise errors.InputError(f'data.mix.{name} must be a dict, is {part!r}')
  part = dict(part.items())
  errors.refuse_unknown_keys(f'data.mix.{name}', part, DEFAULTS)
  full: dict[str, Any] = DEFAULTS | part
  for key, value in full.items():
    kind = (int, float) if key == 'weight' else type(DEFAULTS[key])
    flag = isinstance(value, bool) and key not in ('carry', 'masked')
    if flag or not isinstance(value, kind):
      raise errors.InputError(
        f'data.mix.{name}.{key} must be a {type(DEFAULTS[key]).__name__}, is '
        f'{value!r}'
      )
  full['length'] = full['length'] or seq_len
  full['sources'] = full['sources'] or (name,)
  _check_numbers(name, full, seq_len)
  return full


def _check_numbers(name, part, seq_len):
  if part['pack'] not in pack.RULES:
    near = errors.nearest(part['pack'], pack.RULES)
    raise errors.InputError(
      f'data.mix.{name}.pack {part["pack"]!r} is none of '
      f'{", ".join(pack.RULES)}; nearest is {near!r}'
    )
  if not 0 < part['weight'] < float('inf'):
    raise errors.InputError(
      f'data.mix.{name}.weight must be above 0, is {part["weight"]}'
    )
  length = part['length']
  if length < 1 or (seq_len % length and length % seq_len):
    raise errors.InputError(
      f'data.mix.{name}.length {length} neither divides train.seq_len '
      f'{seq_len} nor is a multiple of it'
    )
  pieces = part['documents'] * part['chunks']
  if part['pack'] == 'interleave' and (
    min(part['documents'], part['chunks']) < 1 or length % pieces
  ):
    raise errors.InputError(
      f'data.mix.{name}: {part["documents"]} documents x {part["chunks"]} '
      f'chunks do not divide a pack of {length} tokens'
    )


def _part(name, part, store, order) -> Part:
  """The packs of the documents that a part reads, in the order given."""
  lengths = store.lengths
  wanted = _documents(name, part, store)
  wanted &= lengths >= max(1, part['min_length'])
  if part['max_length']:
    wanted &= lengths < part['max_length']
  order = order[wanted[order]]
  packs = pack.packs(part, lengths, order)
  if not len(packs):
    tokens, longest = int(lengths[order].sum()), lengths[order].max(initial=0)
    raise errors.InputError(
      f'data.mix.{name}: {tokens} tokens in {len(order)} documents (the '
      f'longest has {longest}) do not fill one pack of '
      f'{part["length"]} by {part["pack"]!r}; add documents to '
      f'{", ".join(part["sources"])}, or lower length or train.seq_len'
    )
  return Part(
    name, part['weight'], packs, part['length'], len(order),
    by_step=part['pack'] == 'sorted',
    joined=part['pack'] == 'interleave' or not part['masked'],
  )  # fmt: skip


def _documents(name, part, store) -> np.ndarray:
  """bool [documents]: those of the sources of a part."""
  if part['sources'] == ('*',):
    return np.ones(len(store.lengths), bool)
  known = [s['name'] for s in store.manifest['sources']]
  for source in part['sources']:
    if source not in known:
      raise errors.InputError(
        f'data.mix.{name} reads {source!r}, but {store.directory} has no such '
        f'source; nearest is {errors.nearest(source, known)!r}'
      )
  return np.isin(store.sources, [known.index(s) for s in part['sources']])
