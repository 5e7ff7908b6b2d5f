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
                    document, in order of path, each after a line
                    '<file_sep>PATH' (ProLong, arXiv:2410.02660, concatenates
                    the files of a repository; the marker is that of
                    StarCoder2 and SmolLM2);
                    'repositories': so for each directory in path;
                    'directories': the files of each directory, one after
                    another in random order (Focused Transformer,
                    arXiv:2307.03170, appendix);
                    'chat': records with conversations, of any form that
                    data/conversations.py knows;
                    'tokens': records with token ids (data/given.py), to which
                    nothing is added
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

import dataclasses
import importlib.util
import io
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from longjax import errors
from longjax.config import Key, check_value
from longjax.data import (
  chat,
  conversations,
  downloads,
  formats,
  given,
  listing,
)
from longjax.data.given import Given

FILE_SEPARATOR = '<file_sep>'
KEYS = {
  'package': Key('', 'a package of a Python package registry'),
  'sha256': Key('', 'of its archive'),
  'packages': Key((), 'several'),
  'path': Key('', 'a file or directory'),
  'include': Key('*', 'a glob or a tuple of globs'),
  'exclude': Key((), 'a glob or a tuple of globs', each=str),
  'encoding': Key('utf-8', 'of text'),
  'kind': Key(
    'files',
    'what is a document',
    choices=('files', *listing.JOINED, 'chat', 'tokens'),
  ),
  'text': Key('', 'field of a record'),
  'split': Key('', 'of a data set'),
  'dtype': Key('', 'of ids in a .bin', choices=('', *given.DTYPES)),
  'tokenizer': Key('', 'digest of what made the ids'),
  'template': Key('', 'of chats'),
  'loss': Key('answers', 'of chats', choices=chat.LOSSES),
  'min_chars': Key(0, 'of a document', '[0, inf)'),
  'limit': Key(0, 'documents at most', '[0, inf)'),
  'languages': Key((), 'that are kept', each=str),
  'duplicates': Key(
    'keep', 'which are dropped', choices=('keep', 'exact', 'near')
  ),
  'max_bad': Key(0.001, 'share of unreadable ones', '[0, 1]'),
}
FIELDS = dict(chat='messages', tokens='input_ids')  # default of `text`
# Not in the fingerprint of a source that does not set them, which so stays that
# of the stores which are older than these keys.
ADDED = ('split', 'dtype', 'tokenizer')
MIN_READ = 100  # files or records, before max_bad can end the reading
MAX_NAMED = 20  # unreadable files or records that the manifest names
UNIT_BYTES = 1 << 26  # of files that are read and tokenized as one
LANGUAGE_CHARS = 20_000  # of a document, by which its language is recognized


class Document(NamedTuple):
  """A text; `special` are the markers in it that we wrote, not its author."""

  name: str
  text: str
  special: tuple[str, ...] = ()
  chat: conversations.Conversation | None = None  # which then has no text
  given: Given | None = None  # of a document given as tokens


class Unit(NamedTuple):
  """A part of a source that is read by itself: groups of files.

  A group is a document if the kind joins files; an archive is a group too.
  """

  source: str
  settings: dict
  groups: list[tuple[str, list[listing.File]]]
  left_out: tuple[str, ...] = ()  # of the source, in its first unit alone


@dataclasses.dataclass
class Tally:
  """What of a source was left out, as counts and names; the manifest's keys."""

  source: str
  read: int = 0  # files or records
  bad: int = 0
  named: list[str] = dataclasses.field(default_factory=list)
  short: int = 0
  language: int = 0
  no_documents: int = 0  # files that cannot hold one; not among `read`
  also_named: list[str] = dataclasses.field(default_factory=list)

  def add(self, bad: formats.Unreadable, max_bad: float):
    """Counts an unreadable one; InputError if there are too many so far."""
    self.read += 1
    self.bad += 1
    line = f'{bad.name} is {bad.reason}'
    self.named = [*self.named, _printable(line)][:MAX_NAMED]
    if self.read >= MIN_READ:
      self.check(max_bad)

  def leave_out(self, lines):
    """Counts files that are no documents, each 'NAME: why'."""
    self.no_documents += len(lines)
    self.also_named = [*self.also_named, *map(_printable, lines)][:MAX_NAMED]

  def check(self, max_bad: float):
    """InputError if the share of unreadable ones is larger."""
    if self.bad > max_bad * self.read:
      cure = 'set encoding, ' if ' is not utf-8' in self.named[0] else ''
      raise errors.InputError(
        f'source {self.source!r}: {self.bad} of {self.read} files or records '
        f'cannot be read, the first: {self.named[0]}; {cure}exclude files, or '
        f'allow a larger share (max_bad is {max_bad:g})'
      )

  def as_json(self) -> dict:
    """For the manifest, without what older stores do not have."""
    new = ('no_documents', 'also_named')
    return {k: v for k, v in vars(self).items() if v or k not in new}


def check(name: str, source: Mapping) -> dict:
  """The source with all keys; InputError for what it cannot be."""
  source = dict(source.items())
  title = f'source {name!r}'
  errors.refuse_unknown_keys(title, source, KEYS)
  settings: dict[str, Any] = {
    k: key.default for k, key in KEYS.items()
  } | source
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
  if settings['kind'] == 'chat':
    settings['template'] = settings['template'] or chat.OWN
    chat.check_template(settings['template'])
  elif settings['template']:
    raise errors.InputError(f"{title}: a template is of kind 'chat' alone")
  if settings['kind'] == 'tokens':
    for key in ('min_chars', 'languages'):
      if settings[key]:
        raise errors.InputError(
          f"{title}: kind 'tokens' has no text, which {key} needs"
        )
    if settings['duplicates'] == 'near':
      raise errors.InputError(
        f"{title}: kind 'tokens' has no text, which duplicates='near' needs; "
        "set duplicates='exact'"
      )
  elif settings['dtype'] or settings['tokenizer']:
    raise errors.InputError(
      f"{title}: dtype and tokenizer are of kind 'tokens', not of "
      f'{settings["kind"]!r}'
    )
  settings['text'] = settings['text'] or FIELDS.get(settings['kind'], 'text')


def rooted(wanted: Mapping, root: str) -> dict[str, Mapping]:
  """Sources whose relative paths begin at a directory."""
  return {
    name: dict(source) | dict(path=f'{root.rstrip("/")}/{source["path"]}')
    if root and _is_relative(source.get('path', ''))
    else source
    for name, source in wanted.items()
  }


def _is_relative(path) -> bool:
  return bool(path) and '://' not in path and path[0] not in '/~'


def documents(name: str, source: Mapping, log=print) -> Iterator[Document]:
  """Yields the documents of a source, always in the same order.

  Args:
    name: the source's name in the config.
    source: see the top of this file.
    log: called with a line when something is fetched.
  """
  tally, count = Tally(name), 0
  for unit in units(name, source, log):
    for document in read(unit, tally):
      yield document
      count += 1
  finish(check(name, source), tally, count)


def finish(settings: dict, tally: Tally, count: int):
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
      f'min_chars={settings["min_chars"]}, languages={settings["languages"]}'
    )


def units(name: str, source: Mapping, log=print) -> list[Unit]:
  """The parts in which a source is read, the same in every process."""
  settings = check(name, source)
  groups, left_out = listing.groups(name, settings, log)
  made, size = [Unit(name, settings, [], tuple(left_out))], 0
  for title, files in groups:
    if size >= UNIT_BYTES and not settings['limit']:
      made.append(Unit(name, settings, []))
      size = 0
    made[-1].groups.append((title, files))
    size += sum(file.size for file in files)
  return made


def read(unit: Unit, tally: Tally) -> Iterator[Document]:
  """Yields the documents of a unit; counts what it leaves out."""
  settings, count = unit.settings, 0
  tally.leave_out(unit.left_out)
  for document in _documents(unit, tally):
    if document.given:
      if len(document.given.ids) < given.SHORTEST:
        tally.short += 1
        continue
    elif document.chat is None:
      if len(document.text) < max(1, settings['min_chars']):
        tally.short += 1
        continue
      if settings['languages'] and not _in_languages(
        document.text, settings['languages']
      ):
        tally.language += 1
        continue
    yield document
    count += 1
    if count == settings['limit']:
      return


def fingerprint(name: str, source: Mapping) -> list:
  """What a source reads, as JSON: its keys and digests of its files."""
  settings = check(name, source)
  files = listing.list_files(name, settings).files if settings['path'] else []
  del settings['max_bad']  # of what was read, none changes with it
  for key in ADDED:
    if not settings[key]:
      del settings[key]
  return [name, settings, [[f.name, listing.digest(f)] for f in files]]


def _documents(unit: Unit, tally: Tally) -> Iterator[Document]:
  """Yields all documents of a unit that can be read."""
  for title, files in unit.groups:
    readable = _readable(unit, files, tally)
    if unit.settings['kind'] in listing.JOINED:
      yield _join(title, readable, unit.settings['kind'] != 'directories')
    else:
      yield from readable


def _readable(unit: Unit, files, tally: Tally) -> Iterator[Document]:
  """Yields a document for each file or record that can be read."""
  settings = unit.settings
  options = formats.Options(
    settings['kind'] in listing.JOINED, settings['kind'] == 'tokens',
    settings['encoding'], settings['dtype'],
  )  # fmt: skip
  for name, opener in _opened(settings, files):
    with opener() as file:
      found = _indexed(unit, name, file)
      for item in found or formats.read(name, file, options):
        bad = isinstance(item, formats.Unreadable)
        for one in [item] if bad else _from_record(unit, *item):
          if isinstance(one, formats.Unreadable):
            tally.add(one, settings['max_bad'])
            break
          yield one
        else:
          tally.read += 1


def _indexed(unit: Unit, name: str, file) -> Iterator | None:
  """As formats.read, of a shard on a disk whose ids need not be copied."""
  on_disk = name.endswith('.mds') and isinstance(file, io.BufferedReader)
  if unit.settings['kind'] != 'tokens' or not on_disk:
    return None
  made = given.indexed(file.name, unit.settings)
  return made and ((f'{name}:{i}', found) for i, found in enumerate(made))


def _opened(settings, files) -> Iterator:
  """Yields (name, function that opens it), of members of archives too."""
  for file in files:
    path = listing.locate(file.location)
    if settings['path']:
      yield file.name, lambda path=path: path.open('rb')
    else:
      globs = settings['include'], settings['exclude']
      for name, raw in downloads.members(path, *globs):
        yield name, lambda raw=raw: io.BytesIO(raw)


def _from_record(
  unit: Unit, name: str, value
) -> list[Document | formats.Unreadable]:
  """The document, or documents, that a file's bytes or a record are."""
  if unit.settings['kind'] != 'tokens':
    return [_document(unit, name, value)]
  made = value
  if not isinstance(value, list) or not isinstance(value[0], Given):
    made = given.documents(value, unit.settings)
  if isinstance(made, str):
    return [formats.Unreadable(name, made)]
  names = (
    [name] if len(made) == 1 else [f'{name}:{i}' for i in range(len(made))]
  )
  return [Document(title, '', given=one) for title, one in zip(names, made)]


def _document(unit: Unit, name: str, value) -> Document | formats.Unreadable:
  """The document that a file's bytes or a record are."""
  settings, is_chat = unit.settings, unit.settings['kind'] == 'chat'
  if isinstance(value, bytes):
    value = _decoded(unit, name, value)
  if is_chat and isinstance(value, Mapping | list):
    return _chat(name, value, settings['text'])
  if isinstance(value, Mapping):
    if not isinstance(value.get(settings['text']), str):
      return formats.Unreadable(name, given.lacks(value, settings['text'], str))
    value = value[settings['text']]
  if isinstance(value, formats.Unreadable):
    return value
  if is_chat or not isinstance(value, str):
    what = 'a list of messages' if is_chat else 'text or a record'
    return formats.Unreadable(name, f'a {type(value).__name__}, not {what}')
  return Document(name, value.replace('\r\n', '\n').replace('\r', '\n'))


def _chat(name: str, value, field: str) -> Document | formats.Unreadable:
  try:
    found = conversations.read(value, field)
  except ValueError as error:
    return formats.Unreadable(name, f'not a conversation ({error})')
  if found is None:
    return formats.Unreadable(name, given.lacks(value, field, list))
  return Document(name, '', chat=found)


def _decoded(unit: Unit, name: str, raw: bytes) -> str | formats.Unreadable:
  """The text of a file."""
  encoding = unit.settings['encoding']
  try:
    text = raw.decode(encoding).removeprefix('\ufeff')
  except UnicodeDecodeError as error:
    where = f'byte {error.start} of {len(raw)}'
    return formats.Unreadable(name, f'not {encoding} ({where})')
  except LookupError as error:
    raise errors.InputError(f'source {unit.source!r}: {error}') from error
  if '\0' in text:
    return formats.Unreadable(
      name, f'binary (character {text.index(chr(0))} is NUL)'
    )
  return text


def _join(title, documents, marked: bool) -> Document:
  """One document of all files of a group, with a mark before each or not."""
  parts = []
  for document in documents:
    end = '' if document.text.endswith('\n') else '\n'
    mark = f'{FILE_SEPARATOR}{document.name}\n' if marked else ''
    parts.append(f'{mark}{document.text}{end}')
  return Document(title, ''.join(parts), (FILE_SEPARATOR,) if marked else ())


def _in_languages(text: str, languages) -> bool:
  import py3langid  # pyright: ignore

  return py3langid.classify(text[:LANGUAGE_CHARS])[0] in languages


def _printable(line: str) -> str:
  """A line that UTF-8 can encode: a file may have any bytes as its name."""
  return line.encode('utf-8', 'replace').decode()
