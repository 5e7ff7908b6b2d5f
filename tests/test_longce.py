"""LongCE: windows by loops over a float64 model, and what the step learns."""

import dataclasses

import jax
import numpy as np
import pytest
import reference
from test_train import packed_batch, tiny_config

from longjax import checks, llama, longce
from longjax.batch import one_document
from longjax.data import layout
from longjax.parallel import sharding
from longjax.train import step as train_step

SHORT, STRIDE, GAMMA = 8, 4, 1.2


def config_of(data=1, seq=1, **changes):
  return tiny_config(
    data, seq, model__layers=1, train__batch=4, train__seq_len=48,
    train__longce=dict(gamma=GAMMA, short=SHORT, stride=STRIDE), **changes,
  )  # fmt: skip


def context(batch):
  """As if a loss were the tokens of its own document that a target sees."""
  same = batch.segments[:, :, None] == batch.segments[:, None, :]
  before = batch.index[:, None, :] <= batch.index[:, :, None]
  return (same & before).sum(-1).astype(np.float32)


@pytest.mark.parametrize('name', ['contiguous', 'zigzag', 'striped'])
def test_a_target_sees_as_much_of_its_window_as_the_paper_s_code(name):
  """Windows begin every 4 tokens; of 12 each, the last 4 targets count."""
  batch = one_document(np.zeros((1, 48), np.int32))
  batch = layout.arrange(batch, name, 4, 16)
  got = longce.short_losses(context, batch, SHORT, STRIDE)
  got = np.asarray(got)[0, np.argsort(batch.index[0])]
  # Target t, the token after position t - 1, has the window of t - 8 - t % 4.
  want = [8 + t % 4 for t in range(8, 49)]
  np.testing.assert_array_equal(got[7:], want)


def test_no_window_reaches_into_another_document():
  batch = one_document(np.zeros((1, 48), np.int32))
  batch = batch._replace(segments=1 + (batch.index >= 21))
  got = np.asarray(longce.short_losses(context, batch, SHORT, STRIDE))[0]
  # The document begins at 21; from its 8th token on a window may be later.
  np.testing.assert_array_equal(got[21:28], np.arange(1, 8))
  assert got[28:].max() == 11


def float64_weights(params, config, batch):
  """min(exp(short - long), gamma), a window at a time."""
  model = dataclasses.asdict(checks.llama_config(config))

  def losses(columns):
    cut = [np.asarray(x)[:, columns] for x in batch]
    part = type(batch)(*cut)
    logits = reference.forward(
      params, model, part.tokens, segments=part.segments,
      positions=part.positions, index=part.index,
    )  # fmt: skip
    return reference.token_nll(logits, part.targets)

  seq = batch.tokens.shape[1]
  long = losses(slice(0, seq))
  weights = np.ones(long.shape)
  for start in range(0, seq - SHORT + 1, STRIDE):
    end = min(start + SHORT + STRIDE - 1, seq)  # of the positions that score
    scored = slice(start + SHORT - 1, end)
    short = losses(slice(start, end))[:, SHORT - 1 :]
    weights[:, scored] = np.minimum(np.exp(short - long[:, scored]), GAMMA)
  return weights


@pytest.mark.parametrize('data, seq, parts', [
  (2, 2, 1),
  pytest.param(2, 2, 2, marks=pytest.mark.slow),
  pytest.param(1, 4, 1, marks=pytest.mark.slow),
  pytest.param(4, 1, 1, marks=pytest.mark.slow),
])  # fmt: skip
def test_the_step_learns_the_losses_as_the_float64_model_weighs_them(
  data, seq, parts, make_mesh
):
  """And nothing goes through the weights: they are numbers here."""
  config = config_of(data, seq, train__micro_batches=parts)
  model, mesh = checks.llama_config(config), make_mesh(data, seq)
  draw = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: draw.normal(size=x.shape).astype(np.float32) * 0.3,
    llama.abstract(model),
  )
  batch = packed_batch(draw, config)
  weights = float64_weights(params, config, batch)
  assert weights[:, : SHORT - 1].max() == weights[:, : SHORT - 1].min() == 1
  capped = (weights == GAMMA).mean()
  assert capped > 0.03 and (weights < 0.99).mean() > 0.03

  def loss(params):
    nll = llama.nll(params, model, batch, chunk=64)
    return (weights * batch.weights * nll).sum() / batch.weights.sum()

  want = jax.jit(jax.value_and_grad(loss))(params)
  put = sharding.put(layout.arrange(batch, 'zigzag', seq, 16), mesh)
  placed = jax.device_put(params, sharding.params(params, mesh))
  got = jax.jit(lambda p, b: train_step.gradients(config, p, b, model, mesh))(
    placed, put
  )
  np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
  for g, w in zip(jax.tree.leaves(got[1]), jax.tree.leaves(want[1])):
    np.testing.assert_allclose(g, w, rtol=0, atol=1e-4 * np.abs(w).max())
