"""A run directory in a bucket: gs://BUCKET/RUN.

Checkpoints and the lock are written there directly. What grows line by line,
or is written by libraries that know files only (metrics.jsonl, tb/, plots/,
REPORT.md), is written to a local directory and copied: from the bucket at the
start, to it once a minute and before each checkpoint. So the lines of all steps
of a checkpoint are in the bucket with it, whatever becomes of the machine.
"""

import contextlib
import hashlib
import pathlib
import shutil
import threading

from etils import epath

from longjax import cache, storage

DIRECT = ('checkpoints', 'LOCK')  # written in the bucket, never copied
KEPT_THERE = ('tb', 'profile')  # nobody reads them again
SECONDS = 60


def local(workdir) -> pathlib.Path:
  """Where to write what is not written to a bucket directly."""
  return (
    _beside(workdir) if storage.is_remote(workdir) else pathlib.Path(workdir)
  )


def _beside(remote) -> pathlib.Path:
  name = hashlib.sha256(str(remote).encode()).hexdigest()[:16]
  return cache.directory() / 'runs' / name


@contextlib.contextmanager
def following(workdir, log=print):
  """Keeps a bucket like local(workdir), if it is one; yields the push."""
  if not storage.is_remote(workdir):
    yield lambda: None
    return
  with contextlib.closing(Mirror(workdir, log)) as one:
    yield one.push


class Mirror:
  """The local side of a run directory in a bucket, of the lead process.

  Attributes:
    local: the directory to write to.
  """

  def __init__(self, remote, log=print, seconds=SECONDS):
    """Copies what the bucket has, then goes on copying to it.

    Args:
      remote: gs://BUCKET/RUN; nothing there is a new run.
      log: called with a line when a copy failed; training goes on.
      seconds: between copies.
    """
    self.remote, self.log = epath.Path(remote), log
    self.local = _beside(remote)
    shutil.rmtree(self.local, ignore_errors=True)  # the bucket is the truth
    self.local.mkdir(parents=True)
    self._copied = {}  # file: (bytes, time) when it was copied
    self._one_at_a_time, self._end = threading.Lock(), threading.Event()
    for path in files(self.remote, DIRECT + KEPT_THERE):
      here = self.local / path
      here.parent.mkdir(parents=True, exist_ok=True)
      here.write_bytes((self.remote / path).read_bytes())
      self._copied[path] = _version(here)
    self._thread = threading.Thread(
      target=self._again, args=(seconds,), daemon=True
    )
    self._thread.start()

  def push(self):
    """Copies what has changed; a failure is said, and tried again later."""
    with self._one_at_a_time:
      for path in files(self.local):
        try:
          version = _version(self.local / path)
          if self._copied.get(path) == version:
            continue
          there = self.remote / path
          there.parent.mkdir(parents=True, exist_ok=True)
          there.write_bytes((self.local / path).read_bytes())
        except Exception as error:  # whatever storage raises
          self.log(f'WARNING: {path} was not copied to {self.remote}: {error}')
          return
        self._copied[path] = version

  def close(self):
    """Copies a last time."""
    self._end.set()
    self._thread.join()
    self.push()

  def _again(self, seconds):
    while not self._end.wait(seconds):
      self.push()


def files(directory, without=()) -> list[str]:
  """Paths of the files below a directory, but those below `without`."""
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
  about = path.stat()
  return about.st_size, about.st_mtime_ns
