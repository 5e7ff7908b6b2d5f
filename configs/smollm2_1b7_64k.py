"""SmolLM2 1.7B from 8,192 to 65,536 tokens on one host, as llama32_1b_64k.

  python launch/tpu.py --config configs/smollm2_1b7_64k.py
      --config.weights=/data/smollm2_1b7 --config.data.directory=/data/store

The mesh is for v5e:2x4; smollm2_1b7_64k.py:v6e is for v6e:2x2. The window grows
by 8, as in ProLong's first stage (arXiv:2410.02660), which raised the base by
16: from the released 130,000 to 2.08 million. Not run on a TPU.
"""

from configs import common, llama32_1b_64k

VARIANTS = llama32_1b_64k.VARIANTS


def get_config(name=''):
  config = llama32_1b_64k.get_config(name)
  config.name = f'smollm2_1b7_64k_{name}'.rstrip('_')
  config.model.update(common.model('smollm2_1b7', base=16 * 130_000.0))
  config.model.block = 2048
  return config
