"""PoSE: LLaMA 7B for 16K to 128K tokens in rows of 2,048 (arXiv:2309.10400).

  python launch/tpu.py --config configs/llama_pose.py:linear_16k ...

The argument is an interpolation and a window. A row is the start of a document
and a later piece of it, whose positions skip ahead; drawn as in the published
code, which also has the length of the first from 1 to half a row (the paper:
any). Its YaRN is a revision, slower in the middle (my_modeling_llama.py); that
of the paper is --config.model.rope.scaling=yarn. Its script keeps the
checkpoint with the least loss at 16,384 tokens, here the last counts. Not run
on a TPU.
"""

from configs import common

WINDOWS = {'16k': 16_384, '32k': 32_768, '96k': 98_304, '128k': 131_072}
SCALINGS = dict(linear='linear', ntk='ntk', yarn='yarn_revised')
VARIANTS = {f'{name}_{w}': (scaling, n) for name, scaling in SCALINGS.items()
            for w, n in WINDOWS.items()}  # fmt: skip
ROW = 2048  # section 4.1


def get_config(name='linear_16k'):
  scaling, window = common.variant(VARIANTS, name)
  rope = dict(scaling=scaling, factor=window / ROW)
  if scaling == 'yarn_revised':
    rope['original_length'] = ROW
  config = common.published('llama1_7b', **rope)
  config.name = f'llama_pose_{name}'
  config.mesh.update(data=8, seq=1)
  config.data.positions.update(kind='pose', target=window)
  # Section 4.1: the Pile's documents of at least 2,048 tokens.
  config.data.mix = dict(all=dict(sources=('*',), pack='jump'))
  config.train.update(steps=1000, batch=64, seq_len=ROW)  # section 4.1
  config.optim.update(
    learning_rate=2e-5, schedule='linear', warmup_steps=10, min_ratio=0.0,
    weight_decay=0.0, b1=0.9, b2=0.999,  # section 4.1: defaults
  )  # fmt: skip
  return config
