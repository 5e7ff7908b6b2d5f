"""The train step on one device and on eight, and what it costs."""

import functools
import math
import pathlib

import jax
import jaxprs
import numpy as np
import pytest
import reference

from configs import tiny
from longjax import checks, llama
from longjax.batch import Batch
from longjax.data import layout
from longjax.errors import InputError
from longjax.parallel import sharding
from longjax.train import evaluator, goodput, loop, optimizer, preemption
from longjax.train import state as train_state
from longjax.train import step as train_step


def tiny_config(data=1, seq=1, **changes):
  config = tiny.get_config()
  config.mesh.update(data=data, seq=seq)
  for key, value in changes.items():
    config.update_from_flattened_dict({key.replace('__', '.'): value})
  return config


def packed_batch(rng, config):
  """Random tokens in documents of odd lengths, some padding, some weights."""
  shape = (config.train.batch, config.train.seq_len)
  tokens, targets = rng.integers(0, 384, (2, *shape)).astype(np.int32)
  borders = np.sort(rng.integers(1, shape[1] - 9, (shape[0], 3)))
  index = np.tile(np.arange(shape[1], dtype=np.int32), (shape[0], 1))
  segments = 1 + (index[..., None] >= borders[:, None]).sum(-1)
  segments[:, -9:] = 0
  weights = rng.random(shape) * (segments > 0)
  return Batch(
    tokens, targets, weights.astype(np.float32), segments.astype(np.int32),
    index, index,
  )  # fmt: skip


def run_of(config, mesh, workdir=pathlib.Path(), log=print):
  return loop.Run(
    config, checks.llama_config(config), mesh, workdir, log,
    goodput.Clock(), preemption.StopRequest(),
  )  # fmt: skip


SHAPE = dict(model__layers=2, train__batch=8)


@functools.cache
def gradients_on(mesh, parts=1):
  """A jitted function (params, batch) -> (loss, gradients) of the step."""
  config = tiny_config(**SHAPE, train__micro_batches=parts)
  model = checks.llama_config(config)
  return jax.jit(lambda p, b: train_step.gradients(config, p, b, model, mesh))


@pytest.fixture(scope='module')
def single():
  """The step on one device, with attention whole."""
  config = tiny_config(**SHAPE)
  batch = packed_batch(np.random.default_rng(0), config)
  params = reference.random_params(llama.abstract(checks.llama_config(config)))
  devices = np.array(jax.devices()[:1]).reshape(1, 1)
  mesh = jax.sharding.Mesh(devices, sharding.AXES)
  return batch, params, gradients_on(mesh)(params, batch)


def assert_same_step(got, want):
  np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
  for path, g in jax.tree.leaves_with_path(got[1]):
    w = want[1]
    for key in path:
      w = w[key.key]
    error = np.abs(np.asarray(g) - np.asarray(w)).max()
    assert error <= 1e-4 * np.abs(w).max(), jax.tree_util.keystr(path)


@pytest.mark.parametrize('shape, name, parts', [
  ((2, 4), 'zigzag', 1), ((2, 4), 'contiguous', 1), ((2, 4), 'balanced', 1),
  ((2, 4), 'zigzag', 4),
  *(
    pytest.param(shape, name, 1, marks=pytest.mark.slow)
    for shape, name in (((1, 8), 'contiguous'), ((1, 8), 'zigzag'),
                        ((8, 1), 'zigzag'))
  ),
])  # fmt: skip
def test_a_step_on_eight_devices_is_the_step_on_one(
  shape, name, parts, single, make_mesh
):
  """However rows are laid out, and in parts."""
  batch, params, want = single
  mesh = make_mesh(*shape)
  batch = layout.arrange(batch, name, shape[1], tiny_config().model.block)
  params = jax.device_put(params, sharding.params(params, mesh))
  got = gradients_on(mesh, parts)(params, sharding.put(batch, mesh))
  assert_same_step(got, want)


def lowered(seq_len, make_mesh):
  config = tiny_config(1, 8, train__batch=1, train__seq_len=seq_len)
  mesh = make_mesh(1, 8)
  step, state = train_step.build(config, checks.llama_config(config), mesh)
  return step, (state, train_step.abstract_batch(config, mesh))


@pytest.mark.slow
def test_memory_grows_with_the_sequence_and_not_with_its_square(make_mesh):
  temporaries = []
  for seq_len in (4096, 8192):
    step, arguments = lowered(seq_len, make_mesh)
    memory = step.lower(*arguments).compile().memory_analysis()
    temporaries.append(memory.temp_size_in_bytes)
  assert temporaries[1] <= 2.2 * temporaries[0]


def test_no_array_of_the_program_has_two_dims_of_the_sequence(make_mesh):
  seq, vocab, ring = 8192, 384, 8
  step, arguments = lowered(seq, make_mesh)
  lengths = {seq, seq // ring}
  for shape in jaxprs.shapes(jax.make_jaxpr(step)(*arguments).jaxpr):
    along = [d for d in shape if d in lengths]
    assert len(along) < 2, shape
    assert not (along and vocab in shape), shape


@pytest.fixture(scope='module')
def parallel_step():
  """(config, mesh, abstract state, jaxpr, compiled step), in bfloat16."""
  config = tiny_config(
    2, 4, **SHAPE, train__seq_len=64, train__micro_batches=2,
    model__dtype='bfloat16',
  )  # fmt: skip
  devices = np.array(jax.devices()).reshape(2, 4)
  mesh = jax.sharding.Mesh(devices, sharding.AXES)
  step, state = train_step.build(config, checks.llama_config(config), mesh)
  trace = step.trace(state, train_step.abstract_batch(config, mesh))
  return config, mesh, state, trace.jaxpr.jaxpr, trace.lower().compile()


def test_weights_travel_in_the_dtype_of_the_matmul_gradients_in_float32(
  parallel_step,
):
  *_, jaxpr, _ = parallel_step
  dtypes = dict(all_gather=set(), reduce_scatter=set())
  for eqn, _ in jaxprs.equations(jaxpr):
    if eqn.primitive.name in dtypes:
      (array,) = (v.aval for v in eqn.invars)
      dtypes[eqn.primitive.name].add(str(array.dtype))
  assert dtypes == dict(all_gather={'bfloat16'}, reduce_scatter={'float32'})


def test_no_gradient_is_whole_on_a_device_across_the_mesh(parallel_step):
  _, mesh, state, _, compiled = parallel_step
  text = compiled.as_text()
  # Only norms and scalars are all-reduced.
  reduced = jaxprs.collective_shapes(text, 'all-reduce')
  assert max(map(math.prod, reduced)) <= state['params']['norm'].size
  scattered = jaxprs.collective_shapes(text, 'reduce-scatter')
  for name, weight in state['params']['layers'].items():
    if 'norm' in name:
      continue
    shape = list(weight.shape[1:])
    for axis, dim in sharding.sharded_dims(shape, mesh).items():
      shape[dim] //= mesh.shape[axis]
      assert tuple(shape) in scattered, (name, axis)
    # Nor does the sum over micro-batches hold all layers.
    assert f'f32[{",".join(map(str, weight.shape))}]' not in text, name


def test_the_guard_keeps_every_bit_of_a_step_that_is_not_taken(parallel_step):
  config, mesh, abstract, _, step = parallel_step
  state, _ = train_state.fresh(run_of(config, mesh), abstract, None)
  batch = packed_batch(np.random.default_rng(0), config)
  state, values = step(state, sharding.put(batch, mesh))
  assert float(values['skipped']) == 0
  before = jax.device_get(state)
  assert before.pop('step') == 1
  empty = batch._replace(weights=np.zeros_like(batch.weights))
  state, values = step(state, sharding.put(empty, mesh))
  assert float(values['skipped']) == float(values['empty']) == 1
  assert np.isnan(values['loss'])
  after = jax.device_get(state)
  assert after.pop('step') == 2
  jax.tree.map(np.testing.assert_array_equal, after, before)
  batch.weights[0, 0] = np.nan
  state, values = step(state, sharding.put(batch, mesh))
  assert float(values['skipped']) == 1 and float(values['empty']) == 0
  after = jax.device_get(state)
  assert after.pop('step') == 3
  assert after['guard'].pop('skipped') == before['guard'].pop('skipped') + 1
  jax.tree.map(np.testing.assert_array_equal, after, before)


def test_a_rate_falls_to_its_least_by_hand():
  """Those of recipes are in test_recipes.py, by their own code."""
  section = tiny.get_config().optim
  section.update(
    learning_rate=1.0, warmup_steps=10, warmup_from=0.1, min_ratio=0.1,
    schedule='linear',
  )  # fmt: skip
  rates = optimizer.schedule(section, 110)(np.array([0, 5, 10, 60, 110]))
  np.testing.assert_allclose(rates, [0.1, 0.55, 1, 0.55, 0.1], rtol=1e-6)


def test_only_matrices_decay():
  model = checks.llama_config(tiny_config())
  section = tiny.get_config().optim
  norms = {'norm', 'layers/attn_norm', 'layers/mlp_norm'}
  for section.decayed, others in (
    ('matrices', norms), ('not_embedding', norms | {'embedding'}),
    ('with_norms', set()),
  ):  # fmt: skip
    decayed = optimizer.decay_mask(section, llama.abstract(model))
    names = {
      jax.tree_util.keystr(p, simple=True, separator='/')
      for p, d in jax.tree.leaves_with_path(decayed) if not d
    }  # fmt: skip
    assert names == others


def test_an_xpos_that_overflows_in_a_row_is_refused():
  fits = tiny_config(model__rope__xpos=2.0, train__seq_len=96, eval__length=0)
  checks.check(fits)
  far = tiny_config(model__rope__xpos=2.0, train__seq_len=104, eval__length=0)
  with pytest.raises(InputError, match=r'is 2; it must be at least 3'):
    checks.check(far)


@pytest.mark.parametrize('model', [
  dict(nope_layers=(0, 1, 2, 3)), dict(rope__scaling='nope'),
])  # fmt: skip
def test_positions_that_no_layer_reads_are_refused(model):
  keys = {f'model__{key}': value for key, value in model.items()}
  config = tiny_config(model__layers=4, **keys)
  checks.check(config)
  config.data.positions.update(kind='pose', target=1 << 20)
  with pytest.raises(InputError, match="kind is 'pose', but no layer"):
    checks.check(config)


def test_results_that_a_full_disk_does_not_take_are_a_warning(tmp_path):
  lines = []
  (tmp_path / 'evals').write_text('in the way of the directory')
  run = run_of(tiny.get_config(), None, tmp_path, lines.append)
  evaluator.save_results(run, 'recipe', 0, {})
  assert len(lines) == 1
  assert 'WARNING' in lines[0] and "'recipe'" in lines[0]
  assert 'File exists' in lines[0]
