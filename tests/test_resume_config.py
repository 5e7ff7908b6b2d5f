"""Which config keys may change when a run resumes."""

import json

import pytest

from configs import tiny
from longjax.errors import InputError
from longjax.train import resume


def changed(**changes):
  config = tiny.get_config()
  for key, value in changes.items():
    config.update_from_flattened_dict({key.replace('__', '.'): value})
  return json.loads(json.dumps(config.to_dict()))


def checked(**changes) -> list[str]:
  lines = []
  resume.check(changed(), changed(**changes), 'run', lines.append)
  return lines


def test_what_says_how_to_go_on_may_change_and_is_said():
  assert checked() == []
  assert checked(
    train__steps=80, optim__learning_rate=1e-3, mesh__seq=8, mesh__data=1,
    checkpoint__keep=5, eval__length=128, model__attention='gather',
  ) == [
    'config.checkpoint.keep was 2, is now 5',
    'config.eval.length was 256, is now 128',
    'config.mesh.data was 2, is now 1',
    'config.mesh.seq was 4, is now 8',
    "config.model.attention was 'ring', is now 'gather'",
    'config.optim.learning_rate was 0.003, is now 0.001',
    'config.train.steps was 40, is now 80',
  ]  # fmt: skip


def test_the_stages_of_a_curriculum_are_shares_of_the_steps():
  stages = dict(data__curriculum=((0.5, 64), (0.5, 256)))
  before = changed(**stages)
  resume.check(before, before, 'run', print)
  with pytest.raises(InputError, match=r'steps 40 \(now 80.*curriculum'):
    resume.check(before, changed(train__steps=80, **stages), 'run', print)


@pytest.mark.parametrize('key, value', [
  ('model.rope.base', 1e4), ('model.layers', 2), ('seed', 1),
  ('train.batch', 8), ('train.seq_len', 512), ('data.tokenizer', 'x.model'),
  ('weights', 'other'), ('optim.spike_window', 64),
])  # fmt: skip
def test_what_makes_it_another_run_is_refused_and_named(key, value):
  with pytest.raises(InputError, match=f'run was trained with config.{key} '):
    checked(**{key: value})


def test_another_source_is_refused_and_a_key_of_newer_code_is_not():
  before, now = changed(), changed()
  now['data']['sources']['more'] = dict(path='docs')
  now['brand_new'] = 3
  with pytest.raises(InputError, match=r'data.sources.more.path .nothing.'):
    resume.check(before, now, 'run', lambda _: None)
  del now['data']['sources']['more']
  resume.check(before, now, 'run', lambda _: None)


def test_a_key_that_the_checkpoint_lacks_had_its_default_then():
  before = changed()
  del before['optim']['spike_window'], before['train']['longce']
  resume.check(before, changed(), 'run', lambda _: None)
  with pytest.raises(InputError, match=r'optim.spike_window 128 .now 64'):
    resume.check(before, changed(optim__spike_window=64), 'run', print)
