"""Mixtures: which documents make up which share of the rows, packed how.

`data.mix` has a component for each name; configs/smollm2_135m_prolong_mini.py
has ProLong's second stage (2410.02660, table 9), over sources of its own.
ComponentConfig lists the keys of a component, data/pack.py the packing rules.
Components may read the same documents: long ones are up-sampled (Llama 2 Long,
2309.16039, 4.2) by a component that reads only them (min_length) at a weight
above their share. A component with too little data repeats it, in another
order each time, and the summary reports it.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from longjax import errors
from longjax.config import Key, check_value
from longjax.data import pack

MAX_PACKS = 1 << 48  # more than any run reads
# The only rule of packing that reads such a key of a component.
RULE_OF = dict(
  carry='concatenate', documents='interleave', chunks='interleave',
  group='sorted',
)  # fmt: skip


class ComponentConfig(NamedTuple):
  """A value of data.mix: the keys that it may have, and their defaults."""

  weight: float = 1.0  # share of the rows, relative to the sum of all weights
  sources: tuple = ()  # names in data.sources; () is the component's own name
  pack: str = 'concatenate'  # a rule of pack.RULES
  # Tokens of a pack, 0 is train.seq_len. A shorter pack divides the row, which
  # holds several that do not attend to each other; a longer one is a multiple
  # and takes consecutive rows (Focused Transformer, 2307.03170: the K rows of
  # a document).
  length: int = 0
  min_length: int = 0  # documents shorter than this are left out
  max_length: int = 0  # documents at least this long are left out; 0 is none
  # concatenate: the rest of a document that did not fit starts the next pack,
  # or is dropped (ProLong's SFT).
  carry: bool = True
  masked: bool = True  # the documents of a pack do not attend to each other
  documents: int = 2  # interleave: how many share a pack
  chunks: int = 2  # interleave: pieces of each of them
  # sorted: packs of like length that are read together; groups are shuffled. 0
  # is 8, as in LongAlign, or all packs of a step where 8 does not divide them.
  group: int = 0


BOUNDS: dict[str, dict] = dict(  # of what ComponentConfig takes
  weight=dict(bounds='(1e-9, 1e9)'),  # they are added up
  sources=dict(each=str),
  pack=dict(choices=tuple(pack.RULES)),
  length=dict(bounds='[0, inf)'),
  documents=dict(bounds='[1, inf)'),
  chunks=dict(bounds='[1, inf)'),
  group=dict(bounds='[0, inf)'),
)


class MixtureComponent(NamedTuple):
  """A component of a mixture over the documents of a store."""

  name: str
  weight: float  # all weights sum to 1
  packs: pack.Packs
  length: int  # tokens of a pack
  documents: int  # that it may read
  group: int  # consecutive packs that are read together
  joined: bool  # the documents of a pack attend to each other


def parse(config) -> dict[str, ComponentConfig]:
  """The components of data.mix, with defaults and with weights that sum to 1.

  Raises:
    InputError: names the component, the key, its value and the bound.
  """
  seq_len = config.train.seq_len
  mix = config.data.mix or dict(all=dict(sources=('*',)))
  components = {name: _parse(name, c, config.train) for name, c in mix.items()}
  total = sum(c.weight for c in components.values())
  components = {
    name: c._replace(weight=c.weight / total) for name, c in components.items()
  }
  rows = group_rows(components, config)
  if config.train.batch % rows:
    raise errors.InputError(
      f'train.batch {config.train.batch} is not a multiple of {rows}, the rows '
      f'that a pack or a sorted group of data.mix takes'
    )
  for name, component in components.items():
    if rows * seq_len % (component.group * component.length):
      raise errors.InputError(
        f'data.mix.{name}: {component.group} packs of {component.length} '
        f'tokens do not divide the {rows} rows of {seq_len} that are read at '
        f'once'
      )
  return components


def pack_rows(components: Mapping[str, ComponentConfig], config) -> int:
  """Rows of the longest pack."""
  longest = max(c.length for c in components.values())
  return max(1, longest // config.train.seq_len)


def group_rows(components: Mapping[str, ComponentConfig], config) -> int:
  """Rows that are read at once, of one component."""
  longest = max(c.group * c.length for c in components.values())
  return max(1, longest // config.train.seq_len)


def build(parsed, store, seed: int) -> list[MixtureComponent]:
  """Packs the documents of a store.

  Args:
    parsed: as `parse` returns it.
    store: a store.Store.
    seed: of the config; the order of the documents depends on it.

  Raises:
    InputError: names the component that has none.
  """
  rng = np.random.default_rng(seed)
  return [
    _build(name, component, store, rng) for name, component in parsed.items()
  ]


def row_groups(components, tokens: int, seed: int) -> Any:
  """The order in which the components and their packs are read.

  Grain keeps to the weights as exactly as whole groups can. The packs of a
  component, or its sorted groups of packs, are shuffled anew in each epoch.
  Groups of rows may straddle epochs, so no pack is left out.

  Args:
    components: a list of MixtureComponent.
    tokens: of a group of rows.
    seed: of the config.

  Returns:
    A grain.MapDataset whose item i is (number of the component, numbers of its
    packs) of group i.
  """
  import grain

  groups = []
  for number, component in enumerate(components):
    group = component.group
    size = tokens // (group * component.length)
    count = len(component.packs) // group
    # Without a number, `repeat` makes a length that does not fit an int.
    order = grain.MapDataset.range(count).seed(seed + number).shuffle()
    order = order.repeat(MAX_PACKS // count).batch(size, batch_fn=list)
    groups.append(order.map(functools.partial(_packs_of, number, group)))
  if len(groups) == 1:
    return groups[0]
  return grain.MapDataset.mix(groups, [c.weight for c in components])


def _packs_of(component: int, group: int, numbers) -> tuple[int, list[int]]:
  packs = [n * group + i for n in numbers for i in range(group)]
  return component, packs


def _parse(name: str, given: Any, train) -> ComponentConfig:
  if not isinstance(given, Mapping) and not hasattr(given, 'to_dict'):
    raise errors.InputError(f'data.mix.{name} must be a dict, is {given!r}')
  given, defaults = dict(given.items()), ComponentConfig()._asdict()
  errors.refuse_unknown_keys(f'data.mix.{name}', given, defaults)
  for key, value in given.items():
    bounds = Key(defaults[key], '', **BOUNDS.get(key, {}))
    check_value(f'data.mix.{name}.{key}', value, bounds)
  component = ComponentConfig(**given)
  length = component.length or train.seq_len
  component = component._replace(
    length=length, sources=component.sources or (name,)
  )
  _check(name, component, train.seq_len)
  group, step = 1, train.batch * train.seq_len // length
  if component.pack == 'sorted':
    group = component.group or (8 if step % 8 == 0 else step)
  return component._replace(group=max(1, group))


def _check(name: str, component: ComponentConfig, seq_len: int):
  rule, length = component.pack, component.length
  for key, reader in RULE_OF.items():
    value = getattr(component, key)
    if rule != reader and value != getattr(ComponentConfig(), key):
      raise errors.InputError(
        f'data.mix.{name}.{key} is {value!r}; it has an effect with pack='
        f'{reader!r} alone, not with {rule!r}: leave it out, or change pack'
      )
  if seq_len % length and length % seq_len:
    raise errors.InputError(
      f'data.mix.{name}.length {length} neither divides train.seq_len '
      f'{seq_len} nor is a multiple of it'
    )
  documents, chunks = component.documents, component.chunks
  if rule == 'interleave' and length % (documents * chunks):
    raise errors.InputError(
      f'data.mix.{name}: {documents} documents x {chunks} chunks do not divide '
      f'a pack of {length} tokens'
    )


def _build(name: str, component: ComponentConfig, store, rng):
  """A MixtureComponent of the documents that it reads, in random order."""
  lengths, order = store.lengths, rng.permutation(len(store.lengths))
  readable = _of_sources(name, component.sources, store)
  readable &= lengths >= max(1, component.min_length)
  if component.max_length:
    readable &= lengths < component.max_length
  order = order[readable[order]]
  packs = pack.packs(component, lengths, order, rng)
  if not len(packs):
    tokens, longest = int(lengths[order].sum()), lengths[order].max(initial=0)
    count = f'{component.group} packs' if component.group > 1 else 'one pack'
    raise errors.InputError(
      f'data.mix.{name}: not enough data for {count} of {component.length:,} '
      f'tokens with pack={component.pack!r}: {tokens:,} tokens in '
      f'{len(order):,} documents, the longest of {longest:,}; add documents to '
      f'{", ".join(component.sources)}, or lower length or train.seq_len'
    )
  return MixtureComponent(
    name, component.weight, packs, component.length, len(order),
    group=component.group,
    joined=component.pack in pack.JOINED or not component.masked,
  )  # fmt: skip


def _of_sources(name: str, sources, store) -> np.ndarray:
  """bool [documents]: those of the sources of a component."""
  if sources == ('*',):
    return np.ones(len(store.lengths), bool)
  known = [s['name'] for s in store.manifest['sources']]
  for source in sources:
    if source not in known:
      raise errors.InputError(
        f'data.mix.{name} reads {source!r}, but {store.directory} has no such '
        f'source; nearest is {errors.nearest(source, known)!r}'
      )
  return np.isin(store.sources, [known.index(source) for source in sources])
