"""LongLoRA: Llama 2 by interpolation, attention in groups (arXiv:2309.12307).

  python launch/tpu.py --config configs/llama2_longlora.py:13b_64k ...

In training half of the heads attend in groups of a quarter of the row, the
others in groups moved by half of one; evaluation and export see everything.
LoRA on the projections of attention learns, and norms and embedding whole
(section 3.3); 7b_100k, as it was released, is its full fine-tuning. Factors and
alpha are those of its code, fine-tune.py, which joins documents without masks.
For 64 chips of TPU v5p. Not run on a TPU.
"""

from configs import common

# The longest of each size that was released, and one more of 7B with LoRA.
VARIANTS = {
  '7b_32k': 32_768, '7b_100k': 100_000, '13b_64k': 65_536, '70b_32k': 32_768,
}  # fmt: skip


def get_config(name='13b_64k'):
  window = common.variant(VARIANTS, name)
  size = name.partition('_')[0]
  # Section 4: positions by the target over 4,096, rounded up.
  config = common.published(
    f'llama2_{size}', scaling='linear', factor=float(-(-window // 4096))
  )
  config.name = f'llama2_longlora_{name}'
  config.model.update(block=2048, group=window // 4)  # section 3.2
  if name != '7b_100k':
    config.lora.update(
      rank=8, alpha=16.0,  # fine-tune.py
      weights=('q', 'k', 'v', 'o'), whole=('embedding', 'norm'),
    )  # fmt: skip
  # Inputs of 80 layers fill a chip: half of a row at once.
  half = 2 if size == '70b' else 1
  config.mesh.update(data=64 // half, seq=half)
  config.data.layout = 'contiguous'
  config.data.mix = dict(all=dict(sources=('*',), masked=False))
  config.train.update(
    steps=1000, batch=64, seq_len=window, loss_chunk=2048,
    micro_batches=half,
  )  # fmt: skip
  config.optim.update(
    learning_rate=1e-5 if size == '70b' else 2e-5,
    schedule='constant', warmup_steps=20, weight_decay=0.0,
  )  # fmt: skip
  config.checkpoint.every_steps = 100
  return config
