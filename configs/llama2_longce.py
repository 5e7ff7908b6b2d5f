"""LongCE: Llama 2 7B at 32,768 by interpolation (arXiv:2410.23771).

  python launch/tpu.py --config configs/llama2_longce.py ...

A target weighs min(exp(loss with 4,096 tokens - loss with all), 5). Each step
computes the row five times more, forward, for the short context. The argument
is the weighting, or plain cross-entropy to compare with. Rows are pieces of
PG19's books. Its code accumulates 8 rows on each of its devices, whose number
is not in it: here 64 a step. For 32 chips of TPU v5p. Not run on a TPU.
"""

from configs import common

VARIANTS = dict(longce=5.0, ce=0.0)


def get_config(name='longce'):
  gamma = common.variant(VARIANTS, name)
  # train.sh of its code, as all below: eight times 4,096.
  config = common.published('llama2_7b', scaling='linear', factor=8.0)
  config.name = f'llama2_longce_{name}'
  config.model.block = 1024
  config.mesh.update(data=32, seq=1)
  config.data.layout = 'contiguous'
  config.data.mix = dict(all=dict(sources=('*',), pack='whole'))
  config.train.update(steps=200, batch=64, micro_batches=2, seq_len=32_768)
  config.train.longce.update(gamma=gamma, short=4096, stride=1024)
  config.optim.update(
    learning_rate=2e-5, schedule='linear', warmup_steps=20, min_ratio=0.0,
    weight_decay=0.0, b1=0.9, b2=0.95, eps=1e-8,
  )  # fmt: skip
  config.checkpoint.every_steps = 50
  return config
