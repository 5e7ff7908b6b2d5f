"""Checkpoints: complete or refused, and the newest that verifies is used."""

import json
import os
import shutil
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from longjax import checkpoint, digest
from longjax.errors import InputError


def state_on(mesh, step, rng):
  w = rng.standard_normal((64, 32)).astype(np.float32)
  put = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, P(*spec)))
  return dict(
    params=dict(w=put(w, 'data', 'seq'), b=put(jnp.ones(32, jnp.bfloat16))),
    opt=(put(w + 1, 'seq'),),
    step=put(jnp.int32(step)),
  )


def abstract(state):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )


@pytest.fixture(scope='module')
def saved_once(tmp_path_factory):
  """(directory with checkpoints 10 and 20, {step: state})."""
  directory = tmp_path_factory.mktemp('saved') / 'c'
  devices = np.array(jax.devices()).reshape(2, 4)
  mesh = jax.sharding.Mesh(devices, ('data', 'seq'))
  states = {s: state_on(mesh, s, np.random.default_rng(s)) for s in (10, 20)}
  checkpoints = checkpoint.Checkpoints(directory, keep=3)
  for state in states.values():
    checkpoints.save(state, dict(name='test'))
  checkpoints.close()
  return directory, states


@pytest.fixture
def states(saved_once, tmp_path):
  """{step: state} of the checkpoints in tmp_path/c."""
  directory, states = saved_once
  shutil.copytree(directory, tmp_path / 'c')
  return states


def restore(directory, like):
  lines = []
  checkpoints = checkpoint.Checkpoints(directory, 3, lines.append)
  try:
    return checkpoints.restore(abstract(like)), lines
  finally:
    checkpoints.close()


def flip(directory):
  """One bit in each file of array data of a checkpoint."""
  for file in directory.rglob('d/*'):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


def test_what_is_restored_on_another_mesh_is_what_was_saved(
  states, tmp_path, make_mesh, rng
):
  other = state_on(make_mesh(4, 2), 0, rng)
  (state, metadata), lines = restore(tmp_path / 'c', other)
  assert metadata['name'] == 'test' and not lines
  jax.tree.map(
    np.testing.assert_array_equal, jax.device_get(state),
    jax.device_get(states[20]),
  )  # fmt: skip
  assert state['params']['w'].sharding == other['params']['w'].sharding


def test_the_digest_does_not_depend_on_the_mesh(make_mesh):
  one, two = (
    digest.of_tree(state_on(make_mesh(*s), 5, np.random.default_rng(1)))
    for s in ((2, 4), (8, 1))
  )
  assert one == two
  assert set(one) == {'params/w', 'params/b', 'opt/0', 'step'}


def truncate(directory):
  for file in directory.rglob('d/*'):
    file.write_bytes(file.read_bytes()[:100])


def without(name):
  """Removes a file or directory of a checkpoint."""

  def remove(directory):
    path = directory / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()

  return remove


def with_metadata(value):
  """Damage: what is saved beside the arrays is of another type."""

  def damage(directory):
    file = directory / '_CHECKPOINT_METADATA'
    saved = json.loads(file.read_text())
    file.write_text(json.dumps(saved | dict(custom_metadata=value)))

  return damage


@pytest.mark.parametrize('damage, step, expected', [
  (flip, 20, 10),
  (truncate, 20, 10),
  (without('state'), 20, 10),
  (without('state/manifest.ocdbt'), 20, 10),
  (without('state/_METADATA'), 20, 10),
  (without('_CHECKPOINT_METADATA'), 20, 10),
  (lambda directory: directory.mkdir(), 30, 20),
  (with_metadata(5), 20, 10),
  (with_metadata(dict(model=[])), 20, 10),
])  # fmt: skip
def test_a_damaged_checkpoint_is_passed_over_and_named(
  damage, step, expected, states, tmp_path
):
  damage(tmp_path / 'c' / str(step))
  (state, _), lines = restore(tmp_path / 'c', states[10])
  assert int(state['step']) == expected
  assert len(lines) == 1 and f'/{step} passed over' in lines[0]
  np.testing.assert_array_equal(
    state['params']['w'], states[expected]['params']['w']
  )


def test_a_state_of_another_longjax_is_refused(states, tmp_path):
  newer = states[20] | dict(guard=dict(taken=states[20]['step']))
  with pytest.raises(InputError, match=r'20 has no guard, as an older longjax'):
    restore(tmp_path / 'c', newer)
  assert checkpoint.steps(tmp_path / 'c') == [20, 10]


def test_if_all_are_damaged_nothing_is_trained(states, tmp_path):
  flip(tmp_path / 'c' / '10')
  flip(tmp_path / 'c' / '20')
  with pytest.raises(InputError, match='none of the 2 checkpoints'):
    restore(tmp_path / 'c', states[10])


def test_params_alone_can_be_read(states, tmp_path):
  (tmp_path / 'run').mkdir()
  (tmp_path / 'c').rename(tmp_path / 'run' / 'checkpoints')
  for path in ('run', 'run/checkpoints', 'run/checkpoints/20'):
    params, metadata = checkpoint.load_params(tmp_path / path)
    np.testing.assert_array_equal(params['w'], states[20]['params']['w'])
    assert metadata['name'] == 'test'
  with pytest.raises(InputError, match='no checkpoint'):
    checkpoint.load_params(tmp_path)


@pytest.mark.parametrize('name', ['lr[3e-4]', 'a\\b'])
def test_a_directory_in_which_orbax_would_lose_a_save_is_refused(
  tmp_path, name
):
  with pytest.raises(InputError, match='use another --workdir'):
    checkpoint.Checkpoints(tmp_path / name / 'checkpoints', 1)


def test_a_damaged_step_can_be_saved_again(states, tmp_path):
  flip(tmp_path / 'c' / '20')
  checkpoints = checkpoint.Checkpoints(tmp_path / 'c', 3, lambda _: None)
  (state, _) = checkpoints.restore(abstract(states[10]))
  assert int(state['step']) == 10
  for step in (15, 20):
    checkpoints.save(dict(state, step=state['step'] * 0 + step), {})
  checkpoints.close()
  assert checkpoint.steps(tmp_path / 'c') == [20, 15, 10]
  assert len(list((tmp_path / 'c').glob('20.damaged*'))) == 1
  (state, _), lines = restore(tmp_path / 'c', state)
  assert int(state['step']) == 20 and not lines


def test_bits_flipped_anywhere_never_give_other_weights(
  saved_once, tmp_path, rng
):
  """One random bit of one random file of array data at a time."""
  directory, states = saved_once
  want = {s: jax.device_get(state) for s, state in states.items()}
  files = sorted((directory / '20').rglob('d/*'))
  passed_over = 0
  for i in range(12):
    shutil.copytree(directory, tmp_path / f'{i}')
    file = files[rng.integers(len(files))]
    file = tmp_path / f'{i}' / file.relative_to(directory)
    data = bytearray(file.read_bytes())
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    file.write_bytes(data)
    (state, _), lines = restore(tmp_path / f'{i}', states[20])
    step = int(state['step'])
    assert len(lines) == (step == 10) and all('passed' in x for x in lines)
    jax.tree.map(
      np.testing.assert_array_equal, jax.device_get(state), want[step]
    )
    passed_over += step == 10
  assert passed_over > 6  # most bits of the data matter


def test_the_newest_stay_and_one_every_so_many(tmp_path, make_mesh, rng):
  mesh = make_mesh(2, 4)
  checkpoints = checkpoint.Checkpoints(tmp_path, 2, keep_every=20)
  for step in range(5, 50, 5):
    checkpoints.save(state_on(mesh, step, rng), {})
  checkpoints.close()
  assert {40, 45} <= set(checkpoint.steps(tmp_path))
  assert {20, 40} <= set(checkpoint.steps(tmp_path))
  assert len(checkpoint.steps(tmp_path)) <= 4


def failing(checkpoints, monkeypatch, times):
  """Lets the next saves fail, half of the way to a full disk."""
  left = [times]
  real = checkpoint.ocp.training.Checkpointer.save_async

  def save_async(self, step, *args, **kwargs):
    if left[0] > 0:
      left[0] -= 1
      (checkpoints.directory / f'{step}.orbax-checkpoint-tmp').mkdir()
      raise OSError(28, 'No space left on device')
    return real(self, step, *args, **kwargs)

  monkeypatch.setattr(
    checkpoint.ocp.training.Checkpointer, 'save_async', save_async
  )


def test_a_save_that_fails_is_said_and_tried_again_and_leaves_nothing(
  tmp_path, make_mesh, rng, monkeypatch
):
  lines, mesh = [], make_mesh(2, 4)
  checkpoints = checkpoint.Checkpoints(tmp_path, 3, lines.append)
  checkpoints.save(state_on(mesh, 10, rng), {})
  failing(checkpoints, monkeypatch, 2)
  for step, retry in ((20, 21), (21, 23), (23, None)):
    checkpoints.save(state_on(mesh, step, rng), {})
    assert checkpoints.retry_step == retry
    assert not list(tmp_path.glob('*tmp')) or retry is None
  checkpoints.close()
  assert checkpoint.steps(tmp_path) == [23, 10]
  assert len(lines) == 2
  assert 'step 20 could not be saved' in lines[0] and 'No space' in lines[0]
  assert 'step 10 is saved' in lines[0]


def test_storage_that_is_away_for_a_while_damages_nothing(
  states, tmp_path, monkeypatch
):
  """A restore asks again before it takes an older checkpoint."""
  real, left = checkpoint.ocp.load, [2]

  def load(*args):
    if left[0] > 0:
      left[0] -= 1
      raise RuntimeError('read failed') from OSError(5, '503 Service down')
    return real(*args)

  monkeypatch.setattr(checkpoint.ocp, 'load', load)
  monkeypatch.setattr(checkpoint.time, 'sleep', lambda _: None)
  (state, _), lines = restore(tmp_path / 'c', states[20])
  assert int(state['step']) == 20
  assert len(lines) == 2 and all('trying again' in x for x in lines)
  assert not list(tmp_path.rglob('*damaged*'))


def test_moments_of_an_earlier_stage_with_their_schedule_at_the_start(
  tmp_path, make_mesh
):
  import optax

  from configs import tiny
  from longjax.train import optimizer

  config, mesh = tiny.get_config().optim, make_mesh(2, 4)
  params = dict(w=jnp.ones(8))
  tx = optimizer.transformation(config, 10)
  _, opt = tx.update(dict(w=jnp.full(8, 0.1)), tx.init(params), params)
  opt = jax.device_put(opt, NamedSharding(mesh, P()))
  checkpoints = checkpoint.Checkpoints(tmp_path / 'checkpoints', 1)
  checkpoints.save_and_wait(dict(params=params, opt=opt, step=1), {})
  checkpoints.close()
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), opt
  )
  found = optimizer.restart_schedule(
    checkpoint.load_moments(tmp_path, abstract)
  )
  get = optax.tree_utils.tree_get
  for name in ('mu', 'nu'):
    np.testing.assert_array_equal(get(found, name)['w'], get(opt, name)['w'])
  assert int(get(found, 'ScaleByScheduleState').count) == 0
  assert int(get(found, 'ScaleByAdamState').count) == 1
  flip(tmp_path / 'checkpoints' / '1')
  with pytest.raises(InputError, match='cannot be used'):
    checkpoint.load_moments(tmp_path, abstract)


def slow_renames(monkeypatch, seconds, refuses=0):
  """A disk on which making and renaming a directory takes its time: that is
  when a save becomes visible. The first `refuses` renames time out."""
  left = [refuses]

  def slowly(real):
    def act(*args, **kwargs):
      time.sleep(seconds)
      if real is rename and left[0] > 0:
        left[0] -= 1
        raise TimeoutError(110, 'Connection timed out')
      return real(*args, **kwargs)

    return act

  rename, mkdir = os.rename, os.mkdir
  monkeypatch.setattr(os, 'rename', slowly(rename))
  monkeypatch.setattr(os, 'mkdir', slowly(mkdir))


def test_on_a_slow_disk_saves_queue_up_one_by_one_and_none_is_seen_half(
  tmp_path, make_mesh, rng, monkeypatch
):
  mesh, lines = make_mesh(2, 4), []
  states = {step: state_on(mesh, step, rng) for step in range(1, 5)}
  checkpoints = checkpoint.Checkpoints(tmp_path / 'c', 9, lines.append)
  seen, ended = {}, threading.Event()

  def look():  # as an evaluation beside the run would
    while not ended.is_set():
      for step in set(checkpoint.steps(tmp_path / 'c')) - set(seen):
        seen[step] = checkpoint.load_params(tmp_path / 'c' / str(step))[0]
      time.sleep(0.01)

  watcher = threading.Thread(target=look)
  slow_renames(monkeypatch, 0.1)
  monkeypatch.setattr(checkpoint, 'LONG_SECONDS', 0.05)
  watcher.start()
  for state in states.values():
    checkpoints.save(state, {})
    tmp = [p for p in (tmp_path / 'c').iterdir() if not p.name.isdigit()]
    assert len(tmp) <= 1, tmp
  checkpoints.close()
  ended.set()
  watcher.join()
  assert len(lines) == 3 and 's for the save of step 1: the st' in lines[0]
  assert checkpoint.steps(tmp_path / 'c') == [4, 3, 2, 1]
  assert {1, 2} <= set(seen)
  for step, params in seen.items():
    np.testing.assert_array_equal(params['w'], states[step]['params']['w'])


@pytest.mark.parametrize('refuses', [2, 99])
def test_a_disk_that_times_out_is_tried_again_so_often_and_no_more(
  refuses, states, tmp_path, make_mesh, rng, monkeypatch
):
  mesh, lines, slept = make_mesh(2, 4), [], []
  checkpoints = checkpoint.Checkpoints(
    tmp_path / 'c', 3, lines.append, max_failed=3
  )
  slow_renames(monkeypatch, 0, refuses)
  monkeypatch.setattr(checkpoint.time, 'sleep', slept.append)
  state = state_on(mesh, 30, rng)
  if refuses == 99:
    says = 'timed out; that was failure 3 in a row, step 20 is saved'
    with pytest.raises(InputError, match=says):
      checkpoints.save_and_wait(state, {})
  else:
    checkpoints.save_and_wait(state, {})
  assert [x for x in slept if x >= 1] == [1, 2]
  assert not list((tmp_path / 'c').glob('*tmp*'))
  monkeypatch.undo()
  (restored, _), lines = restore(tmp_path / 'c', states[10])
  last = 20 if refuses == 99 else 30
  assert int(restored['step']) == last and not lines
  want = states[20] if refuses == 99 else state
  np.testing.assert_array_equal(restored['params']['w'], want['params']['w'])


def listed(monkeypatch, directory, hidden=(), shown=()):
  """A listing of the directory that lags behind what is there."""
  real = os.listdir

  def listdir(path='.'):
    names = real(path)
    if os.path.abspath(path) == str(directory):
      names = [n for n in names if n not in hidden] + list(shown)
    return names

  monkeypatch.setattr(os, 'listdir', listdir)


def test_a_listing_that_still_has_what_was_deleted_costs_nothing(
  states, tmp_path, monkeypatch
):
  listed(monkeypatch, tmp_path / 'c', shown=['30'])
  monkeypatch.setattr(checkpoint.time, 'sleep', lambda _: None)
  (state, _), lines = restore(tmp_path / 'c', states[10])
  assert int(state['step']) == 20
  assert len(lines) == 1 and '/30 passed over' in lines[0]
  np.testing.assert_array_equal(state['params']['w'], states[20]['params']['w'])


def test_a_listing_without_the_newest_goes_on_from_the_one_before(
  states, tmp_path, monkeypatch
):
  """The steps after it are done again, and saved over what is there."""
  lines = []
  listed(monkeypatch, tmp_path / 'c', hidden=['20'])
  checkpoints = checkpoint.Checkpoints(tmp_path / 'c', 3, lines.append)
  state, _ = checkpoints.restore(abstract(states[10]))
  assert int(state['step']) == 10
  checkpoints.save_and_wait(dict(state, step=state['step'] + 10), {})
  checkpoints.save_and_wait(dict(state, step=state['step'] + 12), {})
  checkpoints.close()
  monkeypatch.undo()  # the listing has caught up
  assert not lines and checkpoint.steps(tmp_path / 'c') == [22, 20, 10]
  for step in (20, 22):
    params, metadata = checkpoint.load_params(tmp_path / 'c' / str(step))
    assert metadata['step'] == step
    np.testing.assert_array_equal(params['w'], states[10]['params']['w'])
