"""May a run go on with another config? What differs, and what may differ."""

from longjax.errors import InputError

# Keys, or sections that end with a dot, that say how a run goes on. All
# others say what it is: which model learns what, in which order.
MAY_CHANGE = (
  'name', 'notes', 'mesh.', 'checkpoint.', 'eval.',
  'model.dtype', 'model.attention', 'model.block', 'model.ulysses',
  'model.remat', 'model.mlp_chunk',
  'data.directory', 'data.layout', 'data.skip_steps',
  'train.steps', 'train.micro_batches', 'train.loss_chunk',
  'train.profile_steps',
  'optim.learning_rate', 'optim.schedule', 'optim.warmup_steps',
  'optim.warmup_from', 'optim.min_ratio', 'optim.b1', 'optim.b2', 'optim.eps',
  'optim.weight_decay', 'optim.clip', 'optim.spike_sigmas',
  'optim.max_skipped',
)  # fmt: skip
NAMED = ('data.sources', 'data.mix')  # whose keys are names that users give


def check(before: dict, now: dict, workdir, log):
  """Says what differs; InputError for what makes it another run.

  Args:
    before: config of the checkpoint, as nested dicts out of JSON.
    now: config of this start, likewise.
    workdir: for the message.
    log: called with a line for each key that may differ and does.
  """
  refused = []
  for key, (old, new) in differences(before, now).items():
    if may_change(key):
      log(f'config.{key} was {old!r}, is now {new!r}')
    else:
      log(f'REFUSED: config.{key} was {old!r}, is now {new!r}')
      refused.append(f'config.{key} {old!r} (now {new!r})')
  if refused:
    raise InputError(
      f'{workdir} was trained with {", ".join(refused)}; use another --workdir'
    )


def differences(before: dict, now: dict) -> dict:
  """{flat key: (before, now)}, of keys that both know, of sources and
  mixtures."""
  old, new = flat(before), flat(now)
  nothing = 'nothing'
  return {
    key: (old.get(key, nothing), new.get(key, nothing))
    for key in sorted(old | new)
    if old.get(key, nothing) != new.get(key, nothing)
    and ((key in old and key in new) or key.startswith(NAMED))
  }  # a key that only one knows came or went with the code


def may_change(key: str) -> bool:
  """Whether a run that goes on may have another value of a key."""
  return any(
    key.startswith(k) if k.endswith('.') else key == k for k in MAY_CHANGE
  )


def flat(config: dict, prefix='') -> dict:
  """{'model.rope.base': 5e5, ...}."""
  found = {}
  for key, value in config.items():
    if isinstance(value, dict):
      found |= flat(value, f'{prefix}{key}.')
    else:
      found[prefix + key] = value
  return found
