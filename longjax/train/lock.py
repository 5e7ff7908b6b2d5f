"""One job writes to a run directory: LOCK says which, as long as it lives.

On a local disk the kernel holds the lock (flock) and lets it go with the
process, however that dies. For other hosts, and where there is no flock, the
holder writes LOCK anew every few seconds; a lock of another host that stands
still is that of a job which is gone. No two clocks are compared.
"""

import contextlib
import fcntl
import json
import os
import secrets
import socket
import threading
import time

from etils import epath

from longjax.errors import InputError

BEAT_SECONDS = 10
STILL_SECONDS = 35  # of no beat, after which another host's lock is taken


class Lock:
  """Held from construction to `close`.

  Attributes:
    lost: another job has taken the directory; nothing more may be written.
  """

  def __init__(self, directory, log=print):
    """Takes the lock, or InputError naming who has it.

    Args:
      directory: of the run, local or gs://; made if it is not there.
      log: called with a line if the lock of a dead job is taken over.
    """
    directory = epath.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    self.path, self.lost = directory / 'LOCK', False
    self._file = self._flock()
    before = self._holder()
    if before is not None and not self._is_dead(before):
      self._wait_until_still(before, log)
    self._me = dict(
      host=_host(), pid=os.getpid(), started=time.ctime(),
      token=secrets.token_hex(8),
    )  # fmt: skip
    self._write(0)
    self._ended = threading.Event()
    self._thread = threading.Thread(target=self._beat, daemon=True)
    self._thread.start()

  def check(self):
    """InputError if another job has taken the directory meanwhile."""
    if self.lost:
      raise InputError(_refusal(self.path, self._holder()))

  def close(self):
    """Lets go; the file is removed, so that the next need not wonder."""
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
        pass  # let go while we opened it, as if it was not the same
      except OSError:  # a file system without locks
        file.close()
        return None
      file.close()

  def _holder(self) -> dict | None:
    """What LOCK says; {} while it is being written, or if a full disk did not
    take it; None if nobody holds it."""
    try:
      found = json.loads(self.path.read_text())
    except FileNotFoundError:
      return None
    except (OSError, ValueError):
      return {}
    return found if isinstance(found, dict) else {}

  def _is_dead(self, holder) -> bool:
    """Whether it ran on this host, which can tell; where the kernel keeps
    locks, also if it left no words."""
    if not holder:
      return self._file is not None
    if holder.get('host') != _host():
      return False
    return self._file is not None or not _alive(holder.get('pid'))

  def _wait_until_still(self, before, log):
    """Refuses if the holder gives a sign of life, else takes over."""
    log(f'{self.path}: held by {_who(before)}; waiting for a sign of life')
    until = time.monotonic() + STILL_SECONDS
    while time.monotonic() < until:
      time.sleep(BEAT_SECONDS / 5)
      now = self._holder()
      if now is None:
        return
      if now and now != before:
        raise InputError(_refusal(self.path, now))
    log(f'{self.path}: no sign of life for {STILL_SECONDS} s, taken over')

  def _write(self, beat):
    # In place: the lock of the kernel is on this very file.
    self.path.write_text(json.dumps(self._me | dict(beat=beat)))

  def _beat(self):
    beat = 0
    while not self._ended.wait(BEAT_SECONDS):
      beat += 1
      with contextlib.suppress(OSError):  # storage that is away for a while
        now = self._holder()
        if now and now.get('token') != self._me['token']:
          self.lost = True
          return
        self._write(beat)


def _host() -> str:
  """This machine since its last start, in this container."""
  with contextlib.suppress(OSError):
    boot = open('/proc/sys/kernel/random/boot_id').read().strip()  # noqa: SIM115
    space = os.stat('/proc/self/ns/pid').st_ino
    return f'{socket.gethostname()} {boot[:8]} {space}'
  return socket.gethostname()


def _alive(pid) -> bool:
  try:
    os.kill(int(pid), 0)
  except PermissionError:
    return True
  except (OSError, TypeError, ValueError):
    return False
  return True


def _who(holder) -> str:
  if not holder:
    return 'another job'
  host = str(holder.get('host', '?')).split()[0]
  return (
    f'process {holder.get("pid")} on {host} since {holder.get("started")}'
  )  # fmt: skip


def _refusal(path, holder) -> str:
  return (
    f'{path}: {_who(holder)} is training in this directory; end it, or use '
    'another --workdir'
  )
