"""Checkpoints: whole or refused, and the newest that verifies wins."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from longjax import checkpoint
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


def saved(directory, mesh, rng, steps=(10, 20)):
  checkpoints = checkpoint.Checkpoints(directory, keep=3)
  states = {s: state_on(mesh, s, rng) for s in steps}
  for state in states.values():
    checkpoints.save(state, dict(name='test'))
  checkpoints.close()
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
  tmp_path, make_mesh, rng
):
  states = saved(tmp_path / 'c', make_mesh(2, 4), rng)
  other = state_on(make_mesh(4, 2), 0, rng)
  (state, about), lines = restore(tmp_path / 'c', other)
  assert about['name'] == 'test' and not lines
  jax.tree.map(
    np.testing.assert_array_equal, jax.device_get(state),
    jax.device_get(states[20]),
  )  # fmt: skip
  assert state['params']['w'].sharding == other['params']['w'].sharding


def test_the_digest_does_not_depend_on_the_mesh(make_mesh):
  one, two = (
    checkpoint.digest(state_on(make_mesh(*s), 5, np.random.default_rng(1)))
    for s in ((2, 4), (8, 1))
  )
  assert one == two
  assert set(one) == {'params/w', 'params/b', 'opt/0', 'step'}


def damage_bit(directory):
  flip(directory / '20')


def damage_missing(directory):
  shutil.rmtree(directory / '20' / 'state')


def damage_empty(directory):
  (directory / '30').mkdir()


def damage_truncated(directory):
  for file in (directory / '20').rglob('d/*'):
    file.write_bytes(file.read_bytes()[:100])


@pytest.mark.parametrize(
  'damage, expected',
  [
    (damage_bit, 10),
    (damage_missing, 10),
    (damage_truncated, 10),
    (damage_empty, 20),
  ],
)
def test_a_damaged_checkpoint_is_passed_over_and_named(
  damage, expected, tmp_path, make_mesh, rng
):
  mesh = make_mesh(2, 4)
  states = saved(tmp_path / 'c', mesh, rng)
  damage(tmp_path / 'c')
  (state, _), lines = restore(tmp_path / 'c', states[10])
  assert int(state['step']) == expected
  assert len(lines) == 1 and 'passed over' in lines[0]
  np.testing.assert_array_equal(
    state['params']['w'], states[expected]['params']['w']
  )


def test_if_all_are_damaged_nothing_is_trained(tmp_path, make_mesh, rng):
  states = saved(tmp_path / 'c', make_mesh(2, 4), rng)
  flip(tmp_path / 'c' / '10')
  flip(tmp_path / 'c' / '20')
  with pytest.raises(InputError, match='none of the 2 checkpoints'):
    restore(tmp_path / 'c', states[10])


def test_params_alone_can_be_read(tmp_path, make_mesh, rng):
  states = saved(tmp_path / 'run' / 'checkpoints', make_mesh(2, 4), rng)
  for path in ('run', 'run/checkpoints', 'run/checkpoints/20'):
    params, about = checkpoint.load_params(tmp_path / path)
    np.testing.assert_array_equal(params['w'], states[20]['params']['w'])
    assert about['name'] == 'test'
  with pytest.raises(InputError, match='no checkpoint'):
    checkpoint.load_params(tmp_path)


def test_after_walking_back_the_damaged_step_can_be_saved_again(
  tmp_path, make_mesh, rng
):
  mesh = make_mesh(2, 4)
  saved(tmp_path / 'c', mesh, rng)
  flip(tmp_path / 'c' / '20')
  checkpoints = checkpoint.Checkpoints(tmp_path / 'c', 3, lambda _: None)
  (state, _) = checkpoints.restore(abstract(state_on(mesh, 0, rng)))
  assert int(state['step']) == 10
  for step in (15, 20):
    checkpoints.save(dict(state, step=state['step'] * 0 + step), {})
  checkpoints.close()
  assert checkpoint.steps(tmp_path / 'c') == [20, 15, 10]
  assert len(list((tmp_path / 'c').glob('20.damaged*'))) == 1
  (state, _), lines = restore(tmp_path / 'c', state)
  assert int(state['step']) == 20 and not lines
