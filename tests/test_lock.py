"""One job writes to a run directory."""

import json
import os
import subprocess
import sys

import pytest

from longjax.errors import InputError
from longjax.train import lock


@pytest.fixture(autouse=True)
def fast(monkeypatch):
  monkeypatch.setattr(lock, 'HEARTBEAT_SECONDS', 0.05)
  monkeypatch.setattr(lock, 'STALE_SECONDS', 0.3)


def test_who_holds_it_is_named_and_when_it_is_let_go_the_next_may(tmp_path):
  first = lock.Lock(tmp_path / 'run')
  with pytest.raises(InputError, match=f'process {os.getpid()} on .* since'):
    lock.Lock(tmp_path / 'run')
  first.check()
  first.close()
  assert not (tmp_path / 'run' / 'LOCK').exists()
  lock.Lock(tmp_path / 'run').close()


def test_the_lock_of_a_process_that_was_killed_is_taken_at_once(tmp_path):
  code = (
    'import os, sys; from longjax.train import lock; '
    'held = lock.Lock(sys.argv[1]); os.kill(os.getpid(), 9)'
  )
  subprocess.run([sys.executable, '-c', code, str(tmp_path)], check=False)
  assert (tmp_path / 'LOCK').exists()
  lines = []
  lock.Lock(tmp_path, lines.append).close()
  assert lines == []


def other_host(tmp_path):
  """A lock as another machine would have left it."""
  holder = dict(host='far 1 2', pid=1, started='Monday', token='x', beat=0)
  (tmp_path / 'LOCK').write_text(json.dumps(holder))
  return holder


def test_the_lock_of_another_host_that_stands_still_is_taken_over(tmp_path):
  other_host(tmp_path)
  lines = []
  lock.Lock(tmp_path, lines.append).close()
  assert 'held by process 1 on far since Monday' in lines[0]
  assert 'takes it over' in lines[1]


def test_the_lock_of_another_host_that_beats_is_respected(
  tmp_path, monkeypatch
):
  holder = other_host(tmp_path)

  def beat(_):
    (tmp_path / 'LOCK').write_text(json.dumps(holder | dict(beat=1)))

  monkeypatch.setattr(lock.time, 'sleep', beat)
  with pytest.raises(InputError, match='process 1 on far'):
    lock.Lock(tmp_path, lambda _: None)


def test_a_lock_without_words_is_dead_only_if_the_kernel_says_so(
  tmp_path, monkeypatch
):
  """It is being written, or a full disk did not take it."""
  lines = []
  for words in ('', '[1, 2]'):
    (tmp_path / 'LOCK').write_text(words)
    lock.Lock(tmp_path, lines.append).close()
  assert lines == []
  (tmp_path / 'LOCK').write_text('{"host": "fa')
  monkeypatch.setattr(lock.Lock, '_flock', lambda _: None)
  monkeypatch.setattr(lock.time, 'sleep', lambda _: other_host(tmp_path))
  with pytest.raises(InputError, match='process 1 on far'):
    lock.Lock(tmp_path, lambda _: None)


def test_a_holder_that_lost_it_notices(tmp_path):
  held = lock.Lock(tmp_path)
  other_host(tmp_path)
  held._thread.join(5)
  with pytest.raises(InputError, match='process 1 on far'):
    held.check()
  held.close()
  assert (tmp_path / 'LOCK').exists()  # not ours to remove
