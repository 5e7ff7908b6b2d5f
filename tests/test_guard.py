"""Steps that must change nothing: not finite, a spike, or to be passed over."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_train import run_of

from configs import tiny
from longjax import checkpoint
from longjax.batch import Batch
from longjax.data import pipeline
from longjax.errors import InputError
from longjax.parallel import sharding
from longjax.train import lock, loop, metrics, optimizer, run_report
from longjax.train import state as train_state


@functools.cache
def stepped(sigmas):
  """A state of one weight at the start, and the update of a step of it."""
  config = tiny.get_config().optim
  config.update(spike_window=4, spike_sigmas=sigmas, warmup_steps=0)
  params = dict(w=jnp.ones(8))
  state = dict(
    params=params,
    opt=optimizer.transformation(config, 100).init(params),
    guard=optimizer.guard_init(config),
    step=jnp.int32(0),
  )
  return state, jax.jit(lambda *args: optimizer.update(config, 100, *args))


def taken(steps, sigmas=3.0):
  """[(skipped, changed)] of steps [(loss, gradient[, weight])] in a row, and
  the state after them."""
  state, update = stepped(sigmas)
  found = []
  for loss, gradient, weight in ((*x, 1.0)[:3] for x in steps):
    grads = dict(w=jnp.full(8, gradient, jnp.float32))
    after, values = update(state, grads, jnp.float32(loss), jnp.float32(weight))
    same = jax.tree.map(
      lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(),
      (after['params'], after['opt']), (state['params'], state['opt']),
    )  # fmt: skip
    assert int(after['step']) == int(state['step']) + 1
    found.append((bool(values['skipped']), not all(jax.tree.leaves(same))))
    state = after
  return found, state


TOKENS = 32  # of a step of the loop
CALM = [(2.0, 1.0), (2.1, 1.1), (1.9, 0.9), (2.0, 1.0)]
SKIPPED, TAKEN = (True, False), (False, True)


@pytest.mark.parametrize('bad', [
  (np.nan, 1.0), (np.inf, 1.0), (2.0, np.nan), (2.0, np.inf),
  (20.0, 1.0), (2.0, 10.0),
])  # fmt: skip
def test_a_bad_step_changes_no_bit_and_the_next_good_one_is_taken(bad):
  found, state = taken([*CALM, bad, (2.0, 1.0)])
  assert found == [TAKEN] * 4 + [SKIPPED, TAKEN]
  assert int(state['guard']['skipped']) == 0


def test_bad_steps_in_a_row_are_counted_and_not_one_is_taken():
  found, state = taken([*CALM, *[(np.nan, np.nan)] * 7])
  assert found[4:] == [SKIPPED] * 7
  assert int(state['guard']['skipped']) == 7


def test_a_step_without_loss_weights_is_not_taken_and_not_remembered():
  empty, bad = (0.0, 0.0, 0.0), (np.nan, 1.0)
  found, state = taken([*CALM[:2], *[empty] * 9, *CALM[2:]])
  assert found == [TAKEN] * 2 + [SKIPPED] * 9 + [TAKEN] * 2
  _, without = taken(CALM)
  assert int(state.pop('step')) == 13 and int(without.pop('step')) == 4
  jax.tree.map(np.testing.assert_array_equal, state, without)
  # Nor does it end, or lengthen, a row of bad steps.
  _, state = taken([*CALM, bad, empty, bad])
  assert int(state['guard']['skipped']) == 2


def test_the_bound_by_hand():
  """Losses 2, 2.1, 1.9, 2: mean 2, deviation sqrt(0.005), bound 2.2121."""
  assert taken([*CALM, (2.21, 1.0)])[0][-1] == TAKEN
  assert taken([*CALM, (2.22, 1.0)])[0][-1] == SKIPPED


def test_a_level_that_stays_becomes_the_normal_one():
  found, _ = taken([*CALM, *[(2.4, 1.0)] * 6])
  assert found[4] == SKIPPED and found[-1] == TAKEN


def test_before_the_window_is_full_and_without_sigmas_spikes_are_admitted():
  assert taken([*CALM[:3], (20.0, 1.0)])[0][-1] == TAKEN
  assert taken([*CALM, (20.0, 1.0)], sigmas=0.0)[0][-1] == TAKEN


class Numbers:
  """Batches whose tokens are the number of their step."""

  def iterate(self, start, held):
    for number in itertools.count(start + 1):
      parts = []
      for rows, cuts in held:
        for cut in cuts:
          shape = (rows.stop - rows.start, cut.stop - cut.start)
          whole = np.full(shape, number, np.int32)
          weights = np.ones(shape, np.float32)
          parts.append(Batch(*[whole] * 2, weights, *[whole] * 3))
      none = np.arange(0)
      yield pipeline.BatchPlan(number, [], [], none, TOKENS, none), parts


def looped(workdir, monkeypatch, losses, **changes):
  """Runs the loop with a step that only returns these losses.

  NaN is skipped; None is a step whose loss weights sum to 0.

  Returns:
    (steps whose batches were computed, steps that were saved)
  """
  config = tiny.get_config()
  config.mesh.update(data=8, seq=1)
  config.train.steps = len(losses)
  config.checkpoint.every_steps = 2
  for key, value in changes.items():
    config.update_from_flattened_dict({key.replace('__', '.'): value})
  mesh = sharding.make_mesh(8, 1)
  run = run_of(config, mesh, workdir, lambda _: None)
  computed, saved = [], []

  def step_fn(state, batch):
    computed.append(int(batch.tokens[0, 0]))
    loss = losses[int(state['step'])]
    empty, loss = loss is None, jnp.float32(np.nan if loss is None else loss)
    values = dict(loss=loss, grad_norm=loss, lr=0.1, skipped=jnp.isnan(loss),
                  empty=empty)  # fmt: skip
    return dict(state, step=state['step'] + 1), values

  checkpoints = checkpoint.Checkpoints(workdir / 'checkpoints', 2)
  for name, wait in (('save', False), ('save_and_wait', True)):
    record = lambda state, metadata, wait=wait: saved.append(
      (int(state['step']), metadata['tokens'], wait)
    )
    monkeypatch.setattr(checkpoints, name, record)
  state = dict(params={}, guard=dict(skipped=np.int32(0)), step=np.int32(0))
  saver = loop.Saver(
    run, lock.RunDirectory(None, lambda: None), checkpoints, {}
  )
  loop.loop(
    run, Numbers(), step_fn, train_state.Start(state, 0, 0, None), saver,
    loop.Evaluator(run, None),
  )  # fmt: skip
  return computed, saved


def test_too_many_bad_steps_in_a_row_end_the_run_and_are_named(
  tmp_path, monkeypatch
):
  nan = np.nan
  bad = [3.0, nan, nan, 2.0, nan, nan, nan, nan, 2.0]
  with pytest.raises(InputError, match=r'steps 5 to 8: .*\(5, 6, 7, 8\)'):
    looped(tmp_path, monkeypatch, bad, optim__max_skipped=3)
  lines = metrics.read(tmp_path)
  assert [x['skipped'] for x in lines] == [0, 1, 1, 0, 1, 1, 1, 1]
  assert lines[1]['loss'] is None and lines[1]['loss_hex'] == 'nan'


def test_steps_without_loss_weights_end_no_run_and_are_counted(
  tmp_path, monkeypatch
):
  nan = np.nan
  bad = [3.0, None, None, None, nan, None, nan, 2.0]
  looped(tmp_path, monkeypatch, bad, optim__max_skipped=2)
  lines = metrics.read(tmp_path)
  assert [x['empty'] for x in lines] == [0, 1, 1, 1, 0, 1, 0, 0]
  assert '| 6 | 4 |' in run_report.training(tmp_path)
  with pytest.raises(InputError, match=r'steps 5 to 8: .*\(5, 7, 8\)'):
    again = tmp_path / 'again'
    again.mkdir()
    looped(again, monkeypatch, [*bad[:7], nan], optim__max_skipped=2)


def test_a_run_without_any_target_is_no_success(tmp_path, monkeypatch):
  with pytest.raises(InputError, match='steps 1 to 8 had no target'):
    looped(tmp_path, monkeypatch, [None] * 8)


def test_batches_of_skip_steps_are_passed_over(tmp_path, monkeypatch):
  computed, saved = looped(
    tmp_path, monkeypatch, [3.0] * 6, data__skip_steps=(2, 3), train__steps=6
  )
  assert computed == [1, 4, 5, 6]
  assert [x['step'] for x in metrics.read(tmp_path)] == [1, 4, 5, 6]
  tokens = [TOKENS, 2 * TOKENS, 4 * TOKENS]
  assert saved == [*zip((2, 4, 6), tokens, (False, False, True))]
