"""Our ring on the CPU beside the PyPI package `ringattention`.

  pip install ringattention==0.1.2   (no requirement of ours)
  python tests/bench/ring.py [seq_len]

Eight fake devices in one process, forward and backward, float32, 8 heads of 64:
a causal row by both; and ours with the row packed with documents of 1/8 of it,
beside the same row as one document, for which no block can be skipped.
Seconds are the least of three runs; those of the process's CPU depend least on
what else the machine does. Errors are against float64, of 2,048 tokens.
"""

import pathlib
import sys
import time
import types

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import jax
import jax.numpy as jnp
import numpy as np
import reference
from jax.extend import backend
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from longjax import attention
from longjax.attention import Ids
from longjax.data import layout

DEVICES, HEADS, DIM = 8, 8, 64
CHUNK = 512  # ringattention's fastest of 256, 512, 1024
BLOCK = 256  # our fastest of 128, 256, 512
RUNS, EXACT = 3, 2048  # EXACT: tokens of the comparison with float64


def theirs(mesh, seq):
  """attend(q, k, v) by ringattention, called as its README and LWM do."""
  # It asks jax.lib, which JAX 0.10 no longer has, for the platform.
  jax.lib.xla_bridge = types.SimpleNamespace(get_backend=backend.get_backend)
  from ringattention import ringattention_jax

  chunk = min(CHUNK, seq // DEVICES)
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


def ours(mesh, order, segments):
  """attend(q, k, v) of a row [seq] laid out in an order."""
  ids = Ids(*(np.asarray(x[None], np.int32) for x in (segments[order], order)))
  return lambda q, k, v: attention.attend(
    q, k, v, ids, ids, mesh=mesh, block=BLOCK
  )


def inputs(seq):
  """q, k, v and the gradient of the output, [1, seq, HEADS, DIM]."""
  rng = np.random.default_rng(0)
  return rng.standard_normal((4, 1, seq, HEADS, DIM)).astype(np.float32)


def compiled(attend, arguments):
  """(q, k, v, dout) -> (out, dq, dk, dv)."""

  def run(q, k, v, dout):
    out, vjp = jax.vjp(attend, q, k, v)
    return out, *vjp(dout)

  return jax.jit(run).lower(*arguments).compile()


def measure(attend, seq):
  """(CPU seconds, seconds, MiB of temporaries on a device)."""
  arguments = inputs(seq)
  run = compiled(attend, arguments)
  spent = []
  for _ in range(RUNS):
    began = time.process_time(), time.perf_counter()
    jax.block_until_ready(run(*arguments))
    spent.append(
      (time.process_time() - began[0], time.perf_counter() - began[1])
    )
  temporaries = run.memory_analysis().temp_size_in_bytes / 2**20
  return *(min(x) for x in zip(*spent)), temporaries


def errors(attend, order):
  """The largest error of out, dq, dk and dv of a causal row in an order."""
  arguments = inputs(EXACT)
  got = compiled(attend, arguments)(*(x[:, order] for x in arguments))
  exact = arguments.astype(np.float64)
  ids = np.ones((1, EXACT)), np.arange(EXACT)[None]
  out = reference.attention(*exact[:3], *ids)
  grads = reference.attention_grads(*exact, *ids)
  return [
    float(np.abs(x - y[:, order]).max()) for x, y in zip(got, (out, *grads))
  ]


def report(name, found, base):
  cpu, wall, temporaries = found
  ratios = ' '.join(f'{b / x:6.2f}x' for x, b in zip(found, base))
  figures = f'{cpu:8.2f} CPU s {wall:8.2f} s {temporaries:8.1f} MiB'
  print(f'{name:28} {figures}  {ratios}', flush=True)


def main(seq=16_384):
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', DEVICES)
  mesh = Mesh(np.array(jax.devices()).reshape(1, -1), ('data', 'seq'))
  zigzag = lambda seq: layout.order('zigzag', seq, DEVICES)
  one = lambda seq: np.ones(seq, int)
  print(f'{seq} tokens on {DEVICES} devices; the ratios: the first / this')
  base = measure(theirs(mesh, seq), seq)
  report('ringattention, causal', base, base)
  whole = measure(ours(mesh, zigzag(seq), one(seq)), seq)
  report('longjax, causal', whole, base)
  documents = np.arange(seq) // (seq // DEVICES) + 1
  packed = measure(ours(mesh, zigzag(seq), documents), seq)
  report('longjax, eight documents', packed, whole)
  for name, attend, order in (
    ('ringattention', theirs(mesh, EXACT), np.arange(EXACT)),
    ('longjax', ours(mesh, zigzag(EXACT), one(EXACT)), zigzag(EXACT)),
  ):
    largest = ' '.join(f'{x:.1e}' for x in errors(attend, order))
    print(f'{name:28} largest error of out, dq, dk, dv: {largest}')


if __name__ == '__main__':
  main(*(int(x) for x in sys.argv[1:]))
