"""Position Interpolation (arXiv:2306.15595): LLaMA 1 and Llama 2.

  python launch/tpu.py --config configs/llama_pi.py:llama1_7b_16k ...
  python launch/tpu.py --config configs/llama_pi.py:ntk_llama2_7b_32k ...

The argument is a model and a window. With ntk_ before it the base is raised by
s^(d/(d-2)) instead (NTK-aware, arXiv:2309.00071, section 3.1), which nobody
published a training of. For 32 chips of TPU v5p, or 128 for all
but 7B to 33B at 8,192. Not published: what the learning rate does after its
warm-up (here it stays), clipping (here 1). Llama 2, whose window is 4,096, is
ours: the paper has LLaMA 1. Not run on a TPU.
"""

from configs import common

WINDOWS = {'8k': 8192, '16k': 16_384, '32k': 32_768}
TRAINED = dict(llama1=2048, llama2=4096)
SMALL = ('llama1_7b', 'llama1_13b', 'llama2_7b', 'llama2_13b')
MODELS = (*SMALL, 'llama1_33b', 'llama1_65b', 'llama2_70b')
SCALINGS = {'': 'linear', 'ntk_': 'ntk'}
VARIANTS = {f'{prefix}{model}_{w}': (scaling, model, n)
            for prefix, scaling in SCALINGS.items() for model in MODELS
            for w, n in WINDOWS.items()}  # fmt: skip


def get_config(name='llama1_7b_32k'):
  scaling, model, window = common.variant(VARIANTS, name)
  factor = window / TRAINED[model[:6]]  # eq. 4: L' / L
  config = common.published(model, scaling=scaling, factor=factor)
  config.name = f'llama_pi_{name}'
  config.model.block = 2048
  # Section 3.1: 7B, 13B and 33B to 8,192 on 32 devices, batch 64.
  few = window == 8192 and model not in ('llama1_65b', 'llama2_70b')
  batch = 64 if few else 128
  # Inputs of 60 or 80 layers fill a chip: half of a row at once.
  half = 2 if window == 32_768 and model not in SMALL else 1
  config.mesh.update(data=(32 if few else 128) // half, seq=half)
  config.train.update(
    steps=1000, batch=batch, seq_len=window, micro_batches=half
  )
  config.optim.update(
    learning_rate=2e-5 if model in SMALL else 1e-5,
    schedule='constant', warmup_steps=20, warmup_from=0.1,
    weight_decay=0.0, b1=0.9, b2=0.95,
  )  # fmt: skip
  config.checkpoint.every_steps = 200  # tables 3 and 4
  return config
