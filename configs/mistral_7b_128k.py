"""Mistral 7B v0.1 by YaRN to 131,072 tokens, as NousResearch released it.

  python launch/tpu.py --config configs/mistral_7b_128k.py:64k ...
  python launch/tpu.py --config configs/mistral_7b_128k.py:128k
      --config.weights=runs/mistral_7b_64k ...

NousResearch/Yarn-Mistral-7b-64k and -128k: window, rows, rate and steps are
those of jquesnelle/yarn, train.sh; rope is that of its
modeling_mistral_yarn.py. The window of v0.1, 4096 tokens, becomes the whole
context. Its train.sh reads a constant rate only without DeepSpeed, and then
AdamW is torch's (b2 0.999, decay 0.01, no clipping); here AdamW is that of YaRN
on Llama 2. For 64 chips of TPU v5p. Not run on a TPU.
"""

import math

from configs import common

# Scale, steps, seed: the second stage draws other rows (train.sh).
VARIANTS = {'64k': (8.0, 1000, 42), '128k': (16.0, 500, 31337)}


def get_config(name='128k'):
  scale, steps, seed = common.variant(VARIANTS, name)
  config = common.published(
    'mistral_7b', scaling='yarn', factor=scale, original_length=8192,
    beta_fast=128.0, beta_slow=2.0,  # not those of Llama
    attention_factor=0.07 * math.log(scale) + 1,
  )  # fmt: skip
  config.name = f'mistral_7b_{name}'
  config.seed = seed
  config.model.window = int(8192 * scale)
  config.model.block = 2048
  config.mesh.update(data=64, seq=1)
  config.data.mix = dict(all=dict(sources=('*',), masked=False))
  config.train.update(steps=steps, batch=64, seq_len=16_384, loss_chunk=2048)
  # The rest: YaRN's of Llama 2 (arXiv:2309.00071, section 4.1).
  config.optim.update(
    learning_rate=1e-6, warmup_steps=20, schedule='constant',
    weight_decay=0.0, b1=0.9, b2=0.95,
  )  # fmt: skip
  config.checkpoint.every_steps = 50
  return config
