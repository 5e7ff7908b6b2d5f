"""Attention forward and backward beside jax.nn.dot_product_attention.

  python tests/bench/attention.py [seq_len ...]

On the CPU, with SmolLM2's heads, float32: seconds and temporary memory of each
strategy, and how many times less than the baseline in the same process.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import jax
import measure
import numpy as np
from jax.sharding import Mesh

from longjax import attention
from longjax.attention import Ids
from longjax.data import layout

DEVICES, BLOCK, DIM = 8, 256, 64


def cases(seq):
  """(name, attend): one causal document of `seq` tokens."""
  yield (
    'jax.nn.dot_product_attention',
    lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True),
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

    yield f'{strategy} on {devices}', attend


def main(lengths):
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', DEVICES)
  for seq in lengths:
    arguments, base = measure.inputs(seq, 9, 3, DIM), None
    for name, attend in cases(seq):
      cost = measure.cost(attend, arguments)
      base = base or cost
      print(f'{seq:6} tokens  {name:30} {cost} {cost.beside(base)}', flush=True)


if __name__ == '__main__':
  main([int(x) for x in sys.argv[1:]] or [2048, 4096])
