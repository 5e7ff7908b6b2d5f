"""Eight simulated CPU devices; fixtures that several files share."""

import importlib.metadata
import os
import pathlib
import sys

# Nearly all the time of these tests is that of XLA compiling programs which
# then run for milliseconds: so it compiles a tenth as long, for itself and
# for the commands that tests start. It reads this when it is imported.
os.environ['XLA_FLAGS'] = ' '.join([
  os.environ.get('XLA_FLAGS', ''), '--xla_backend_optimization_level=0',
  '--xla_llvm_disable_expensive_passes=true',
  '--xla_cpu_parallel_codegen_split_count=1',
  # Later versions end at a flag that they do not know.
  *['--xla_cpu_use_fusion_emitters=false']
  * importlib.metadata.version('jaxlib').startswith('0.10.'),
])  # fmt: skip

import jax
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]

os.environ['JAX_PLATFORMS'] = 'cpu'  # for the commands that tests start
jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)


# Files that take longest begin first, so that they do not end last.
LONGEST = 'test_survival.py', 'test_llama.py', 'test_memory.py'


def pytest_collection_modifyitems(items):
  items.sort(key=lambda item: item.path.name not in LONGEST)


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
