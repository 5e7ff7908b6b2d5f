"""ProLong: fine-tuning the 512K model on UltraChat (arXiv:2410.02660).

  python launch/tpu.py --config configs/llama3_8b_512k_sft.py
      --config.weights=/data/runs/llama3_8b_512k
      --config.data.directory=/data/ultrachat

Or on the packs that were released, with the argument `released` and
--config.data.root=/data/prolong-ultrachat-64K instead of a directory of shards:
0.24B tokens, which the 250 steps read 4.3 times.

For 64 chips of TPU v5p. The store holds chats (longjax/data/chat.py): answers
are learned, and every answer token weighs the same over all devices, exactly
(the paper divides by a running mean). Not run on a TPU.
"""

from configs import common, llama3_8b_64k

VARIANTS = ('', 'released')
HUB = 'hf://datasets/princeton-nlp/prolong-ultrachat-64K@main'


def get_config(name=''):
  common.variant(dict.fromkeys(VARIANTS), name)
  config = llama3_8b_64k.get_config()
  config.name = 'llama3_8b_512k_sft'
  config.model.rope.base = 128_000_000.0  # table 9: of the checkpoint
  if name:
    config.name += f'_{name}'
    config.data.mix = dict(ultrachat=dict())
    llama3_8b_64k.released(config, HUB, dict(ultrachat='0-0'), 'answers')
  else:  # what does not fit a pack is dropped, appendix
    config.data.mix = dict(ultrachat=dict(carry=False))
  config.data.loss = 'tokens'  # train_sft.sh, token_scaled_loss
  config.train.steps = 250  # 1B tokens, table 9
  config.optim.update(learning_rate=2e-5, warmup_steps=13)  # 5 %, rounded up
  return config
