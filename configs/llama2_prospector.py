"""Prospector ("ProLong", arXiv:2405.17915): documents chosen by dependency.

  python launch/prepare.py --config configs/llama2_prospector.py
      --config.weights=/data/llama2_7b --config.data.directory=/data/long
      --score /data/llama2_7b --out /data/chosen
  python launch/tpu.py --config configs/llama2_prospector.py
      --config.weights=/data/llama2_7b --config.data.directory=/data/chosen

Long documents are scored by how much their chunks depend on earlier ones
(longjax/data/prospector.py), and the better half is trained on.
Base, rows and batch are from notes on the paper, the optimizer is Llama 2
Long's. For 64 chips of TPU v5p. Not run on a TPU.
"""

from configs import llama2_7b_32k


def get_config():
  config = llama2_7b_32k.get_config()
  config.name = 'llama2_prospector'
  config.model.rope.base = 160_000.0
  config.train.steps = 6000  # 24B tokens in rows of 32K, batch 128
  config.optim.warmup_steps = 120  # our choice: 2 %, as Llama 2 Long's
  return config
