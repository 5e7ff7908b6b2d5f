"""Llama 3.2 1B at 65,536 tokens on one host: eight chips of v5e, four of v6e.

  python launch/tpu.py --config configs/llama32_1b_64k.py
      --config.weights=/data/llama32_1b --config.data.directory=/data/store

The mesh is for v5e:2x4, of Kaggle; llama32_1b_64k.py:v6e is for v6e:2x2. The
model, its window of 131,072 tokens and its RoPE are Meta's; Meta's training on
long documents is not published, so the optimizer is ProLong's, with an eighth
of its batch, over 0.5B tokens. Not run on a TPU.
"""

from configs import common, llama3_8b_64k

MESHES = {'': dict(data=1, seq=8), 'v6e': dict(data=1, seq=4)}
VARIANTS = tuple(MESHES)


def get_config(name=''):
  mesh = common.variant(MESHES, name)
  config = llama3_8b_64k.get_config()
  config.name = f'llama32_1b_64k_{name}'.rstrip('_')
  config.model.update(
    common.model('llama32_1b', **common.LLAMA31_ROPE | dict(factor=32.0))
  )
  config.model.block = 2048
  config.mesh.update(mesh)
  config.data.mix = {}
  config.train.update(steps=1000, batch=8, micro_batches=8)
  config.optim.warmup_steps = 100
  return config
