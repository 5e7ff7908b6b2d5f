"""Crossbatch training against float64 attention written row by row."""

import dataclasses
import functools

import jax
import jaxprs
import numpy as np
import pytest
import reference
from attention_cases import FAST_COMPILE

from configs import common
from longjax import llama
from longjax.batch import Batch, one_document
from longjax.crossbatch import Memory
from longjax.data import pipeline, prepare
from longjax.parallel import sharding
from longjax.rope import Rope

pytestmark = pytest.mark.usefixtures('strict_dtypes')

BATCH, SEQ = 8, 16
FORWARD = jax.jit(
  llama.forward, static_argnums=1, compiler_options=FAST_COMPILE
)
LONGLLAMA_3B = common.fot_rows((0, 0), (1, 1), (2, 1), (3, 0))

NO_MEMORY = Memory()


def model(memory=NO_MEMORY, **how):
  fields = dict(
    vocab=64, layers=3, embed=32, mlp=48, heads=4, kv_heads=2, head_dim=8,
    dtype='float32', block=8, rope=Rope(scaling='yarn', factor=4.0,
    original_length=16), memory=memory,
  )  # fmt: skip
  return llama.Llama(**fields | how)


MODELS = dict(
  code=model(Memory((0, 1), LONGLLAMA_3B), layers=2),
  # The paper's general procedure, d = 3: rows are previous and current chunks
  # in turn; a current one attends to its own previous and those of the next.
  paper=model(Memory((0, 2), ((), (-1, 1, 3)), wrap=True)),
  far=model(Memory((2,), common.fot_rows((0, 0), (1, 5)), wrap=True)),
)


def params_of(config):
  return jax.device_put(reference.random_params(llama.abstract(config)))


def batch_of(rng, rows=BATCH, padding=3):
  """Rows in an order that is not that of the text, the last ones padded."""
  batch = one_document(rng.integers(0, 64, (rows, SEQ)))
  batch = Batch(*(np.array(x) for x in batch))
  batch.segments[rows // 2 :, SEQ - padding :] = 0
  batch.weights[batch.segments == 0] = 0
  order = rng.permutation(SEQ)
  return Batch(*(x[:, order] for x in batch))


def rows_attended(memory, row, batch):
  """Numbers of the rows that a row attends to, by Memory's docstring."""
  away = memory.rows[row % len(memory.rows)]
  found = [row + offset for offset in away]
  if memory.wrap:
    return [r % batch for r in found]
  return [r for r in found if 0 <= r < batch]


def remembering_attention(q, k, far, v, batch, row, others):
  """[T, N, H] of one row: over its own keys and all real ones of others."""
  real = [batch.segments[other] > 0 for other in others]
  distant = lambda x: [x[other][sees] for other, sees in zip(others, real)]
  keys = np.concatenate([k[row], *distant(far)])
  values = np.concatenate([v[row], *distant(v)])
  before = np.full(sum(sees.sum() for sees in real), -1)
  own = batch.segments[row], batch.index[row]
  ids = [np.concatenate([x, before])[None] for x in own]
  return reference.attention(
    q[row][None], keys[None], values[None], own[0][None], own[1][None], ids
  )[0]


def oracle(params, config, batch):
  """Logits in float64, one row after the other."""
  p = {k: v for k, v in params.items() if k != 'layers'} | params['layers']
  p = {name: np.asarray(x, np.float64) for name, x in p.items()}
  turn = reference.rope_frequencies(
    config.head_dim, **dataclasses.asdict(config.rope)
  )
  x, eps = p['embedding'][batch.tokens], config.norm_eps
  for i in range(config.layers):
    h = reference.rms_norm(x, p['attn_norm'][i], eps)
    q, k, v = (np.tensordot(h, p[name][i], axes=1) for name in 'qkv')
    here = lambda y: reference.rotate(y, batch.positions, *turn)
    far = reference.rotate(k, 0 * batch.positions, *turn)
    remembers = i in config.memory.layers
    outs = [
      remembering_attention(
        here(q), here(k), far, v, batch, row,
        rows_attended(config.memory, row, len(x)) if remembers else (),
      )
      for row in range(len(x))
    ]  # fmt: skip
    x = x + np.tensordot(np.stack(outs), p['o'][i], axes=2)
    h = reference.rms_norm(x, p['mlp_norm'][i], eps)
    gate = h @ p['gate'][i]
    x = x + (gate / (1 + np.exp(-gate)) * (h @ p['up'][i])) @ p['down'][i]
  return reference.rms_norm(x, p['norm'], eps) @ p['head']


def oracle_loss(params, config, batch):
  nll = reference.token_nll(oracle(params, config, batch), batch.targets)
  return (batch.weights * nll).sum()


def loss_and_gradient(params, config, batch, mesh=None):
  def loss(p, b):
    return (b.weights * llama.nll(p, config, b, mesh=mesh)).sum()

  batch = batch if mesh is None else sharding.put(batch, mesh)
  run = jax.jit(jax.value_and_grad(loss), compiler_options=FAST_COMPILE)
  return run(params, batch)


@functools.cache
def on_one_device(name):
  config = MODELS[name]
  batch = batch_of(np.random.default_rng(0))
  return batch, loss_and_gradient(params_of(config), config, batch)


@pytest.mark.parametrize('name', MODELS)
def test_logits_equal_the_float64_oracle(name, rng):
  config = MODELS[name]
  params, batch = params_of(config), batch_of(rng)
  got = FORWARD(params, config, batch)
  real = batch.segments > 0
  want = oracle(params, config, batch)
  np.testing.assert_allclose(got[real], want[real], rtol=0, atol=2e-5)


def test_gradients_are_differences_of_the_oracle(rng):
  """Along random directions in each parameter that a memory layer reads."""
  config = MODELS['code']
  batch, (_, grads) = on_one_device('code')
  params = jax.device_get(params_of(config))
  for name in ('q', 'k', 'v', 'attn_norm'):
    value = np.float64(params['layers'][name])
    way = rng.standard_normal(value.shape)

    ahead, behind = (
      oracle_loss(
        params | dict(layers=params['layers'] | {name: value + step * way}),
        config, batch,
      )
      for step in (1e-4, -1e-4)
    )  # fmt: skip
    slope = (ahead - behind) / 2e-4
    got = (np.float64(grads['layers'][name]) * way).sum()
    np.testing.assert_allclose(got, slope, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize('data, seq, attention, name', [
  (2, 4, 'ring', 'code'),
  pytest.param(4, 2, 'hybrid', 'paper', marks=pytest.mark.slow),
  pytest.param(8, 1, 'ring', 'far', marks=pytest.mark.slow),
  pytest.param(1, 8, 'ring', 'code', marks=pytest.mark.slow),
  pytest.param(8, 1, 'blockwise', 'code', marks=pytest.mark.slow),
  pytest.param(2, 4, 'gather', 'far', marks=pytest.mark.slow),
])  # fmt: skip
def test_any_mesh_gives_the_loss_and_gradients_of_one_device(
  data, seq, attention, name, make_mesh
):
  batch, want = on_one_device(name)
  config = dataclasses.replace(MODELS[name], attention=attention)
  mesh = make_mesh(data, seq)
  got = loss_and_gradient(params_of(config), config, batch, mesh)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
    atol = 2e-5 * max(1, np.abs(b).max())
    np.testing.assert_allclose(a, b, rtol=0, atol=atol)


def test_rows_without_others_are_normal_attention(rng):
  config = model(Memory((1, 2), ((), ())))
  params, batch = params_of(config), batch_of(rng)
  got = FORWARD(params, config, batch)
  want = FORWARD(params, model(), batch)
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


def test_memory_layers_alone_leave_the_program_as_it_is():
  def program(config):
    batch = batch_of(np.random.default_rng(0))
    nll = lambda p, b: llama.nll(p, config, b)
    return jax.jit(nll).lower(llama.abstract(config), batch).as_text()

  assert program(model(Memory((1, 2)))) == program(model())
  assert MODELS['code'].for_inference() == model(Memory((0, 1)), layers=2)


def test_a_memory_changes_no_parameter():
  shapes = lambda config: jax.tree.map(
    lambda x: x.shape, llama.abstract(config)
  )
  assert shapes(MODELS['code']) == shapes(model(layers=2))


def test_only_rows_travel_between_the_devices_of_the_batch(make_mesh):
  """No gather of keys: offset by offset, by permutes of whole rows."""
  config = MODELS['code']
  mesh = make_mesh(8, 1)
  batch = batch_of(np.random.default_rng(0))
  hidden = lambda p, b: llama.hidden(p, config, b, mesh=mesh)
  jaxpr = jax.make_jaxpr(hidden)(llama.abstract(config), batch).jaxpr
  counts = jaxprs.collectives(jaxpr)
  # Three offsets, keys, values and segments, in two layers.
  assert counts['ppermute'] == 3 * 3 * 2


def test_the_rows_of_a_pack_are_the_text_in_order(tmp_path, monkeypatch):
  """As LongLLaMA reads it: each row from position 0, the last target of a row
  the first token of the next, no masks between documents."""
  monkeypatch.setenv('LONGJAX_CACHE', str(tmp_path / 'cache'))
  text = tmp_path / 'text'
  text.mkdir()
  (text / 'a.txt').write_text('abcdefgh' * 40)
  (text / 'b.txt').write_text('ijklmnop' * 30)
  config = common.base('tiny')
  config.weights = 'random'
  config.data.sources = dict(text=dict(path=str(text)))
  config.data.layout = 'contiguous'
  config.data.mix = dict(text=dict(length=64, masked=False))
  config.train.update(batch=8, seq_len=16)
  tokenizer = prepare.find_tokenizer(config, print)
  store = prepare.prepare(config, tokenizer, lambda _: None)
  batch = pipeline.Pipeline(store, config).batch(0)
  assert (batch.positions == np.arange(16)).all()
  assert (batch.segments == 1).all()
  for pack in (slice(0, 4), slice(4, 8)):
    tokens, targets = batch.tokens[pack].ravel(), batch.targets[pack].ravel()
    weights = batch.weights[pack].ravel()
    follows = (targets[:-1] == tokens[1:]) | (weights[:-1] == 0)
    assert follows.all()
    assert weights[:-1].sum() >= 61  # but at the ends of documents


def test_rows_by_hand():
  """LongLLaMA 3B, 0, 2, 3 and 3 other rows, and the first pack cut short."""
  assert LONGLLAMA_3B == ((), (-1, -2), (-1, -2, -3), (-1, -2, -3))
  counts = [
    len(rows_attended(MODELS['code'].memory, row, 8)) for row in range(8)
  ]
  assert counts == [0, 1, 2, 3, 0, 2, 3, 3]
  paper = MODELS['paper'].memory
  assert [rows_attended(paper, row, 8) for row in (0, 1, 7)] == [
    [], [0, 2, 4], [6, 0, 2],
  ]  # fmt: skip


@pytest.mark.parametrize('fields, says', [
  (dict(layers=(1, 1)), 'distinct'),
  (dict(layers=(1,), rows=5), 'a tuple of offsets for each row'),
  (dict(layers=(-1,)), 'at least 0'),
  (dict(rows=((), (-1,))), 'memory layers'),
  (dict(layers=(1,), rows=((1,), ())), 'that comes later'),
  (dict(layers=(1,), rows=((0,),)), 'that comes later'),
])  # fmt: skip
def test_an_invalid_memory_is_refused(fields, says):
  with pytest.raises(ValueError, match=says):
    Memory(**fields)


def test_a_batch_that_is_not_packs_is_refused(rng):
  with pytest.raises(ValueError, match=r'6 rows .* 4'):
    MODELS['code'].memory.check(6)
  with pytest.raises(ValueError, match=r'a batch of 6; .* rows'):
    MODELS['far'].memory.check(6)
  with pytest.raises(ValueError, match='not all among the 3 layers'):
    model(Memory((3,)))
