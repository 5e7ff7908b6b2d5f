"""Rows computed at a few compiled lengths: the same loss, fewer columns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_train import tiny_config

from longjax import checks, llama
from longjax.batch import Batch
from longjax.data import pipeline, store
from longjax.errors import InputError
from longjax.parallel import sharding
from longjax.train import step as train_step

LENGTHS = (16, 32)
DOCUMENTS = [60, 50, 14, 33, 9, 15, 30, 17]


def config_of(lengths=LENGTHS, **changes):
  changes = dict(
    train__batch=8, train__micro_batches=4, train__seq_len=64,
    train__lengths=lengths, train__loss_chunk=16, data__loss='documents',
    model__layers=1, model__block=64, model__attention='gather',
    model__remat='none',
  ) | changes  # fmt: skip
  config = tiny_config(1, 2, **changes)
  with config.unlocked():
    config.data.mix = dict(all=dict(sources=('*',), pack='sorted', group=2))
  return config


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  directory = tmp_path_factory.mktemp('lengths') / 'data'
  rng = np.random.default_rng(0)
  entries = (
    store.Entry(str(i), 's', rng.integers(1, 384, n), n)
    for i, n in enumerate(DOCUMENTS)
  )
  store.write(directory, entries, vocab=384, tokenizer='t', spec=[])
  return store.open_store(directory)


@pytest.fixture(scope='module')
def batches(data):
  """The plan of the first step, its batch, and that of whole rows."""
  made = [pipeline.Pipeline(data, config_of(n)) for n in (LENGTHS, ())]
  return made[0].plan(0), *(pipe.batch(0) for pipe in made)


def test_a_micro_batch_has_the_shortest_length_that_holds_its_rows(batches):
  plan, short, whole = batches
  sizes = np.count_nonzero(whole.segments, axis=1)
  # Micro-batch m has the rows m and m + 4, of like length.
  assert sorted(sizes) == sorted(DOCUMENTS)
  longest = np.maximum(sizes[:4], sizes[4:])
  assert longest.tolist() == [60, 33, 17, 14]
  assert plan.lengths.tolist() == [64, 64, 32, 16] * 2
  for row, length in enumerate(plan.lengths):
    # Device 0 and device 1 hold 32 places each, their text comes first.
    for part in short.index[row].reshape(2, 32):
      assert (part[: length // 2] < length).all()
      assert (part[length // 2 :] >= length).all()
    back = np.argsort(short.index[row])
    same = np.argsort(whole.index[row])
    for x, y in zip(short, whole):
      assert (x[row][back] == y[row][same]).all()


def test_the_devices_choose_the_lengths_of_the_plan(batches, make_mesh):
  plan, short, _ = batches
  mesh = make_mesh(1, 2)
  measure = train_step.dispatch_by_length(
    lambda _, batch: (jnp.array(batch.tokens.shape[1]), batch.tokens.sum()),
    [*LENGTHS, 64], mesh,
  )  # fmt: skip
  measure = jax.jit(functools.partial(measure, 0))
  for m in range(4):
    part = Batch(*(x[m::4] for x in short))
    length, total = measure(sharding.put(part, mesh))
    assert length == plan.lengths[m] and total == part.tokens.sum()


@pytest.mark.slow
def test_loss_and_gradients_are_those_of_whole_rows(data, make_mesh):
  mesh, model = make_mesh(1, 2), checks.llama_config(config_of())
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: 0.3 * rng.normal(size=x.shape).astype(np.float32),
    llama.abstract(model),
  )
  params = jax.device_put(params, sharding.params(params, mesh))

  def run(*lengths):
    config = config_of(lengths)
    batch = sharding.put(pipeline.Pipeline(data, config).batch(0), mesh)
    step = functools.partial(train_step.gradients, model=model, mesh=mesh)
    return jax.jit(functools.partial(step, config))(params, batch)

  got, want = run(32), run()
  np.testing.assert_allclose(got[0], want[0], rtol=1e-6)
  for g, w in zip(jax.tree.leaves(got[1]), jax.tree.leaves(want[1])):
    np.testing.assert_allclose(g, w, rtol=0, atol=1e-5 * np.abs(w).max())


@pytest.mark.parametrize('changes, says', [
  (dict(lengths=(16, 128)), '128.*seq_len 64'),
  (dict(lengths=(18,)), '18 is not a multiple of 4'),
  (dict(model__group=32), r'must be \(\)'),
])  # fmt: skip
def test_lengths_that_cannot_be_are_refused(changes, says):
  with pytest.raises(InputError, match=says):
    pipeline.check(config_of(**changes))
