"""Eight fake CPU devices; fixtures that several files share."""

import os
import pathlib
import sys

import jax
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]

os.environ['JAX_PLATFORMS'] = 'cpu'  # for the commands that tests start
jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)


@pytest.fixture
def rng():
  return np.random.default_rng(0)


@pytest.fixture
def make_mesh():
  """make_mesh(data, seq): a mesh of the first data * seq devices."""

  def make(data, seq):
    devices = np.array(jax.devices()[: data * seq]).reshape(data, seq)
    return jax.sharding.Mesh(devices, ('data', 'seq'))

  return make


@pytest.fixture
def strict_dtypes():
  """A stray float32 beside a bfloat16 is an error (optax has some)."""
  with jax.numpy_dtype_promotion('strict'):
    yield
