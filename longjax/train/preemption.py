"""Requests by signal to a running job: stop, or trace some steps.

kill -TERM PID   save and end with exit code 75: run the same command again
kill -USR1 PID   profile the next steps

Where there is nothing to save, as before the first step, a process ends at
once. The others of its job would wait for it in a collective, or fail there, so
all of them end, by a thread of each: the main thread may be in a compiler.
"""

import _thread
import contextlib
import os
import select
import signal
import socket
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

from longjax.errors import PREEMPTED

POLL = 1.0  # seconds until a process learns that another one ends
# Seconds that a process has to end in order, and so that the others learn of
# it; the first, through which they do, has as much again.
GRACE = 4.0
KEY = 'longjax/ends'  # of the coordinator, once a process of the job ends


class StopRequest:
  """The requests that signals have made so far.

  Attributes:
    stop: to save and end; set only inside `deferred`.
    profile: to profile; the profiler resets it.
    is_deferred: whether SIGTERM sets `stop`.
    joined: whether the processes of the job are connected.
  """

  def __init__(self):
    self.stop = self.profile = self.is_deferred = self.joined = False

  @contextlib.contextmanager
  def deferred(self) -> Iterator[None]:
    """Inside, SIGTERM sets `stop`, and the loop saves before it ends."""
    with handling(signal.SIGTERM, lambda *_: setattr(self, 'stop', True)):
      self.is_deferred = True
      try:
        yield
      finally:
        self.is_deferred = False


@contextlib.contextmanager
def stop_requests(request=None) -> Iterator[StopRequest]:
  """Handles the signals; SIGTERM raises SystemExit(75) unless `deferred`.

  Args:
    request: that of the handlers around, which a library may have replaced.
  """
  request = request or StopRequest()
  with (
    handling(signal.SIGTERM, _exit),
    handling(signal.SIGUSR1, lambda *_: setattr(request, 'profile', True)),
  ):
    yield request


@contextlib.contextmanager
def ending_together(request: StopRequest) -> Iterator[None]:
  """Ends this process with 75 soon after SIGTERM, unless it is deferred, or
  after another process of the job ended so; for all of the life of a process.

  Raises:
    SystemExit: with 75, whatever else was raised because another one ended.
  """
  ending = _Ending(request)
  before = signal.set_wakeup_fd(ending.signals.fileno())
  try:
    yield
  finally:
    signal.set_wakeup_fd(before)
    ending.close()


class _Ending:
  """The thread of `ending_together`.

  Attributes:
    signals: the numbers of signals are written to it, whatever runs.
  """

  def __init__(self, request: StopRequest):
    self._request = request
    self._received, self.signals = socket.socketpair()
    self.signals.setblocking(False)
    self._closed = threading.Event()
    self._thread = threading.Thread(target=self._watch, daemon=True)
    self._thread.start()

  def close(self):
    """Ends the thread; does not return where the process has to end."""
    self._closed.set()
    with contextlib.suppress(BlockingIOError):
      self.signals.send(b'\0')
    self._thread.join()

  def _watch(self):
    """Waits for SIGTERM here or elsewhere, and then for the end in order."""
    ends = False
    while not ends and not self._closed.is_set():
      ready, _, _ = select.select([self._received], [], [], POLL)
      received = self._received.recv(1000) if ready else b''
      client = self._job().client
      if signal.SIGTERM in received and not self._request.is_deferred:
        ends = True
        with contextlib.suppress(Exception):  # another one did, or it is gone
          client.key_value_set(KEY, 'yes')
      elif client is not None and self._another_ends(client):
        ends = True
        _thread.interrupt_main(signal.SIGTERM)
    if not ends:
      return
    job = self._job()
    if job.client is None:
      if self._closed.wait(GRACE):
        return
    else:  # so that the others learn of it, first of all from the coordinator
      time.sleep(GRACE if job.process_id else 2 * GRACE)
    sys.stdout.flush()
    os._exit(PREEMPTED)  # jax would wait for the others

  def _job(self) -> Any:
    """jax's state of the job; a client that is not connected ends its process
    at the first question."""
    if not self._request.joined:
      return types.SimpleNamespace(client=None)
    from jax._src import distributed

    return distributed.global_state

  def _another_ends(self, client) -> bool:
    try:
      return bool(client.key_value_try_get(KEY))
    except Exception:  # none has said so, or the coordinator is gone
      return False


def _exit(_, frame):
  # What is raised in jax's callback of the garbage collector is lost, with
  # a traceback; there the thread of `ending_together` ends the process.
  if not frame or frame.f_code.co_name != '_xla_gc_callback':
    raise SystemExit(PREEMPTED)


@contextlib.contextmanager
def handling(number: int, handler: Callable) -> Iterator[None]:
  """Handles one signal; does nothing outside the main thread, which alone may
  set handlers."""
  try:
    before = signal.signal(number, handler)
  except ValueError:
    before = None
  try:
    yield
  finally:
    if before is not None:
      signal.signal(number, before)
