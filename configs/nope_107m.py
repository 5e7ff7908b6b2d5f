"""NoPE: a decoder of 107 M parameters without positions (arXiv:2305.19466).

  python launch/tpu.py --config configs/nope_107m.py
      --config.data.directory=/data/code

Section 4 and appendix D: 768 wide, 12 layers, 12 heads, from scratch. Its
tasks of at most 20 tokens are not here: rows are the 1,024 tokens of its 1.3B
model (appendix F). Without the dropout of 0.1, which longjax does not have,
and SwiGLU for the feed-forward. --config.model.rope.scaling=none is its RoPE.
"""

from configs import common


def get_config():
  config = common.published('tiny', scaling='nope')
  config.name = 'nope_107m'
  config.weights = 'random'
  config.model.update(
    vocab=32_000, layers=12, embed=768, mlp=2048, heads=12, kv_heads=12,
    head_dim=64, tied=True, block=1024,
  )  # fmt: skip
  config.mesh.update(data=4, seq=1)
  config.train.update(steps=40_000, batch=64, seq_len=1024)  # appendix D
  config.optim.update(
    learning_rate=3e-5, schedule='linear', warmup_steps=2400, min_ratio=0.0,
    weight_decay=0.05, b2=0.999,
  )  # fmt: skip
  config.checkpoint.every_steps = 1000
  return config
