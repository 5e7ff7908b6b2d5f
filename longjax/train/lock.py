"""One job writes to a run directory: LOCK names it while it lives.

On a local disk the kernel holds the lock (flock) and releases it with the
process, however that ends. For other hosts, and where there is no flock, the
holder rewrites LOCK every few seconds; the lock of another host that does not
change is that of a job which is gone. No two clocks are compared.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from etils import epath

from longjax import mirror
from longjax.errors import InputError
from longjax.parallel import processes

HEARTBEAT_SECONDS = 10
STALE_SECONDS = 35  # without a beat, after which another host's lock is taken


class Lock:
  """Held from construction to `close`.

  Attributes:
    lost: another job has taken the directory; nothing more may be written.
  """

  def __init__(self, directory, log=print):
    """Takes the lock.

    Args:
      directory: of the run, local or gs://; made if it does not exist.
      log: called with a line if the lock of a dead job is taken over.

    Raises:
      InputError: another job has it; names that.
    """
    directory = epath.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    self.path, self.lost = directory / 'LOCK', False
    self._file = self._flock()
    holder = self._holder()
    if holder is not None and not self._is_dead(holder):
      self._wait_until_stale(holder, log)
    self._token = secrets.token_hex(8)
    self._started = time.ctime()
    self._write(0)
    self._ended = threading.Event()
    self._thread = threading.Thread(target=self._heartbeat, daemon=True)
    self._thread.start()

  def check(self):
    """InputError if another job has taken the directory meanwhile."""
    if self.lost:
      raise InputError(_refusal(self.path, self._holder()))

  def close(self):
    """Releases the lock and removes its file."""
    self._ended.set()
    self._thread.join()
    if not self.lost:
      self.path.unlink(missing_ok=True)
    if self._file is not None:
      self._file.close()

  def _flock(self):
    """The open file that holds the kernel's lock; None if there is none."""
    if '://' in str(self.path):
      return None
    while True:
      file = open(self.path, 'a')  # noqa: SIM115 (held until close)
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file.fileno()), os.stat(self.path)):
          return file
      except BlockingIOError:
        file.close()
        raise InputError(_refusal(self.path, self._holder())) from None
      except FileNotFoundError:
        pass  # its holder removed it after we opened it: open the new one
      except OSError:  # a file system without locks
        file.close()
        return None
      file.close()

  def _holder(self) -> dict | None:
    """The content of LOCK; {} while it is being written, or where a full disk
    did not take it; None if there is no file."""
    try:
      content = json.loads(self.path.read_text())
    except FileNotFoundError:
      return None
    except (OSError, ValueError):
      return {}
    return content if isinstance(content, dict) else {}

  def _is_dead(self, holder) -> bool:
    """Whether the kernel's lock, which we hold, shows that the holder ended;
    it does not for another host."""
    on_this_host = not holder or holder.get('host') == _host()
    return self._file is not None and on_this_host

  def _wait_until_stale(self, holder, log):
    """InputError if the holder rewrites LOCK; returns if it does not."""
    log(f'{self.path}: held by {_name(holder)}; checking if it is alive')
    until = time.monotonic() + STALE_SECONDS
    while time.monotonic() < until:
      time.sleep(HEARTBEAT_SECONDS / 5)
      now = self._holder()
      if now is None:
        return
      if now and now != holder:
        raise InputError(_refusal(self.path, now))
    log(
      f'{self.path}: unchanged for {STALE_SECONDS} s, so this run takes it over'
    )

  def _write(self, beat):
    content = dict(
      host=_host(), pid=os.getpid(), started=self._started, token=self._token,
      beat=beat,
    )  # fmt: skip
    # In place: the kernel's lock is on this very file.
    self.path.write_text(json.dumps(content))

  def _heartbeat(self):
    beat = 0
    while not self._ended.wait(HEARTBEAT_SECONDS):
      beat += 1
      with contextlib.suppress(Exception):  # storage that fails for a while
        holder = self._holder()
        if holder and holder.get('token') != self._token:
          self.lost = True
          return
        self._write(beat)


def _host() -> str:
  """This machine since its last boot."""
  boot = pathlib.Path('/proc/sys/kernel/random/boot_id')
  boot_id = boot.read_text()[:8] if boot.exists() else ''
  return f'{socket.gethostname()} {boot_id}'


def _name(holder) -> str:
  if not holder:
    return 'another job'
  host = str(holder.get('host', '?')).split()[0]
  return f'process {holder.get("pid")} on {host} since {holder.get("started")}'


def _refusal(path, holder) -> str:
  return (
    f'{path}: {_name(holder)} is training in this directory; end it, or use '
    'another --workdir'
  )


class RunDirectory(NamedTuple):
  """The run directory while this job holds it; only the primary process
  does."""

  lock: Lock | None
  push: Callable  # copies local files to the bucket, if there is one

  def before_save(self):
    """Refuses if another job has taken the directory; copies the metrics, so
    that a checkpoint in a bucket has the lines of its steps."""
    if self.lock:
      self.lock.check()
      self.push()


@contextlib.contextmanager
def hold(run) -> Iterator[RunDirectory]:
  """Locks the run directory, and follows it with its bucket."""
  with contextlib.ExitStack() as stack:

    def begin() -> RunDirectory | None:
      if not processes.is_primary():
        return None
      held = contextlib.closing(Lock(run.workdir, run.log))
      lock = stack.enter_context(held)
      push = stack.enter_context(mirror.mirrored(run.workdir, run.log))
      run.clock.attach(run.local)
      return RunDirectory(lock, push)

    held = processes.raise_on_all(begin)
    yield held or RunDirectory(None, lambda: None)
