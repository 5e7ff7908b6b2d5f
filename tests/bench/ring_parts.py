"""What the ring of tests/bench/ring.py computes on a CPU, part by part.

  python tests/bench/ring_parts.py [seq_len block]

Pairs of blocks of a causal row, forward and backward, one head at a time as in
longjax/attention/blockwise.py: CPU seconds of their matrix products alone and
of their softmax alone (mask, exponentials, sums), each in a loop of its own on
blocks that stay in the cache; and of the ring.
"""

import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import jax
import jax.numpy as jnp
import measure
import numpy as np
import ring
from jax.sharding import Mesh
from ring import DEVICES, DIM, HEADS

from longjax.data import layout

PAIRS = 1000  # are timed


def products(carry, q, logits, mask):
  """Seven: of logits and out; of logits, dv, dp, dk and dq again."""
  del mask
  q, acc = q + carry[0, 0], jnp.zeros_like(q)
  wide = [jax.lax.optimization_barrier(q @ (q + i).T) for i in range(3)]
  for i in range(4):
    p = jax.lax.optimization_barrier(logits + wide[i % 3][0, 0])
    acc += p @ q
  return acc * 1e-30


def softmax(carry, q, logits, mask):
  """Online forward; from the log-sum-exp, with the gradient, backward."""
  del q
  reference = carry[0, 0]
  logits = jnp.where(mask, logits + reference, -jnp.inf)
  largest = jnp.maximum(reference, logits.max(0))
  p = jnp.exp2(logits - largest)
  total, p = p.sum(0), jax.lax.optimization_barrier(p)
  again = jnp.where(mask, p - reference, -jnp.inf)
  p = jnp.exp2(again - total)
  ds = jax.lax.optimization_barrier(p * (logits - total))
  return carry + (ds[0, 0] + p[0, 0]) * 1e-30


def seconds(part, block: int) -> float:
  """CPU seconds of a pair and head."""
  q = jnp.ones((block, DIM)) / DIM
  logits = jnp.linspace(-20, 0, block**2).reshape(block, block)
  mask = jnp.tri(block, dtype=bool)
  loop = lambda *args: jax.lax.fori_loop(
    0, PAIRS, lambda _, carry: part(carry, *args), jnp.zeros_like(args[0])
  )
  run = jax.jit(loop)
  least = []
  for _ in range(4):  # the first compiles
    began = time.process_time()
    jax.block_until_ready(run(q, logits, mask))
    least.append(time.process_time() - began)
  return min(least) / PAIRS


def main(seq=16_384, block=256):
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', DEVICES)
  blocks = seq // block
  pairs = blocks * (blocks + 1) // 2 * HEADS
  for part in (products, softmax):
    each = seconds(part, block)
    print(f'{part.__name__:9} {pairs * each:6.2f} CPU s, {each * 1e6:6.1f} us '
          f'each of {pairs} pairs of blocks and heads')  # fmt: skip
  mesh = Mesh(np.array(jax.devices()).reshape(1, -1), ('data', 'seq'))
  order = layout.order('zigzag', seq, DEVICES)
  attend = ring.ours(mesh, order, np.ones(seq, int), block)
  print(f'the ring  {measure.cost(attend, ring.inputs(seq))}')


if __name__ == '__main__':
  main(*(int(x) for x in sys.argv[1:]))
