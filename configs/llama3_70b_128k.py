"""Llama 3 70B at 131,072 tokens: the recipe of ProLong on a larger model.

  python launch/tpu.py --config configs/llama3_70b_128k.py
      --config.weights=/data/llama3_70b --config.data.directory=/data/prolong
      --config.data.tokenizer=/data/tokenizer.json

For 512 chips of TPU v5p (8x8x8). No paper trained this: the base is that of
ProLong's first stage (arXiv:2410.02660, table 9), its window doubled; the
learning rate is the one Llama 2 Long took for 70B. Not run on a TPU; compiled
for one ahead of time (docs/plan.md).
"""

from configs import common


def get_config():
  config = common.base('llama3_70b', base=16_000_000.0)
  config.name = 'llama3_70b_128k'
  config.model.block = 2048
  config.mesh.update(data=64, seq=8)
  config.data.layout = 'balanced'
  config.train.update(
    steps=5000, batch=64,  # 8M tokens
    micro_batches=1, seq_len=131_072, loss_chunk=2048,
  )  # fmt: skip
  config.optim.update(
    learning_rate=1e-5, schedule='cosine', warmup_steps=500, min_ratio=0.1,
    weight_decay=0.1, b1=0.9, b2=0.95, clip=1.0,
  )  # fmt: skip
  config.checkpoint.every_steps = 100
  return config
