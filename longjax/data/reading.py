"""Reading a part of a source: its files and records as documents.

What cannot be read is counted, and so is what is left out.
"""

import dataclasses
import io
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from longjax import errors
from longjax.data import (
  conversations,
  downloads,
  formats,
  grouping,
  listing,
  token_records,
)
from longjax.data.token_records import TokenDocument

FILE_SEPARATOR = '<file_sep>'
RULE = '=' * 50  # their number is ours
MARKS = ('repo', 'file_sep', 'none')
REPOSITORIES = ('repository', 'repositories')
MIN_READ = 100  # files or records, before max_bad can end the reading
MAX_NAMED = 20  # unreadable files or records that the manifest names
LANGUAGE_CHARS = 20_000  # of a document, by which its language is recognized


class Document(NamedTuple):
  """A text; `special` are the markers in it that we wrote, not its author."""

  name: str
  text: str
  key: str = ''  # of the group that it is joined to
  special: tuple[str, ...] = ()
  chat: conversations.Conversation | None = None  # which then has no text
  token_document: TokenDocument | None = None  # of a document given as tokens


class Unit(NamedTuple):
  """A part of a source that is read by itself: groups of files.

  A group is a document if the kind joins files; an archive is a group too.
  """

  source: str
  settings: dict
  groups: list[tuple[str, list[listing.File]]]
  left_out: tuple[str, ...] = ()  # of the source, in its first unit alone
  # Whether its files are a bucket of groups, and tallies of what they hold.
  grouped: bool = False
  tallies: tuple[str, ...] = ()


@dataclasses.dataclass
class Tally:
  """What of a source was left out, as counts and names; the manifest's keys."""

  source: str
  read: int = 0  # files or records
  bad: int = 0
  named: list[str] = dataclasses.field(default_factory=list)
  short: int = 0
  language: int = 0
  where: int = 0  # records that `where` leaves out
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

  def merge(self, other: dict):
    """Adds what `as_json` gave for another part of the source."""
    for key, value in other.items():
      if key != 'source':
        total = getattr(self, key) + value
        setattr(self, key, total if type(total) is int else total[:MAX_NAMED])

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
    new = ('no_documents', 'also_named', 'where')
    return {k: v for k, v in vars(self).items() if v or k not in new}


def read(unit: Unit, tally: Tally) -> Iterator[Document]:
  """Yields the documents of a unit; counts what it leaves out."""
  settings, count = unit.settings, 0
  tally.leave_out(unit.left_out)
  for path in unit.tallies:
    tally.merge(json.loads(pathlib.Path(path).read_text()))
  for document in _documents(unit, tally):
    if document.token_document:
      if len(document.token_document.ids) < token_records.SHORTEST:
        tally.short += 1
        continue
    elif document.chat is None:
      if len(document.text) < max(1, settings['min_chars']):
        tally.short += 1
        continue
      if (
        settings['languages']
        and _language(document) not in (settings['languages'])
      ):
        tally.language += 1
        continue
    yield document
    count += 1
    if count == settings['limit']:
      return


def regroup(units, directory: pathlib.Path, run) -> list[Unit]:
  """The units of a source whose records are joined by a key.

  Args:
    units: of the source.
    directory: for the buckets, which lie in it as long as the units are read.
    run: does jobs, each the arguments of `spill`.
  """
  source, settings = units[0].source, units[0].settings
  sizes = (file.size for u in units for _, files in u.groups for file in files)
  buckets = 1 if settings['limit'] else grouping.count(sum(sizes))
  places = [directory / f'group_{source}_{i:05}' for i in range(len(units))]
  run([(unit, place, buckets) for unit, place in zip(units, places)])
  made = []
  for bucket in range(buckets):
    paths = grouping.files(places, bucket)
    files = [listing.File(p.name, str(p), p.stat().st_size) for p in paths]
    made.append(Unit(source, settings, [('', files)], grouped=True))
  tallies = tuple(str(place / grouping.TALLY) for place in places)
  return [made[0]._replace(tallies=tallies), *made[1:]]


def spill(unit: Unit, place: pathlib.Path, buckets: int):
  """Writes the records of a unit into the buckets of its groups."""
  tally = Tally(unit.source)
  tally.leave_out(unit.left_out)
  records = (
    grouping.Record(document.key, document.name, document.text)
    for _, files in unit.groups
    for document in _readable(unit, files, tally)
  )
  grouping.spill(records, tally, place, buckets)


def _documents(unit: Unit, tally: Tally) -> Iterator[Document]:
  """Yields all documents of a unit that can be read."""
  for title, files in unit.groups:
    if unit.grouped:
      for key, group in grouping.read([file.location for file in files]):
        yield _join(key, group, unit.settings)
      continue
    readable = _readable(unit, files, tally)
    if unit.settings['kind'] in listing.JOINED:
      yield _join(title, readable, unit.settings)
    else:
      yield from readable


def _readable(unit: Unit, files, tally: Tally) -> Iterator[Document]:
  """Yields a document for each file or record that can be read."""
  for fits, made in _items_of_all(unit, files):
    if not fits:
      tally.where += 1
      continue
    for one in made:
      if isinstance(one, formats.Unreadable):
        tally.add(one, unit.settings['max_bad'])
        break
      yield one
    else:
      tally.read += 1


def _items_of_all(unit: Unit, files) -> Iterator[tuple[bool, list]]:
  """Yields what `_items` does, of all files."""
  settings = unit.settings
  options = formats.Options(
    settings['kind'] in listing.JOINED, settings['kind'] == 'tokens',
    settings['encoding'], settings['dtype'],
  )  # fmt: skip
  for name, opener in _opened(settings, files):
    with opener() as file:
      yield from _items(unit, name, file, options)


def _items(unit: Unit, name: str, file, options) -> Iterator[tuple[bool, list]]:
  """Yields (whether `where` keeps it, its documents) of a record or file.

  A document is Unreadable where it cannot be read.
  """
  settings, indexed = unit.settings, None
  on_disk = name.endswith('.mds') and isinstance(file, io.BufferedReader)
  if settings['kind'] == 'tokens' and on_disk and not settings['where']:
    indexed = token_records.indexed(file.name, settings)
  if indexed:
    for number, found in enumerate(indexed):
      yield True, _of_ids(f'{name}:{number}', found)
    return
  for item in formats.read(name, file, options):
    if isinstance(item, formats.Unreadable):
      yield True, [item]
    elif isinstance(fits := matches(settings['where'], item[1]), str):
      yield True, [formats.Unreadable(item[0], fits)]
    elif settings['kind'] == 'tokens':
      yield fits, _of_ids(item[0], token_records.documents(item[1], settings))
    else:
      yield fits, [_document(unit, *item)] if fits else []


def _of_ids(name: str, made: list[TokenDocument] | str) -> list:
  """The documents of a record with ids, or why it cannot be read."""
  if isinstance(made, str):
    return [formats.Unreadable(name, made)]
  several = len(made) > 1
  names = [f'{name}:{i}' if several else name for i in range(len(made))]
  return [
    Document(title, '', token_document=one) for title, one in zip(names, made)
  ]


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


def _document(unit: Unit, name: str, value) -> Document | formats.Unreadable:
  """The document that a file's bytes or a record are."""
  settings, is_chat = unit.settings, unit.settings['kind'] == 'chat'
  if isinstance(value, bytes):
    value = _decoded(unit, name, value)
  if is_chat and isinstance(value, Mapping | list):
    return _chat(name, value, settings['text'])
  key = ''
  if isinstance(value, Mapping):
    fields = [settings[k] for k in ('text', 'group', 'file') if settings[k]]
    for field in fields:
      if not isinstance(value.get(field), str):
        return formats.Unreadable(name, token_records.lacks(value, field, str))
    if settings['group']:
      key, name = value[settings['group']], value.get(settings['file'], '')
    value = value[settings['text']]
  elif settings['group']:
    return formats.Unreadable(name, 'no record, which group needs')
  if isinstance(value, formats.Unreadable):
    return value
  if is_chat or not isinstance(value, str):
    what = 'a list of messages' if is_chat else 'text or a record'
    return formats.Unreadable(name, f'a {type(value).__name__}, not {what}')
  return Document(name, value.replace('\r\n', '\n').replace('\r', '\n'), key)


def _chat(name: str, value, field: str) -> Document | formats.Unreadable:
  try:
    found = conversations.read(value, field)
  except ValueError as error:
    return formats.Unreadable(name, f'not a conversation ({error})')
  if found is None:
    return formats.Unreadable(name, token_records.lacks(value, field, list))
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


def marks(settings) -> bool:
  """Whether files that make up a document are marked."""
  return bool(settings['file']) or settings['kind'] in REPOSITORIES


def _join(title: str, documents, settings) -> Document:
  """One document of all files of a group, with a mark before each or not."""
  mark = settings['mark'] if marks(settings) else 'none'
  parts = [f'Repo: {title}\n\n'] if mark == 'repo' else []
  for document in documents:
    name, text = document.name, document.text
    heads = dict(
      repo=f'{RULE}\nFile: {name}\n', file_sep=f'{FILE_SEPARATOR}{name}\n',
      none='',
    )  # fmt: skip
    parts += [heads[mark], text, '' if text.endswith('\n') else '\n']
  special = (FILE_SEPARATOR,) if mark == 'file_sep' else ()
  return Document(title, ''.join(parts), special=special)


def matches(where, record) -> bool | str:
  """Whether a record has the values that `where` names, or what it lacks."""
  for path, *values in where:
    value = record
    for field in path.split('.'):
      if not isinstance(value, Mapping) or field not in value:
        return f'without the field {path!r}, which where names'
      value = value[field]
    if value not in values:
      return False
  return True


def _language(document: Document) -> str:
  import py3langid  # pyright: ignore

  return py3langid.classify(document.text[:LANGUAGE_CHARS])[0]


def _printable(line: str) -> str:
  """A line that UTF-8 can encode: a file may have any bytes as its name."""
  return line.encode('utf-8', 'replace').decode()
