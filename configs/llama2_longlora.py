"""LongLoRA's shifted sparse attention: Llama 2 by interpolation (2309.12307).

  python launch/tpu.py --config configs/llama2_longlora.py:7b_100k ...

In training half of the heads attend in groups of a quarter of the row, the
others in groups moved by half of one; evaluation and export see everything.
All parameters are trained, which the paper has as its full fine-tuning: LoRA
is not built. For 64 chips of TPU v5p. Not run on a TPU.
"""

from configs import common

# The longest of each size.
VARIANTS = {'7b_100k': 98_304, '13b_64k': 65_536, '70b_32k': 32_768}


def get_config(name='7b_100k'):
  window = common.variant(VARIANTS, name)
  size = name.partition('_')[0]
  # Section 4: positions by the target over 4,096, rounded up.
  config = common.base(
    f'llama2_{size}', scaling='linear', factor=float(-(-window // 4096))
  )
  config.name = f'llama2_longlora_{name}'
  config.model.update(block=2048, group=window // 4)  # section 3.2
  config.mesh.update(data=64, seq=1)
  config.data.layout = 'contiguous'
  config.train.update(steps=1000, batch=64, seq_len=window, loss_chunk=2048)
  config.optim.update(
    learning_rate=1e-5 if size == '70b' else 2e-5,
    schedule='constant', warmup_steps=20, weight_decay=0.0,
  )  # fmt: skip
  config.checkpoint.every_steps = 100
  return config
