"""A model of 270 thousand random weights for tests: trains in seconds.

  python launch/tpu.py --config configs/tiny.py

Eight fake devices, data 2 x seq 4, on this repository's own source, as bytes.
"""

from configs import common


def get_config():
  config = common.base('tiny', base=500_000.0)
  config.name = 'tiny'
  config.weights = 'random'
  config.model.update(dtype='float32', block=64)
  config.mesh.update(data=2, seq=4)
  config.data.sources = dict(
    longjax=dict(path='longjax', include='*.py'),
    configs=dict(path='configs', include='*.py'),
  )
  config.train.update(steps=40, batch=4, seq_len=256, loss_chunk=64)
  config.optim.update(learning_rate=3e-3, schedule='constant', warmup_steps=4)
  config.checkpoint.every_steps = 20
  config.eval.update(length=256, window=128)
  config.eval.sources = dict(launch=dict(path='launch', include='*.py'))
  return config
