"""Attention forward and backward beside jax.nn.dot_product_attention.

  python tests/bench/attention.py [seq_len ...]

On the CPU, with SmolLM2's heads, float32: seconds and temporary memory of each
strategy, and the ratio to the baseline that ran in the same process.
"""

import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import jax
import numpy as np
from jax.sharding import Mesh

from longjax import attention
from longjax.attention import Ids
from longjax.data import layout

DEVICES, BLOCK, DIM = 8, 256, 64


def measure(attend, arguments):
  """(seconds, bytes of temporaries on a device) of value and gradients."""
  loss = lambda q, k, v: (attend(q, k, v) ** 2).sum()
  step = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
  compiled = step.lower(*arguments).compile()
  jax.block_until_ready(compiled(*arguments))
  began = time.perf_counter()
  jax.block_until_ready(compiled(*arguments))
  seconds = time.perf_counter() - began
  return seconds, compiled.memory_analysis().temp_size_in_bytes


def cases(seq):
  """(name, attend, arguments): one causal document of `seq` tokens."""
  rng = np.random.default_rng(0)
  arguments = [
    rng.standard_normal((1, seq, heads, DIM)).astype(np.float32)
    for heads in (9, 3, 3)
  ]
  yield (
    'jax.nn.dot_product_attention',
    lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True),
    arguments,
  )
  for devices, strategy in ((1, 'blockwise'), (DEVICES, 'ring')):
    mesh = Mesh(
      np.array(jax.devices()[:devices]).reshape(1, -1), ('data', 'seq')
    )
    order = layout.order('zigzag', seq, devices)
    index = order[None].astype(np.int32)
    ids = Ids(np.ones_like(index), index)

    def attend(q, k, v, ids=ids, mesh=mesh, strategy=strategy):
      return attention.attend(
        q, k, v, ids, ids, strategy=strategy, mesh=mesh, block=BLOCK
      )

    yield f'{strategy} on {devices}', attend, arguments


def main(lengths):
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', DEVICES)
  for seq in lengths:
    base = None
    for name, attend, arguments in cases(seq):
      seconds, temporaries = measure(attend, arguments)
      base = base or (seconds, temporaries)
      print(
        f'{seq:6} tokens  {name:30} {seconds:7.2f} s '
        f'({base[0] / seconds:5.2f}x)  {temporaries / 2**20:8.0f} MiB '
        f'({temporaries / base[1]:.3f}x)'
      )


if __name__ == '__main__':
  main([int(x) for x in sys.argv[1:]] or [2048, 4096])
