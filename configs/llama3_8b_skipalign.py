"""SkipAlign: positions that skip between turns of a chat (arXiv:2405.03939).

  python launch/tpu.py --config configs/llama3_8b_skipalign.py ...

Only the abstract could be had: the sampling rule is ours
(longjax/data/positions.py), so are batch, steps and rate, those of ProLong's
fine-tuning. Ordinary chats in rows of 4,096 for a window of 64K. Not run on a
TPU.
"""

from configs import llama3_8b_64k


def get_config():
  config = llama3_8b_64k.get_config()
  config.name = 'llama3_8b_skipalign'
  config.mesh.update(data=64, seq=1)
  config.data.layout = 'contiguous'
  config.data.mix = dict(all=dict(sources=('*',), pack='next_fit'))
  config.data.positions.update(kind='skipalign', target=65_536)
  config.data.loss = 'tokens'
  config.train.update(steps=500, batch=128, seq_len=4096)
  config.optim.update(learning_rate=2e-5, warmup_steps=25)
  return config
