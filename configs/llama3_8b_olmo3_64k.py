"""OLMo 3's long-context stage, 8K to 64K tokens, on Llama 3 8B.

  python launch/tpu.py --config configs/llama3_8b_olmo3_64k.py
      --config.weights=/data/llama3_8b --config.data.directory=/data/longmino

arXiv:2512.13961 and OLMo-3-1025-7B-long-context.py of OLMo-core: 50B tokens, of
which 34 % are documents above 8K tokens (less those that gzip compresses most
or least: launch/prepare.py --score gzip) and synthetic tasks, 66 % those of the
stage before; best-fit packing, masks, no decay of the embedding, and steps
above six deviations are skipped, as here by default. OLMo 3 is not a Llama: its
norms follow the layers and three of four layers have a window, of which YaRN
leaves the rope. Without its z-loss of 1e-5. Not run on a TPU, nor compiled for
one.
"""

from configs import common, llama3_8b_64k

LONG = 0.34


def get_config():
  config = llama3_8b_64k.get_config()
  config.name = 'llama3_8b_olmo3_64k'
  config.model.rope = common.rope(
    base=500_000.0, scaling='yarn', factor=8.0, original_length=8192,
    beta_fast=32.0, beta_slow=1.0,
  )  # fmt: skip
  config.data.mix = dict(
    long=dict(weight=LONG, pack='best_fit', min_length=8192),
    short=dict(weight=1 - LONG, pack='best_fit'),
  )
  config.data.loss = 'tokens'
  config.train.steps = 11_921  # 50B tokens, 4M a step
  config.optim.update(
    learning_rate=2.0712352850360292e-4, schedule='linear', warmup_steps=200,
    min_ratio=0.0,
    weight_decay=0.1, b1=0.9, b2=0.95, clip=1.0, decayed='not_embedding',
    spike_sigmas=6.0,
  )  # fmt: skip
  return config
