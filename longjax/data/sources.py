"""Sources: the keys of a source in a config, and its documents as text.

A source is a mapping with these keys, and no other:

  package, sha256   'name==version' and the digest of its archive, or
  packages          several as a tuple of ('name==version', sha256) pairs, or
  path              a file or directory, from data.root or the root of this
                    repository, or one in a bucket (gs://...);
                    data/listing.py says which files are left out
  include, exclude  a glob or a tuple of globs over names inside the archive
                    or directory; `*` also matches `/`; default everything
  encoding          'utf-8' unless given; nothing is decoded with loss, and a
                    byte order mark in front is no text
  kind              'files': every file is a document, or every record of a
                    file of records (data/formats.py);
                    'repository': all files of a package or path make up one
                    document, in order of path;
                    'repositories': so for each directory in path;
                    'directories': the files of each directory, one after
                    another in random order (Focused Transformer,
                    arXiv:2307.03170, appendix);
                    'chat': records with conversations, of any form that
                    data/conversations.py knows;
                    'tokens': records with token ids
                    (data/token_records.py), to which nothing is added
  mark              before the files of a repository: 'repo', as ProLong
                    (arXiv:2410.02660) released them, 'Repo: NAME' once and a
                    line of = and 'File: PATH' before each; 'file_sep', the
                    token of StarCoder2 and SmolLM2 and the path; or 'none'
  where             of records, (field, value, ...) tuples: all fields must have
                    one of their values, 'meta.name' is a field in a field
  group             a field of records: those of one value become a document,
                    wherever they lie, with `file`, the field of their path, as
                    files of a repository (data/grouping.py)
  text              the field of a record that is its text, its list of
                    messages or its ids; default 'text', for chat 'messages',
                    'conversations' or Alpaca's columns, for tokens 'input_ids'
  split             of a data set with several, as 'train'; '*' is all
  dtype             tokens: of the ids in a .bin, as 'uint16'
  tokenizer         tokens: the digest of the tokenizer that made them, or its
                    first 12 digits at least; unknown unless given
  template          chat: as in data/chat.py; the tokenizer's own unless given
  loss              chat, tokens: 'answers', those that a mask names, or 'all'
  min_chars         shorter documents are left out; empty ones always are
  limit             at most so many documents; 0 is all
  languages         only documents in these, as ('en', 'de'); () is all; needs
                    the package py3langid
  duplicates        'keep'; 'exact': of documents with equal tokens the first
                    is kept; 'near': also of such whose words are 80 % the
                    same (MinHash; needs the package datasketch)
  max_bad           share of files or records that may be unreadable; these
                    are left out, counted and named in the manifest, beyond it
                    nothing is made

Line ends become '\\n', as Python's text files have it.
"""

import importlib.util
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from longjax import errors
from longjax.config import Key, check_value
from longjax.data import chat, listing, reading, token_records

DEFAULTS = dict(
  package='', sha256='', packages=(), path='', include='*', exclude=(),
  encoding='utf-8', kind='files', mark='repo', where=(), group='', file='',
  text='', split='', dtype='', tokenizer='', template='', loss='answers',
  min_chars=0, limit=0, languages=(), duplicates='keep', max_bad=0.001,
)  # fmt: skip
BOUNDS: dict[str, dict] = dict(
  exclude=dict(each=str),
  kind=dict(choices=('files', *listing.JOINED, 'chat', 'tokens')),
  mark=dict(choices=reading.MARKS),
  dtype=dict(choices=('', *token_records.DTYPES)),
  loss=dict(choices=chat.LOSSES),
  min_chars=dict(bounds='[0, inf)'),
  limit=dict(bounds='[0, inf)'),
  languages=dict(each=str),
  duplicates=dict(choices=('keep', 'exact', 'near')),
  max_bad=dict(bounds='[0, 1]'),
)
# What each means stands at the top of this file.
KEYS = {k: Key(v, '', **BOUNDS.get(k, {})) for k, v in DEFAULTS.items()}
FIELDS = dict(chat='messages', tokens='input_ids')  # default of `text`
# Not in the fingerprint of a source that does not set them, which so stays that
# of the stores which are older than these keys.
ADDED = ('split', 'dtype', 'tokenizer', 'where', 'group', 'file', 'mark')
UNIT_BYTES = 1 << 26  # of files that are read and tokenized as one


def check(name: str, source: Mapping) -> dict:
  """The source with all keys; InputError for what it cannot be."""
  source = dict(source.items())
  title = f'source {name!r}'
  errors.refuse_unknown_keys(title, source, KEYS)
  settings: dict[str, Any] = DEFAULTS | source
  for k, value in settings.items():
    globs = k in ('include', 'exclude') and isinstance(value, str | tuple)
    for x in value if globs and isinstance(value, tuple) else [value]:
      check_value(f'{title}: {k}', x, KEYS['include'] if globs else KEYS[k])
  if not all(
    isinstance(p, tuple) and len(p) == 2 for p in settings['packages']
  ):
    raise errors.InputError(
      f"{title}: packages are ('name==version', sha256) pairs, got "
      f'{settings["packages"]!r}'
    )
  if sum(bool(settings[key]) for key in ('package', 'packages', 'path')) != 1:
    raise errors.InputError(
      f"{title} needs one of 'package', 'packages' and 'path', got "
      f'{sorted(source)}'
    )
  _check_kind(title, settings)
  for package, key, needed in (
    ('py3langid', 'languages', settings['languages']),
    ('datasketch', 'duplicates', settings['duplicates'] == 'near'),
  ):
    if needed and not importlib.util.find_spec(package):
      raise errors.InputError(
        f'{title}: {key}={settings[key]!r} needs the package {package}; '
        f'pip install {package}'
      )
  return settings


def _check_kind(title: str, settings):
  """InputError for keys of another kind; fills in the defaults of this one."""
  kind, near = settings['kind'], settings['duplicates'] == 'near'
  no_text, needs = kind == 'tokens', "kind 'tokens' has no text, which"
  for condition in settings['where']:
    if not isinstance(condition, tuple) or len(condition) < 2:
      raise errors.InputError(
        f'{title}: where has (field, value, ...) tuples, not {condition!r}'
      )
  for key, is_wrong, why in (
    ('template', kind != 'chat', "template needs kind='chat'"),
    ('group', kind != 'files', "group needs kind='files'"),
    ('file', not settings['group'], 'file needs group, a field of records'),
    ('min_chars', no_text, f'{needs} min_chars needs'),
    ('languages', no_text, f'{needs} languages needs'),
    ('duplicates', no_text and near, f"{needs} 'near' needs; set 'exact'"),
    ('dtype', not no_text, f"dtype is of kind 'tokens', not {kind!r}"),
    ('tokenizer', not no_text, f"tokenizer is of kind 'tokens', not {kind!r}"),
  ):
    if settings[key] and is_wrong:
      raise errors.InputError(f'{title}: {why}')
  if kind == 'chat':
    settings['template'] = settings['template'] or chat.FROM_TOKENIZER
    chat.check_template(settings['template'])
  settings['text'] = settings['text'] or FIELDS.get(kind, 'text')


def rooted(wanted: Mapping, root: str) -> dict[str, Mapping]:
  """Sources whose relative paths begin at a directory."""
  is_relative = lambda path: path and '://' not in path and path[0] not in '/~'
  return {
    name: dict(source) | dict(path=f'{root.rstrip("/")}/{source["path"]}')
    if root and is_relative(source.get('path', ''))
    else source
    for name, source in wanted.items()
  }


def documents(
  name: str, source: Mapping, log=print
) -> Iterator[reading.Document]:
  """Yields the documents of a source, always in the same order.

  Args:
    name: the source's name in the config.
    source: see the top of this file.
    log: called with a line when something is fetched.
  """
  tally, count = reading.Tally(name), 0
  whole = units(name, source, log)
  with tempfile.TemporaryDirectory() as place:
    if whole[0].settings['group']:
      whole = reading.regroup(
        whole,
        pathlib.Path(place),
        lambda jobs: [reading.spill(*job) for job in jobs],
      )
    for unit in whole:
      for document in reading.read(unit, tally):
        yield document
        count += 1
  require_documents(check(name, source), tally, count)


def require_documents(settings: dict, tally: reading.Tally, count: int):
  """InputError if a source that was read whole gave nothing, or too much bad.

  Args:
    settings: the source with all keys.
    tally: of all its units.
    count: documents that it gave.
  """
  tally.check(settings['max_bad'])
  if not count:
    place = settings['path'] or settings['package'] or settings['packages']
    if tally.bad:
      raise errors.InputError(
        f'source {tally.source!r} has no documents: {tally.bad} of '
        f'{tally.read} files or records in {place} cannot be read, the first: '
        f'{tally.named[0]} (max_bad is {settings["max_bad"]:g})'
      )
    others = '; '.join(tally.also_named)
    raise errors.InputError(
      f'source {tally.source!r} has no documents: nothing in {place} '
      f'{"(left out: " + others + ") " if others else ""}matches '
      f'include={settings["include"]!r}, exclude={settings["exclude"]!r}, '
      f'min_chars={settings["min_chars"]}, languages={settings["languages"]}, '
      f'where={settings["where"]}'
    )


def units(name: str, source: Mapping, log=print) -> list[reading.Unit]:
  """The parts in which a source is read, the same in every process."""
  settings = check(name, source)
  groups, left_out = listing.groups(name, settings, log)
  made, size = [reading.Unit(name, settings, [], tuple(left_out))], 0
  for title, files in groups:
    if size >= UNIT_BYTES and not settings['limit']:
      made.append(reading.Unit(name, settings, []))
      size = 0
    made[-1].groups.append((title, files))
    size += sum(file.size for file in files)
  return made


def fingerprint(name: str, source: Mapping) -> list:
  """What a source reads, as JSON: its keys and digests of its files."""
  settings = check(name, source)
  files = listing.list_files(name, settings).files if settings['path'] else []
  del settings['max_bad']  # of what was read, none changes with it
  if not reading.marks(settings) or settings['mark'] == 'file_sep':
    settings['mark'] = ''  # as it was before there was this key
  for key in ADDED:
    if not settings[key]:
      del settings[key]
  return [name, settings, [[f.name, listing.digest(f)] for f in files]]
