"""A mixture with all its parts trains, and a stopped run reads on."""

import json

import pytest

from configs import common
from longjax.train import loop


def config(steps):
  made = common.base('tiny')
  made.weights = 'random'
  made.model.update(dtype='float32', block=32)
  made.mesh.update(data=2, seq=4)
  made.data.sources = dict(
    code=dict(path='longjax', kind='directories', include='*.py'),
    books=dict(path='docs', include='*.md'),
    short=dict(path='configs', include='*.py'),
  )
  made.data.mix = dict(
    code=dict(weight=0.15, pack='whole'),
    code_64=dict(sources=('code',), weight=0.15, pack='whole', length=64),
    books=dict(weight=0.3, pack='whole', length=64),
    short=dict(weight=0.4, length=64),
  )
  made.data.update(layout='balanced', curriculum=((0.5, 64), (0.5, 128)))
  made.data.positions.update(kind='pose', target=256)
  made.train.update(
    steps=steps, batch=8, micro_batches=2, seq_len=128, loss_chunk=32
  )
  made.optim.update(learning_rate=3e-3, schedule='constant', warmup_steps=0)
  made.checkpoint.every_steps = 4
  return made


def losses(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [float.fromhex(json.loads(line)['loss_hex']) for line in lines]


@pytest.mark.slow
def test_a_mixture_trains_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
  monkeypatch.setenv('LONGJAX_CACHE', str(tmp_path / 'cache'))
  said = []
  loop.main(config(8), tmp_path / 'straight', said.append)
  straight = losses(tmp_path / 'straight')
  assert straight[-1] < straight[0] - 0.3
  assert any('code_64' in line and '(15.00%)' in line for line in said)
  write = loop.metrics.Metrics.step

  def stop(self, step, *rest):
    if step == 6:
      raise KeyboardInterrupt
    return write(self, step, *rest)

  monkeypatch.setattr(loop.metrics.Metrics, 'step', stop)
  with pytest.raises(KeyboardInterrupt):
    loop.main(config(8), tmp_path / 'again', said.append)
  monkeypatch.setattr(loop.metrics.Metrics, 'step', write)
  loop.main(config(8), tmp_path / 'again', said.append)
  assert 'resumed from step 4' in ' '.join(said)
  assert losses(tmp_path / 'again') == straight
