"""ProLong: fine-tuning the 512K model on UltraChat (arXiv:2410.02660).

  python launch/tpu.py --config configs/llama3_8b_512k_sft.py
      --config.weights=/data/runs/llama3_8b_512k
      --config.data.directory=/data/ultrachat

For 64 chips of TPU v5p. The store holds chats (longjax/data/chat.py): answers
are learned, and every answer token weighs the same over all devices, exactly
(the paper divides by a running mean). Not run on a TPU.
"""

from configs import llama3_8b_64k


def get_config():
  config = llama3_8b_64k.get_config()
  config.name = 'llama3_8b_512k_sft'
  config.model.rope.base = 128_000_000.0  # table 9: of the checkpoint
  # What does not fit a pack is dropped, appendix.
  config.data.mix = dict(ultrachat=dict(carry=False))
  config.train.steps = 250  # 1B tokens, table 9
  config.optim.update(learning_rate=2e-5, warmup_steps=13)  # 5 %, rounded up
  return config
