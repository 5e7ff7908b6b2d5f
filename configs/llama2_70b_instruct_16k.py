"""Llama 2 Long, instruction tuning at 16,384 tokens (arXiv:2309.16039, 4.3).

  python launch/tpu.py --config configs/llama2_70b_instruct_16k.py
      --config.weights=/data/runs/llama2_70b_16k
      --config.data.directory=/data/instruct

Two prepared sources of chats: `short`, joined to rows of 16,384 tokens, and
`long`, a document and a question a row, padded, never joined; of the long ones
the prompt is learned too, which is the paper's finding (table 9): give that
source loss='all' when it is prepared. Not published: the learning rate, epochs
and shares; here those of Llama 2 Chat, and half each. For 128 chips of TPU v5p.
Not run on a TPU.
"""

from configs import llama2_70b_16k


def get_config():
  config = llama2_70b_16k.get_config()
  config.name = 'llama2_70b_instruct_16k'
  config.data.mix = dict(
    short=dict(weight=0.5),
    long=dict(weight=0.5, pack='sorted'),
  )
  config.mesh.update(data=16, seq=8)
  config.train.update(steps=1000, batch=64, micro_batches=1)
  config.optim.update(learning_rate=2e-5, warmup_steps=0)
  return config
