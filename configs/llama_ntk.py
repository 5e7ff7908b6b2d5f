"""NTK-aware scaling: Position Interpolation's recipe with a larger base.

  python launch/tpu.py --config configs/llama_ntk.py:llama2_7b_32k ...

base * s^(d/(d-2)), arXiv:2309.00071, section 3.1. The argument, the batch and
the optimizer are those of llama_pi.py: nobody published a training of its own.
Not run on a TPU.
"""

from configs import llama_pi

VARIANTS = llama_pi.VARIANTS


def get_config(name='llama2_7b_32k'):
  config = llama_pi.get_config(name)
  config.name = f'llama_ntk_{name}'
  config.model.rope.scaling = 'ntk'
  return config
