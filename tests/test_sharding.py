"""Which processes make up a job."""

import os

import pytest

from longjax.errors import InputError
from longjax.parallel import sharding

JOB = dict(COORDINATOR='localhost:1234', PROCESSES='2', PROCESS='1')


def start(monkeypatch, **variables):
  for name, value in variables.items():
    monkeypatch.setenv(f'LONGJAX_{name}', value)
  sharding.start(8)


@pytest.mark.parametrize('wrong, says', [
  (dict(PROCESSES='two'), "LONGJAX_PROCESSES='two' must be a number from 1"),
  (dict(PROCESSES='0'), "LONGJAX_PROCESSES='0' must be"),
  (dict(PROCESS='-1'), "LONGJAX_PROCESS='-1' must be a number from 0"),
  (dict(PROCESS='2'), "from 0 to N - 1; got 'localhost:1234', 2 and 2"),
  (dict(COORDINATOR='localhost'), "got 'localhost', 2 and 1"),
  (dict(HEARTBEAT_SECONDS='1.5'), "LONGJAX_HEARTBEAT_SECONDS='1.5' must be"),
])  # fmt: skip
def test_an_invalid_job_is_refused_before_a_device_is_used(
  wrong, says, monkeypatch
):
  with pytest.raises(InputError, match=says):
    start(monkeypatch, **JOB | wrong)


def test_a_process_without_a_number_is_refused(monkeypatch):
  with pytest.raises(InputError, match='2 and none'):
    start(monkeypatch, **{k: v for k, v in JOB.items() if k != 'PROCESS'})


def test_simulated_devices_may_wait_longer_than_xla_allows(
  monkeypatch,
):
  flag = '--xla_cpu_collective_call_{}_timeout_seconds={}'.format
  monkeypatch.setenv('XLA_FLAGS', flag('terminate', 9))  # the user's
  sharding._allow_slow_collectives()
  sharding._allow_slow_collectives()
  wanted = [flag('terminate', 9), flag('warn_stuck', 600)]
  assert os.environ['XLA_FLAGS'].split() == wanted
