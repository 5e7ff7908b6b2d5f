"""The kernel for TPUs, with the interface of kernels.py.

The pairs of blocks to compute are listed at run time from the ids, and the
list is the grid: blocks wholly in the future, in other documents or in padding
are neither loaded nor computed, and pairs whose mask is true everywhere are
computed without one. Flash attention (arXiv:2205.14135, 2307.08691), but for

  the maximum: a softmax is the same against any reference, so a query keeps
    one, and nothing is compared or rescaled. `init_state` begins with the
    logit of the query's own key; where a sum reaches LIMIT, the pair is put
    back and done again as an online softmax, which moves the reference;
  logits as [keys, queries]: their sum runs down columns, which costs no work
    across lanes, and 2 ** logits feeds the next matmul as it stands;
  the product of the next keys written before the softmax of these, so that
    the matrix unit has work while the vector unit has;
  accumulators that are the kernel's inputs and outputs at once: a hop of the
    ring adds to them in place, in float32;
  backward: dK and dV of a chunk of keys stay in VMEM, in float32, while the
    blocks of queries are read one after another, so there is no O(seq^2) array
    and no sum in bf16; they are [dim, keys], which fills a matrix unit that is
    wider than a head.

Legend as in blocks.py. docs/kernel.md has the schedules, and what failed.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from longjax.attention import blocks, softmax
from longjax.attention.blocks import AttentionOptions, Keys, Queries
from longjax.attention.softmax import SoftmaxState
from longjax.attention.tiles import TILES
from longjax.mask import (
  Ids,
  key_codes,
  may_attend,
  may_attend_by_code,
  query_codes,
)  # fmt: skip

LANES = 128
SMALL_STEP = 256  # where a rolled loop does the general thing
CHUNK = 2  # blocks of keys whose gradients stay on the chip, at most
VMEM = 60 * 2**20  # bytes; TPU v5p and 7x have 64 MiB a core, the others more

# A sum that reaches it is done again: keys with logits up to 2 ** 100 times, 69
# nats, above the query's own cost nothing. Below it, sums of p * v are finite
# for values up to 2 ** 27.
LIMIT = 2.0**100

# Flags of a step: first of its queries, first of its row, compute without a
# mask, with that of the codes, with that of `may_attend`. Above them, the
# offset of the codes.
FIRST, ENTER, FULL, CODED, GENERAL, FLAG_BITS = 1, 2, 4, 8, 16, 5


def block_sizes(q, k, options: AttentionOptions):
  """(t, s): queries and keys of a block, multiples of a register's lanes."""
  tiles, (_, queries, heads, dim) = TILES[options.chip], q.shape
  rows = tiles.rows * LANES // max(dim, LANES)  # larger heads need more VMEM
  t = max(rows * k.shape[2] // heads // LANES, 1) * LANES
  s = max(min(options.block, tiles.keys) // LANES, 1) * LANES
  lanes = lambda count: -(-count // LANES) * LANES
  return min(t, lanes(queries)), min(s, lanes(k.shape[1]))


def init_state(
  queries: Queries, q, k, q_ids: Ids, kv_ids: Ids, options: AttentionOptions
) -> SoftmaxState:
  """The softmax over no keys, with references near the queries' own keys.

  Args:
    queries: q [B, T, N, H] in blocks.
    k: [B, S, K, H]; own keys are found where T of them have the ids of the
      queries, one after another at the same place in all rows.
  """
  if q.shape[1] > k.shape[1]:
    return softmax.init(queries.q)
  kv_heads = k.shape[2]
  k, kv_ids = _own_keys(k, q_ids, kv_ids)
  own = jnp.sum(
    q.reshape(*k.shape[:3], -1, q.shape[3]).astype(jnp.float32)
    * k.astype(jnp.float32)[:, :, :, None],
    axis=-1,
  )
  same = (q_ids.segment == kv_ids.segment) & (q_ids.index == kv_ids.index)
  same &= q_ids.segment > 0
  own = own.reshape(q.shape[:3]) * options.scale
  own = jnp.where(same[:, :, None], own, softmax.FLOOR)
  own = blocks.block_queries(own, kv_heads, queries.ids.index.shape[-1])
  return softmax.init(queries.q, own[:, :, :, None])


def _own_keys(k, q_ids: Ids, kv_ids: Ids):
  """The keys, and their ids, where the first query finds itself."""
  seq, count = q_ids.index.shape[1], k.shape[1]
  if seq == count:
    return k, kv_ids
  first = (q_ids.segment[:, :1] > 0) & (kv_ids.segment == q_ids.segment[:, :1])
  first &= kv_ids.index == q_ids.index[:, :1]
  place = jnp.where(first, jnp.arange(count, dtype=jnp.int32), 0).max()
  take = lambda x: jax.lax.dynamic_slice_in_dim(x, place, seq, 1)
  return take(k), Ids(*map(take, kv_ids))


def attend_block(
  state: SoftmaxState, queries: Queries, keys: Keys, options: AttentionOptions
) -> SoftmaxState:
  """Adds these keys to the softmax over other keys."""
  steps, count = _steps(*blocks.block_mask(queries, keys, options.window))
  ids = _rows(queries.ids, state.acc.shape[4]), _columns(keys)
  inputs = (queries.q, ids[0], keys.k, keys.v, ids[1], *state)
  at_queries = lambda n, p, b, i, j, flags: (i[p], b[p], n, 0, 0)
  at_keys = lambda n, p, b, i, j, flags: (j[p], b[p], n, 0, 0)
  one_head = lambda index: lambda *args: (*index(*args)[:2], 0, 0)
  state_specs = [_spec(x, at_queries) for x in state]
  specs = [
    _spec(queries.q, at_queries),
    _spec(ids[0], one_head(at_queries)),
    _spec(keys.k, at_keys),
    _spec(keys.v, at_keys),
    _spec(ids[1], one_head(at_keys)),
    *state_specs,
  ]
  out = pl.pallas_call(
    functools.partial(_forward, options=options),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=len(steps),
      grid=(keys.k.shape[2], count),
      in_specs=specs,
      out_specs=state_specs,
      scratch_shapes=[
        pltpu.VMEM(state.acc.shape[-2:], jnp.float32),
        pltpu.VMEM((1, state.acc.shape[-1]), jnp.float32),
        pltpu.SMEM((1,), jnp.int32),
      ],
    ),
    out_shape=[_like(x) for x in state],
    input_output_aliases={len(steps) + 5 + i: i for i in range(2)},
    compiler_params=_params(),
    name='attention_forward',
    interpret=options.kernel == 'interpret',
  )(*steps, *inputs)
  return SoftmaxState(*out)


def attend_block_grad(
  dq, queries: Queries, keys: Keys, options: AttentionOptions
):
  """Gradients through these keys; see blockwise.attend_block_grad."""
  plan = blocks.block_mask(queries, keys, options.window)
  count, size = keys.k.shape[0], _chunk_size(keys)
  queries = _turned(queries)

  def chunk(c, grads):
    take = lambda x: jax.lax.dynamic_slice_in_dim(x, c * size, size, 2)
    return _chunk_grad(grads, queries, keys, _steps(*map(take, plan)), c,
                       options)  # fmt: skip

  zeros = [
    jnp.zeros_like(x.swapaxes(3, 4), jnp.float32) for x in (keys.k, keys.v)
  ]
  return jax.lax.fori_loop(0, count // size, chunk, (dq, *zeros))


def _turned(queries):
  """The queries with q and dout as [I, B, K, H, R]."""
  turn = lambda x: x.swapaxes(3, 4)
  residuals = queries.residuals._replace(dout=turn(queries.residuals.dout))
  return queries._replace(q=turn(queries.q), residuals=residuals)


def _chunk_grad(grads, queries, keys, steps, c, options):
  """Adds the gradients through chunk `c` of the keys."""
  (qt, q_ids, residuals), (steps, count) = queries, steps
  size = _chunk_size(keys)
  ids, c = (_rows(q_ids, qt.shape[4]), _columns(keys)), jnp.atleast_1d(c)
  at_queries = lambda n, p, b, i, j, flags, c: (i[p], b[p], n, 0, 0)
  at_keys = lambda n, p, b, i, j, flags, c: (c[0], b[p], n, 0, 0)
  at_row = lambda n, p, b, i, j, flags, c: (i[p], b[p], 0, 0)
  at_column = lambda n, p, b, i, j, flags, c: (c[0] * size + j[p], b[p], 0, 0)
  chunk = functools.partial(_spec, index=at_keys, count=size)
  specs = [
    _spec(qt, at_queries),
    _spec(ids[0], at_row),
    *(_spec(x, at_queries) for x in residuals),
    chunk(keys.k),
    chunk(keys.v),
    _spec(ids[1], at_column),
    _spec(grads[0], at_queries),
    pl.BlockSpec(memory_space=pltpu.MemorySpace.HBM),
    pl.BlockSpec(memory_space=pltpu.MemorySpace.HBM),
  ]
  inputs = (qt, ids[0], *residuals, keys.k, keys.v, ids[1], *grads)
  first = len(steps) + 1 + len(inputs) - 3
  return tuple(
    pl.pallas_call(
      functools.partial(_backward, options=options),
      grid_spec=pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=len(steps) + 1,
        grid=(keys.k.shape[2], count),
        in_specs=specs,
        out_specs=[_spec(grads[0], at_queries), *map(chunk, grads[1:])],
      ),
      out_shape=[_like(x) for x in grads],
      input_output_aliases={first + i: i for i in range(3)},
      compiler_params=_params(),
      name='attention_backward',
      interpret=options.kernel == 'interpret',
    )(*steps, c, *inputs)
  )


def _forward(
  b, i, j, flags, q_ref, q_ids, k_ref, v_ref, kv_ids, acc_before, stats_before,
  acc_ref, stats_ref, acc_saved, sum_saved, redo_ref, *, options,
):  # fmt: skip
  """One pair of blocks: adds to acc [H, R], and to reference and sum [2, R]."""
  flag = flags[pl.program_id(1)]
  reference_ref, sum_ref = stats_ref.at[0:1, :], stats_ref.at[1:2, :]

  @pl.when(flag & FIRST != 0)
  def _():
    acc_ref[...] = acc_before[...]
    stats_ref[...] = stats_before[...]

  logits_of = functools.partial(_logits, k_ref, q_ref, options.scale, 1)
  tiles = TILES[options.chip]
  redo_ref[0] = 0

  def add(mask, step):
    reference, total = reference_ref[...], sum_ref[...]
    sum_saved[...] = total
    steps = _slices(k_ref, step)
    logits = logits_of(steps[0], mask)
    for c, at in enumerate(steps):
      last = c + 1 == len(steps)
      ahead = None if last else logits_of(steps[c + 1], mask)
      p = jnp.exp2(logits - reference)
      rounded = p.astype(v_ref.dtype)
      if tiles.sum_rounded:
        p = rounded.astype(jnp.float32)
      total = total + p.sum(0, keepdims=True)
      if last:  # here the last product hides how long a scalar takes
        sum_ref[...] = total
        redo_ref[0] = (jnp.max(total) >= LIMIT).astype(jnp.int32)
      v, acc = v_ref[at, :], acc_ref[...]
      if c == 0:
        acc_saved[...] = acc
      acc_ref[...] = acc + _dot(v, rounded, 0, 0)
      logits = ahead

  coded = _coded_mask(q_ids, kv_ids, flag, options.window)
  pl.when(flag & FULL != 0)(lambda: add(None, tiles.step))
  pl.when(flag & CODED != 0)(lambda: add(coded, tiles.masked_step))
  redo = redo_ref[0] != 0

  @pl.when(redo)
  def _():
    acc_ref[...] = acc_saved[...]
    sum_ref[...] = sum_saved[...]

  def online(at):
    logits = logits_of(at, _general_mask(q_ids, kv_ids, options.window))
    before, v = reference_ref[...], v_ref[at, :]
    largest = jnp.maximum(before, logits.max(0, keepdims=True))
    p, shrink = jnp.exp2(logits - largest), jnp.exp2(before - largest)
    sum_ref[...] = sum_ref[...] * shrink + p.sum(0, keepdims=True)
    acc_ref[...] = acc_ref[...] * shrink + _dot(v, p.astype(v.dtype), 0, 0)
    reference_ref[...] = largest

  pl.when(redo | (flag & GENERAL != 0))(lambda: _rolled(online, k_ref))


def _backward(
  b, i, j, flags, chunk, qt_ref, q_ids, dout_ref, lse_ref, delta_ref,
  k_ref, v_ref, kv_ids, dq_before, dk_before, dv_before, dq_ref, dk_ref, dv_ref,
  *, options,
):  # fmt: skip
  """One pair of blocks: adds to dq [H, R] and to dk, dv [blocks, H, s]."""
  step = pl.program_id(1)
  flag = flags[step]

  @pl.when(flag & FIRST != 0)
  def _():
    dq_ref[...] = dq_before[...]

  @pl.when(flag & ENTER != 0)
  def _():
    dk_ref[...] = jnp.zeros_like(dk_ref)
    dv_ref[...] = jnp.zeros_like(dv_ref)

  k_here, v_here, dk_here, dv_here = (
    x.at[j[step]] for x in (k_ref, v_ref, dk_ref, dv_ref)
  )
  logits_of = functools.partial(_logits, k_here, qt_ref, options.scale, 0)

  def add(at, mask):
    qt, dout = qt_ref[...], dout_ref[...]
    p = jnp.exp2(logits_of(at, mask) - lse_ref[...])
    ds = p * (_dot(v_here[at, :], dout, 1, 0) - delta_ref[...])
    ds = ds.astype(qt.dtype)
    dv_here[:, at] += _dot(dout, p.astype(dout.dtype), 1, 1)
    dk_here[:, at] += _dot(qt, ds, 1, 1)
    dq_ref[...] += _dot(k_here[at, :], ds, 0, 0)

  def add_all(mask):
    for at in _slices(k_here, TILES[options.chip].grad_step):
      add(at, mask)

  general = _general_mask(q_ids, kv_ids, options.window)
  coded = _coded_mask(q_ids, kv_ids, flag, options.window)
  pl.when(flag & FULL != 0)(lambda: add_all(None))
  pl.when(flag & CODED != 0)(lambda: add_all(coded))
  pl.when(flag & GENERAL != 0)(
    lambda: _rolled(lambda at: add(at, general), k_here)
  )


def _coded_mask(q_ids, kv_ids, flag, window):
  """at -> [keys, R] bool, for ids [3, R] and [keys, 3]."""

  def mask(at):
    query = q_ids[2:3, :] + (flag >> FLAG_BITS)
    return may_attend_by_code(query, kv_ids[at, 2:3], window)

  return mask


def _general_mask(q_ids, kv_ids, window):
  """As `_coded_mask`, for any ids."""

  def mask(at):
    q = Ids(q_ids[0:1, :], q_ids[1:2, :])
    kv = Ids(kv_ids[at, 0:1], kv_ids[at, 1:2])
    return may_attend(q, kv, window)

  return mask


def _logits(k_ref, q_ref, scale, axis, at, mask):
  """[keys, R] float32 of some keys; q has its dim as this axis."""
  logits = _dot(k_ref[at, :], q_ref[...], 1, axis)
  logits = logits if scale == 1 else logits * scale
  return logits if mask is None else jnp.where(mask(at), logits, -jnp.inf)


def _dot(a, b, axis_a, axis_b):
  """Float32 product over one axis of each; exact where the inputs are."""
  exact = a.dtype == jnp.float32
  return jax.lax.dot_general(
    a, b, (((axis_a,), (axis_b,)), ((), ())),
    precision=jax.lax.Precision.HIGHEST if exact else None,
    preferred_element_type=jnp.float32,
  )  # fmt: skip


def _steps(live, full, offset, coded):
  """((b, i, j, flags) of [steps] int32, how many count) from [B, I, J]."""
  # At least one step a row: it carries over what is there, and zeroes dk, dv.
  i, j = (jax.lax.broadcasted_iota(jnp.int32, live.shape, x) for x in (1, 2))
  kept = live | ((i == 0) & (j == 0))
  flag = lambda bit, on: jnp.where(on, jnp.int32(bit), 0)
  masked = live & ~full
  flags = flag(FULL, live & full) | flag(CODED, masked & coded)
  flags |= flag(GENERAL, masked & ~coded) | (offset << FLAG_BITS)
  (b, i, j), (flags,), count = blocks.live_pairs(kept, flags)
  new = lambda x: jnp.concatenate([jnp.ones(1, bool), x[1:] != x[:-1]])
  flags |= flag(FIRST, new(b) | new(i)) | flag(ENTER, new(b))
  return (b, i, j, flags), count


def _rows(ids: Ids, rows: int):
  """[I, B, 3, R] int32: segment, index and code of each row of the queries."""
  three = jnp.stack([*ids, query_codes(ids)], 2)
  return jnp.tile(three, (1, 1, 1, rows // three.shape[3]))


def _columns(keys: Keys):
  """[J, B, s, 3] int32: segment, index and code of each key."""
  ids = blocks.key_ids(keys)
  return jnp.stack([*ids, key_codes(ids)], 3)


def _chunk_size(keys: Keys) -> int:
  """Blocks of keys in a chunk: at most CHUNK, and dividing all of them."""
  count = keys.k.shape[0]
  return max(n for n in range(1, CHUNK + 1) if count % n == 0)


def _slices(ref, step: int):
  """Slices of the keys of a block, of at most `step`."""
  n = math.gcd(ref.shape[0], step)
  return [pl.ds(c, n) for c in range(0, ref.shape[0], n)]


def _rolled(body, ref):
  """body(at) for slices of the keys, in a loop: little code, seldom run."""
  n = math.gcd(ref.shape[0], SMALL_STEP)

  def one(c, _):
    body(pl.ds(pl.multiple_of(c * n, n), n))
    return 0

  jax.lax.fori_loop(0, ref.shape[0] // n, one, 0)


def _spec(x, index, count=None):
  """A block of x [blocks, B, ...]: all of the last two dims, one of others."""
  return pl.BlockSpec((count,) + (None,) * (x.ndim - 3) + x.shape[-2:], index)


def _like(x):
  """The output that is x's own memory; varies over the mesh as x does."""
  return jax.ShapeDtypeStruct(
    x.shape, x.dtype, manual_axis_type=jax.typeof(x).manual_axis_type
  )


def _params():
  # Without bounds checks, 250 to 290 bundles a step: every index is of
  # `live_pairs`, whose numbers are those of the arrays' own blocks.
  return pltpu.CompilerParams(
    dimension_semantics=('parallel', 'arbitrary'), vmem_limit_bytes=VMEM,
    disable_bounds_checks=True,
  )  # fmt: skip
