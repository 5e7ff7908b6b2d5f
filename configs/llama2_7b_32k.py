"""Llama 2 Long: 7B and 13B at 32,768 tokens, 34B and 70B at 16,384.

  python launch/tpu.py --config configs/llama2_7b_32k.py
      --config.weights=/data/llama2_7b --config.data.directory=/data/long
  python launch/tpu.py --config configs/llama2_7b_32k.py:70b ...

RoPE ABF, arXiv:2309.16039. The argument is another size: 13b, 34b, 70b; or
70b_instruct, the instruction tuning of section 4.3, which starts from a run of
70b. It reads two prepared sources of chats: `short`, joined to rows of 16,384
tokens, and `long`, a document with questions a row. The paper finds it better
to train on the prompt of long chats too (table 9): prepare them with
loss='all'. For 64, 128, 256, 512 and 128 chips of TPU v5p; not run on a TPU.

Not published: the data mix, document masks (here yes), the optimizer (here
that of Llama 2), schedule and warm-up of 34B and 70B (here those of 7B), the
shape of 34B (here that of Code Llama), and of the instruction tuning the
learning rate, the epochs (here those of Llama 2 Chat) and the mix (here half
each).
"""

from configs import common

VARIANTS = ('', '13b', '34b', '70b', '70b_instruct')
DEVICES = {'': 32, '13b': 64, '34b': 128, '70b': 64}  # that split the batch


def large(config, size):
  config.name = f'llama2_{size}_16k'
  # Section 1, for 34B and 70B; 4M tokens a step as before.
  config.train.update(seq_len=16_384, batch=256, micro_batches=1)
  config.optim.learning_rate = 1e-5  # section 2.1, for 34B and 70B
  if size == '70b':  # hides the gathers of weights: docs/plan.md
    config.mesh.update(data=64, seq=8)
    config.train.sparse_core = True


def instruct(config):
  config.name = 'llama2_70b_instruct_16k'
  config.data.mix = dict(
    short=dict(weight=0.5), long=dict(weight=0.5, pack='sorted')
  )
  config.mesh.update(data=16, seq=8)
  config.train.update(steps=1000, batch=64, sparse_core=False)
  config.optim.update(learning_rate=2e-5, warmup_steps=0)


def get_config(variant=''):
  common.variant(dict.fromkeys(VARIANTS), variant)
  size = variant.partition('_')[0]
  config = common.published(
    f'llama2_{size or "7b"}', base=500_000.0
  )  # section 4.1
  config.name = f'llama2_{size or "7b"}_32k'
  config.model.block = 2048
  config.mesh.update(data=DEVICES[size], seq=2)
  config.train.update(
    steps=100_000,  # section 2.1: 400B tokens
    batch=128,  # section 2.1: 4M tokens, as Llama 2
    micro_batches=2,
    seq_len=32_768,  # section 1, for 7B and 13B
  )
  config.optim.update(
    learning_rate=2e-5, schedule='cosine', warmup_steps=2000,  # section 2.1
    min_ratio=0.1, weight_decay=0.1, b1=0.9, b2=0.95, eps=1e-5,  # Llama 2
    clip=1.0,
  )  # fmt: skip
  config.checkpoint.every_steps = 500
  if size in ('34b', '70b'):
    large(config, size)
  if variant == '70b_instruct':
    instruct(config)
  return config
