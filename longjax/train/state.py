"""The state that training starts from: resumed, imported or random."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from longjax import checkpoint, llama, lora, weights
from longjax.errors import InputError
from longjax.parallel import processes, sharding
from longjax.train import optimizer, resume


class Start(NamedTuple):
  """Where training starts."""

  state: Any  # {'params', 'opt', 'guard', 'step'}; donated to the first step
  step: int  # steps that were done
  tokens: int  # trained on so far
  released_config: llama.Llama | None  # of imported weights


def initial(run, checkpoints, abstract, source, metadata) -> Start:
  """The state to start from, placed as `abstract`.

  Args:
    run: loop.Run.
    checkpoints: checkpoint.Checkpoints of the run directory.
    abstract: the state as ShapeDtypeStructs with shardings.
    source: path of the weights; None is random weights.
    metadata: of this run, see loop.run_metadata.

  Raises:
    InputError: the checkpoints are those of another run, or damaged.
  """
  # The first that applies decides:
  # 1. a checkpoint of this run directory: all of the state;
  if resumed := restore(run, checkpoints, abstract, metadata):
    return resumed
  # 2. config.weights, a path: its weights, and with config.moments its
  #    AdamW moments, the schedule restarted;
  # 3. config.weights 'random': weights from config.seed, zero moments.
  state, released_config = fresh(run, abstract, source)
  return Start(state, 0, 0, released_config)


def restore(run, checkpoints, abstract, metadata) -> Start | None:
  """From the newest checkpoint; None if there is none.

  Raises:
    InputError: it is of another config, tokenizer or data, or past the end.
  """
  steps = run.config.train.steps

  def check(saved):
    resume.check(saved['config'], metadata['config'], run.workdir, run.log)
    for key in ('tokenizer', 'data'):
      if saved.get(key) != metadata[key]:
        raise InputError(
          f'{run.workdir} was trained with another {key}, digest '
          f'{saved.get(key)}, now {metadata[key]}; use another --workdir'
        )
    if saved['step'] > steps:
      raise InputError(
        f'{run.workdir} is at step {saved["step"]}, past config.train.steps '
        f'{steps}; use another --workdir'
      )

  with run.clock.timed('restoring'):
    restored = checkpoints.restore(abstract, check)
  if restored is None:
    return None
  state, saved = restored
  run.log(f'resumed from step {saved["step"]}')
  return Start(state, saved['step'], saved.get('tokens', 0), None)


def fresh(run, abstract, source):
  """(state at step 0, the model config of the imported weights or None)."""
  config, model = run.config, run.model
  shardings = jax.tree.map(lambda x: x.sharding, abstract)
  place = sharding.params(llama.abstract(model), run.mesh)
  released_config = None
  if source:
    run.log(f'importing {source}')
    load = functools.partial(
      weights.load, source, dtype=model.dtype, place=lambda _: place
    )
    params, released_config = processes.raise_on_all(load)
  else:
    init = functools.partial(llama.init, model)
    key = jax.random.key(config.seed)
    params = jax.jit(init, out_shardings=place)(key)
  if config.lora.rank:
    init = functools.partial(lora.init, abstract['params'], config.lora)
    key = jax.random.key(config.seed + 1)  # not that of random weights
    factors = dict(lora=shardings['params']['lora'])
    params |= jax.jit(init, out_shardings=factors)(key)
  if config.moments:
    run.log(f'loaded the moments of {source}; the schedule restarts')
    opt = checkpoint.load_moments(source, abstract['opt'])
    opt = optimizer.restart_schedule(opt)
  else:
    tx = optimizer.transformation(config.optim, config.train.steps)
    trainable, _ = lora.split(params, config.lora)
    opt = jax.jit(tx.init, out_shardings=shardings['opt'])(trainable)
  rest = jax.jit(
    lambda: dict(guard=optimizer.guard_init(config.optim), step=jnp.int32(0)),
    out_shardings={k: shardings[k] for k in ('guard', 'step')},
  )()
  return dict(params=params, opt=opt, **rest), released_config
