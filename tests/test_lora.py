"""LoRA against its formula, and what a run of it saves, loads and exports."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_train import packed_batch, run_of, tiny_config

from longjax import checkpoint, checks, llama, lora, weights
from longjax.batch import one_document
from longjax.errors import InputError
from longjax.parallel import sharding
from longjax.train import state as train_state
from longjax.train import step as train_step
from longjax.weights import checkpoint_arrays, convert

RANK, ALPHA = 3, 12.0


def config_of(**changes):
  changes = dict(lora__rank=RANK, lora__alpha=ALPHA, model__layers=1) | changes
  return tiny_config(
    2, 2, train__batch=4, train__seq_len=32, train__steps=4,
    optim__warmup_steps=0, optim__clip=1e3, **changes,
  )  # fmt: skip


def formula(params):
  """W + alpha / rank * A B, written out for each weight."""
  layers, factors = dict(params['layers']), params['lora']
  for name, equation in dict(
    q='ldr,lrnh->ldnh', k='ldr,lrnh->ldnh', v='ldr,lrnh->ldnh',
    o='lnhr,lrd->lnhd', gate='ldr,lrf->ldf',
  ).items():  # fmt: skip
    if name in factors:
      pair = factors[name]['a'], factors[name]['b']
      product = jnp.einsum(equation, *pair, precision='highest')
      layers[name] = layers[name] + ALPHA / RANK * product
  plain = {k: v for k, v in params.items() if k not in ('lora', 'layers')}
  return plain | dict(layers=layers)


def with_b(params):
  """Factors B that are not zero, as after some training."""
  draw = np.random.default_rng(0)
  factors = {
    name: dict(f, b=0.02 * draw.normal(size=f['b'].shape).astype(np.float32))
    for name, f in params['lora'].items()
  }
  return params | dict(lora=factors)


def host_params(config):
  """Random params with the factors of an untrained run, numpy."""
  draw = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: draw.normal(size=x.shape).astype(np.float32),
    llama.abstract(checks.llama_config(config)),
  )
  factors = lora.init(params, config.lora, jax.random.key(1))
  return params | jax.device_get(factors)


def test_before_training_the_sum_is_the_weight_to_the_bit():
  params = host_params(config_of())
  plain = {k: v for k, v in params.items() if k != 'lora'}
  got = lora.merged(params, ALPHA)
  jax.tree.map(np.testing.assert_array_equal, got, plain)


@pytest.mark.parametrize('rank', [0, RANK])
def test_what_was_split_joins_again(rank):
  config = config_of()
  params = host_params(config)
  config.lora.rank = rank
  learning, frozen = lora.split(params, config.lora)
  assert jax.tree.all(
    jax.tree.map(lambda a, b: a is b, lora.join(learning, frozen), params)
  )
  assert bool(jax.tree.leaves(frozen)) == bool(rank)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """(config, states after 0, 1 and 2 steps, the last again from a checkpoint
  of the one before, the run directory); the factors are not zero at first."""
  config = config_of(lora__weights=('q', 'o', 'gate'))
  devices = np.array(jax.devices()[:4]).reshape(2, 2)
  mesh = jax.sharding.Mesh(devices, sharding.AXES)
  run = run_of(config, mesh)
  step, abstract = train_step.build(config, run.model, mesh)
  batch = sharding.put(packed_batch(np.random.default_rng(0), config), mesh)
  state, _ = train_state.fresh(run, abstract, None)
  params = with_b(jax.device_get(state['params']))
  places = sharding.params(params, mesh)
  state['params'] = jax.device_put(params, places)
  states = [jax.device_get(state)]
  directory = tmp_path_factory.mktemp('lora')
  about = dict(
    config=json.loads(json.dumps(config.to_dict())),
    model=json.loads(json.dumps(dataclasses.asdict(run.model))),
  )
  checkpoints = checkpoint.Checkpoints(directory / 'checkpoints', 2)
  for number in range(2):
    state, _ = step(state, batch)
    states.append(jax.device_get(state))
    if not number:
      checkpoints.save_and_wait(state, about)
  restored, _ = checkpoints.restore(abstract)
  checkpoints.close()
  again, _ = step(restored, batch)
  return config, states, jax.device_get(again), directory


def test_only_factors_norms_and_embedding_move(trained):
  _, states, _, _ = trained
  before, after = states[0]['params'], states[2]['params']
  same = {
    jax.tree_util.keystr(path, simple=True, separator='/'): np.array_equal(x, y)
    for (path, x), y in zip(
      jax.tree.leaves_with_path(before), jax.tree.leaves(after)
    )
  }
  assert {path for path, is_same in same.items() if is_same} == {
    'head', *(f'layers/{name}' for name in ('q', 'k', 'v', 'o', 'gate', 'up',
                                            'down')),
  }  # fmt: skip


def test_only_trained_parameters_have_moments(trained):
  config, states, _, _ = trained
  learning, _ = lora.split(states[0]['params'], config.lora)
  count = lambda tree: sum(np.size(x) for x in jax.tree.leaves(tree))
  counters = 2  # of AdamW and of the schedule
  assert count(states[0]['opt']) == 2 * count(learning) + counters
  assert count(learning) < 0.6 * count(states[0]['params'])


def test_a_restored_run_continues_to_the_bit(trained):
  _, states, again, _ = trained
  jax.tree.map(np.testing.assert_array_equal, again, states[2])


def test_gradients_are_those_of_the_formula(trained):
  """Read from the first moments of the first step: a tenth of them."""
  config, states, _, _ = trained
  model = checks.llama_config(config)
  batch = packed_batch(np.random.default_rng(0), config)

  def loss(params):
    nll = llama.nll(formula(params), model, batch, chunk=64)
    return (batch.weights * nll).sum() / batch.weights.sum()

  want = jax.jit(jax.grad(loss))(states[0]['params'])
  want, _ = lora.split(want, config.lora)
  got = optax.tree_utils.tree_get(states[1]['opt'], 'mu')
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
    # Sums of four devices in another order.
    np.testing.assert_allclose(10 * g, w, rtol=0, atol=2e-5 * np.abs(w).max())


def test_a_run_loads_and_exports_as_one_model(trained, tmp_path, rng):
  """Its factors are added: the logits are those of the formula."""
  _, states, _, directory = trained
  params, model = weights.load(directory)
  assert 'lora' not in params
  convert.to_huggingface(directory, tmp_path / 'out', log=lambda _: None)
  exported, _ = weights.load(tmp_path / 'out')
  batch = one_document(rng.integers(0, model.vocab, (1, 24)))
  logits = jax.jit(lambda params: llama.forward(params, model, batch))
  want = logits(formula(states[1]['params']))
  base = {k: v for k, v in states[1]['params'].items() if k != 'lora'}
  assert np.abs(logits(base) - want).max() > 0.1
  for got in (params, exported):
    np.testing.assert_allclose(logits(got), want, rtol=0, atol=1e-5)


def test_a_damaged_factor_is_not_exported(trained, tmp_path):
  _, _, _, directory = trained
  root, step = checkpoint.find(directory)
  about = checkpoint.metadata(directory)
  about['digests']['params/lora/q/b'] = '0' * 16
  with pytest.raises(InputError, match='lora/q/b differs from its digest'):
    checkpoint_arrays.lora_factors(root / str(step), about)


def test_parts_of_the_sum_are_the_sum(rng):
  """As export forms them, whatever rectangles the checkpoint is stored in."""
  params = with_b(host_params(config_of(model__layers=2)))
  whole = lora.merged(params, ALPHA)['layers']
  cut = dict(
    q=(slice(1, 2), slice(8, 40), slice(2, 6), slice(0, 16)),
    o=(slice(0, 2), slice(3, 4), slice(0, 16), slice(10, 64)),
  )
  for name, where in cut.items():
    more = lora.part(params['lora'][name], ALPHA, where)
    got = params['layers'][name][where] + more
    np.testing.assert_allclose(got, whole[name][where], rtol=0, atol=1e-7)
