"""Llama 2 Long, 13B at 32,768 tokens: RoPE ABF (arXiv:2309.16039).

  python launch/tpu.py --config configs/llama2_13b_32k.py
      --config.weights=/data/llama2_13b --config.data.directory=/data/long

For 128 chips of TPU v5p. All but the size is that of llama2_7b_32k.py, what is
not published too. Not run on a TPU.
"""

from configs import common, llama2_7b_32k


def get_config():
  config = llama2_7b_32k.get_config()
  config.name = 'llama2_13b_32k'
  config.model.update(common.SIZES['llama2_13b'])
  config.mesh.update(data=64, seq=2)
  return config
