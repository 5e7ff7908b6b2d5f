"""LongLLaMA 3B: OpenLLaMA 3B with memory layers (arXiv:2307.03170).

  python launch/tpu.py --config configs/openllama_3b_fot.py
      --config.weights=/data/open_llama_3b --config.data.directory=/data/fot

For 32 chips of TPU v5p: a pack of four rows is a device's. A document of 8K
tokens is four rows of 2,048; in layers 6, 12 and 18 they see those before them
and rows of other packs. As in its code documents of a pack are not masked from
each other. Python files of a sub-directory are to be joined in random order.
Not run on a TPU.
"""

from configs import common
from longjax import crossbatch

LOCAL, PACK = 2048, 4  # appendix: 8K tokens in all
# Appendix: percent, and the shortest document in tokens.
DATA = dict(
  arxiv=(25, 0), python=(25, 4096), book=(10, 0), common_crawl=(29, 0),
  c4=(5, 1024), github=(2, 2048), stackexchange=(2, 1024), wikipedia=(2, 1024),
)  # fmt: skip


def get_config():
  config = common.base('openllama_3b')
  config.name = 'openllama_3b_fot'
  config.model.block = 1024
  config.model.memory = dict(
    layers=(6, 12, 18),  # section 4.1
    # Appendix: positives and negatives of each quarter of the rows.
    rows=crossbatch.mixed((0, 0), (1, 1), (2, 1), (3, 0)),
    wrap=False,  # as its code
  )
  config.mesh.update(data=32, seq=1)
  config.data.layout = 'contiguous'
  config.data.mix = {
    name: dict(weight=w, min_length=n, length=PACK * LOCAL, masked=False)
    for name, (w, n) in DATA.items()
  }
  config.train.update(
    steps=38_147,  # 10B tokens
    batch=128,  # 256K tokens
    seq_len=LOCAL,
  )
  config.optim.update(
    learning_rate=2e-5, schedule='constant', weight_decay=0.01,  # appendix
    b1=0.9, b2=0.95, clip=1.0,
  )  # fmt: skip
  config.checkpoint.every_steps = 500
  return config
