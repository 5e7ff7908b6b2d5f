"""Llama 2 Long, 70B at 16,384 tokens: RoPE ABF (arXiv:2309.16039).

  python launch/tpu.py --config configs/llama2_70b_16k.py
      --config.weights=/data/llama2_70b --config.data.directory=/data/long
      --config.data.tokenizer=/data/tokenizer.json

For 512 chips of TPU v5p (8x8x8). The paper does not disclose its data mix, and
gives no optimizer: AdamW is that of Llama 2. Not run on a TPU; compiled for
one ahead of time (docs/plan.md).
"""

from configs import common


def get_config():
  config = common.base('llama2_70b', base=500_000.0)  # section 4.1
  config.name = 'llama2_70b_16k'
  config.model.block = 2048
  config.mesh.update(data=256, seq=2)
  config.train.update(
    steps=100_000,  # 400B tokens, section 2.1
    batch=256,  # 4M tokens, as Llama 2
    micro_batches=1,
    seq_len=16_384,  # section 2.1, for 34B and 70B
  )
  config.optim.update(
    learning_rate=1e-5,  # section 2.1, for 34B and 70B
    schedule='cosine',
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
