"""Every config traces as a whole train step, and says what its paper says."""

import functools
import importlib
import json
import pathlib
import re

import jax
import jaxprs
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from configs import common
from longjax import checks
from longjax.parallel import sharding
from longjax.train import step as train_step

ROOT = pathlib.Path(__file__).resolve().parents[1]
GOLDEN = ROOT / 'tests' / 'golden' / 'programs.json'
NAMES = sorted(
  '.'.join(p.relative_to(ROOT / 'configs').with_suffix('').parts)
  for p in (ROOT / 'configs').rglob('*.py')
  if p.stem not in ('common', '__init__')
)  # fmt: skip


def module(name):
  return importlib.import_module(f'configs.{name}')


def config_of(name, *variant):
  return module(name).get_config(*variant)


VARIANTS = [
  (name, variant) for name in NAMES
  for variant in getattr(module(name), 'VARIANTS', ())
]  # fmt: skip


@functools.cache
def traced(name):
  """The train step of a config on an abstract mesh: (state, trace)."""
  config = config_of(name)
  model = checks.check(config)
  sizes = (config.mesh.data, config.mesh.seq)
  mesh = AbstractMesh(sizes, sharding.AXES, (AxisType.Auto,) * 2)
  step, state = train_step.build(config, model, mesh)
  return state, step.trace(state, train_step.abstract_batch(config, mesh))


def fingerprint(name):
  """What must not change unseen: what travels, and what a device holds."""
  state, trace = traced(name)
  held = sum(
    int(np.prod(x.sharding.shard_shape(x.shape)))
    for x in jax.tree.leaves(state)
  )
  return jaxprs.collectives(trace.jaxpr.jaxpr) | dict(state_numbers=held)


@pytest.mark.parametrize('name', NAMES)
def test_a_config_traces_and_changes_no_program_but_its_own(name):
  """Collectives with their bytes, and numbers of the state on a device.

  After a change that is meant, or for a new config: PYTHONPATH=. python
  tests/test_configs.py.
  """
  state, trace = traced(name)
  after, values = trace.out_info
  shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert shapes(after) == shapes(state)
  assert set(values) == {'loss', 'grad_norm', 'lr', 'skipped'}
  assert fingerprint(name) == json.loads(GOLDEN.read_text()).get(name)


def plans():
  """(config, variant, chips, mesh, micro-batches) of the table of plans."""
  text = (ROOT / 'configs' / 'README.md').read_text()
  cells = (
    r'`(\w+)(?::(\w+))?` \| v5p:(\d+)x(\d+)x(\d+) \| (\d+) x (\d+), (\d+) \|'
  )
  for name, variant, *numbers in re.findall(cells, text):
    x, y, z, data, seq, parts = map(int, numbers)
    yield name, variant, x * y * z, dict(data=data, seq=seq), parts


def test_a_plan_is_of_the_config_as_it_is():
  """What was compiled is the mesh of the config, on that many chips."""
  seen = set()
  for name, variant, chips, mesh, parts in plans():
    config = config_of(name, *([variant] if variant else []))
    assert config.mesh.to_dict() == mesh, name
    assert config.train.micro_batches == parts, name
    assert mesh['data'] * mesh['seq'] == chips, name
    seen.add(name)
  assert len(seen) > 10


@pytest.mark.parametrize('name, variant', VARIANTS)
def test_a_variant_is_a_config_that_could_run(name, variant):
  config = config_of(name, variant)
  checks.check(config)
  assert not variant or variant in config.name


@pytest.mark.parametrize('name', sorted({name for name, _ in VARIANTS}))
def test_an_unknown_variant_is_told_the_known_ones(name):
  with pytest.raises(ValueError, match='is none of'):
    config_of(name, 'no_such')


@pytest.mark.parametrize('name', NAMES)
def test_a_config_changes_keys_of_the_base_and_adds_none(name):
  def keys(config, prefix=''):
    for key, value in config.items():
      inside = hasattr(value, 'items') and key not in ('sources', 'mix')
      yield from keys(value, f'{prefix}{key}.') if inside else [prefix + key]

  assert set(keys(config_of(name))) == set(keys(common.base()))
  assert config_of(name).name.startswith(name.replace('.', '_'))


if __name__ == '__main__':
  jax.config.update('jax_platforms', 'cpu')
  GOLDEN.write_text(
    json.dumps({name: fingerprint(name) for name in NAMES}, indent=1) + '\n'
  )
