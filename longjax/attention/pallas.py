"""The kernel for TPUs, with the interface of kernels.py.

The pairs of blocks to compute are listed at run time from the ids, and the
list is the grid: blocks wholly in the future, in other documents or in padding
are neither loaded nor computed, and pairs whose mask is true everywhere are
computed without one. Flash attention (arXiv:2205.14135, 2307.08691), with

  logits as [keys, queries]: their peak and sum run down columns, which costs
    no work across lanes, and 2 ** logits feeds the next matmul as it stands;
  the product of the next keys written before the softmax of these, so that
    the matrix unit has work while the vector unit has;
  accumulators that are the kernel's inputs and outputs at once: a hop of the
    ring adds to them in place, in float32;
  backward, the gradients of a chunk of keys staying on the chip while the
    queries pass by, so that nothing of O(seq^2) or in bf16 is summed.

Legend as in blocks.py.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from longjax.attention import blocks
from longjax.attention.blocks import AttentionOptions, Keys, Queries
from longjax.attention.softmax import SoftmaxState
from longjax.mask import Ids, may_attend

LANES = 128
ROWS = 1024  # of a block of queries; more fill the matrix unit no better
STEP = 512  # keys of one matmul inside a block
CHUNK = 2  # blocks of keys whose gradients stay on the chip, at most
VMEM = 60 * 2**20  # bytes; TPU v5p and 7x have 64 MiB a core, the others more

# Flags of a step: first of its queries, first of its row, compute without or
# with a mask.
FIRST, ENTER, FULL, MASKED = 1, 2, 4, 8


def block_sizes(queries: int, keys: int, group: int, block: int):
  """(t, s): queries and keys of a block, multiples of a register's lanes."""
  t = max(ROWS // group // LANES, 1) * LANES
  s = max(block // LANES, 1) * LANES
  lanes = lambda count: -(-count // LANES) * LANES
  return min(t, lanes(queries)), min(s, lanes(keys))


def attend_block(
  state: SoftmaxState, queries: Queries, keys: Keys, options: AttentionOptions
) -> SoftmaxState:
  """Adds these keys to the softmax over other keys."""
  live, full = blocks.block_mask(queries, keys, options.window)
  steps, count = _steps(live, full)
  ids = _rows(queries), _columns(keys)
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
    functools.partial(_forward, window=options.window),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=len(steps),
      grid=(keys.k.shape[2], count),
      in_specs=specs,
      out_specs=state_specs,
    ),
    out_shape=[_like(x) for x in state],
    input_output_aliases={len(steps) + 5 + i: i for i in range(3)},
    compiler_params=_params(),
    name='attention_forward',
    interpret=options.kernel == 'interpret',
  )(*steps, *inputs)
  return SoftmaxState(*out)


def attend_block_grad(
  dq, queries: Queries, keys: Keys, options: AttentionOptions
):
  """Gradients through these keys; see blockwise.attend_block_grad."""
  live, full = blocks.block_mask(queries, keys, options.window)
  count, size = keys.k.shape[0], _chunk_size(keys)

  def chunk(c, grads):
    take = lambda x: jax.lax.dynamic_slice_in_dim(x, c * size, size, 2)
    steps = _steps(take(live), take(full))
    return _chunk_grad(grads, queries, keys, steps, c, options)

  zeros = [jnp.zeros_like(x, jnp.float32) for x in (keys.k, keys.v)]
  return jax.lax.fori_loop(0, count // size, chunk, (dq, *zeros))


def _chunk_grad(grads, queries, keys, steps, c, options):
  """Adds the gradients through chunk `c` of the keys."""
  (q, _, residuals), (steps, count) = queries, steps
  size = _chunk_size(keys)
  ids, c = (_rows(queries), _columns(keys)), jnp.atleast_1d(c)
  at_queries = lambda n, p, b, i, j, flags, c: (i[p], b[p], n, 0, 0)
  at_keys = lambda n, p, b, i, j, flags, c: (c[0], b[p], n, 0, 0)
  at_row = lambda n, p, b, i, j, flags, c: (i[p], b[p], 0, 0)
  at_column = lambda n, p, b, i, j, flags, c: (c[0] * size + j[p], b[p], 0, 0)
  chunk = functools.partial(_spec, index=at_keys, count=size)
  specs = [
    _spec(q, at_queries),
    _spec(ids[0], at_row),
    *(_spec(x, at_queries) for x in residuals),
    chunk(keys.k),
    chunk(keys.v),
    _spec(ids[1], at_column),
    _spec(grads[0], at_queries),
    pl.BlockSpec(memory_space=pltpu.MemorySpace.HBM),
    pl.BlockSpec(memory_space=pltpu.MemorySpace.HBM),
  ]
  inputs = (q, ids[0], *residuals, keys.k, keys.v, ids[1], *grads)
  first = len(steps) + 1 + len(inputs) - 3
  return tuple(
    pl.pallas_call(
      functools.partial(_backward, window=options.window),
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
  b, i, j, flags, q_ref, q_ids, k_ref, v_ref, kv_ids, *refs, window
):  # fmt: skip
  """One pair of blocks: adds to out [H, R], peak and total [1, R]."""
  flag = flags[pl.program_id(1)]
  before, (out_ref, peak_ref, total_ref) = refs[:3], refs[3:]

  @pl.when(flag & FIRST != 0)
  def _():
    for old, new in zip(before, refs[3:]):
      new[...] = old[...]

  def add(mask):
    q, peak, total = q_ref[...], peak_ref[...], total_ref[...]
    count, scale = k_ref.shape[0] // _step(k_ref), _scale(q)
    logits = _logits(k_ref, q, 0, mask)
    for c in range(count):
      ahead = _logits(k_ref, q, c + 1, mask) if c + 1 < count else logits
      new = jnp.maximum(peak, logits.max(0, keepdims=True) * scale)
      p, shrink = jnp.exp2(logits * scale - new), jnp.exp2(peak - new)
      total = total * shrink + p.sum(0, keepdims=True)
      v = v_ref[_slice(v_ref, c), :]
      out_ref[...] = out_ref[...] * shrink + _dot(v, p.astype(v.dtype), 0, 0)
      peak, logits = new, ahead
    peak_ref[...], total_ref[...] = peak, total

  _masked_or_full(flag, add, q_ids, kv_ids, window)


def _backward(
  b, i, j, flags, chunk, q_ref, q_ids, dout_ref, lse_ref, delta_ref,
  k_ref, v_ref, kv_ids, dq_before, dk_before, dv_before, dq_ref, dk_ref, dv_ref,
  *, window,
):  # fmt: skip
  """One pair of blocks: adds to dq [H, R] and to dk, dv [blocks, s, H]."""
  step = pl.program_id(1)
  flag = flags[step]

  @pl.when(flag & FIRST != 0)
  def _():
    dq_ref[...] = dq_before[...]

  @pl.when(flag & ENTER != 0)
  def _():
    dk_ref[...] = jnp.zeros_like(dk_ref)
    dv_ref[...] = jnp.zeros_like(dv_ref)

  def add(mask):
    q, dout = q_ref[...], dout_ref[...]
    k_here, v_here = k_ref.at[j[step]], v_ref.at[j[step]]
    dk_here, dv_here = dk_ref.at[j[step]], dv_ref.at[j[step]]
    for c in range(k_here.shape[0] // _step(k_here)):
      at = _slice(k_here, c)
      k, v = k_here[at, :], v_here[at, :]
      p = jnp.exp2(_logits(k_here, q, c, mask) * _scale(q) - lse_ref[...])
      dv_here[at, :] += _dot(p.astype(dout.dtype), dout, 1, 0)
      ds = p * (_dot(v, dout, 1, 1) - delta_ref[...])
      ds = ds.astype(q.dtype)
      dk_here[at, :] += _dot(ds, q, 1, 0)
      dq_ref[...] += _dot(k, ds, 0, 0)

  _masked_or_full(flag, add, q_ids, kv_ids, window)


def _masked_or_full(flag, add, q_ids, kv_ids, window):
  """add(mask), or add(None) where the mask would be true everywhere."""
  pl.when(flag & FULL != 0)(lambda: add(None))
  pl.when(flag & MASKED != 0)(
    lambda: add(functools.partial(_mask, q_ids, kv_ids, window))
  )


def _mask(q_ids, kv_ids, window, at):
  """[keys, R] bool for ids [2, R] and [keys, 2]."""
  q = Ids(q_ids[0:1, :], q_ids[1:2, :])
  kv = Ids(kv_ids[at, 0:1], kv_ids[at, 1:2])
  return may_attend(q, kv, window)


def _logits(k_ref, q, c, mask):
  """[keys, R] float32 for step c of the keys, to be multiplied by `_scale`."""
  at = _slice(k_ref, c)
  logits = _dot(k_ref[at, :], q, 1, 1)
  return logits if mask is None else jnp.where(mask(at), logits, -jnp.inf)


def _scale(q):
  """Makes logits of a product, in units of log 2."""
  return math.log2(math.e) / math.sqrt(q.shape[1])


def _dot(a, b, axis_a, axis_b):
  """Float32 product over one axis of each; exact where the inputs are."""
  exact = a.dtype == jnp.float32
  return jax.lax.dot_general(
    a, b, (((axis_a,), (axis_b,)), ((), ())),
    precision=jax.lax.Precision.HIGHEST if exact else None,
    preferred_element_type=jnp.float32,
  )  # fmt: skip


def _steps(live, full):
  """((b, i, j, flags) of [steps] int32, how many count) from [B, I, J]."""
  # At least one step a row: it carries over what is there, and zeroes dk, dv.
  i, j = (jax.lax.broadcasted_iota(jnp.int32, live.shape, x) for x in (1, 2))
  kept = live | ((i == 0) & (j == 0))
  (b, i, j), (live, full), count = blocks.live_pairs(kept, live, full)
  new = lambda x: jnp.concatenate([jnp.ones(1, bool), x[1:] != x[:-1]])
  flag = lambda bit, on: jnp.where(on, jnp.int32(bit), 0)
  flags = flag(FIRST, new(b) | new(i)) | flag(ENTER, new(b))
  flags |= flag(FULL, full) | flag(MASKED, live & ~full)
  return (b, i, j, flags), count


def _rows(queries: Queries):
  """[I, B, 2, R] int32: segment and index of each row of the queries."""
  ids = jnp.stack(queries.ids, 2)
  return jnp.tile(ids, (1, 1, 1, queries.q.shape[3] // ids.shape[3]))


def _columns(keys: Keys):
  """[J, B, s, 2] int32: segment and index of each key."""
  return keys.ids.swapaxes(2, 3)


def _chunk_size(keys: Keys) -> int:
  """Blocks of keys in a chunk: at most CHUNK, and dividing all of them."""
  count = keys.k.shape[0]
  return max(n for n in range(1, CHUNK + 1) if count % n == 0)


def _step(ref) -> int:
  return math.gcd(ref.shape[0], STEP)


def _slice(ref, c):
  return pl.ds(c * _step(ref), _step(ref))


def _spec(x, index, count=None):
  """A block of x [blocks, B, ...]: all of the last two dims, one of others."""
  return pl.BlockSpec((count,) + (None,) * (x.ndim - 3) + x.shape[-2:], index)


def _like(x):
  """The output that is x's own memory; varies over the mesh as x does."""
  return jax.ShapeDtypeStruct(
    x.shape, x.dtype, manual_axis_type=jax.typeof(x).manual_axis_type
  )


def _params():
  return pltpu.CompilerParams(
    dimension_semantics=('parallel', 'arbitrary'), vmem_limit_bytes=VMEM
  )
