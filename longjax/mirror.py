"""A run directory in a bucket: gs://BUCKET/RUN.

Checkpoints and the lock are written there directly. Files that grow by lines,
or whose library only writes local files (metrics.jsonl, tb/, plots/,
REPORT.md), are written to a local directory and copied to the bucket once a
minute and before each checkpoint; those that a run reads (not tb/) are copied
back when it starts. So a checkpoint in the
bucket always has the lines of its steps beside it.
"""

import contextlib
import hashlib
import pathlib
import shutil
import threading
from collections.abc import Callable, Iterator

from etils import epath

from longjax import cache, storage

DIRECT = ('checkpoints', 'LOCK')  # written in the bucket, never copied
WRITE_ONLY = ('tb', 'profile')  # not copied back: a run does not read them
SECONDS = 60


def local(workdir) -> pathlib.Path:
  """The run directory, or the local directory that is copied to its bucket."""
  if not storage.is_remote(workdir):
    return pathlib.Path(workdir)
  name = hashlib.sha256(str(workdir).encode()).hexdigest()[:16]
  return cache.directory() / 'runs' / name


@contextlib.contextmanager
def mirrored(workdir, log=print) -> Iterator[Callable[[], None]]:
  """Keeps a bucket up to date with local(workdir); does nothing for another.

  Yields:
    A function that copies at once.
  """
  if not storage.is_remote(workdir):
    yield lambda: None
    return
  with contextlib.closing(Mirror(workdir, local(workdir), log)) as mirror:
    yield mirror.push


class Mirror:
  """Copies a local directory to a run directory in a bucket."""

  def __init__(self, remote, directory, log=print, seconds=SECONDS):
    """Copies the files of the bucket, then starts copying to it.

    Args:
      remote: gs://BUCKET/RUN; if nothing is there, this is a new run.
      directory: local; what it held before is deleted.
      log: called with a line when a copy fails; the next one retries.
      seconds: between copies.
    """
    self.remote, self.local, self.log = epath.Path(remote), directory, log
    shutil.rmtree(self.local, ignore_errors=True)  # the bucket is the truth
    self.local.mkdir(parents=True)
    self._copied = {}  # file: (bytes, time) when it was copied
    self._pushing, self._ended = threading.Lock(), threading.Event()
    for path in files(self.remote, DIRECT + WRITE_ONLY):
      copy = self.local / path
      copy.parent.mkdir(parents=True, exist_ok=True)
      copy.write_bytes((self.remote / path).read_bytes())
      self._copied[path] = _version(copy)
    self._thread = threading.Thread(
      target=self._push_every, args=(seconds,), daemon=True
    )
    self._thread.start()

  def push(self):
    """Copies changed files to the bucket; logs a failure."""
    path = 'its list of files'
    with self._pushing:
      try:
        for path in files(self.local):
          version = _version(self.local / path)
          if self._copied.get(path) == version:
            continue
          copy = self.remote / path
          copy.parent.mkdir(parents=True, exist_ok=True)
          copy.write_bytes((self.local / path).read_bytes())
          self._copied[path] = version
      except Exception as error:  # whatever storage raises
        self.log(f'WARNING: {path} was not copied to {self.remote}: {error}')

  def close(self):
    """Copies a last time."""
    self._ended.set()
    self._thread.join()
    self.push()

  def _push_every(self, seconds):
    while not self._ended.wait(seconds):
      self.push()


def files(directory, without=()) -> list[str]:
  """Relative paths of the files in a directory, but those below `without`."""
  found, directory = [], epath.Path(directory)
  for path in directory.iterdir() if directory.is_dir() else ():
    if path.name in without or path.name.endswith('.tmp'):
      continue
    if path.is_dir():
      found += [f'{path.name}/{below}' for below in files(path)]
    else:
      found.append(path.name)
  return sorted(found)


def _version(path: pathlib.Path) -> tuple[int, int]:
  status = path.stat()
  return status.st_size, status.st_mtime_ns
