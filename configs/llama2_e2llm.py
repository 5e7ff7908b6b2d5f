"""E2-LLM: one training at 4,096 tokens for windows to 80K (arXiv:2401.06951).

  python launch/tpu.py --config configs/llama2_e2llm.py:7b ...

Each step draws a scale g and an offset t: positions are (m + t) / g, of which
the first four have no t (eq. 5 to 7). RoPE divides by g_max = 20, so positions
are integers of a twentieth of a position. To serve a window of g x 4,096, read
the same weights with --config.model.rope.factor=g. Not published: schedule
(here constant), decay (here 0). Not run on a TPU.
"""

from configs import common

VARIANTS = ('7b', '13b')
WINDOW = 4096  # L of Llama 2
MOST = 20  # g_max, table 5


def get_config(size='7b'):
  common.variant(dict.fromkeys(VARIANTS), size)
  config = common.published(
    f'llama2_{size}', scaling='linear', factor=float(MOST)
  )
  config.name = f'llama2_e2llm_{size}'
  config.mesh.update(data=16, seq=1)
  config.data.positions.update(
    kind='e2llm', target=MOST * WINDOW, window=WINDOW
  )
  config.train.update(steps=30_000, batch=16, seq_len=WINDOW)  # section 4.1
  config.optim.update(
    learning_rate=1e-5, schedule='constant', weight_decay=0.0,
    b1=0.9, b2=0.95,  # section 4.1
  )  # fmt: skip
  config.checkpoint.every_steps = 500
  return config
