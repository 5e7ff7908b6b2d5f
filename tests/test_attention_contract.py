"""One contract for every strategy: attention and its gradients in float64."""

import functools

import attention_cases as cases
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import Case, packed

from longjax import attention
from longjax.attention import SHARED_SEGMENT, Ids
from longjax.batch import one_document
from longjax.data import layout

pytestmark = pytest.mark.usefixtures('strict_dtypes')

B, T, N, K, H = 8, 64, 8, 2, 16
BLOCK = 8
MESHES = [(2, 4), (1, 8), (8, 1)]


def mesh_for(strategy):
  return (8, 1) if strategy == 'blockwise' else (2, 4)


# The default run has each strategy on one mesh, and a ring of one device.
BOTH = [
  pytest.param(
    strategy, mesh,
    marks=() if mesh == mesh_for(strategy)
    or (strategy, mesh) == ('ring', (8, 1)) else pytest.mark.slow,
  )
  for strategy in attention.STRATEGIES
  for mesh in MESHES
  if strategy != 'blockwise' or mesh[1] == 1  # it needs whole rows
]  # fmt: skip


def rows(kind):
  """Segments [B, T]; most kinds differ from row to row."""
  every = lambda row: np.stack([row(i) for i in range(B)])
  if kind == 'packed':  # borders between shards
    return every(lambda i: packed(*((16, 48) if i % 2 else (32, 16, 16))))
  if kind == 'border inside a shard':
    return every(lambda i: packed(3 + i, 19, 1, 41 - i))
  segments = np.ones((B, T), np.int64)
  if kind == 'padding':
    segments = every(lambda i: packed(20, 44 - 3 * i, 3 * i))
    segments[segments == 3] = 0
  if kind == 'empty rows':
    segments[::3] = 0
  return segments


KINDS = (
  'one document', 'packed', 'border inside a shard', 'padding', 'empty rows',
  'memory',
)  # fmt: skip


def case_of(kind, kv_heads=K) -> Case:
  """Rows of a kind in the order of their text."""
  ids = cases.ids_of(rows('padding' if kind == 'memory' else kind))
  kv_ids = ids
  if kind == 'memory':  # FoT: keys shared by all documents, at any place
    some = (np.arange(T) % 7 == 3) & np.ones((B, 1), bool)
    kv_ids = Ids(
      *(np.where(some, x, y) for x, y in zip((SHARED_SEGMENT, -1), ids))
    )
    kv_ids = Ids(*(x.astype(np.int32) for x in kv_ids))
  return cases.draw(ids, N, kv_heads, H, kv_ids)


@functools.cache
def wanted(kind, kv_heads=K, window=0):
  """The oracle's answer for `case_of`."""
  return cases.expected(case_of(kind, kv_heads), window)


def order_of(name, segments, n):
  """[B, T]: the order of a layout."""
  batch = one_document(np.zeros((B, T)))._replace(segments=segments)
  return layout.arrange(batch, name, n, BLOCK).index


@pytest.mark.parametrize('strategy, mesh', BOTH)
def test_any_rows_in_any_layout_equal_the_oracle(strategy, mesh, make_mesh):
  run = cases.compiled(strategy=strategy, mesh=make_mesh(*mesh), block=BLOCK)
  for kind in KINDS:
    case, want = case_of(kind), wanted(kind)
    for name in layout.LAYOUTS:
      # On whole rows the order of a ring is an order like any other.
      order = order_of(name, case.q_ids.segment, max(mesh[1], 2))
      got = run(cases.rearranged(case, order))
      cases.check(got, cases.rearranged(want, order), f'{kind}, {name}')


@pytest.mark.parametrize('strategy', attention.STRATEGIES)
def test_lengths_that_divide_by_nothing_equal_the_oracle(strategy, make_mesh):
  """61 queries of 8 heads over 13 keys of memory and their own 61, all of one
  head."""
  ids = cases.ids_of(rows('padding')[:, 3:])
  memory = Ids(*np.full((2, B, 13), [[[SHARED_SEGMENT]], [[-1]]], np.int32))
  kv_ids = Ids(*(np.concatenate(x, axis=1) for x in zip(memory, ids)))
  case = cases.draw(ids, N, 1, H, kv_ids)
  mesh = make_mesh(*mesh_for(strategy))
  run = cases.compiled(strategy=strategy, mesh=mesh, block=BLOCK)
  cases.check(run(case), cases.expected(case))


@pytest.mark.parametrize('strategy', attention.STRATEGIES)
def test_a_window_equals_the_oracle(strategy, make_mesh):
  """Each head has keys of its own."""
  mesh = make_mesh(*mesh_for(strategy))
  run = cases.compiled(strategy=strategy, mesh=mesh, block=BLOCK, window=11)
  for kind in ('one document', 'border inside a shard', 'memory'):
    cases.check(run(case_of(kind, N)), wanted(kind, N, window=11), kind)


@pytest.mark.parametrize('strategy', attention.STRATEGIES)
def test_bfloat16_is_as_exact_as_dense_bfloat16(strategy, make_mesh):
  mesh = make_mesh(*mesh_for(strategy))
  low = lambda x: x.astype(jnp.bfloat16)
  case = case_of('border inside a shard')
  case = Case(*map(low, case[:4]), *case[4:])
  want = cases.expected(case)
  run = cases.compiled(strategy=strategy, mesh=mesh, block=BLOCK)
  got, dense = run(case), cases.compiled(strategy='reference')(case)
  error = lambda x, key: np.linalg.norm(np.float64(x[key]) - want[key])
  for key in cases.NAMES:
    assert got[key].dtype == jnp.bfloat16
    assert error(got, key) < 1.5 * error(dense, key), key


@pytest.mark.parametrize('strategy', attention.STRATEGIES)
def test_without_a_mesh_every_strategy_equals_the_oracle(strategy):
  run = cases.compiled(strategy=strategy, block=BLOCK)
  cases.check(run(case_of('padding')), wanted('padding'))


def test_the_oracle_s_gradients_are_differences_of_its_values():
  case = case_of('memory')
  case = Case(*(np.float64(x[:2]) for x in case[:4]), *(
    Ids(*(x[:2] for x in ids)) for ids in case[4:]
  ))  # fmt: skip
  grads, step = cases.expected(case, window=11), 1e-5
  for name in ('q', 'k', 'v'):
    x = getattr(case, name)
    way = np.random.default_rng(1).standard_normal(x.shape)
    moved = [case._replace(**{name: x + d * way}) for d in (step, -step)]
    ahead, behind = (cases.expected(c, window=11)['out'] for c in moved)
    slope = ((ahead - behind) * case.dout).sum() / (2 * step)
    np.testing.assert_allclose((grads['d' + name] * way).sum(), slope, 1e-8)
