"""Nemotron UltraLong: Llama 3.1 8B at 1M, 2M or 4M tokens (arXiv:2504.06214).

  python launch/tpu.py --config configs/llama31_ultralong.py:1m
      --config.weights=/data/llama31_8b_instruct
      --config.data.directory=/data/ultralong

One step from 128K to the window, by 1B tokens of documents that are joined
without masks: those above 8K tokens more often, those below 4K less. YaRN of
the 8,192 tokens that Llama 3 was trained at, in place of Llama 3.1's scaling.
The steps and rows of 4m are its model card's. Those of 1m and 2m are guessed
from the 1B tokens and from the project page's 480, 140 and 150 steps, which it
may mean of the instruction tuning. Theirs is a separator between documents,
here BOS and EOS. Not in the sources we have: the optimizer (here a constant
3e-5, without warm-up). For 64 chips of TPU v5p.
Not run on a TPU, nor compiled for one.
"""

from configs import common

# Tokens, YaRN's factor, steps, batch, mesh.seq.
VARIANTS = {
  '1m': (2**20, 128.0, 480, 2, 32),
  '2m': (2**21, 256.0, 140, 4, 64),
  '4m': (2**22, 512.0, 150, 2, 64),
}


def get_config(name='1m'):
  window, factor, steps, batch, ring = common.variant(VARIANTS, name)
  config = common.published(
    'llama3_8b', base=500_000.0, scaling='yarn', factor=factor,
    original_length=8192, beta_fast=4.0, beta_slow=1.0,  # section 3.1
  )  # fmt: skip
  config.name = f'llama31_ultralong_{name}'
  config.model.block = 2048
  config.mesh.update(data=64 // ring, seq=ring)
  config.data.mix = dict(all=dict(sources=('*',), masked=False))
  config.train.update(
    steps=steps, batch=batch, micro_batches=batch * ring // 64,
    seq_len=window, loss_chunk=2048,
  )  # fmt: skip
  config.optim.update(learning_rate=3e-5, schedule='constant')
  config.checkpoint.every_steps = 20
  return config
