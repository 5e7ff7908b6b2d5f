"""The laboratory: the base model, 64 bytes, extended to 256 by each method.

  python launch/lab.py

Every method gets the same tokens: 60 steps of 2,048 bytes.
"""

from configs import common
from configs.lab import base

TARGET = 4 * base.WINDOW
ROPES = dict(
  none=dict(),
  abf=dict(base=500_000.0),  # arXiv:2309.16039, section 4.1: 50 times
  pi=dict(scaling='linear', factor=4.0),  # arXiv:2306.15595
  ntk=dict(scaling='ntk', factor=4.0),  # arXiv:2309.00071, section 3.1
  yarn=dict(scaling='yarn', factor=4.0, original_length=base.WINDOW),
  pose=dict(scaling='linear', factor=4.0),  # arXiv:2309.10400
  curriculum=dict(base=500_000.0),  # arXiv:2309.16039, section 4.4
  short=dict(),  # more of the same, at the old window
  fot=dict(),  # arXiv:2307.03170: local windows, and memory
)
VARIANTS = ROPES
SHORT_ROWS = ('pose', 'short', 'fot')


def get_config(method='abf'):
  rope = common.variant(ROPES, method)
  config = base.get_config()
  config.name = f'lab_extend_{method}'
  config.weights = ''
  config.model.rope = common.model('tiny', **rope).rope
  short = method in SHORT_ROWS and method != 'fot'
  letters = f'again_{base.WINDOW if short else TARGET}'
  config.data.sources = dict(
    plays=dict(path='runs/lab/documents/plays'),
    again=dict(path=f'runs/lab/documents/{letters}'),
  )
  if method not in SHORT_ROWS:
    config.train.update(batch=8, seq_len=TARGET)
  if method == 'pose':
    config.data.positions.update(kind='pose', target=TARGET, chunks=2)
  if method == 'curriculum':
    config.data.curriculum = ((0.4, base.WINDOW), (0.6, TARGET))
  if method == 'fot':
    config.model.memory = dict(
      layers=(1,), rows=((), (-1,), (-1, -2), (-1, -2, -3)), wrap=False
    )
    for part in config.data.mix.values():
      part.length = TARGET  # the four rows of a pack
  config.train.steps = 60
  config.optim.update(
    learning_rate=2e-3, schedule='linear', warmup_steps=10, min_ratio=0.1
  )
  config.checkpoint.update(every_steps=60, keep=1)
  return config
