"""Repositories of the Hugging Face Hub as local directories.

  hf://ORG/NAME[@REVISION][/PATH]            a model
  hf://datasets/ORG/NAME[@REVISION][/PATH]   a data set

`huggingface_hub` fetches what is asked for into its own cache, where it also
resumes; HF_TOKEN, HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE hold as its
documentation has them. The commit of what was fetched is in the local path.
"""

import contextlib
import functools
import hashlib
import importlib.util
import json
import os
import pathlib
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from longjax import cache, errors, storage

PREFIX = 'hf://'
NAME = re.compile(
  r'hf://(?P<kind>(datasets|models)/)?(?P<repo>[\w.-]+/[\w.-]+)'
  r'(@(?P<revision>refs/(pr/\d+|convert/\w+)|[^/@]+))?(/(?P<inside>.+))?'
)
CACHED = re.compile(
  r'(?P<kind>model|dataset)s--(?P<org>.+?)--(?P<name>[^/]+)'
  r'/snapshots/(?P<commit>[0-9a-f]{40})'
)
TOKENIZER = re.compile(
  r'(tokenizer|spiece|special_tokens|added_tokens|chat_template)[^/]*'
  r'|config\.json'
)
# What git has instead of a large file where git-lfs did not fetch it.
POINTER = b'version https://git-lfs.github.com/'
LFS_POINTER = 'a pointer of git-lfs; fetch the file: git lfs pull'
RETRIES = 5  # of a range, without a byte in between
RESOLVED: dict[str, str] = {}  # by this process: name -> with its commit
LARGE = '.safetensors'  # what `stream` reads by ranges
# Of weights in several formats, the first that there is.
FORMATS = (
  r'.*\.safetensors', r'.*\.gguf', r'consolidated\.\d+\.pth',
  r'pytorch_model.*\.bin',
)  # fmt: skip


def forget():
  """Clears cached listings, so that the next look-up asks the Hub again."""
  _listed.cache_clear()
  RESOLVED.clear()


def is_name(path) -> bool:
  """Whether a path names something on the Hub."""
  return str(path).startswith(PREFIX)


def origin(path) -> str:
  """The name of what lies in the cache, with its commit; '' of other paths."""
  match = CACHED.search(pathlib.Path(path).absolute().as_posix())
  if not match:
    return ''
  kind = 'datasets/' if match['kind'] == 'dataset' else ''
  return f'{PREFIX}{kind}{match["org"]}/{match["name"]}@{match["commit"]}'


def sha256(path) -> str:
  """What the Hub says of a file in its cache; '' where it says nothing.

  The library names large files so, and compares only their size.
  """
  real = storage.real(path)
  digest = real.parent.name == 'blobs' and re.fullmatch(
    '[0-9a-f]{64}', real.name
  )
  return real.name if digest else ''


def of_weights(names: list[str]) -> list[str]:
  """The files of a model: its weights in one format, settings, tokenizer."""
  top = [n for n in names if '/' not in n]
  if 'config.json' in top:  # Mistral's repositories have both forms
    second = re.compile(r'consolidated.*|params\.json')
    top = [n for n in top if not second.fullmatch(n)]
  for pattern in FORMATS:
    found = [n for n in top if re.fullmatch(pattern, n)]
    if len(found) > 1 and pattern.endswith('gguf'):
      raise errors.InputError(
        f'{len(found)} .gguf files: name one, as {found[0]}'
      )
    if found:
      others = re.compile(r'.*\.json|' + TOKENIZER.pattern)
      return found + [n for n in top if others.fullmatch(n)]
  return names  # a run directory of ours


def of_tokenizer(names: list[str]) -> list[str]:
  """The files of a tokenizer, or those of weights that hold one."""
  found = [n for n in names if TOKENIZER.fullmatch(n)]
  if any(n in ('tokenizer.json', 'tokenizer.model') for n in found):
    return found
  return of_weights(names)


def resolve(path, choose: Callable = of_weights):
  """The local path of a name on the Hub; any other path as it is."""
  return local(path, choose) if is_name(path) else path


def local(name, choose: Callable) -> pathlib.Path:
  """The file or directory of a name, fetched if it is not in the cache.

  Args:
    name: as above.
    choose: names of the files below PATH -> those to fetch.

  Raises:
    InputError: the name is none, the Hub or the cache does not have it, or it
      may not be read.
  """
  where, inside = _parse(name)
  with _explained(name, where):
    fetched, wanted = _fetch(where, inside, choose)
  root = pathlib.Path(fetched) / inside
  missing = [n for n in wanted if not (pathlib.Path(fetched) / n).exists()]
  if missing or not root.exists():
    raise errors.InputError(f'{name}: {(missing or [inside])[0]} is missing')
  RESOLVED[str(name)] = origin(root)
  return root


class Range(NamedTuple):
  """A file of a repository that is read by ranges, and not kept.

  Attributes:
    name: of the repository, for errors.
    where: how the library names it, with the commit.
    file: in the repository.
    size: bytes.
    sha256: what the Hub says of it, '' if nothing.
  """

  name: str
  where: dict
  file: str
  size: int
  sha256: str

  def read(self, begin: int, end: int) -> np.ndarray:
    """Bytes as uint8 [end - begin]; goes on where a connection broke off.

    Raises:
      InputError: the Hub does not give them.
    """
    out, at, tries = np.empty(end - begin, np.uint8), 0, 0
    with _explained(f'{self.name}: {self.file}', self.where):
      while at < len(out):
        before, (at, error) = at, self._continue(begin, out, at)
        tries = tries + 1 if at == before else 0
        if at < len(out) and tries == RETRIES:
          raise error or ConnectionError('the connection ends early')
    return out

  def _continue(self, begin: int, out: np.ndarray, at: int):
    """Fills `out` from `at`; (how far it came, what ended it or None)."""
    from huggingface_hub import constants, utils

    headers = utils.build_hf_headers() | {
      'Range': f'bytes={begin + at}-{begin + len(out) - 1}',
      'Accept-Encoding': 'identity',
    }
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with utils.http_stream_backoff(
      'GET', _url(self.where, self.file), headers=headers, timeout=timeout
    ) as response:
      utils.hf_raise_for_status(response)
      if response.status_code != 206:
        raise errors.InputError(
          'the server does not support range requests; download first: '
          f'hf download {self.where["repo_id"]}'
        )
      try:
        for part in response.iter_bytes():
          part = part[: len(out) - at]
          out[at : at + len(part)] = np.frombuffer(part, np.uint8)
          at += len(part)
      except Exception as error:  # whatever HTTP client the library has
        return at, error
    return at, None


def stream(name) -> tuple[pathlib.Path, dict[str, Range]]:
  """The local directory of weights, and by name their large files that are
  not in the cache, to be read by ranges.

  Raises:
    InputError: as `local`.
  """
  from huggingface_hub import utils

  def small(names):
    chosen = of_weights(names)
    return [n for n in chosen if not n.endswith(LARGE)] or chosen

  where, inside = _parse(name)
  root = local(name, small)
  names, options = _listed(**where)
  commit = CACHED.search(root.as_posix())
  streams = hasattr(utils, 'http_stream_backoff')  # a library before 1.0
  if root.is_file() or names is None or options or not (commit and streams):
    return local(name, of_weights), {}
  below = f'{inside}/' if inside else ''
  files = [n.removeprefix(below) for n in names if n.startswith(below)]
  missing = [
    n for n in of_weights(files)
    if n.endswith(LARGE) and not (root / n).exists()
  ]  # fmt: skip
  where = where | dict(revision=commit['commit'])
  return root, {n: _range(name, where, below + n) for n in missing}


def _range(name, where, file: str) -> Range:
  """A file of a repository, asked for its size and digest."""
  import huggingface_hub

  with _explained(f'{name}: {file}', where):
    about = huggingface_hub.get_hf_file_metadata(_url(where, file))
  digest = about.etag or ''
  digest = digest if re.fullmatch('[0-9a-f]{64}', digest) else ''
  return Range(str(name), where, file, about.size or 0, digest)


def _url(where, file: str) -> str:
  import huggingface_hub

  return huggingface_hub.hf_hub_url(filename=file, **where)


def check_target(name):
  """InputError if `push` does not take this name."""
  where, inside = _parse(name)
  if inside or where['repo_type'] != 'model' or where['revision'] != 'main':
    raise errors.InputError(f'{name} is not a model: {PREFIX}ORG/NAME')


def push(directory, name) -> str:
  """Uploads a directory as a model; the address of the commit.

  A repository that does not exist is made, and only its owner may read it.
  """
  check_target(name)
  import huggingface_hub

  where, _ = _parse(name)
  repo, api = where['repo_id'], huggingface_hub.HfApi()
  by_hand = f'the export is complete, upload it: hf upload {repo} {directory}'
  with _explained(f'{name} is not uploaded ({by_hand})', where):
    api.create_repo(repo, private=True, exist_ok=True)
    return str(api.upload_folder(repo_id=repo, folder_path=directory))


def _parse(name) -> tuple[dict, str]:
  """(how the library names a repository, the path inside it)."""
  match = NAME.fullmatch(str(name).rstrip('/'))
  if not match:
    raise errors.InputError(
      f'{name} is not {PREFIX}ORG/NAME@REVISION/PATH, of data '
      f'{PREFIX}datasets/ORG/NAME@REVISION/PATH'
    )
  if not importlib.util.find_spec('huggingface_hub'):
    raise errors.InputError(f'{name} needs pip install huggingface_hub')
  where = dict(
    repo_id=match['repo'],
    repo_type='dataset' if match['kind'] == 'datasets/' else 'model',
    revision=match['revision'] or 'main',
  )
  return where, match['inside'] or ''


@contextlib.contextmanager
def _explained(name, where):
  """Makes what the library, HTTP or the disk raises an InputError."""
  import huggingface_hub.errors

  try:
    yield
  except errors.InputError as error:
    raise errors.InputError(f'{name}: {error}') from None
  except Exception as error:
    reason = _reason(huggingface_hub.errors, error, where)
    raise errors.InputError(f'{name}: {reason}') from error


def _fetch(where, inside, choose) -> tuple[str, list[str]]:
  """(the local copy of the repository, the files that it must have)."""
  import huggingface_hub as library

  names, options = _listed(**where)
  if names is None:  # fetched by other means; the library checks that it is all
    return library.snapshot_download(**where, **options), []
  if inside in names:
    wanted = [inside]
  else:
    below = f'{inside}/' if inside else ''
    short = [n.removeprefix(below) for n in names if n.startswith(below)]
    wanted = [below + n for n in choose(short)] if short else []
  if not wanted:
    some = ', '.join(sorted(names)[:5])
    raise errors.InputError(f'it has no {inside or "such file"}; it has {some}')
  patterns = [re.sub(r'([*?[])', r'[\1]', n) for n in wanted]
  fetched = library.snapshot_download(
    **where, **options, allow_patterns=patterns
  )
  return fetched, wanted


@functools.lru_cache
def _listed(**where) -> tuple[list[str] | None, dict]:
  """(the files of a repository, how to get them); asked once for all paths.

  Without the network they are those of the last time, or None.
  """
  import huggingface_hub.errors

  name = hashlib.sha256(repr(sorted(where.items())).encode()).hexdigest()[:16]
  kept = cache.directory() / 'hub' / f'{name}.json'
  try:
    names = huggingface_hub.HfApi().list_repo_files(**where)
  except Exception as error:
    if not _is_unreachable(huggingface_hub.errors, error):
      raise
    names = json.loads(kept.read_text()) if kept.is_file() else None
    return names, dict(local_files_only=True)
  kept.parent.mkdir(parents=True, exist_ok=True)
  storage.write_text(kept, json.dumps(names))
  return names, {}


def _is_unreachable(known, error) -> bool:
  """Whether an error means that there is no way to the Hub."""
  # By name: which HTTP client the library has differs from version to version.
  names = {kind.__name__ for kind in type(error).__mro__}
  unreached = {'TransportError', 'ConnectionError', 'Timeout'}
  offline = known.OfflineModeIsEnabled, known.LocalEntryNotFoundError
  return isinstance(error, offline) or bool(names & unreached)


def _reason(known, error, where) -> str:
  """The cause and the cure, in one line."""
  repo = where['repo_id']
  if isinstance(error, known.GatedRepoError):
    return f'access to {repo} is gated; ask for it there, and set HF_TOKEN'
  if isinstance(error, known.RevisionNotFoundError):
    return f'{repo} has no revision {where["revision"]}'
  if isinstance(error, known.RepositoryNotFoundError):
    return f'there is no {repo}, or it is private and HF_TOKEN may not read it'
  if _is_unreachable(known, error):
    offline = os.environ.get('HF_HUB_OFFLINE') or 'not set'
    return (
      'it is not (or not whole) in the cache, and the Hub cannot be reached '
      f'(HF_HUB_OFFLINE is {offline})'
    )
  return f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'
