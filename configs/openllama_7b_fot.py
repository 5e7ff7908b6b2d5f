"""LongLLaMA 7B: OpenLLaMA 7B with memory layers (arXiv:2307.03170).

  python launch/tpu.py --config configs/openllama_7b_fot.py ...

As openllama_3b_fot.py with layers 8, 16 and 24, 3B tokens, and more negatives:
the counts are those of the paper; the code's stepping would give the third row
of a pack 4 of them, not 5. Not run on a TPU.
"""

from configs import common, openllama_3b_fot
from longjax import crossbatch


def get_config():
  config = openllama_3b_fot.get_config()
  config.name = 'openllama_7b_fot'
  config.model.update(common.SIZES['llama1_7b'])  # of OpenLLaMA too
  config.model.memory.update(
    layers=(8, 16, 24),  # section 4.1
    rows=crossbatch.mixed((0, 0), (1, 2), (2, 5), (3, 4)),  # appendix
  )
  config.train.steps = 11_444  # 3B tokens
  return config
