"""Which files a source has, and which of them make up a document.

What holds no document is left out and named: files and directories whose name
starts with a dot (those of git and of caches without a line), links that leave
the source (but those from snapshots/ into blobs/, as the cache of the hub has
them), and beside files of records what describes them (README.md,
dataset_infos.json, ...).
"""

import hashlib
import pathlib
import re
from typing import Any, NamedTuple

import numpy as np

from longjax import errors, hub, json_text, storage
from longjax.data import downloads, formats

ROOT = pathlib.Path(__file__).resolve().parents[2]
JOINED = ('repository', 'repositories', 'directories')  # files to a document
WHOLE_BYTES = 1 << 23  # files up to this are hashed whole for the fingerprint


class File(NamedTuple):
  """A file of a source."""

  name: str  # inside the path of the source
  location: str
  size: int


LEFT_OUT_SILENTLY = (
  '.git', '.gitattributes', '.gitignore', '.cache', '.huggingface',
)  # fmt: skip
METADATA = re.compile(
  r'readme(\.\w+)?|licen[cs]e(\.\w+)?|dataset_infos?\.json|dataset_dict\.json'
  r'|state\.json|croissant\.json',
  re.IGNORECASE,
)
SPLITS = {  # the names that the hub knows
  word: split
  for split, words in dict(
    train=('train', 'training'),
    validation=('validation', 'valid', 'val', 'dev'),
    test=('test', 'testing', 'eval', 'evaluation'),
  ).items()
  for word in words
}
SPLIT = re.compile(rf'(?<![a-z])({"|".join(SPLITS)})(?![a-z])')


class Listing(NamedTuple):
  """The files of a source in order of name, and what was left out."""

  files: list[File]
  left_out: list[str]  # 'NAME: why'


def groups(name, settings, log) -> tuple[list[tuple[str, list[File]]], list]:
  """(files by the document that they become, what was left out)."""
  if not settings['path']:
    pins = settings['packages'] or ((settings['package'], settings['sha256']),)
    archives = [(pin, downloads.fetch(pin, sha, log)) for pin, sha in pins]
    return [
      (title, [File(path.name, str(path), path.stat().st_size)])
      for title, path in archives
    ], []
  (files, left_out), kind = list_files(name, settings), settings['kind']
  if kind not in JOINED:
    formats.check(file.name for file in files)
    return [(file.name, [file]) for file in files], left_out
  grouped: dict[str, list[File]] = {}
  for file in files:
    inside = pathlib.PurePosixPath(file.name)
    title = pathlib.PurePath(settings['path']).name
    if kind == 'repositories':
      title = inside.parts[0]
    elif kind == 'directories':
      title = inside.parent.as_posix()
    grouped.setdefault(title, []).append(file)
  if kind == 'directories':
    for title, files in grouped.items():  # always the same random order
      seed = hashlib.sha256(title.encode('utf-8', 'replace')).digest()[:8]
      rng = np.random.default_rng(int.from_bytes(seed, 'little'))
      grouped[title] = [files[i] for i in rng.permutation(len(files))]
  return list(grouped.items()), left_out


def locate(location: str):
  """A local path, or one in a bucket."""
  if not storage.is_remote(location):
    return ROOT / pathlib.Path(location).expanduser()
  from etils import epath

  return epath.Path(location)


def find_root(settings):
  """The path of a source, fetched if it is on the Hub."""
  globs = settings['include'], settings['exclude']
  keep = lambda names: [n for n in names if downloads.matches(n, *globs)]
  return locate(str(hub.resolve(settings['path'], keep)))


def list_files(name, settings) -> Listing:
  """The files of a path source that may hold documents."""
  title = f'source {name!r}'
  try:
    root = find_root(settings)
    if root.is_file():
      return Listing([File(root.name, str(root), _size(root))], [])
    if not root.is_dir():
      raise errors.InputError(f'{title}: {root}: no such file or directory')
    files, left_out = _walk(root, settings)
  except errors.InputError:
    raise
  except Exception as error:  # of clients of buckets, any
    if '://' not in settings['path']:
      raise
    reason = ' '.join(str(error).split())
    raise errors.InputError(
      f'{title}: cannot read {settings["path"]}: {reason} '
      f'({type(error).__name__})'
    ) from error
  files = _of_one_revision(title, files)
  if settings['kind'] not in JOINED and formats.are_data_set(
    f.name for f in files if not METADATA.fullmatch(f.name.rpartition('/')[2])
  ):
    paths = [pathlib.PurePosixPath(f.name) for f in files]
    saved = [p.parent for p in paths if p.name == 'dataset_dict.json']
    files, described = _without_metadata(title, files)
    left_out += described
    files = _of_one_split(title, files, saved, settings)
  elif settings['split']:
    raise errors.InputError(
      f'{title}: {settings["path"]} has no files of records, which '
      f'split={settings["split"]!r} needs'
    )
  return Listing(sorted(files), sorted(left_out))


def _walk(root, settings) -> tuple[list[File], list[str]]:
  """(files that match the globs, links that are left out)."""
  files, links, left_out, hidden = [], [], [], set()
  is_local = isinstance(root, pathlib.Path)
  for path in root.rglob('*') if is_local else storage.files_below(root):
    inside = path.relative_to(root)
    name = inside.as_posix()
    if not downloads.matches(name, settings['include'], settings['exclude']):
      continue
    dots = [i for i, x in enumerate(inside.parts, 1) if x.startswith('.')]
    if dots:
      hidden.add('/'.join(inside.parts[: dots[0]]))
      continue
    if isinstance(path, pathlib.Path) and path.is_symlink():
      links.append((name, path))
    elif path.is_file():
      files.append(File(name, str(path), _size(path)))
  for name in sorted(hidden):
    if pathlib.PurePosixPath(name).name not in LEFT_OUT_SILENTLY:
      left_out.append(f'{name}: its name starts with a dot')
  known = {str(storage.real(f.location)) for f in files if links}
  known = {name for name in known if '/blobs/' not in name}
  targets = storage.link_targets(root) if links else []
  for name, path in links:
    target = storage.real(path)
    if not any(target.is_relative_to(place) for place in targets):
      left_out.append(f'{name}: a link that leaves {root}')
    elif not target.exists():
      left_out.append(f'{name}: a link to nothing')
    elif target.is_dir() or (str(target) in known):
      left_out.append(f'{name}: another name of what is in {root} itself')
    else:
      files.append(File(name, str(path), _size(path)))
  return files, left_out


def _of_one_revision(title: str, files) -> list[File]:
  """Of a cache of the hub, the files by their names; InputError if two."""
  revisions: dict[tuple, set] = {}
  for file in files:
    parts = pathlib.PurePosixPath(file.name).parts
    if 'snapshots' in parts[:-2]:
      at = parts.index('snapshots')
      revisions.setdefault(parts[:at], set()).add(parts[at + 1])
  for cache, names in revisions.items():
    if len(names) > 1:
      place = '/'.join([*cache, 'snapshots'])
      raise errors.InputError(
        f'{title}: {place} has {len(names)} revisions, '
        f'{", ".join(sorted(names))}: choose one, '
        f"include='{place}/{min(names)}/*'"
      )

  content = tuple('/'.join([*cache, kind, '']) for cache in revisions
                  for kind in ('blobs', 'refs'))  # fmt: skip
  return [file for file in files if not file.name.startswith(content)]


def _without_metadata(title: str, files) -> tuple[list[File], list[str]]:
  """(files of a data set that may hold records, the others)."""
  kept, left_out = [], []
  names = {file.name: file for file in files}
  saved: dict[str, set] = {}  # directory: the arrow files of its state.json
  for name, file in names.items():
    inside = pathlib.PurePosixPath(name)
    about = inside.name == 'state.json' and _read_json(file, '_data_files')
    if about:
      saved[str(inside.parent)] = {f.get('filename') for f in about}
  for name, file in names.items():
    inside = pathlib.PurePosixPath(name)
    where = saved.get(str(inside.parent))
    if METADATA.fullmatch(inside.name):
      left_out.append(f'{name}: about the data')
    elif where and inside.suffix == '.arrow' and inside.name not in where:
      left_out.append(f'{name}: not of the saved data set')
    elif inside.name == 'index.json' and (about := _read_json(file, 'shards')):
      _check_shards(title, inside, about, names)
    else:
      kept.append(file)
  return kept, left_out


def _read_json(file: File, key: str) -> list:
  """The mappings in a list of a JSON file; [] of any other."""
  try:
    value = json_text.loads(storage.content(file.location))[key]
    return [x for x in value if isinstance(x, dict)]
  except (OSError, ValueError, TypeError, KeyError):
    return []


def _check_shards(title: str, index, about, names):
  """InputError for a shard of an index.json that is missing or was cut."""
  for shard in about:
    wanted = [shard.get(k) for k in ('raw_data', 'zip_data')]
    found = [w for w in wanted if isinstance(w, dict) and 'basename' in w]
    places = [(index.parent / str(w['basename'])).as_posix() for w in found]
    sizes = [(names[p].size, w.get('bytes'))
             for p, w in zip(places, found) if p in names]  # fmt: skip
    if found and not any(size == wanted for size, wanted in sizes):
      wrong = 'is missing'
      if sizes:
        wrong = 'has {} bytes, not {}'.format(*sizes[0])
      raise errors.InputError(
        f'{title}: {places[0]}, which {index} lists, {wrong}; fetch it again, '
        f'or exclude {str(index)!r}'
      )


def _split(name: str, saved) -> str:
  """Which split a file is of by its name, or ''; `saved` are DatasetDicts."""
  path = pathlib.PurePosixPath(name)
  for place in saved:
    if path.is_relative_to(place) and path.parent != place:
      return path.relative_to(place).parts[0]
  for part in reversed(path.parts):
    if match := SPLIT.search(part.lower()):
      return SPLITS[match[1]]
  return ''


def _of_one_split(title: str, files, saved, settings) -> list[File]:
  """The files of settings['split']; InputError if that leaves a choice."""
  wanted, found = settings['split'], {f: _split(f.name, saved) for f in files}
  splits = sorted(set(found.values()) - {''})
  there = f'{title}: {settings["path"]} has '
  if not wanted and len(splits) > 1:
    likely = 'train' if 'train' in splits else splits[0]
    raise errors.InputError(
      f'{there}the splits {", ".join(splits)}: set split={likely!r}, or '
      "split='*' for all"
    )
  if wanted in ('', '*'):
    return files
  if wanted not in splits:
    wanted = SPLITS.get(wanted, wanted)
  if wanted not in splits:
    raise errors.InputError(
      f'{there}no split {settings["split"]!r}, but '
      f'{", ".join(splits) or "no named ones"}'
    )
  return [file for file, split in found.items() if split == wanted]


def _size(path) -> int:
  status: Any = path.stat()
  if hasattr(status, 'length'):
    return status.length
  if storage.is_sparse(status):
    raise errors.InputError(
      f'{path} has {status.st_size:,} bytes, but no content'
    )
  return status.st_size


def digest(file: File) -> str:
  """Of a file, or of a large one's size and 64 pieces.

  One in a bucket is known by its size and time.
  """
  path = locate(file.location)
  if '://' in file.location:
    status: Any = path.stat()
    return f'{status.length} {status.mtime}'
  if file.size <= WHOLE_BYTES:
    return downloads.sha256_of(path)
  hashed = hashlib.sha256(str(file.size).encode())
  with open(path, 'rb') as handle:
    for start in np.linspace(0, file.size - (1 << 16), 64).astype(int).tolist():
      handle.seek(start)
      hashed.update(handle.read(1 << 16))
  return hashed.hexdigest()
