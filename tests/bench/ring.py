"""Our ring on the CPU beside the PyPI package `ringattention`.

  pip install ringattention==0.1.2   (no requirement of ours)
  python tests/bench/ring.py [seq_len block]

Eight simulated devices in one process, forward and backward, float32, 8 heads
of 64: a causal row by both; and ours with the row packed with documents of 1/8
of it, beside the same row as one document, for which no block can be skipped.
ringattention computes in chunks; its README has 512 and says to take them as
large as memory allows, which is a whole shard, while small ones suit a CPU.
Seconds are the least of three runs; those of the process's CPU depend least on
what else the machine does. Errors are against float64, of 2,048 tokens.
"""

import pathlib
import sys
import types

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import jax
import jax.numpy as jnp
import measure
import numpy as np
import reference
from jax.extend import backend
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from longjax import attention
from longjax.attention import Ids
from longjax.data import layout

DEVICES, HEADS, DIM = 8, 8, 64
CHUNKS = {
  'as large as a shard, as its README says': 2048,
  'as in the example of its README': 512,
  'its fastest here of 64 to 2048': 128,
}
BLOCK = 256  # as fast as 512 and faster than 128, at 16,384 tokens
EXACT = 2048  # tokens of the comparison with float64


def theirs(mesh, seq, chunk):
  """attend(q, k, v) by ringattention, called as its README and LWM do."""
  # It asks jax.lib, which JAX 0.10 no longer has, for the platform.
  jax.lib.xla_bridge = types.SimpleNamespace(get_backend=backend.get_backend)
  from ringattention import ringattention_jax

  chunk = min(chunk, seq // DEVICES)

  blocks = dict(
    causal_block_size=1, deterministic=True, dropout_rng=None, attn_pdrop=0.0,
    query_chunk_size=chunk, key_chunk_size=chunk, dtype=jnp.float32,
    policy=jax.checkpoint_policies.nothing_saveable, precision=None,
    prevent_cse=True,
  )  # fmt: skip
  shard = P(None, 'seq', None, None)
  return jax.shard_map(
    lambda q, k, v: ringattention_jax(
      q, k, v, None, None, None, 'seq', True, blocks
    ),
    mesh=mesh, in_specs=(shard,) * 3, out_specs=shard, check_vma=False,
  )  # fmt: skip


def ours(mesh, order, segments, block):
  """attend(q, k, v) of a row [seq] laid out in an order."""
  ids = Ids(*(np.asarray(x[None], np.int32) for x in (segments[order], order)))
  return lambda q, k, v: attention.attend(
    q, k, v, ids, ids, mesh=mesh, block=block
  )


def inputs(seq):
  return measure.inputs(seq, HEADS, HEADS, DIM)


def errors(attend, order):
  """The largest error of out, dq, dk and dv of a causal row in an order."""
  arguments = inputs(EXACT)
  run = measure.compiled(attend, arguments)
  got = run(*(x[:, order] for x in arguments))
  exact = [x.astype(np.float64) for x in arguments]
  ids = np.ones((1, EXACT)), np.arange(EXACT)[None]
  want = (
    reference.attention(*exact[:3], *ids),
    *reference.attention_grads(*exact, *ids),
  )
  return [float(np.abs(x - y[:, order]).max()) for x, y in zip(got, want)]


def main(seq=16_384, block=BLOCK):
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', DEVICES)
  mesh = Mesh(np.array(jax.devices()).reshape(1, -1), ('data', 'seq'))
  zigzag = lambda seq: layout.order('zigzag', seq, DEVICES)
  one = lambda seq: np.ones(seq, int)
  print(f'{seq} tokens on {DEVICES} devices; then, how many times less')
  causal = measure.cost(ours(mesh, zigzag(seq), one(seq), block), inputs(seq))
  print(f'longjax, causal           {causal}')
  for why, chunk in CHUNKS.items():
    base = measure.cost(theirs(mesh, seq, chunk), inputs(seq))
    less = causal.beside(base)
    print(f'ringattention, chunk {chunk:4} {base}; longjax {less} ({why})')
  documents = np.arange(seq) // (seq // DEVICES) + 1
  packed = measure.cost(ours(mesh, zigzag(seq), documents, block), inputs(seq))
  print(f'longjax, eight documents  {packed} {packed.beside(causal)}')
  for name, attend, order in (
    ('ringattention', theirs(mesh, EXACT, EXACT // DEVICES), np.arange(EXACT)),
    ('longjax', ours(mesh, zigzag(EXACT), one(EXACT), block), zigzag(EXACT)),
  ):
    largest = ' '.join(f'{x:.1e}' for x in errors(attend, order))
    print(f'{name:14} largest error of out, dq, dk, dv: {largest}')


if __name__ == '__main__':
  main(*(int(x) for x in sys.argv[1:]))
