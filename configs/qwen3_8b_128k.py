"""Qwen3 8B at 131,072 tokens.

  python launch/tpu.py --config configs/qwen3_8b_128k.py ...

Qwen3 was trained to 32,768 tokens with base 1e6 and reaches 131,072 by YaRN of
factor 4 without training (arXiv:2505.09388, section 3.2). `yarn` trains that;
`abf` raises the base instead, as ProLong does: 16 times where the window grows
8 times (arXiv:2410.02660, table 9), so 6.4 times here. The training is
ProLong's. No paper trained this. For 64 chips of TPU v5p. Not run on a TPU.
"""

from configs import common, llama3_8b_64k

ROPES = dict(
  abf=dict(base=6.4e6),
  yarn=dict(base=1e6, scaling='yarn', factor=4.0, original_length=32_768),
)
VARIANTS = tuple(ROPES)


def get_config(name='abf'):
  rope = common.variant(ROPES, name)
  config = llama3_8b_64k.get_config()
  config.model = common.model('qwen3_8b', **rope)
  config.name = f'qwen3_8b_128k_{name}'
  config.model.block = 2048
  config.mesh.update(data=8, seq=8)
  config.data.mix = {}
  config.train.update(seq_len=131_072, batch=32)  # 4M tokens, as ProLong
  return config
