"""YaRN: Llama 2 at 64K, then 128K tokens; 70B at 32K (arXiv:2309.00071).

  python launch/tpu.py --config configs/llama2_yarn.py:7b_64k ...
  python launch/tpu.py --config configs/llama2_yarn.py:7b_128k
      --config.weights=runs/llama2_yarn_7b_64k ...

128k starts from 64k, with the same data in rows of 64K (section 4.1): books end
to end, which attend to each other (tokenization.py). The ramp and the decay of
the rate to 0 are those of the published code (finetune.py, zero3.json), the
warm-up the paper's; --config.model.rope.scaling=yarn_paper is the formula's.
70b_32k is that of train.sh, at a constant rate in rows of 8K, with AdamW as for
7B. Its runs at 8K are not here. For 64 chips of TPU v5p. Not run on a TPU.
"""

from configs import common

SCALES = {'64k': 16.0, '128k': 32.0}
VARIANTS = {f'{size}_{w}': (size, s) for size in ('7b', '13b')
            for w, s in SCALES.items()} | {'70b_32k': ('70b', 8.0)}  # fmt: skip


def get_config(name='7b_64k'):
  size, scale = common.variant(VARIANTS, name)
  config = common.published(
    f'llama2_{size}', scaling='yarn', factor=scale, original_length=4096,
    beta_fast=32.0, beta_slow=1.0,  # section 3.2, for Llama
  )  # fmt: skip
  config.name = f'llama2_yarn_{name}'
  if name.endswith('128k'):  # other rows than in the first stage: train.sh
    config.seed = 31337
  config.model.block = 2048
  config.mesh.update(data=32, seq=2)
  config.data.mix = dict(all=dict(sources=('*',), masked=False))
  config.train.update(
    steps=200 if scale == 32 else 400,  # section 4.1
    batch=64,  # section 4.1
    seq_len=65_536,  # section 4.1: PG19 in 64K segments
    loss_chunk=2048,
  )
  config.optim.update(
    learning_rate=2e-5, warmup_steps=20,  # section 4.1
    schedule='linear', min_ratio=0.0,  # finetune.py
    weight_decay=0.0, b1=0.9, b2=0.95,  # section 4.1
  )  # fmt: skip
  if size == '70b':
    config.mesh.update(data=64, seq=1)
    config.train.seq_len = 8192  # its data: yarn-train-tokenized-8k-llama
    config.optim.update(learning_rate=1e-5, schedule='constant')
  config.checkpoint.every_steps = 50
  return config
