"""Mistral 7B v0.1 by YaRN to 131,072 tokens, as NousResearch released it.

  python launch/tpu.py --config configs/mistral_7b_128k.py:64k ...
  python launch/tpu.py --config configs/mistral_7b_128k.py:128k
      --config.weights=runs/mistral_7b_64k ...

From NousResearch/Yarn-Mistral-7b-64k and -128k: rope, window and base are their
config.json, rows, rate and steps the name of the directory that it gives (16k,
constant-lr-1e6, step1000, then scale-16 to step_1500). The window of v0.1, 4096
tokens, becomes the whole context. For 64 chips of TPU v5p. Not run on a TPU.
"""

from configs import common

VARIANTS = {'64k': (8.0, 1000), '128k': (16.0, 500)}  # scale, steps


def get_config(name='128k'):
  scale, steps = common.variant(VARIANTS, name)
  config = common.published(
    'mistral_7b', scaling='yarn', factor=scale, original_length=8192,
    beta_fast=32.0, beta_slow=1.0,
  )  # fmt: skip
  config.name = f'mistral_7b_{name}'
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
