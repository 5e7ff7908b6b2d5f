"""What is set before the first device is used."""

import os

from longjax.parallel import sharding


def test_simulated_devices_may_wait_longer_than_xla_allows(
  monkeypatch,
):
  flag = '--xla_cpu_collective_call_{}_timeout_seconds={}'.format
  monkeypatch.setenv('XLA_FLAGS', flag('terminate', 9))  # the user's
  sharding._allow_slow_collectives()
  sharding._allow_slow_collectives()
  wanted = [flag('terminate', 9), flag('warn_stuck', 600)]
  assert os.environ['XLA_FLAGS'].split() == wanted
