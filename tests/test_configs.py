"""Every config traces as a whole train step, and says what its paper says."""

import importlib
import pathlib

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType

from configs import common
from longjax import sharding, train

ROOT = pathlib.Path(__file__).resolve().parents[1]
NAMES = sorted(
  p.stem for p in (ROOT / 'configs').glob('*.py')
  if p.stem not in ('common', '__init__')
)  # fmt: skip


def config_of(name):
  return importlib.import_module(f'configs.{name}').get_config()


@pytest.mark.parametrize('name', NAMES)
def test_the_whole_train_step_of_a_config_traces(name):
  config = config_of(name)
  model = train.check(config)
  sizes = (config.mesh.data, config.mesh.seq)
  mesh = AbstractMesh(sizes, sharding.AXES, (AxisType.Auto,) * 2)
  step, state = train.build(config, model, mesh)
  batch = train.abstract_batch(config, mesh)
  after, values = jax.eval_shape(step, state, batch)
  shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert shapes(after) == shapes(state)
  assert set(values) == {'loss', 'grad_norm', 'lr', 'skipped'}


@pytest.mark.parametrize('name', NAMES)
def test_a_config_changes_keys_of_the_base_and_adds_none(name):
  def keys(config, prefix=''):
    for key, value in config.items():
      inside = hasattr(value, 'items') and key not in ('sources', 'mix')
      yield from keys(value, f'{prefix}{key}.') if inside else [prefix + key]

  assert set(keys(config_of(name))) == set(keys(common.base()))
  assert config_of(name).name == name


@pytest.mark.parametrize('name, batch_tokens, steps, rate, base', [
  # arXiv:2410.02660 table 9; arXiv:2309.16039 sections 2.1 and 4.1
  ('llama3_8b_512k', 8 * 2**20, 2500, 1e-5, 1.28e8),
  ('llama2_7b_32k', 4 * 2**20, 100_000, 2e-5, 5e5),
  ('llama2_70b_16k', 4 * 2**20, 100_000, 1e-5, 5e5),
])  # fmt: skip
def test_recipes_have_the_numbers_of_their_papers(
  name, batch_tokens, steps, rate, base
):
  config = config_of(name)
  assert config.train.batch * config.train.seq_len == batch_tokens
  assert config.train.steps == steps
  assert config.optim.learning_rate == rate
  assert config.model.rope.base == base
