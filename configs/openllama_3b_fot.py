"""LongLLaMA: OpenLLaMA with memory layers (arXiv:2307.03170), 3B and 7B.

  python launch/tpu.py --config configs/openllama_3b_fot.py
      --config.weights=/data/open_llama_3b --config.data.directory=/data/fot
  python launch/tpu.py --config configs/openllama_3b_fot.py:7b ...

A document of 8K tokens is a pack of four rows of 2,048. In the memory layers a
row attends to the rows before it (positives) and to rows of other packs
(negatives). Documents of a pack are not masked from each other, as in the
published code. For 7B the code's stepping gives the third row 4 negatives; the
paper has 5, and so has this. Python files of a directory are to be joined in
random order. For 32 chips of TPU v5p, each with whole packs; not run on a TPU.
"""

from configs import common

LOCAL, PACK = 2048, 4  # appendix: 8K tokens in all
# Appendix: percent, and the shortest document in tokens.
DATA = dict(
  arxiv=(25, 0), python=(25, 4096), book=(10, 0), common_crawl=(29, 0),
  c4=(5, 1024), github=(2, 2048), stackexchange=(2, 1024), wikipedia=(2, 1024),
)  # fmt: skip
VARIANTS = ('', '7b')
# Section 4.1: the memory layers. Appendix: positives and negatives of each row
# of a pack. Steps: 10B and 3B tokens.
SMALL = (6, 12, 18), ((0, 0), (1, 1), (2, 1), (3, 0)), 38_147
LARGE = (8, 16, 24), ((0, 0), (1, 2), (2, 5), (3, 4)), 11_444


def get_config(variant=''):
  common.variant(dict.fromkeys(VARIANTS), variant)
  layers, counts, steps = LARGE if variant else SMALL
  config = common.published('llama1_7b' if variant else 'openllama_3b')
  config.name = f'openllama_{variant or "3b"}_fot'
  config.model.block = 1024
  # wrap=False: as its code.
  config.model.memory.update(layers=layers, rows=common.fot_rows(*counts))
  config.mesh.update(data=32, seq=1)
  config.data.layout = 'contiguous'
  config.data.mix = {
    name: dict(weight=w, min_length=n, length=PACK * LOCAL, masked=False)
    for name, (w, n) in DATA.items()
  }
  config.train.update(
    steps=steps,
    batch=128,  # 256K tokens
    seq_len=LOCAL,
  )
  config.optim.update(
    learning_rate=2e-5, schedule='constant', weight_decay=0.01,  # appendix
    b1=0.9, b2=0.95, clip=1.0,
  )  # fmt: skip
  config.checkpoint.every_steps = 500
  return config
