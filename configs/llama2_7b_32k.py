"""Llama 2 Long, 7B at 32,768 tokens: RoPE ABF (arXiv:2309.16039).

  python launch/tpu.py --config configs/llama2_7b_32k.py
      --config.weights=/data/llama2_7b --config.data.directory=/data/long

For 64 chips of TPU v5p. Not published: the data mix, whether documents are
masked from each other (here they are), the optimizer (here Llama 2's). Not run
on a TPU.
"""

from configs import common


def get_config():
  config = common.base('llama2_7b', base=500_000.0)  # section 4.1
  config.name = 'llama2_7b_32k'
  config.model.block = 2048
  config.mesh.update(data=32, seq=2)
  config.train.update(
    steps=100_000,  # section 2.1: 400B tokens
    batch=128,  # section 2.1: 4M tokens, as Llama 2
    micro_batches=2,
    seq_len=32_768,  # section 1, for 7B and 13B
  )
  config.optim.update(
    learning_rate=2e-5,  # section 2.1
    schedule='cosine',  # section 2.1
    warmup_steps=2000,  # section 2.1
    min_ratio=0.1,  # Llama 2
    weight_decay=0.1,
    b1=0.9,
    b2=0.95,
    eps=1e-5,  # Llama 2
    clip=1.0,
  )
  config.checkpoint.every_steps = 500
  return config
