"""The Pallas kernel, interpreted on the CPU: values, gradients, what it skips.

Skipping is tested for the kernel in plain JAX too.
"""

import attention_cases as cases
import jax
import numpy as np
import pytest
import reference
from attention_cases import packed

from longjax import attention
from longjax.attention import Ids, blocks, kernels, pallas
from longjax.attention.blocks import AttentionOptions
from longjax.attention.tiles import TILES, Tiles
from longjax.batch import one_document
from longjax.data import layout

pytestmark = pytest.mark.usefixtures('strict_dtypes')

BLOCK = 128  # the least that the lanes of a TPU allow
BORDERS = np.stack(
  [packed(100, 156, 300, 44), packed(300, 212, 88)]
)  # [2, 600]


@pytest.fixture
def small(monkeypatch):
  """Blocks of 128 rows, two steps in each; a chunk of keys is one block."""
  half = BLOCK // 2
  tiles = Tiles(BLOCK, step=half, masked_step=half, grad_step=half)
  monkeypatch.setitem(TILES, '', tiles)
  monkeypatch.setattr(pallas, 'SMALL_STEP', BLOCK // 2)
  monkeypatch.setattr(pallas, 'CHUNK', 1)


def compiled(kernel='interpret', **how):
  """Compiled anew, since tests change the kernel's sizes."""
  return cases.compiled.__wrapped__(kernel=kernel, block=BLOCK, **how)


def check(segments, heads, kv_heads, dim, window=0, **how):
  case = cases.draw(cases.ids_of(segments), heads, kv_heads, dim)
  got = compiled(window=window, **how)(case)
  cases.check(got, cases.expected(case, window))


@pytest.mark.parametrize('heads, kv_heads, dim', [
  (6, 2, 128), (2, 1, 100),
  pytest.param(2, 2, 64, marks=pytest.mark.slow),
  pytest.param(16, 1, 64, marks=pytest.mark.slow),
])  # fmt: skip
def test_any_grouping_and_size_of_heads_equals_the_oracle(heads, kv_heads, dim):
  padded = BORDERS[:, 200:500].copy()
  padded[1, -90:] = 0
  check(padded, heads, kv_heads, dim)


SEQ = 384  # of the cases below, which are one program


def ids_for(name) -> tuple[Ids, Ids]:
  """Ids of queries and keys, of one row of documents."""
  ids = cases.ids_of(packed(50, 78, 156, 22, 78)[None])
  segment, index = ids
  far = index + np.arange(SEQ, dtype=np.int32) // BLOCK * (3 << 18)
  moved = dict(
    together=Ids(segment * 0 + 1, index),
    documents=ids,
    padding=Ids(np.where((index > 30) & (index < 290), segment, 0), index),
    # What codes do not tell apart: they count segments modulo 2 ** 12, and
    # indices of a block within 2 ** 17.
    segments_4096_apart=Ids(segment + segment % 2 * 4095, index),
    indices_of_a_block_far_apart=Ids(segment, index * 3000),
    # Blocks of a row longer than 2 ** 20.
    blocks_far_apart=Ids(segment * 0 + 1, far),
    memory=ids,
  )
  q_ids = kv_ids = moved.get(name, moved['together'])
  if name == 'memory':
    kv_ids = Ids(*(np.where(index < 200, -1, x) for x in ids))
  return q_ids, kv_ids


def logits_for(name, case):
  """The case with large logits where they are hard on a standing reference."""
  one = np.ones_like
  odd = np.where(np.arange(SEQ) % 2, 1, -1)[:, None, None].astype(np.float32)
  along, k = np.full_like(case.q[:1, :1, :1], 1 / 8), case.k.copy()
  if name in ('a_new_peak_late', 'a_new_peak_in_every_block'):
    at = {'a_new_peak_late': [SEQ - 40]}.get(name, [*range(20, SEQ, 64)])
    for n, key in enumerate(at):
      k[:, key] = along[:, 0] * 300 * (n + 1)
    return case._replace(q=case.q + 8 * along, k=k)
  return dict(
    own_keys_far_below=lambda: case._replace(
      q=30 * odd * one(case.q), k=-30 * odd * one(k)
    ),
    equal_and_large=lambda: case._replace(q=30 * one(case.q), k=30 * one(k)),
  ).get(name, lambda: case)()


@pytest.fixture(scope='module')
def one_program():
  return compiled()


@pytest.mark.parametrize('name', [
  'documents', 'padding', 'segments_4096_apart', 'indices_of_a_block_far_apart',
  'blocks_far_apart', 'memory', 'a_new_peak_late', 'a_new_peak_in_every_block',
  'own_keys_far_below', 'equal_and_large',
])  # fmt: skip
def test_any_ids_and_any_logits_equal_the_oracle(name, one_program, small):
  q_ids, kv_ids = ids_for(name)
  case = logits_for(name, cases.draw(q_ids, 2, 1, 64, kv_ids))
  got, want = one_program(case), cases.expected(case)
  for key in cases.NAMES:
    # Log-sum-exps are float32: of 10,000 they are 7e-4 wrong, of 2,000 1.4e-4.
    size = dict(
      equal_and_large=1e-3, own_keys_far_below=1e-3,
      a_new_peak_in_every_block=2e-4, a_new_peak_late=1e-4,
    ).get(name, 3e-6)  # fmt: skip
    np.testing.assert_allclose(
      got[key], want[key], rtol=0, err_msg=key,
      atol=size * max(np.abs(want[key]).max(), 1),
    )  # fmt: skip


def test_many_chunks_of_keys_equal_the_oracle(small):
  check(BORDERS, 4, 2, 64)


def test_a_window_equals_the_oracle(small):
  check(BORDERS[:, :400], 4, 2, 64, window=150)


def test_a_ring_of_four_devices_equals_the_oracle(small, make_mesh):
  segments = BORDERS.copy()
  segments[:, 570:] = 0
  check(segments, 4, 2, 64, mesh=make_mesh(1, 4))


def test_decoding_over_four_devices_equals_the_oracle(small, make_mesh):
  """Values only: gradients of `decode` need shard_map's check_vma."""
  case = cases.draw(cases.ids_of(BORDERS), 4, 2, 64)
  attend = lambda q, k, v, q_ids, kv_ids: attention.attend(
    q, k, v, q_ids, kv_ids, strategy='decode', mesh=make_mesh(1, 4),
    block=BLOCK, kernel='interpret',
  )  # fmt: skip
  got = jax.jit(attend)(*case[:3], *case[4:])
  want = cases.expected(case)['out']
  np.testing.assert_allclose(got, want, rtol=0, atol=cases.ATOL['out'])


@pytest.mark.parametrize('before', [0, 8])
def test_references_begin_with_the_logits_of_own_keys(before):
  """Of queries that follow `before` other keys; padding has none."""
  segments = packed(before, 10, 6)[None]
  segments[:, -2:] = 0
  kv_ids = cases.ids_of(segments)
  q_ids = Ids(*(x[:, before:] for x in kv_ids))
  q, k, *_ = cases.draw(q_ids, 4, 2, 8, kv_ids)
  options = AttentionOptions('interpret', BLOCK, scale=0.5)
  queries, _ = kernels.to_blocks(q, k, k, q_ids, kv_ids, options)
  state = pallas.init_state(queries, q, k, q_ids, kv_ids, options)
  got = blocks.unblock_queries(state.reference[:, :, :, 0], 4, 16)
  own = np.repeat(k[:, before:], 2, 2)
  want = np.where(q_ids.segment[..., None], 0.5 * (q * own).sum(-1), -1e30)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  assert not np.any(state.acc) and not np.any(state.sum)


SEEN, OTHER, PADDING, FUTURE = (1, 0), (9, 0), (0, 0), (1, 10_000)


def blocks_of(*kinds) -> Ids:
  """Ids [1, seq] of blocks, each one a (segment, first index)."""
  segment, first = (np.repeat(x, BLOCK)[None] for x in np.transpose(kinds))
  index = first + np.arange(BLOCK * len(kinds)) % BLOCK
  return Ids(segment.astype(np.int32), index.astype(np.int32))


def rows_of(*rows) -> Ids:
  return Ids(*map(np.concatenate, zip(*rows)))


# Queries and keys of one row. The second of the Pallas kernel's rows begins
# with fully masked blocks; in plain JAX rows are computed together.
ROW = (
  blocks_of((1, 64), (5, 0), PADDING),
  blocks_of(SEEN, OTHER, PADDING, FUTURE),
)
MIXED = (
  blocks_of((5, 0), PADDING, (1, 64)),
  blocks_of(FUTURE, SEEN, PADDING, OTHER),
)


@pytest.mark.parametrize('kernel, rows', [
  ('blockwise', (ROW, ROW)), ('interpret', (ROW, MIXED)),
])  # fmt: skip
def test_fully_masked_blocks_are_not_computed(kernel, rows, small):
  """Blocks of NaN: of other documents, padding, the future."""
  q_ids, kv_ids = (rows_of(*x) for x in zip(*rows))
  case = cases.draw(q_ids, 4, 2, 64, kv_ids)
  want = cases.expected(case)
  run = compiled(kernel)
  used = want['out'].any((2, 3)), want['dv'].any((2, 3))
  poison = lambda x, used: np.where(used[:, :, None, None], x, np.nan)
  poisoned = case._replace(
    q=poison(case.q, used[0]), dout=poison(case.dout, used[0]),
    k=poison(case.k, used[1]), v=poison(case.v, used[1]),
  )  # fmt: skip
  cases.check(run(poisoned), want)


@pytest.mark.parametrize('window', [0, 700])
@pytest.mark.parametrize('name', ['contiguous', 'zigzag'])
def test_pairs_are_computed_and_masked_where_they_must_be(name, window, small):
  """An independent count, of rows whose parts are whole blocks."""
  row = one_document(np.zeros((2, 2048)))._replace(
    segments=np.stack([packed(900, 1148), packed(300, 300, 1000, 448)])
  )
  laid = layout.arrange(row, name, 8, BLOCK)
  ids = Ids(laid.segments, laid.index)
  queries, keys = kernels.to_blocks(
    *np.zeros((3, 2, 2048, 1, 1), np.float32),
    ids,
    ids,
    AttentionOptions('interpret', BLOCK),
  )
  live, full, *codes = blocks.block_mask(queries, keys, window)
  mask = reference.attention_mask(*ids, window=window)
  mask = mask.reshape(2, 16, BLOCK, 16, BLOCK)
  np.testing.assert_array_equal(live, mask.any((2, 4)))
  np.testing.assert_array_equal(full, mask.all((2, 4)))
  (*_, flags), count = pallas._steps(live, full, *codes)
  flags = np.asarray(flags)[:count]
  assert (flags & pallas.FULL != 0).sum() == full.sum()
  assert (flags & pallas.CODED != 0).sum() == (live & ~full).sum()
