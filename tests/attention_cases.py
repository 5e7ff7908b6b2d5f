"""An attention to compute and its result: shared by test_attention_*.

What costs is compiling. So a `Case` holds all that may differ between cases of
one shape, and `compiled` is one program for all of them.
"""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
import reference

from longjax import attention
from longjax.attention import Ids

NAMES = 'out', 'dq', 'dk', 'dv'
ATOL = dict(out=5e-6, dq=2e-5, dk=2e-5, dv=2e-5)  # float32


class Case(NamedTuple):
  """Inputs of attention, and the gradient that its output gets."""

  q: Any  # [batch, seq, heads, dim]
  k: Any  # [batch, kv_seq, kv_heads, dim]
  v: Any
  dout: Any  # as q
  q_ids: Ids
  kv_ids: Ids


def ids_of(segments) -> Ids:
  """Ids of rows [batch, seq] in the order of their text."""
  index = np.broadcast_to(np.arange(segments.shape[1]), segments.shape)
  return Ids(*(np.asarray(x, np.int32) for x in (segments, index)))


def packed(*lengths):
  """Segments [sum of lengths]: one document after another."""
  return np.repeat(np.arange(1, len(lengths) + 1), lengths)


def draw(q_ids, heads, kv_heads, dim, kv_ids=None) -> Case:
  """A Case of random numbers, always the same; kv_ids None are the queries'."""
  rng = np.random.default_rng(0)
  kv_ids = q_ids if kv_ids is None else kv_ids
  q, k, v, dout = (
    rng.standard_normal((*ids.segment.shape, n, dim)).astype(np.float32)
    for ids, n in zip(
      (q_ids, kv_ids, kv_ids, q_ids), (heads, kv_heads, kv_heads, heads)
    )
  )
  return Case(q, k, v, dout, q_ids, kv_ids)


def rearranged(tree, order):
  """Columns of arrays [batch, seq, ...] in an order [batch, seq]."""
  pick = lambda x: np.take_along_axis(
    x, order.reshape(order.shape + (1,) * (x.ndim - 2)), axis=1
  )
  return jax.tree.map(pick, tree)


def expected(case: Case, window=0) -> dict:
  """`out`, `dq`, `dk` and `dv` by the float64 oracle."""
  q, k, v, dout = (np.asarray(x, np.float64) for x in case[:4])
  ids = (*case.q_ids, case.kv_ids, window)
  values = reference.attention(q, k, v, *ids)
  grads = reference.attention_grads(q, k, v, dout, *ids)
  return dict(zip(NAMES, (values, *grads)))


# Of a test that compiles sixty programs and runs each for milliseconds.
FAST_COMPILE = dict(
  xla_backend_optimization_level=0, xla_llvm_disable_expensive_passes=True
)


@functools.cache
def compiled(**options):
  """attention.attend as a jitted function of a Case -> as `expected`."""

  def run(case: Case):
    attend = lambda *qkv: attention.attend(*qkv, *case[4:], **options)
    out, vjp = jax.vjp(attend, *case[:3])
    return dict(zip(NAMES, (out, *vjp(case.dout))))

  return jax.jit(run, compiler_options=FAST_COMPILE)


def check(got, want, name=''):
  """Equal as far as float32 goes; exactly 0 where all is masked."""
  for key, tolerance in ATOL.items():
    found = np.asarray(got[key])
    np.testing.assert_allclose(
      found, want[key], rtol=0, atol=tolerance, err_msg=f'{name}: {key}'
    )
    used = want['out' if key in ('out', 'dq') else 'dv'].any((2, 3))
    assert not found[~used].any(), f'{name}: {key}'
