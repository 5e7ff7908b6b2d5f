"""AdamW on float32 masters: schedule, decay mask, clipping, and the guard.

To add an optimizer: change `transformation`, and keys of `optim` in config.py.
Its state must hold one ScaleByScheduleState, from which `update` reads the step
of the schedule; all else reads the state by optax's own functions.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P


def schedule(config, steps: int):
  """Learning rate by step: warm-up, then cosine, linear, constant or wsd.

  After warm-up, cosine and linear fall from the peak, as Hugging Face's and
  ProLong's (arXiv:2410.02660, table 9); they would be at peak * min_ratio one
  step after the last. So does wsd in the last decay_steps, constant before
  (warm-up-stable-decay, arXiv:2404.06395, section 4). Position Interpolation
  warms up from 10 % of the peak (arXiv:2306.15595, section 3.1).

  Args:
    config: the section `optim` of a config.
    steps: of the whole run.

  Returns:
    step, counted from 0 -> learning rate, an optax.Schedule.
  """
  peak, rest = config.learning_rate, max(steps - config.warmup_steps, 1)
  after = dict(
    cosine=optax.cosine_decay_schedule(peak, rest, config.min_ratio),
    linear=optax.linear_schedule(peak, peak * config.min_ratio, rest),
    constant=optax.constant_schedule(peak),
    wsd=optax.linear_schedule(
      peak, peak * config.min_ratio, max(config.decay_steps, 1),
      rest - config.decay_steps,
    ),
  )[config.schedule]  # fmt: skip
  if not config.warmup_steps:
    return after
  start = peak * config.warmup_from
  warmup = optax.linear_schedule(start, peak, config.warmup_steps)
  return optax.join_schedules([warmup, after], [config.warmup_steps])


def unfinished_warmup(config, steps: int) -> str:
  """A line where the warm-up is no shorter than the run; '' where it is.

  Such a run is a try of a recipe, so it is not refused.

  Args:
    config: the section `optim` of a config.
    steps: of the whole run.
  """
  if config.warmup_steps < steps:
    return ''
  last: Any = schedule(config, steps)(steps - 1)
  return (
    f'config.optim.warmup_steps {config.warmup_steps} is not below train.steps '
    f'{steps}: the learning rate ends at {float(last):.3g} and does not reach '
    f'its peak {config.learning_rate:.3g}; lower warmup_steps for a shorter one'
  )


def decay_mask(config, params):
  """True for matrices. By name: stacked norms and biases have two dims too.

  Without the embedding as OLMo 2 (arXiv:2501.00656, section 3.3.2); with norms
  as ProLong's trainer, which exempts LayerNorm only, and the model's RMSNorm is
  another class.

  Args:
    config: the section `optim` of a config.
    params: tree.
  """
  others = dict(
    matrices=('norm', 'bias'), not_embedding=('norm', 'bias', 'embedding'),
    with_norms=('bias',),
  )[config.decayed]  # fmt: skip
  return jax.tree.map_with_path(
    lambda path, _: not path[-1].key.endswith(others), params
  )


def transformation(config, steps: int) -> optax.GradientTransformation:
  """Clip by global norm, then AdamW with decoupled decay of matrices.

  Args:
    config: the section `optim` of a config.
    steps: of the whole run.
  """
  return optax.chain(
    optax.clip_by_global_norm(config.clip),
    optax.adamw(
      schedule(config, steps), config.b1, config.b2, config.eps,
      weight_decay=config.weight_decay,
      mask=functools.partial(decay_mask, config),
    ),
  )  # fmt: skip


def shardings(tx, params, param_shardings, mesh):
  """Of the optimizer state: moments as their parameters, counts replicated.

  `jax.jit(tx.init)` alone would replicate them all.
  """
  return optax.tree.map_params(
    tx,
    lambda _, s: s,
    jax.eval_shape(tx.init, params),
    param_shardings,
    transform_non_params=lambda _: NamedSharding(mesh, P()),
  )


def guard_init(config):
  """The state of the guard, see `accept_step`.

  Returns:
    `losses` and `norms` [optim.spike_window] float32 of the last finite steps;
    `taken`, their number; `skipped`, steps in a row that were not admitted.
  """
  window = jnp.zeros(config.spike_window, jnp.float32)
  zero = jnp.zeros((), jnp.int32)
  return dict(losses=window, norms=window, taken=zero, skipped=zero)


def accept_step(config, guard, loss, norm):
  """Whether a step may change the parameters, and the guard after it.

  Not if loss or gradient norm is not finite, nor if one is above the mean +
  optim.spike_sigmas standard deviations of the last spike_window finite steps
  (after the skip of spikes of OLMo 2, arXiv:2501.00656). The window stores such
  a value clipped to that bound: a lasting change is accepted in time, a single
  spike never.
  """
  full = guard['taken'] >= config.spike_window
  at = guard['taken'] % config.spike_window
  finite = jnp.isfinite(loss) & jnp.isfinite(norm)
  ok, after = finite, dict(guard)
  for name, value in (('losses', loss), ('norms', norm)):
    past = guard[name]
    # In a nearly constant window, a deviation of 1 % is not yet a spike.
    deviation = jnp.maximum(past.std(), 0.01 * jnp.abs(past.mean()))
    bound = past.mean() + config.spike_sigmas * deviation
    bound = jnp.where(full & (config.spike_sigmas > 0), bound, jnp.inf)
    ok &= value <= bound
    new = past.at[at].set(jnp.minimum(value, bound))
    after[name] = jnp.where(finite, new, past)
  after['taken'] = guard['taken'] + finite
  after['skipped'] = jnp.where(ok, 0, guard['skipped'] + 1)
  return ok, after


def update(config, steps, state, grads, loss, weight):
  """One step of {'params', 'opt', 'guard', 'step'}, guarded by `accept_step`.

  A step that is not admitted leaves params and moments bitwise unchanged;
  `step` counts it. A step whose loss weights sum to 0 has no loss to follow: it
  leaves the guard unchanged too, and is no step of the schedule.

  Args:
    config: the section `optim` of a config.
    steps: of the whole run.
    state: before the step.
    grads: as params.
    loss: scalar.
    weight: scalar, the sum of the loss weights of the batch.

  Returns:
    (state, dict of float32 scalars: loss, NaN without weights; grad_norm before
    clipping; lr; skipped, 1 if params were not changed; empty, 1 if the weights
    sum to 0)
  """
  tx = transformation(config, steps)
  norm = optax.tree.norm(grads)
  ok, guard = accept_step(config, state['guard'], loss, norm)
  empty = weight == 0
  ok &= ~empty
  guard = jax.tree.map(
    lambda new, old: jnp.where(empty, old, new), guard, state['guard']
  )
  # The schedule counts the steps that were taken, not those skipped.
  count = optax.tree_utils.tree_get(state['opt'], 'ScaleByScheduleState').count
  lr = jnp.asarray(schedule(config, steps)(count), jnp.float32)

  def take(params, opt):
    updates, opt = tx.update(grads, opt, params)
    return optax.apply_updates(params, updates), opt

  # A branch: a select would read and write all of them once more.
  params, opt = jax.lax.cond(
    ok, take, lambda *old: old, state['params'], state['opt']
  )
  state = dict(params=params, opt=opt, guard=guard, step=state['step'] + 1)
  return state, dict(
    loss=jnp.where(empty, jnp.nan, loss),
    grad_norm=norm,
    lr=lr,
    skipped=1.0 - ok.astype(jnp.float32),
    empty=empty.astype(jnp.float32),
  )


def restart_schedule(opt):
  """The optimizer state of an earlier stage, its schedule at the start."""
  is_schedule = lambda x: isinstance(x, optax.ScaleByScheduleState)
  restart = lambda x: x._replace(count=x.count * 0) if is_schedule(x) else x
  return jax.tree.map(restart, opt, is_leaf=is_schedule)
