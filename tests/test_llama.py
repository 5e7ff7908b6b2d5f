"""The model against the float64 oracle, and what its config may hold."""

import dataclasses
import functools
import itertools

import jax
import jaxprs
import numpy as np
import pytest
import reference

from configs import common
from longjax import llama, rope
from longjax.batch import Batch, one_document
from longjax.crossbatch import Memory
from longjax.parallel import sharding
from longjax.rope import Rope

pytestmark = pytest.mark.usefixtures('strict_dtypes')

LLAMA2 = dict(heads=4, kv_heads=4, head_dim=16, tied=False)
LLAMA3 = dict(heads=8, kv_heads=2, head_dim=8, tied=False)
SCALED = dict(base=5e5, scaling='llama3', factor=8.0, original_length=64)


LONGROPE = dict(
  scaling='longrope', factor=4.0, original_length=16, divisors=(1, 1.5, 3, 4)
)
ABF = Rope(base=5e5)
FORWARD = jax.jit(llama.forward, static_argnums=1)
NLL = jax.jit(llama.nll, static_argnums=1, static_argnames=('chunk', 'mesh'))


def small(architecture=LLAMA3, rope=ABF, **how):
  """A config of random shapes that no dim shares with another."""
  fields = dict(vocab=96, layers=3, embed=48, mlp=80, dtype='float32', block=16)
  return llama.Llama(**fields | architecture | dict(rope=rope) | how)


def params_of(config):
  return jax.device_put(reference.random_params(llama.abstract(config)))


def packed(rng, vocab, shape=(2, 64)):
  """Documents of odd lengths, padding, positions restarted in each."""
  tokens = rng.integers(0, vocab, shape).astype(np.int32)
  segments = np.ones(shape, np.int32)
  segments[0, 13:40], segments[0, 40:57], segments[0, 57:] = 2, 3, 0
  segments[1, 33:] = 2
  starts = np.maximum.accumulate(
    np.where(np.diff(segments, prepend=-1) != 0, np.arange(shape[1]), 0), 1
  )
  index = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
  positions = (index - starts).astype(np.int32)
  targets = np.roll(tokens, -1, 1)
  weights = (segments > 0).astype(np.float32)
  return Batch(tokens, targets, weights, segments, positions, index)


def abstract_row(seq=64):
  """A batch of one row, as ShapeDtypeStructs."""
  dtype = lambda field: np.float32 if field == 'weights' else np.int32
  return Batch(
    *(jax.ShapeDtypeStruct((1, seq), dtype(f)) for f in Batch._fields)
  )


def oracle(params, config, batch):
  return reference.forward(
    jax.device_get(params), dataclasses.asdict(config), batch.tokens,
    segments=batch.segments, positions=batch.positions, index=batch.index,
  )  # fmt: skip


ROPES = dict(
  none=Rope(),
  abf=Rope(base=5e5),
  linear=Rope(scaling='linear', factor=8.0),
  ntk=Rope(scaling='ntk', factor=8.0),
  yarn=Rope(scaling='yarn', factor=16.0, original_length=64),
  llama3=Rope(**SCALED),
  nope=Rope(scaling='nope'),
  yarn_paper=Rope(scaling='yarn_paper', factor=16.0, original_length=64),
  longrope=Rope(**LONGROPE),
  xpos=Rope(base=5e5, xpos=16.0),
)


@pytest.mark.parametrize('scaling', ROPES)
def test_frequencies_equal_those_of_the_oracle(scaling):
  recipe = ROPES[scaling]
  want = reference.rope_frequencies(8, **dataclasses.asdict(recipe))
  for got, known in zip(rope.frequencies(recipe, 8), want):
    np.testing.assert_allclose(got, known, rtol=1e-12)


# Each architecture, and each way in which the model reads a rotation.
QUICK = [('Llama 2', 'none'), ('tied', 'llama3')] + [
  ('Llama 3', scaling) for scaling in ('yarn', 'nope', 'longrope', 'xpos')
]


@pytest.mark.parametrize('kind, scaling', [
  pytest.param(*x, marks=() if x in QUICK else pytest.mark.slow)
  for x in itertools.product(('Llama 3', 'Llama 2', 'tied'), ROPES)
  if x != ('Llama 2', 'longrope')  # divisors for the dims of the others
])  # fmt: skip
def test_logits_equal_the_float64_oracle_on_packed_documents(
  kind, scaling, rng
):
  architecture = LLAMA2 if kind == 'Llama 2' else LLAMA3
  config = small(architecture | dict(tied=kind == 'tied'), ROPES[scaling])
  params, batch = params_of(config), packed(rng, config.vocab)
  want = oracle(params, config, batch)
  got = FORWARD(params, config, batch)
  real = batch.segments > 0
  np.testing.assert_allclose(got[real], want[real], rtol=0, atol=1e-4)


def test_logits_are_right_far_into_the_sequence(rng):
  config = small(LLAMA3, Rope(**SCALED))
  params = params_of(config)
  batch = one_document(rng.integers(0, config.vocab, (1, 64)))
  batch = batch._replace(positions=batch.positions + np.int32(524_224))
  got = FORWARD(params, config, batch)
  np.testing.assert_allclose(
    got, oracle(params, config, batch), rtol=0, atol=1e-4
  )


KIN = dict(
  qwen2=dict(bias='qkv'),
  qwen3=dict(bias='qkvo', qk_norm='head'),
  smollm3=dict(layers=4, nope_layers=(1, 3)),  # one scan of pairs
  odd=dict(nope_layers=(2,), tied=True),  # two scans
  mistral=dict(window=9),
  ministral3=dict(
    rope=Rope(
      scaling='yarn',
      factor=4.0,
      original_length=16,
      query_beta=0.3,
      mscale=1.0,
      mscale_all_dim=0.5,
      truncate=False,
    )
  ),
  olmo3=dict(
    layers=2,
    qk_norm='all',
    post_norm=True,
    window=9,
    full_layers=(1,),
    scale_windows=False,
    rope=Rope(scaling='yarn', factor=4.0, original_length=16),
  ),
  cohere=dict(layers=2, window=9, full_layers=(1,), nope_layers=(1,)),
)


def random_vectors(params, rng):
  """Biases and norms are born as zeros and ones, which would hide mistakes."""
  draw = lambda path, x: (
    rng.normal(1, 0.3, x.shape).astype(np.float32)
    if path[-1].key.endswith(('norm', 'bias')) else x
  )  # fmt: skip
  return jax.tree.map_with_path(draw, params)


@pytest.mark.parametrize('name, devices', [
  ('qwen3', 1), ('cohere', 8),
  *(pytest.param(name, n, marks=pytest.mark.slow)
    for name in KIN for n in (1, 8)
    if (name, n) not in (('qwen3', 1), ('cohere', 8))),
])  # fmt: skip
def test_losses_of_kin_equal_the_oracle_on_one_device_and_on_eight(
  name, devices, rng, make_mesh
):
  fields = dict(KIN[name])
  config = small(LLAMA3 | fields, fields.pop('rope', ABF))
  params = random_vectors(params_of(config), rng)
  batch = packed(rng, 96)
  want = reference.token_nll(oracle(params, config, batch), batch.targets)
  real = batch.segments > 0
  mesh = make_mesh(1, 8) if devices == 8 else None
  got = jax.jit(lambda p, b: llama.nll(p, config, b, mesh=mesh))(params, batch)
  got = np.asarray(got)[real]
  np.testing.assert_allclose(got, want[real], rtol=0, atol=1e-4)


def test_layers_are_scanned_by_what_repeats():
  kinds = lambda **fields: [
    (g.start, g.stop, len(g.kinds))
    for g in small(LLAMA3 | fields).layer_groups()
  ]
  every_4th = tuple(range(3, 36, 4))
  assert kinds() == [(0, 3, 1)]
  assert kinds(layers=36, nope_layers=every_4th) == [(0, 36, 4)]
  assert kinds(layers=36, window=8, full_layers=every_4th) == [(0, 36, 4)]
  assert kinds(layers=36, window=8, full_layers=range(28)) == [
    (0, 28, 1), (28, 36, 1)
  ]  # fmt: skip


def test_packed_documents_get_the_logits_of_separate_runs(rng):
  config = small()
  params, batch = params_of(config), packed(rng, 96)
  whole = FORWARD(params, config, batch)
  alone = FORWARD(params, config, one_document(batch.tokens[:1, 13:40]))
  np.testing.assert_allclose(whole[0, 13:40], alone[0], rtol=0, atol=2e-5)


def test_the_mean_loss_over_tokens_does_not_depend_on_the_packing(rng):
  config = small()
  params = params_of(config)
  documents = [
    rng.integers(0, 96, n).astype(np.int32) for n in (13, 27, 17, 33)
  ]

  def mean(*rows):
    made = [np.zeros((len(rows), 64), np.int32) for _ in range(4)]
    tokens, targets, segments, weights = made
    for row, numbers in enumerate(rows):
      at = 0
      for segment, number in enumerate(numbers, 1):
        document = documents[number]
        here = slice(at, at + len(document))
        tokens[row, here], segments[row, here] = document, segment
        targets[row, here] = np.roll(document, -1)
        weights[row, at : here.stop - 1] = 1
        at = here.stop
    index = np.broadcast_to(np.arange(64, dtype=np.int32), tokens.shape)
    batch = Batch(
      tokens, targets, weights.astype(np.float32), segments, index, index
    )
    nll = np.asarray(NLL(params, config, batch), np.float64)
    return (weights * nll).sum() / weights.sum()

  want = mean((0, 1, 2), (3,))
  np.testing.assert_allclose(mean((3, 1), (2, 0)), want, rtol=1e-6)


@pytest.mark.parametrize('chunk', [7, 64])
def test_chunked_nll_equals_that_of_whole_logits(chunk, rng, make_mesh):
  config = small()
  params, batch = params_of(config), packed(rng, 96)
  want = reference.token_nll(oracle(params, config, batch), batch.targets)
  got = NLL(params, config, batch, chunk=chunk)
  real = batch.segments > 0
  np.testing.assert_allclose(got[real], want[real], rtol=0, atol=1e-4)
  mesh = make_mesh(2, 4)
  put = sharding.put(batch, mesh)
  got = NLL(params, config, put, chunk=chunk, mesh=mesh)
  np.testing.assert_allclose(
    np.asarray(got)[real], want[real], rtol=0, atol=1e-4
  )


@functools.cache
def loss_and_gradient(config, mesh=None):
  """Leaves of the loss and its gradient, of packed rows."""
  batch = packed(np.random.default_rng(0), 96)
  if mesh:
    batch = sharding.put(batch, mesh)
  loss = lambda p: llama.nll(p, config, batch, mesh=mesh).sum()
  return jax.tree.leaves(jax.jit(jax.value_and_grad(loss))(params_of(config)))


@pytest.mark.parametrize('changes, data, seq', [
  (dict(remat='full'), 0, 0), (dict(remat='attention'), 0, 0),
  (dict(mlp_chunk=7), 0, 0),
  *(
    pytest.param(*case, marks=pytest.mark.slow)
    for case in ((dict(remat='offload'), 0, 0), (dict(mlp_chunk=7), 1, 1),
                 (dict(mlp_chunk=99), 1, 1), (dict(mlp_chunk=7), 2, 4),
                 (dict(mlp_chunk=16), 2, 4), (dict(mlp_chunk=99), 2, 4))
  ),
])  # fmt: skip
def test_what_saves_memory_changes_no_loss_and_no_gradient(
  changes, data, seq, make_mesh
):
  mesh = make_mesh(data, seq) if data else None
  got = loss_and_gradient(small(**changes), mesh)
  for a, b in zip(got, loss_and_gradient(small(remat='none'), mesh)):
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * np.abs(b).max())


def traced_gradient(config, mesh=None):
  """The jaxpr of the gradient over one row of 64 tokens."""
  loss = lambda p, b: llama.nll(p, config, b, mesh=mesh).sum()
  return jax.make_jaxpr(jax.grad(loss))(
    llama.abstract(config), abstract_row()
  ).jaxpr


def test_the_ring_goes_round_again_only_in_full_remat(make_mesh):
  mesh = make_mesh(1, 4)
  hops = lambda jaxpr: jaxprs.collectives(jaxpr)['ppermute']
  gradient = {
    remat: hops(traced_gradient(small(remat=remat), mesh))
    for remat in llama.REMAT
  }
  nll = lambda p, b: llama.nll(p, small(), b, mesh=mesh)
  forward = jax.make_jaxpr(nll)(llama.abstract(small()), abstract_row()).jaxpr
  assert gradient['none'] == gradient['attention'] == gradient['offload']
  assert gradient['full'] == gradient['none'] + hops(forward)


def test_offload_sends_layer_inputs_and_attention_to_the_host():
  config = small(remat='offload')
  sent = [
    v.aval.shape
    for eqn, _ in jaxprs.equations(traced_gradient(config))
    for v in eqn.outvars
    if eqn.primitive.name == 'device_put' and 'host' in str(v.aval)
  ]
  layer_in, attn_out = (1, 64, 48), (1, 64, 8, 8)
  assert sorted(sent) == sorted([layer_in, attn_out])


@pytest.mark.slow
def test_mlp_chunk_needs_less_memory():
  """The inside of the feed-forward, [seq, mlp], is most of this program."""
  wide = dict(mlp=4096, layers=1)

  def temporaries(config):
    loss = lambda p, b: llama.nll(p, config, b, chunk=64).sum()
    gradient = jax.jit(jax.grad(loss))
    compiled = gradient.lower(
      llama.abstract(config), abstract_row(2048)
    ).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  whole = temporaries(small(LLAMA3 | wide))
  inside = 2048 * 4096 * 4  # bytes of one of its arrays
  assert whole > 2 * inside
  assert temporaries(small(LLAMA3 | wide, mlp_chunk=128)) < whole - 2 * inside


def grouped_oracle(q, k, v, batch, group):
  """Attention in float64 of which half of the heads is shifted, by loops over
  groups: those of the one half from 0, of the other from group / 2."""
  out = np.zeros(np.shape(q))
  heads, kv_heads, seq = q.shape[2] // 2, k.shape[2] // 2, q.shape[1]
  for half, start in ((0, 0), (1, -group // 2)):
    here = slice(half * heads, (half + 1) * heads)
    kv = slice(half * kv_heads, (half + 1) * kv_heads)
    for begin in range(start, seq, group):
      at = slice(max(begin, 0), begin + group)
      out[:, at, here] = reference.attention(
        q[:, at, here], k[:, at, kv], v[:, at, kv], batch.segments[:, at],
        batch.index[:, at],
      )  # fmt: skip
  return out


@pytest.mark.parametrize(
  'group', [24, pytest.param(16, marks=pytest.mark.slow)]
)
def test_groups_are_shifted_by_half_in_half_of_the_heads(
  group, rng, make_mesh, monkeypatch
):
  """A model of one layer, whose attention is the oracle's in float64."""
  config = small(LLAMA3, group=group, layers=1)
  assert config.for_inference() == small(layers=1)
  params, batch = params_of(config), packed(rng, 96)
  attend = lambda q, k, v, *how, **more: grouped_oracle(q, k, v, batch, group)
  mesh = make_mesh(2, 4)
  with monkeypatch.context() as patch:
    patch.setattr(
      reference, 'attention',
      lambda q, k, v, *ids, plain=reference.attention, window=0: (
        plain(q, k, v, *ids) if q.shape[1] < 64 else attend(q, k, v)
      ),
    )  # fmt: skip
    want = oracle(params, config, batch)
  real = batch.segments > 0
  got = FORWARD(params, config, batch)
  np.testing.assert_allclose(got[real], want[real], rtol=0, atol=1e-4)
  nll = np.asarray(NLL(params, config, sharding.put(batch, mesh), mesh=mesh))
  want = reference.token_nll(want, batch.targets)
  np.testing.assert_allclose(nll[real], want[real], rtol=0, atol=1e-4)


def test_init_is_the_same_on_any_mesh(make_mesh):
  config = small(layers=1)
  shardings = sharding.params(llama.abstract(config), make_mesh(2, 4))
  spread, alone = (
    jax.jit(llama.init, static_argnums=0, **where)(config, jax.random.key(0))
    for where in (dict(out_shardings=shardings), {})
  )
  jax.tree.map(
    np.testing.assert_array_equal, *map(jax.device_get, (spread, alone))
  )


OTHER = dict(
  vocab=128, layers=2, embed=64, mlp=96, heads=4, kv_heads=4, head_dim=16,
  norm_eps=1e-6, tied=True, bias='qkv', qk_norm='head', nope_layers=(1,),
  post_norm=True, window=8, full_layers=(1,), scale_windows=False,
  rope=Rope(base=1e4), dtype='bfloat16', attention='reference', block=8,
  remat='full', mlp_chunk=16, ulysses=1,
  memory=Memory(layers=(1,), rows=((-1,),)), group=8,
)  # fmt: skip


@functools.cache
def program(config, mesh=None, of=lambda loss: loss):
  """The lowered loss, or its gradient, its constants included."""
  loss = lambda p, b: llama.nll(p, config, b, mesh=mesh).sum()
  lowered = jax.jit(of(loss)).lower(llama.abstract(config), abstract_row())
  return lowered.as_text()


@pytest.mark.parametrize(
  'field', [f.name for f in dataclasses.fields(llama.Llama)]
)
def test_every_model_config_field_changes_the_program(field, make_mesh):
  config, mesh = small(), None
  if field == 'ulysses':  # read by hybrid attention on a mesh
    config, mesh = small(attention='hybrid'), make_mesh(1, 4)
  if field == 'full_layers':
    config = small(window=8)
  if field == 'scale_windows':
    config = small(LLAMA3 | dict(window=8), Rope(**SCALED))
  other = dataclasses.replace(config, **{field: OTHER[field]})
  of = (jax.grad,) if field == 'remat' else ()
  assert program(config, mesh, *of) != program(other, mesh, *of)


SCALINGS = dict(
  none=Rope(),
  linear=Rope(scaling='linear', factor=8.0),
  llama3=Rope(**SCALED | dict(original_length=8192)),
  yarn=Rope(scaling='yarn', factor=16.0, original_length=4096),
  query=Rope(scaling='yarn', factor=16.0, original_length=32),
  mscale=Rope(scaling='yarn', factor=16.0, original_length=32, mscale=1.0,
              mscale_all_dim=1.5),
  longrope=Rope(**LONGROPE | dict(divisors=(1.0,) * 32)),
)  # fmt: skip


@pytest.mark.parametrize('scaling, field, value', [
  ('none', 'base', 1e6),
  ('none', 'scaling', 'nope'),
  ('none', 'xpos', 512.0),
  ('longrope', 'divisors', (2.0,) * 32),
  ('longrope', 'short_divisors', (2.0,) * 32), ('longrope', 'unscaled', 4),
  ('linear', 'factor', 4.0),
  ('llama3', 'original_length', 4096),
  ('llama3', 'low_freq_factor', 2.0),
  ('llama3', 'high_freq_factor', 8.0),
  ('yarn', 'original_length', 2048),
  ('yarn', 'beta_fast', 16.0),
  ('yarn', 'beta_slow', 2.0),
  ('yarn', 'attention_factor', 1.1),
  ('yarn', 'truncate', False),
  ('mscale', 'mscale', 2.0),
  ('mscale', 'mscale_all_dim', 2.0),
  ('query', 'query_beta', 0.1),
])  # fmt: skip
def test_every_rope_field_changes_the_rotation(scaling, field, value):
  """By the tables of cos and sin, which are all that it has of a Rope."""
  rows = np.stack([np.arange(64), np.arange(64) % 8])  # long and short
  tables = lambda r: rope.rotations(rows, r, 64)
  changed = dataclasses.replace(SCALINGS[scaling], **{field: value})
  a, b = (np.stack(jax.tree.leaves(tables(r))) for r in (
    SCALINGS[scaling], changed
  ))  # fmt: skip
  assert (a != b).any()


@pytest.mark.parametrize('size, count', [
  ('llama2_7b', 6_738_415_616),
  ('llama2_13b', 13_015_864_320),
  ('llama2_70b', 68_976_648_192),
  ('llama3_8b', 8_030_261_248),
  ('llama3_70b', 70_553_706_496),
  ('llama32_1b', 1_235_814_400),
  ('llama32_3b', 3_212_749_824),
  ('smollm2_135m', 134_515_008),
  ('mistral_7b', 7_241_732_096),
  ('qwen3_8b', 8_190_735_360),
  ('smollm3_3b', 3_075_098_624),
])  # fmt: skip
def test_published_models_have_their_published_parameters(size, count):
  fields = common.model(size).to_dict()
  config = llama.Llama(**fields | dict(rope=Rope(**fields['rope'])))
  shapes = jax.tree.leaves(llama.abstract(config))
  assert sum(x.size for x in shapes) == count


def test_an_invalid_config_is_refused():
  with pytest.raises(ValueError, match='multiple of kv_heads'):
    small(dict(heads=9, kv_heads=2, head_dim=16))
  with pytest.raises(ValueError, match="'rings' is not one of"):
    small(attention='rings')
  with pytest.raises(ValueError, match='must be even'):
    small(group=15)
  with pytest.raises(ValueError, match=r'nope_layers \(3,\) .* 3 layers'):
    small(nope_layers=(3,))
  with pytest.raises(ValueError, match=r'window 8 .* memory layers \(1,\)'):
    small(window=8, full_layers=(0,), memory=Memory(layers=(1,)))
  with pytest.raises(ValueError, match='need a window'):
    small(full_layers=(0,))
  with pytest.raises(ValueError, match='4 for 8 pairs'):
    small(dict(heads=8, kv_heads=2, head_dim=16), Rope(**LONGROPE))


def test_params_of_another_config_are_refused():
  params = params_of(small())
  batch = one_document([1, 2, 3])
  fewer = {k: v for k, v in params.items() if k != 'norm'}
  for given, config, name in (
    (params, small(layers=small().layers + 1), 'layers/attn_norm'),
    (params, small(vocab=small().vocab + 1), 'embedding'),
    (fewer, small(), 'norm: .* given is none'),
  ):
    with pytest.raises(ValueError, match=name):
      llama.forward(given, config, batch)


@pytest.mark.parametrize('tokens', [
  [1.5, 2.0], [-1, 3], [], [[[1]]], [2**31], ['a'],
])  # fmt: skip
def test_what_is_no_token_id_is_refused(tokens):
  with pytest.raises(ValueError, match='tokens are ids'):
    one_document(tokens)


def test_a_row_that_the_mesh_does_not_divide_is_refused(make_mesh):
  batch = one_document(np.zeros((2, 30), int))
  with pytest.raises(ValueError, match=r"30 .*'seq' of 4 .* 32"):
    llama.nll({}, None, batch, mesh=make_mesh(2, 4))
