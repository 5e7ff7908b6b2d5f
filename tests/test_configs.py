"""Configs: every variant could run; a train step of each kind is traced."""

import dataclasses
import importlib
import math
import pathlib
import re

import jax
import jaxprs
import pytest
from jax.sharding import AbstractMesh, AxisType

from configs import common
from longjax import checks, crossbatch, llama, rope
from longjax import config as schema
from longjax.errors import InputError
from longjax.parallel import sharding
from longjax.train import step as train_step
from longjax.weights import released

ROOT = pathlib.Path(__file__).resolve().parents[1]
NAMES = sorted(
  '.'.join(p.relative_to(ROOT / 'configs').with_suffix('').parts)
  for p in (ROOT / 'configs').rglob('*.py')
  if p.stem not in ('common', '__init__')
)  # fmt: skip
# One config of each kind of program.
TRACED = [
  'llama2_longce', 'llama3_8b_512k', 'openllama_3b_fot', 'smollm3_3b_64k',
  'tiny',
  *(
    pytest.param(name, marks=pytest.mark.slow)
    for name in (
      'llama2_7b_32k', 'nope_107m',
      'llama2_7b_32k:70b', 'llama2_long_ablations:xpos_abf',
      'llama2_longlora:7b_32k', 'llama2_yarn', 'llama_superhot_8k',
    )
  ),
]  # fmt: skip


def module(name):
  return importlib.import_module(f'configs.{name}')


def config_of(name, variant=''):
  name, _, inside = name.partition(':')
  return module(name).get_config(*filter(None, [variant or inside]))


VARIANTS = [
  (name, variant) for name in NAMES
  for variant in getattr(module(name), 'VARIANTS', [''])
]  # fmt: skip


@pytest.mark.parametrize('name', TRACED)
def test_the_train_step_of_a_config_keeps_its_state_and_shards_it(name):
  config = config_of(name)
  if config.model.memory.layers:  # each makes a scan of its own
    config.model.layers, config.model.memory.layers = 3, (1,)
  model = checks.check(config)
  sizes = (config.mesh.data, config.mesh.seq)
  mesh = AbstractMesh(sizes, sharding.AXES, (AxisType.Auto,) * 2)
  step, state = train_step.build(config, model, mesh)
  trace = step.trace(state, train_step.abstract_batch(config, mesh))
  after, values = trace.out_info
  shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert shapes(after) == shapes(state)
  assert set(values) == {'loss', 'grad_norm', 'lr', 'skipped', 'empty'}
  # A device holds its share of weights and moments, but for what is small.
  count = lambda shape: sum(math.prod(shape(x)) for x in jax.tree.leaves(state))
  whole = count(lambda x: x.shape)
  held = count(lambda x: x.sharding.shard_shape(x.shape))
  assert whole <= held * mesh.size <= 1.2 * whole
  sent = jaxprs.collectives(trace.jaxpr.jaxpr)
  assert sent['all_gather'] and sent['reduce_scatter']
  # Three arrays of keys go round forward, again backward, their two gradients
  # one hop further, in each layer; rows of a memory travel besides.
  n, times = config.mesh.seq, model.layers * config.train.micro_batches
  passes = 3 if model.remat == 'full' else 2
  hops = times * (passes * 3 * (n - 1) + 2 * n) if n > 1 else 0
  assert (sent.get('ppermute', 0) > hops) == bool(model.memory.rows)
  assert model.memory.rows or sent.get('ppermute', 0) == hops
  # Only weights are gathered, in the dtype of the matmuls.
  weights = [x.shape for x in jax.tree.leaves(state['params'])]
  weights += [shape[1:] for shape in weights]
  fits = lambda shape, weight: (
    len(shape) == len(weight)
    and all(size % part == 0 for part, size in zip(shape, weight))
  )
  for shape, dtype in jaxprs.gathered(trace.jaxpr.jaxpr):
    assert dtype == model.dtype
    assert any(fits(shape, weight) for weight in weights), shape


# Tokens of the window that each config trains, from its paper; FoT's rows and
# those of the jobs for a laptop are shorter than what its weights bring.
WINDOWS = {
  'lab.base': 64, 'lab.extend': 256, 'llama2_7b_32k': 32_768,
  'llama2_e2llm': 81_920, 'llama2_long_ablations': 32_768,
  'llama2_longalign': 65_536, 'llama2_longce': 32_768,
  'llama2_longlora': 65_536, 'llama2_longskywork': 204_800,
  'llama2_prospector': 32_768, 'llama2_yarn': 65_536,
  'llama2_yarn:7b_128k': 131_072, 'llama31_8b_128k': 131_072,
  'llama32_1b_64k': 65_536, 'smollm2_1b7_64k': 65_536,
  'llama3_70b_128k': 131_072, 'llama3_8b_512k': 524_288,
  'llama3_8b_512k_sft': 65_536, 'llama3_8b_64k': 65_536,
  'llama3_8b_olmo3_64k': 65_536, 'llama31_ultralong': 2**20,
  'llama3_8b_skipalign': 65_536, 'llama_pi': 32_768,
  'llama_pi:ntk_llama1_7b_8k': 8192,
  'llama_pi:llama1_7b_8k': 8192, 'llama_pose': 16_384,
  'llama_pose:yarn_128k': 131_072, 'llama_superhot_8k': 8192,
  'mistral_7b_128k': 131_072, 'qwen3_8b_128k': 131_072,
  'smollm3_3b_64k': 65_536, 'nope_107m': 1024, 'openllama_3b_fot': 2048,
  'smollm2_135m_abf_16k': 1024,
  'smollm2_135m_pi_16k': 1024, 'smollm2_135m_prolong_mini': 4096, 'tiny': 256,
}  # fmt: skip


@pytest.mark.parametrize('name', sorted({*NAMES, *WINDOWS}))
def test_a_run_is_exported_with_the_window_that_it_trained(name):
  config = config_of(name).to_dict()
  metadata = dict(config=config, model=config['model'])
  assert released.window(metadata) == WINDOWS[name]
  # A window that was released is never made smaller.
  assert released.window(dict(metadata, window=2**20)) == 2**20


def plans():
  """(config, variant, chips, mesh, micro-batches) of the table of plans."""
  text = (ROOT / 'configs' / 'README.md').read_text()
  cells = (
    r'`(\w+)(?::(\w+))?` \| v5p:(\d+)x(\d+)x(\d+) \| (\d+) x (\d+), (\d+) \|'
  )
  for name, variant, *numbers in re.findall(cells, text):
    x, y, z, data, seq, parts = map(int, numbers)
    yield name, variant, x * y * z, dict(data=data, seq=seq), parts


def test_the_table_of_plans_is_of_the_configs_as_they_are():
  """What was compiled is the mesh of the config, on that many chips."""
  seen = set()
  for name, variant, chips, mesh, parts in plans():
    config = config_of(name, variant)
    assert config.mesh.to_dict() == mesh, name
    assert config.train.micro_batches == parts, name
    assert mesh['data'] * mesh['seq'] == chips, name
    seen.add(name)
  assert len(seen) > 10


def test_every_variant_could_run_and_has_a_name_of_its_own():
  names = [schema.flat(config_of(*which))['name'] for which in VARIANTS]
  assert len(set(names)) == len(names)
  for which in VARIANTS:
    config = config_of(*which)
    checks.check(config)
    assert which[1] in config.name


LORA = {'lora.rank': 3}
LONGCE = {'train.longce.gamma': 1.2, 'train.longce.short': 8,
          'train.longce.stride': 4}  # fmt: skip
E2LLM = {'data.positions.kind': 'e2llm', 'data.positions.target': 4096,
         'data.positions.window': 1024}  # fmt: skip


@pytest.mark.parametrize('changes, says', [
  (E2LLM, 'linear by target / window = 4'),
  (E2LLM | {'model.rope.scaling': 'linear', 'model.rope.factor': 2.0},
   'by 2; it needs linear'),
  ({'data.positions.kind': 'pose', 'data.positions.target': 4096,
    'data.positions.chunks': 1}, 'not from 2 to'),
  ({'train.longce.gamma': 5.0, 'train.longce.short': 64,
    'train.longce.stride': 64, 'model.group': 256}, 'must be 0 with'),
  ({'model.rope.xpos': 100.0, 'eval.tasks': ('needle',),
    'eval.lengths': (8192,)}, 'at least 164'),
  ({'model.memory.layers': (0,), 'model.memory.rows': ((), (-1,)),
    'model.attention': 'blockwise', 'train.batch': 8, 'data.mix': dict(
      a=dict(weight=0.5, length=2048), b=dict(weight=0.5, length=1024))},
   r'data\.mix\.b have 1024'),
  ({'model.group': 256, 'model.attention': 'ulysses', 'mesh.seq': 8,
    'model.heads': 8, 'model.kv_heads': 8}, 'mesh.seq is 8'),
  ({'data.positions.kind': 'pose', 'data.positions.target': 1 << 31},
   'data.positions.target'),
  ({'optim.schedule': 'wsd', 'optim.decay_steps': 0}, 'decay_steps is 0'),
  ({'optim.schedule': 'wsd', 'optim.decay_steps': 37}, 'decay_steps is 37'),
  ({'optim.schedule': 'cosine', 'optim.decay_steps': 5}, 'decay_steps is 5'),
  (LORA | {'lora.weights': ('q', 'wo')}, "'wo'"),
  (LORA | {'lora.weights': ('q', 'q')}, 'without repeats'),
  (LORA | {'lora.weights': ()}, 'one or more'),
  (LORA | {'lora.alpha': 0.0}, 'above 0'),
  (LORA | {'lora.alpha': float('nan')}, 'finite'),
  (LORA | {'lora.whole': ('norms',)}, "'norms'"),
  ({'lora.rank': -1}, 'at least 0'),
  (LORA | {'moments': True, 'weights': 'somewhere'}, 'moments'),
  (LONGCE | {'train.longce.short': 10}, 'not a multiple'),
  (LONGCE | {'train.longce.stride': 0}, 'at least 1'),
  (LONGCE | {'train.longce.gamma': -1.0}, 'at least 0'),
  (LONGCE | {'train.longce.short': 1024}, 'no target'),
])  # fmt: skip
def test_keys_that_contradict_each_other_are_refused(changes, says):
  config = config_of('tiny')
  config.mesh.update(data=1, seq=1)
  config.train.update(seq_len=1024)
  config.update_from_flattened_dict(
    {k: v for k, v in changes.items() if k != 'data.mix'}
  )
  if 'data.mix' in changes:
    config.data.mix = changes['data.mix']
  with pytest.raises(InputError, match=says):
    checks.check(config)


@pytest.mark.parametrize('name', sorted({n for n, v in VARIANTS if v}))
def test_an_unknown_variant_is_refused_with_the_known_ones(name):
  known = next(v for n, v in VARIANTS if n == name and v)
  with pytest.raises(InputError, match=f"'no_such' is not one of .*{known}"):
    config_of(name, 'no_such')


def test_the_defaults_of_the_schema_are_values_that_it_takes():
  for name, key in schema.KEYS.items():
    if not isinstance(key.default, type):
      schema.check_value(name, key.default, key)


@pytest.mark.parametrize('counts, rows', [
  (((0, 0), (1, 1)), ((), (-1, -2))),
  (((0, 0), (1, 2), (2, 1)), ((), (-1, -2, -3), (-1, -2, -3))),
])  # fmt: skip
def test_rows_of_focused_transformer_come_before_the_row(counts, rows):
  assert common.fot_rows(*counts) == rows
  with pytest.raises(InputError, match='row 0 of a pack has no 1 rows'):
    common.fot_rows((1, 0))


def test_the_model_has_the_defaults_of_the_schema():
  """A key of the model without a default has none in the library either."""
  fields = {
    f'model.{prefix}{field.name}': field.default
    for prefix, kind in (('', llama.Llama), ('rope.', rope.Rope),
                         ('memory.', crossbatch.Memory))
    for field in dataclasses.fields(kind)
    if field.name not in ('rope', 'memory')
  }  # fmt: skip
  assert fields.keys() == {k for k in schema.KEYS if k.startswith('model.')}
  for name, default in fields.items():
    ours = schema.KEYS[name].default
    assert default == ours or isinstance(ours, type), name
