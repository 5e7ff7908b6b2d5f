"""Llama 2 Long, 34B at 16,384 tokens: RoPE ABF (arXiv:2309.16039).

  python launch/tpu.py --config configs/llama2_34b_16k.py
      --config.weights=/data/llama2_34b --config.data.directory=/data/long

For 256 chips of TPU v5p. Llama 2 34B was never released: the shape is that of
Code Llama 34B. What is not published is as for llama2_70b_16k.py. Not run on a
TPU.
"""

from configs import common, llama2_70b_16k


def get_config():
  config = llama2_70b_16k.get_config()
  config.name = 'llama2_34b_16k'
  config.model.update(common.SIZES['llama2_34b'])
  config.mesh.update(data=128, seq=2)
  return config
