"""Llama 3.1's RoPE scaling, 8B at 131,072 tokens.

  python launch/tpu.py --config configs/llama31_8b_128k.py ...

The scaling is exact (29 pairs kept, 6 mixed, 29 divided by 8). Meta went from
8K to 128K in six stages over 800B tokens, details of which are not published:
here the optimizer and the batch are ProLong's. For 64 chips of TPU v5p. Not
run on a TPU.
"""

from configs import common, llama3_8b_64k


def get_config():
  config = llama3_8b_64k.get_config()
  config.name = 'llama31_8b_128k'
  config.model.rope = common.rope(**common.LLAMA31_ROPE)
  config.mesh.update(data=8, seq=8)
  config.data.mix = {}
  config.train.update(seq_len=131_072, batch=32)
  return config
