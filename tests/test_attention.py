"""One contract for every strategy: dense attention in float64."""

import functools

import jax
import jax.numpy as jnp
import jaxprs
import numpy as np
import pytest
import reference

from longjax import attention
from longjax.attention import Ids
from longjax.attention import ids as attention_ids
from longjax.data import layout

pytestmark = pytest.mark.usefixtures('strict_dtypes')

B, T, H = 2, 96, 16
MESHES = [(1, 8), (2, 4), (8, 1)]
SHARDED = ['ring', 'gather']


def documents(kind):
  """Segments [B, T]: whole rows, packed, a padded tail, an empty row."""
  segments = np.ones((B, T), np.int32)
  if kind in ('packed', 'padding'):
    segments[0, 10:40], segments[0, 40:] = 2, 3
    segments[1, 61:] = 2  # a border inside a shard and inside a block
  if kind == 'padding':
    segments[0, 88:] = 0
  if kind == 'empty row':
    segments[1] = 0
  return segments


KINDS = ['one document', 'packed', 'padding', 'empty row']


def example(rng, heads=6, kv_heads=2):
  shapes = [(B, T, n, H) for n in (heads, kv_heads, kv_heads, heads)]
  return [rng.standard_normal(s).astype(np.float32) for s in shapes]


def attend_in_layout(order, segments, **how):
  """attend() of rows permuted as the ring lays them out, and back again."""
  index = np.tile(np.arange(T, dtype=np.int32), (B, 1))
  ids = Ids(jnp.asarray(segments[:, order]), jnp.asarray(index[:, order]))

  def run(q, k, v):
    q, k, v = (x[:, order] for x in (q, k, v))
    out = attention.attend(q, k, v, ids, ids, **how)
    return out[:, layout.inverse(order)]

  return run


def value_and_grads(attend, q, k, v, w):
  loss = lambda q, k, v: (attend(q, k, v) * w).sum()
  return (
    jax.jit(attend)(q, k, v),
    jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(q, k, v),
  )


@functools.cache
def expected(kind, heads, kv_heads):
  """Value by the float64 oracle; gradients by autodiff of dense attention."""
  q, k, v, w = example(np.random.default_rng(0), heads, kv_heads)
  segments = documents(kind)
  index = np.tile(np.arange(T), (B, 1))
  value = reference.attention(
    *(x.astype(np.float64) for x in (q, k, v)), segments, index
  )
  dense = attend_in_layout(np.arange(T), segments, strategy='reference')
  return value, value_and_grads(dense, q, k, v, w)[1]


def check(kind, heads, kv_heads, order, **how):
  q, k, v, w = example(np.random.default_rng(0), heads, kv_heads)
  want, want_grads = expected(kind, heads, kv_heads)
  attend = attend_in_layout(order, documents(kind), **how)
  value, grads = value_and_grads(attend, q, k, v, w)
  np.testing.assert_allclose(value, want, rtol=0, atol=5e-6)  # float32
  for got, grad in zip(grads, want_grads):
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got, grad, rtol=0, atol=2e-5)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('strategy', ['reference', 'blockwise'])
def test_one_device_equals_the_oracle(kind, strategy):
  check(kind, 6, 2, np.arange(T), strategy=strategy, block=20)


@pytest.mark.parametrize('heads, kv_heads', [(4, 4), (8, 1)])
def test_any_grouping_of_heads_equals_the_oracle(heads, kv_heads):
  check('packed', heads, kv_heads, np.arange(T), strategy='ring', block=32)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('strategy', SHARDED)
def test_eight_devices_equal_the_oracle(kind, strategy, make_mesh):
  check(kind, 6, 2, np.arange(T), strategy=strategy, mesh=make_mesh(2, 4),
        block=20)  # fmt: skip


@pytest.mark.parametrize('shape', MESHES)
@pytest.mark.parametrize('name', ['zigzag', 'striped'])
def test_any_layout_on_any_mesh_equals_the_oracle(shape, name, make_mesh):
  order = layout.order(name, T, shape[1])
  check('packed', 6, 2, order, strategy='ring', mesh=make_mesh(*shape),
        block=512)  # fmt: skip


def test_lengths_that_do_not_divide_over_the_ring_are_padded(make_mesh, rng):
  q, k, v, _ = (x[:, :91] for x in example(rng))
  segments = documents('packed')[:, :91]
  index = np.tile(np.arange(91, dtype=np.int32), (B, 1))
  ids = Ids(segments, index)
  got = attention.attend(q, k, v, ids, ids, mesh=make_mesh(2, 4), block=16)
  want = reference.attention(q, k, v, segments, index)
  np.testing.assert_allclose(got, want, rtol=0, atol=5e-6)


def test_rows_that_do_not_divide_over_the_mesh_are_replicated(make_mesh, rng):
  q, k, v, _ = (x[:1] for x in example(rng))
  ids = Ids(*(np.ones((1, T), np.int32), np.arange(T, dtype=np.int32)[None]))
  got = attention.attend(q, k, v, ids, ids, mesh=make_mesh(2, 4))
  want = reference.attention(q, k, v, *ids)
  np.testing.assert_allclose(got, want, rtol=0, atol=5e-6)


def test_a_mesh_with_explicit_axes_will_do(rng):
  mesh = jax.make_mesh((2, 4), ('data', 'seq'))  # Explicit is JAX's default
  q, k, v, _ = example(rng)
  index = np.tile(np.arange(T, dtype=np.int32), (B, 1))
  ids = Ids(documents('packed'), index)
  got = attention.attend(q, k, v, ids, ids, mesh=mesh)
  want = reference.attention(q, k, v, *ids)
  np.testing.assert_allclose(got, want, rtol=0, atol=5e-6)


def test_memory_keys_are_seen_by_every_document(make_mesh, rng):
  """FoT: keys of index -1 and segment ANY come before everything."""
  q, k, v, _ = example(rng)
  km, vm = rng.standard_normal((2, B, 32, 2, H)).astype(np.float32)
  segments = documents('padding')
  index = np.tile(np.arange(T, dtype=np.int32), (B, 1))
  ids = Ids(segments, index)
  memory = np.full((B, 32), attention.ANY, np.int32)
  kv_ids = Ids(*(np.concatenate([memory, x], 1) for x in ids))
  keys, values = np.concatenate([km, k], 1), np.concatenate([vm, v], 1)
  got = attention.attend(
    q, keys, values, ids, kv_ids, mesh=make_mesh(1, 8), block=16
  )
  sees = np.asarray(attention.visible(ids, kv_ids))
  assert sees[..., :32][segments > 0].all() and not sees[segments == 0].any()
  want = attention.attend(q, keys, values, ids, kv_ids, strategy='reference')
  np.testing.assert_allclose(got, want, rtol=0, atol=5e-6)


def test_bfloat16_is_as_exact_as_dense_bfloat16(make_mesh, rng):
  q, k, v, _ = example(rng)
  index = np.tile(np.arange(T, dtype=np.int32), (B, 1))
  ids = Ids(documents('packed'), index)
  low = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)]
  exact = reference.attention(*(np.asarray(x, np.float64) for x in low), *ids)
  error = lambda **how: np.linalg.norm(
    np.asarray(attention.attend(*low, ids, ids, **how), np.float64) - exact
  )
  ring = error(strategy='ring', mesh=make_mesh(2, 4), block=16)
  assert ring < 1.5 * error(strategy='reference')


def test_what_a_query_sees_by_hand():
  ids = Ids(np.array([[1, 1, 2, 0]]), np.array([[0, 1, 2, 3]]))
  want = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
  np.testing.assert_array_equal(attention.visible(ids, ids)[0], want)


def test_blocks_that_do_not_meet_have_nothing_visible(rng):
  """`meet` may say yes for nothing, but never no for something."""
  saved = 0
  for _ in range(300):
    q, kv = (
      Ids(
        np.sort(rng.integers(0, 6, (1, 4))).astype(np.int32),
        rng.integers(0, 30, (1, 4)).astype(np.int32),
      )
      for _ in range(2)
    )
    sees = attention.visible(q, kv)
    any_visible = bool(sees.any())
    spans = attention_ids.span(q), attention_ids.span(kv)
    met = bool(attention_ids.meet(*spans)[0])
    assert met or not any_visible
    assert sees.all() or not attention_ids.whole(*spans)[0]
    saved += not met
  assert saved > 20


@pytest.mark.parametrize('n', [2, 8])
def test_the_ring_sends_keys_values_and_ids_n_minus_1_times(n, make_mesh):
  args = [jax.ShapeDtypeStruct((1, 64, h, 16), jnp.float32) for h in (6, 2, 2)]
  ids = Ids(*[jax.ShapeDtypeStruct((1, 64), jnp.int32)] * 2)
  attend = functools.partial(attention.attend, mesh=make_mesh(1, n), block=8)
  forward = jaxprs.collectives(jax.make_jaxpr(attend)(*args, ids, ids).jaxpr)
  once = (2 * 2 * 16 + 2) * 64 // n * 4  # K, V of 2 heads, two ids: bytes
  assert forward == {
    'ppermute': 4 * (n - 1), 'ppermute bytes': (n - 1) * once,
  }  # fmt: skip
  grad = jax.grad(lambda q, k, v, i: attend(q, k, v, i, i).sum(), (0, 1, 2))
  both = jaxprs.collectives(jax.make_jaxpr(grad)(*args, ids).jaxpr)
  # Backward: keys n - 1 times again; their gradients n times, which is home.
  assert both['ppermute'] == 2 * 4 * (n - 1) + 2 * n


@pytest.mark.parametrize('change, says', [
  (dict(strategy='rink'), 'rink'),
  (dict(axis='sequence'), 'sequence'),
])  # fmt: skip
def test_a_call_that_cannot_be_meant_is_refused(change, says, make_mesh, rng):
  q, k, v, _ = example(rng)
  ids = Ids(*np.ones((2, B, T), np.int32))
  with pytest.raises(ValueError, match=says):
    attention.attend(q, k, v, ids, ids, **dict(mesh=make_mesh(2, 4)) | change)
  with pytest.raises(ValueError, match='multiple of kv_heads'):
    attention.attend(q[:, :, :5], k, v, ids, ids)
