"""Saving and restoring training state with Orbax, and proof that it is whole.

Orbax notices a damaged file only sometimes, so each array's digest is stored
beside it and compared after loading; the newest checkpoint that verifies wins.
The digest does not depend on the mesh.
"""

import contextlib
import functools
import logging
import math
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from longjax import lora
from longjax.errors import InputError
from longjax.parallel import processes

# Orbax logs each failure several times with its stack; our line has the cause.
# And it misses a database in checkpoints that are plain files.
for _name in ('absl', None):
  logging.getLogger(_name).addFilter(
    lambda record: 'orbax' not in record.pathname
  )

# Of a save of several processes. One that cannot write leaves the others
# waiting so long before they go on training and all try again.
SAVE_SECONDS = 600
LONG_SECONDS = 5  # that a save may keep the next one waiting unsaid
BITS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def _sums(x, first, strides):
  """`digest_sums` inside a program."""
  bits = jax.lax.bitcast_convert_type(x, BITS[x.dtype.itemsize])
  bits = bits.astype(jnp.uint32)
  position = jnp.full(x.shape, first, jnp.uint32)
  for dim, stride in enumerate(strides):
    along = jax.lax.broadcasted_iota(jnp.uint32, x.shape, dim)
    position += along * jnp.uint32(stride)
  weight = (position * jnp.uint32(2654435761)) | jnp.uint32(1)
  # Both in one pass: on a CPU 30 times as fast as two sums.
  zero, dims = jnp.uint32(0), tuple(range(x.ndim))
  add = lambda a, b: (a[0] + b[0], a[1] + b[1])
  return jnp.stack(
    jax.lax.reduce((bits, bits * weight), (zero, zero), add, dims)
  )


def _strides(shape) -> list[int]:
  """How far positions are apart along each dim of an array, row by row."""
  return [math.prod(shape[dim + 1 :]) % 2**32 for dim in range(len(shape))]


_part_sums = jax.jit(_sums)
_tree_sums = jax.jit(
  lambda tree: jax.tree.map(lambda x: _sums(x, 0, _strides(x.shape)), tree)
)


def digest_sums(part, first=0, strides=None) -> np.ndarray:
  """What a part adds to the digest of its array, modulo 2**32.

  Args:
    part: an array, or a rectangle of it with its dims in any order.
    first: position in the array, counted row by row, of the part's corner.
    strides: how far positions are apart along each dim of the part; None if
      it is the array.

  Returns:
    [2] uint32: the sum of the bits, and that weighted by an odd position.
  """
  strides = _strides(part.shape) if strides is None else strides
  return np.asarray(
    _part_sums(
      part, np.uint32(first % 2**32), [np.uint32(s % 2**32) for s in strides]
    )
  )


def digest_text(sums) -> str:
  """The digest as it is saved: 16 hex digits."""
  return f'{int(sums[0]):08x}{int(sums[1]):08x}'


def digest(tree) -> dict[str, str]:
  """{path: hex}: equal if and, but for chance, only if the arrays are."""
  found = jax.device_get(_tree_sums(tree))
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): digest_text(sums)
    for path, sums in jax.tree.leaves_with_path(
      found, is_leaf=lambda x: isinstance(x, np.ndarray)
    )
  }


class Checkpoints:
  """The checkpoints of one run, in `directory`/<step>.

  A save that fails leaves the earlier ones as they are and training goes on;
  the next try is after 1, 2, 4 ... steps, until too many failed in a row.

  Attributes:
    retry_step: when to try again, after a save that failed; else None.
  """

  def __init__(
    self, directory, keep: int, log=print, *, keep_every=0, max_failed=5
  ):
    """Opens nothing yet.

    Args:
      directory: local or gs://.
      keep: how many of the newest stay.
      log: called with lines about what failed or was passed over.
      keep_every: every so many steps, one stays for good; 0 is none.
      max_failed: saves in a row that may fail.

    Raises:
      InputError: the name of the directory would lose what is saved there.
    """
    self.directory = absolute(directory)
    if set('[\\') & set(str(self.directory)):  # Orbax globs for its own files
      raise InputError(
        f'{self.directory}: Orbax cannot save where a name has [ or \\; use '
        'another --workdir'
      )
    self.keep, self.keep_every, self.log = keep, keep_every, log
    self.max_failed, self.failed = max_failed, 0
    self.retry_step = None
    self._saving = None  # the step that is being saved

  @functools.cached_property
  def orbax(self):
    """Opened when it is first needed: that makes the directory."""
    policies = ocp.training.preservation_policies
    kept: list = [policies.LatestN(self.keep)]
    if self.keep_every:
      kept.append(policies.EveryNSteps(self.keep_every))
    policy: Any = policies.AnyPreservationPolicy(kept)
    context = ocp.Context()
    # Trained floats hardly compress: 8 % less, for 6 times the time of a save,
    # and that of the CPU that trains beside it.
    context.array_options.saving.use_compression = False
    if jax.process_count() > 1:
      context.async_options.timeout_secs = SAVE_SECONDS
    return ocp.training.Checkpointer(
      str(self.directory),
      preservation_policy=policy,
      cleanup_tmp_directories=True,
      context=context,
    )

  def save(self, state, about: dict):
    """Starts saving in the background; waits for the one before.

    Args:
      state: {'params', 'opt', ..., 'step'}.
      about: small JSON to store beside it.

    Raises:
      InputError: saving failed too often.
    """
    step, before = int(state['step']), self._saving
    began = time.monotonic()
    self._wait()
    if (waited := time.monotonic() - began) > LONG_SECONDS:
      self.log(
        f'WARNING: training waited {waited:.0f} s for the save of step '
        f'{before}: the storage is slow; raise checkpoint.every_steps'
      )
    about = dict(about, step=step, digests=digest(state))
    self._saving, self.retry_step = step, None
    try:
      if self.orbax.save_async(step, state, custom_metadata=about) is None:
        raise RuntimeError(f'Orbax did not save step {step}')
    except Exception as error:  # whatever storage raises
      self._failed(step, error)

  def save_and_wait(self, state, about: dict):
    """Saves, and tries again at growing intervals until it is done.

    Raises:
      InputError: saving failed too often.
    """
    while True:
      self.save(state, about)
      if self._wait():
        return
      time.sleep(2 ** (self.failed - 1))

  def look(self):
    """Takes notice of a save in the background that failed meanwhile."""
    if jax.process_count() > 1:
      return  # not all would notice at once; they do when they save again
    if self._saving is not None and not self.orbax.is_saving_in_progress():
      self._wait()

  def _wait(self) -> bool:
    """For the save in the background; whether it, if any, succeeded."""
    step = self._saving
    if step is None:
      return self.failed == 0
    try:
      self.orbax.wait()
    except Exception as error:  # whatever storage raises
      self._failed(step, error)
      return False
    self._saving, self.failed = None, 0
    return True

  def _failed(self, step, error):
    """Says so, and leaves no trace of it."""
    self._saving, self.failed = None, self.failed + 1
    self.retry_step = step + 2 ** (self.failed - 1)
    with contextlib.suppress(Exception):  # it raises the same error again
      self.orbax.close()
    self.__dict__.pop('orbax', None)
    with contextlib.suppress(OSError):
      _remove_temporaries(self.directory)
    problem = (
      f'step {step} could not be saved to {self.directory}: {reason(error)}'
    )
    newest = next(iter(steps(self.directory)), None)
    have = 'no step is saved' if newest is None else f'step {newest} is saved'
    if self.failed >= self.max_failed:
      raise InputError(
        f'{problem}; that was failure {self.failed} in a row, {have}; mend the '
        'storage and run the same command again'
      ) from error
    self.log(
      f'WARNING: {problem}; {have}; training goes on, the next try is after '
      f'step {self.retry_step}'
    )

  def restore(self, abstract, check=lambda about: None):
    """(state, about) of the newest checkpoint that verifies, or None.

    Newer ones, that do not, are renamed to <step>.damaged.

    Args:
      abstract: the state as ShapeDtypeStructs with shardings.
      check: called with `about` before anything is loaded; its InputError
        ends the search.
    """
    found = processes.broadcast_from_primary(steps(self.directory))
    for i, step in enumerate(found):
      state, about, problem = self._attempt(step, abstract, check)
      problems = [p for p in processes.allgather_text(problem) if p]
      if problems:
        self.log(
          f'checkpoint {self.directory / str(step)} passed over: {problems[0]}'
        )
        continue
      self._put_aside(found[:i])
      return state, about
    if found:
      raise InputError(
        f'none of the {len(found)} checkpoints in {self.directory} could be '
        'restored (see above); move them away or use another --workdir'
      )
    return None

  def _attempt(self, step, abstract, check):
    """(state, about, '') or (None, {}, why not)."""
    for seconds in (1, 4, None):  # storage may be away for a while
      try:
        found = self.orbax.metadata(step)
        about = found.custom_metadata or {}
        check(about)
        self._check_parts(step, set(abstract) - set(found.metadata))
        state = self.orbax.load(step, abstract)
        _verify(state, about)
        return state, about, ''
      except InputError:
        raise
      except Exception as error:  # whatever Orbax raises
        if seconds is None or not transient(error):
          return None, {}, reason(error)
        self.log(f'step {step}: {reason(error)}; trying again in {seconds} s')
        time.sleep(seconds)
    raise AssertionError('the last attempt returns')

  def _check_parts(self, step, lacking):
    """Refuses the state of a longjax that kept less."""
    if lacking:
      raise InputError(
        f'checkpoint {self.directory / str(step)} has no '
        f'{", ".join(sorted(lacking))}, as an older longjax wrote it; it '
        'cannot be resumed, but a new --workdir can start with '
        f'--config.weights={self.directory.parent} --config.moments=True'
      )

  def _put_aside(self, damaged):
    """Out of the way of the steps that will be saved again."""
    if not damaged:
      return
    self.orbax.close()
    del self.orbax
    for step in damaged if processes.is_primary() else ():
      path = self.directory / str(step)
      # A listing may be behind: what was deleted need not be moved.
      with contextlib.suppress(FileNotFoundError):
        path.rename(path.with_name(f'{step}.damaged-{time.time_ns()}'))

  def close(self):
    """Waits for what is being saved."""
    if 'orbax' not in self.__dict__:
      return
    try:
      self._wait()
    finally:
      if 'orbax' in self.__dict__:
        self.orbax.close()


def _verify(state, about):
  wrong = [
    path for path, hexes in digest(state).items()
    if about.get('digests', {}).get(path) != hexes
  ]  # fmt: skip
  if wrong:
    raise ValueError(
      f'{len(wrong)} arrays differ from their digest, first {wrong[0]}'
    )


def absolute(directory) -> epath.Path:
  """As Orbax needs it; a gs:// path is one already."""
  path = epath.Path(directory)
  return path if '://' in str(path) else path.resolve()


def steps(directory) -> list[int]:
  """Steps of the finished checkpoints in a directory, newest first."""
  directory = epath.Path(directory)
  names = [p.name for p in directory.iterdir()] if directory.is_dir() else []
  return sorted((int(n) for n in names if n.isdigit()), reverse=True)


def _remove_temporaries(directory):
  """What saves that failed have left."""
  for path in (
    directory.glob('*.orbax-checkpoint-tmp*') if processes.is_primary() else ()
  ):
    path.rmtree()


def _causes(error):
  """The error and what caused it, outermost first."""
  while error is not None:
    yield error
    error = error.__cause__


TRANSIENT = re.compile('UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|50[0234]|429')


def transient(error) -> bool:
  """Whether storage may answer if it is asked again."""
  permanent = FileNotFoundError | PermissionError | IsADirectoryError
  return any(
    (isinstance(e, OSError) and not isinstance(e, permanent))
    or TRANSIENT.search(str(e)[:200])
    for e in _causes(error)
  )


def reason(error) -> str:
  """The first cause, in one line: Orbax wraps it."""
  *_, error = _causes(error)
  text = ' '.join(str(error).split())
  if len(text) > 300:  # what happened is said first or last
    text = f'{text[:100]} ... {text[-200:]}'
  return f'{type(error).__name__}: {text}'


def load_params(path, shardings=None):
  """(params, about) of a run directory or one of its checkpoints.

  Args:
    path: a run directory, its checkpoints/, or one of these.
    shardings: of each parameter; without them the params are numpy arrays.

  Returns:
    The params in float32, whatever they were stored in, factors of LoRA added
    to the weights beside which they are; what was saved beside.

  Raises:
    InputError: nothing there, or it does not verify.
  """
  root, step = find(path)
  with _usable(root, step), ocp.training.Checkpointer(str(root)) as orbax:
    metadata = orbax.metadata(step)
    saved = metadata.metadata['params']
    places = shardings or _host(saved)
    if shardings and 'lora' in saved:  # small: on each device, as a norm is
      factors = jax.tree.map(lambda _: shardings['norm'], saved['lora'])
      places = places | dict(lora=factors)
    params = _load(orbax, step, saved, places)
    about = metadata.custom_metadata or {}
    _verify(dict(params=params), about)
    params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    if 'lora' in params:
      add = functools.partial(
        lora.merged, alpha=about['config']['lora']['alpha']
      )
      params = jax.jit(add, out_shardings=shardings)(params)
  return params if shardings else jax.device_get(params), about


def load_moments(path, abstract):
  """The optimizer state of a run, placed as `abstract`; see `load_params`."""
  root, step = find(path)
  with _usable(root, step), ocp.training.Checkpointer(str(root)) as orbax:
    found = _load_part(orbax, step, dict(opt=abstract))
    _verify(found, orbax.metadata(step).custom_metadata or {})
  return found['opt']


def about(path) -> dict:
  """What was saved beside the newest checkpoint of a run directory."""
  root, step = find(path)
  with _usable(root, step), ocp.training.Checkpointer(str(root)) as orbax:
    return orbax.metadata(step).custom_metadata or {}


@contextlib.contextmanager
def _usable(root, step):
  """Whatever Orbax raises is an InputError that names the checkpoint."""
  try:
    yield
  except Exception as error:
    raise InputError(
      f'checkpoint {root / str(step)} cannot be used: {reason(error)}'
    ) from error


def find(path):
  """(directory of checkpoints, step): the newest of a run directory, or the
  one that `path` is."""
  path = absolute(path)
  root = path / 'checkpoints' if (path / 'checkpoints').is_dir() else path
  if found := steps(root):
    return root, found[0]
  if path.is_dir() and path.name.isdigit():
    return path.parent, int(path.name)
  raise InputError(
    f'{path} holds no checkpoint; a longjax run directory is needed, or '
    'weights of others in a form that launch/convert.py reads'
  )


def _host(saved):
  """A sharding in host memory for each array."""
  place = jax.sharding.SingleDeviceSharding(jax.local_devices(backend='cpu')[0])
  return jax.tree.map(lambda _: place, saved)


def _load(orbax, step, saved, shardings):
  """The params alone, straight into their shardings."""
  abstract = jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    saved,
    shardings,
  )
  return _load_part(orbax, step, dict(params=abstract))['params']


def _load_part(orbax, step, abstract):
  context = ocp.Context()
  context.pytree_options.loading.partial_load = True
  with context:
    return orbax.load(step, abstract)
