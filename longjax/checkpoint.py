"""Saves, verifies and restores training state with Orbax.

Orbax does not detect every damaged file, so the digest of each array is saved
beside it and compared after loading; the newest checkpoint that verifies is
used. The digest does not depend on the mesh.
"""

import contextlib
import functools
import logging
import re
import sys
import threading
import time
import warnings
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax._src import distributed
from orbax.checkpoint import v1 as ocp
from orbax.checkpoint._src.futures import synchronization

from longjax import digest, json_text, lora, storage
from longjax.errors import InputError
from longjax.parallel import processes

# Orbax logs each failure several times with its stack, and warns of checkpoints
# that are plain files; asyncio logs TensorStore's. Our line has the cause.
for _name in ('absl', None):
  logging.getLogger(_name).addFilter(
    lambda record: 'orbax' not in record.pathname
  )
warnings.filterwarnings('ignore', '.*was never awaited', RuntimeWarning)
logging.getLogger('asyncio').addFilter(
  lambda record: 'tensorstore' not in record.getMessage()
)


def _show_unraisable(found, show=sys.unraisablehook):
  """Not what TensorStore's threads meet when Orbax's failed save is over."""
  if str(found.exc_value) != 'Event loop is closed':
    show(found)


sys.unraisablehook = _show_unraisable

# With several processes: how long a save waits for one that cannot write,
# before it counts as failed.
SAVE_SECONDS = 600
# Of what is saved beside the arrays.
METADATA: dict[str, type] = dict(
  model=dict, config=dict, source=dict, digests=dict, tokenizer=str, data=str,
  step=int, tokens=int, family=str,
)  # fmt: skip
LONG_SECONDS = 5  # a save that waits longer for the one before is a warning


class Checkpoints:
  """The checkpoints of one run, in `directory`/<step>.

  A save that fails leaves the earlier ones unchanged, and training continues;
  the retries come 1, 2, 4 ... steps later, until too many failed in a row.

  Attributes:
    retry_step: when to retry a save that failed; else None.
  """

  def __init__(
    self, directory, keep: int, log=print, *, keep_every=0, max_failed=5
  ):
    """Opens nothing yet.

    Args:
      directory: local or gs://.
      keep: how many of the newest to keep.
      log: called with lines about failures and damaged checkpoints.
      keep_every: multiples of so many steps are kept for good; 0 is none.
      max_failed: saves in a row that may fail.

    Raises:
      InputError: Orbax would lose checkpoints in a directory of this name.
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
    self._response = None  # Orbax's, which has threads until it is asked

  @functools.cached_property
  def orbax(self):
    """Opened when it is first needed, which creates the directory."""
    policies = ocp.training.preservation_policies
    kept: list = [policies.LatestN(self.keep)]
    if self.keep_every:
      kept.append(policies.EveryNSteps(self.keep_every))
    policy: Any = policies.AnyPreservationPolicy(kept)
    context = ocp.Context()
    # Trained floats hardly compress: 8 % less, for 6 times the time of a save,
    # taken from the CPU that trains meanwhile.
    context.array_options.saving.use_compression = False
    if jax.process_count() > 1:
      context.async_options.timeout_secs = SAVE_SECONDS
    return ocp.training.Checkpointer(
      str(self.directory),
      preservation_policy=policy,
      cleanup_tmp_directories=True,
      context=context,
    )

  def save(self, state, metadata: dict):
    """Starts saving in the background; waits for the save before.

    Args:
      state: {'params', 'opt', ..., 'step'}.
      metadata: small JSON to store beside it.

    Raises:
      InputError: too many saves in a row failed.
    """
    step, before = int(state['step']), self._saving
    began = time.monotonic()
    self._wait()
    if (waited := time.monotonic() - began) > LONG_SECONDS:
      self.log(
        f'WARNING: training waited {waited:.0f} s for the save of step '
        f'{before}: the storage is slow; raise checkpoint.every_steps'
      )
    metadata = dict(metadata, step=step, digests=digest.of_tree(state))
    self._saving, self.retry_step = step, None
    problem = ''
    try:
      self._response = self.orbax.save_async(
        step, state, custom_metadata=metadata
      )
      if self._response is None:
        problem = f'Orbax did not save step {step}'
    except Exception as error:  # whatever storage raises
      problem = reason(error)
    if problem := first(processes.allgather_text(problem)):
      self._failed(step, problem)

  def save_and_wait(self, state, metadata: dict):
    """Saves, and retries after 1, 2, 4 ... seconds until it succeeds.

    Raises:
      InputError: too many saves in a row failed.
    """
    self.save(state, metadata)
    while not self._wait():
      time.sleep(2 ** (self.failed - 1))
      self.save(state, metadata)

  def poll(self):
    """Records the result of a background save that has ended."""
    if jax.process_count() > 1:
      return  # all processes must record it at once: at the next save
    if self._saving is not None and not self.orbax.is_saving_in_progress():
      self._wait()

  def _wait(self, agree=True) -> bool:
    """Waits for the background save; whether the last save succeeded.

    Args:
      agree: with all processes: one that retried alone would wait for them.
    """
    if self._saving is None:
      return self.failed == 0
    response, self._response = self._response, None
    problem = ''
    try:
      if response is not None:
        response.result()
      self.orbax.wait()
    except Exception as error:  # whatever storage raises
      problem = reason(error)
    if agree:
      problem = first(processes.allgather_text(problem))
    if problem and agree and self._is_complete(self._saving):
      self.log(f'WARNING: step {self._saving} is saved, but then: {problem}')
      self._close_orbax()
    elif problem:
      self._failed(self._saving, problem)
      return False
    if self.failed:
      _remove_temporaries(self.directory)
    self._saving, self.failed = None, 0
    return True

  def _is_complete(self, step) -> bool:
    """Whether a step is saved; what fails after that deletes an old one."""

    def complete():
      with contextlib.suppress(Exception):
        return (self.directory / str(step) / 'commit_success.txt').exists()
      return False

    return processes.from_primary(complete)

  def _close_orbax(self):
    with contextlib.suppress(Exception):  # it raises the same error again
      self.orbax.close()
    self.__dict__.pop('orbax', None)

  def _failed(self, step, problem: str):
    """Removes what a failed save left, and logs it; or InputError."""
    self._saving, self.failed = None, self.failed + 1
    self.retry_step = step + 2 ** (self.failed - 1)
    self._close_orbax()
    _remove_temporaries(self.directory)
    problem = f'step {step} could not be saved to {self.directory}: {problem}'
    have = 'what is saved cannot be listed'
    with contextlib.suppress(Exception):
      newest = next(iter(steps(self.directory)), None)
      have = 'no step is saved' if newest is None else f'step {newest} is saved'
    if self.failed >= self.max_failed:
      raise InputError(
        f'{problem}; that was failure {self.failed} in a row, {have}; repair '
        'the storage and run the same command again'
      )
    self.log(
      f'WARNING: {problem}; {have}; training continues, the next try is after '
      f'step {self.retry_step}'
    )

  def restore(self, abstract, check=lambda metadata: None):
    """Restores the newest checkpoint that verifies.

    Newer ones, which do not, are renamed to <step>.damaged-<time>.

    Args:
      abstract: the state as ShapeDtypeStructs with shardings.
      check: called with the metadata before arrays are loaded; its InputError
        ends the search.

    Returns:
      (state, metadata); None if there is no checkpoint.

    Raises:
      InputError: of `check`, or none of the checkpoints can be used.
    """
    saved = processes.from_primary(lambda: steps(self.directory))
    for i, step in enumerate(saved):
      try:
        restored = self._restore(step, abstract, check)
      except InputError:
        raise
      except Exception as error:  # the same on all processes
        self.log(
          f'checkpoint {self.directory / str(step)} passed over: '
          f'{reason(error)}'
        )
      else:
        self._rename_damaged(saved[:i])
        return restored
    if saved:
      raise InputError(
        f'none of the {len(saved)} checkpoints in {self.directory} could be '
        'restored (see above); move them away or use another --workdir'
      )
    return None

  def _restore(self, step, abstract, check):
    """(state, metadata) of a step, checked and verified."""
    directory = self.directory / str(step)
    arrays, metadata = read_on_all(lambda: _description(directory), self.log)
    check(metadata)
    if missing := sorted(set(abstract) - set(arrays)):
      raise InputError(
        f'checkpoint {directory} has no '
        f'{", ".join(missing)}, as an older longjax wrote it; it '
        'cannot be resumed, but a new --workdir can start with '
        f'--config.weights={self.directory.parent} --config.moments=True'
      )
    state = read_on_all(lambda: load_local(directory, abstract), self.log)
    _verify(state, metadata)
    return state, metadata

  def _rename_damaged(self, damaged):
    """Makes room for the steps that will be saved again."""

    def rename():
      for step in damaged:
        path = self.directory / str(step)
        # A listing may be out of date: what is gone needs no new name.
        with contextlib.suppress(FileNotFoundError):
          path.rename(path.with_name(f'{step}.damaged-{time.time_ns()}'))

    if damaged:
      processes.from_primary(rename)

  def close(self):
    """Waits for the save in the background."""
    try:
      self._wait(agree=False)  # others may not come here
    finally:
      if 'orbax' in self.__dict__:
        self.orbax.close()


class UnusableError(Exception):
  """A checkpoint cannot be read or does not verify, on some process."""


def read_on_all(action, log=lambda _: None) -> Any:
  """The result of reading something, on every process.

  One that fails alone would leave the others waiting for it. Where storage was
  away for a while, all read again.

  Raises:
    UnusableError: why not, on every process.
  """
  for seconds in (1, 4, 0):
    result, problem, lasts = None, '', ''
    try:
      result = action()
    except Exception as error:  # whatever Orbax raises
      problem, lasts = reason(error), '' if transient(error) else 'yes'
    problem = first(processes.allgather_text(problem))
    if not problem:
      return result
    if first(processes.allgather_text(lasts)) or not seconds:
      raise UnusableError(problem)
    log(f'{problem}; trying again in {seconds} s')
    time.sleep(seconds)


def first(texts: list[str]) -> str:
  """The first that is not empty, or ''."""
  return next(filter(None, texts), '')


def _description(directory) -> tuple[Any, dict]:
  """(shapes and dtypes of the arrays of a checkpoint, the metadata beside)."""
  saved = ocp.metadata(directory)
  if saved.metadata is None:
    raise ValueError('the description of its arrays is damaged')
  return saved.metadata, _checked(saved.custom_metadata)


def load_local(directory, abstract, partial=False):
  """The arrays of a checkpoint, of which this process reads its shards.

  With its default options Orbax waits for the other processes at the end: for
  five minutes, where one could not read its own.
  """
  context = ocp.Context()
  context.pytree_options.loading.partial_load = partial
  if jax.process_count() > 1:
    here = distributed.global_state.process_id  # not always jax's index
    context.multiprocessing_options.primary_host = here
    context.multiprocessing_options.active_processes = {here}
  operations = synchronization.OperationIdGenerator
  before = operations.get_current_operation_id()
  try:
    with context:
      return ocp.load(directory, abstract)
  finally:
    # It counts, by which processes later find each other at a save; not where
    # it fails early.
    if operations.get_current_operation_id() == before:
      operations.next_operation_id()


def _verify(state, metadata):
  """UnusableError if an array differs from its digest."""
  expected = metadata.get('digests', {})
  wrong = [k for k, v in digest.of_tree(state).items() if expected.get(k) != v]
  if wrong:
    raise UnusableError(
      f'{len(wrong)} arrays differ from their digest, first {wrong[0]}'
    )


def absolute(directory) -> epath.Path:
  """An absolute path, as Orbax needs it; a gs:// path is one already."""
  remote = storage.is_remote(directory)
  path = epath.Path(directory)
  return path if remote else path.resolve()


def steps(directory) -> list[int]:
  """Steps of the finished checkpoints in a directory, newest first."""
  directory = epath.Path(directory)
  names = [p.name for p in directory.iterdir()] if directory.is_dir() else []
  return sorted((int(n) for n in names if n.isdigit()), reverse=True)


def _remove_temporaries(directory):
  """Removes what failed saves have left, on storage that may still fail.

  Their threads may write a while yet, so it looks again after a removal.
  """
  for _ in range(20 if processes.is_primary() else 0):
    found = []
    with contextlib.suppress(OSError):
      found = list(directory.glob('*.orbax-checkpoint-tmp*'))
      for path in found:
        path.rmtree()
    if not found:
      return
    threading.Event().wait(0.1)


def _causes(error):
  """The error and what caused it, outermost first."""
  while error is not None:
    yield error
    error = error.__cause__


TRANSIENT = re.compile('UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|50[0234]|429')


def transient(error) -> bool:
  """Whether a retry may succeed: storage that does not answer."""
  permanent = FileNotFoundError | PermissionError | IsADirectoryError
  return any(
    (isinstance(e, OSError) and not isinstance(e, permanent))
    or TRANSIENT.search(str(e)[:200])
    for e in _causes(error)
  )


def reason(error) -> str:
  """The first cause, which Orbax wraps, in one line."""
  *_, error = _causes(error)
  if isinstance(error, UnusableError):
    return str(error)
  text = ' '.join(str(error).split())
  if len(text) > 300:  # what happened stands first or last
    text = f'{text[:100]} ... {text[-200:]}'
  return f'{type(error).__name__}: {text}'


def load_params(path, shardings=None):
  """Loads the params of a run directory or one of its checkpoints.

  Args:
    path: a run directory, its checkpoints/, or one of these.
    shardings: of each parameter; without them the params are numpy arrays.

  Returns:
    (params, metadata): float32, whatever they were stored in, LoRA's factors
    added to their weights; what was saved beside.

  Raises:
    InputError: there is no checkpoint, or it does not verify.
  """
  with _opened(path) as directory:
    arrays, metadata = read_on_all(lambda: _description(directory))
    abstract = arrays['params']
    host = jax.sharding.SingleDeviceSharding(
      jax.local_devices(backend='cpu')[0]
    )
    place = shardings or jax.tree.map(lambda _: host, abstract)
    if shardings and 'lora' in abstract:  # small: replicated, as a norm is
      factors = jax.tree.map(lambda _: shardings['norm'], abstract['lora'])
      place = place | dict(lora=factors)
    abstract = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      abstract,
      place,
    )
    params = _load_part(directory, metadata, dict(params=abstract))['params']
    params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    if 'lora' in params:
      add = functools.partial(
        lora.merged, alpha=metadata['config']['lora']['alpha']
      )
      params = jax.jit(add, out_shardings=shardings)(params)
  return params if shardings else jax.device_get(params), metadata


def load_moments(path, abstract):
  """The optimizer state of a run, placed as `abstract`; see `load_params`."""
  with _opened(path) as directory:
    _, metadata = read_on_all(lambda: _description(directory))
    return _load_part(directory, metadata, dict(opt=abstract))['opt']


def metadata(path) -> dict:
  """What was saved beside the newest checkpoint of a run directory."""
  root, step = find(path)
  # Orbax would start the devices, whose number the metadata may decide.
  text, file = b'', root / str(step) / '_CHECKPOINT_METADATA'
  with contextlib.suppress(OSError):
    text = storage.content(file) if storage.is_safe_file(file) else b''
  with contextlib.suppress(ValueError, KeyError, TypeError):
    return _checked(json_text.loads(text)['custom_metadata'])
  with _opened(path) as directory:  # says what is wrong with it
    return _description(directory)[1]


def _checked(metadata) -> dict:
  """What is saved beside the arrays; ValueError where it is damaged."""
  metadata = metadata or {}
  if not isinstance(metadata, dict):
    raise ValueError(f'damaged: its metadata are {metadata!r:.80}')
  for name, kind in METADATA.items():
    value = metadata.get(name)
    if value is not None and not isinstance(value, kind):
      raise ValueError(f'damaged: {name} of its metadata is {value!r:.80}')
  return metadata


@contextlib.contextmanager
def _opened(path):
  """The checkpoint of a path; what is raised inside is an InputError that
  names it."""
  root, step = find(path)
  directory = root / str(step)
  storage.check_files(directory)
  try:
    yield directory
  except Exception as error:
    raise InputError(
      f'checkpoint {directory} cannot be used: {reason(error)}'
    ) from error


def find(path):
  """(directory of checkpoints, step): the newest of a run directory, or the
  one that `path` is.

  Raises:
    InputError: there is none.
  """
  path = absolute(path)
  root = path / 'checkpoints' if (path / 'checkpoints').is_dir() else path
  if saved := steps(root):
    return root, saved[0]
  if path.is_dir() and path.name.isdigit():
    return path.parent, int(path.name)
  raise InputError(
    f'{path} holds no checkpoint; a longjax run directory is needed, or '
    'weights of others in a form that launch/convert.py reads'
  )


def _load_part(directory, metadata, abstract):
  """A part of the saved state, verified."""
  part = read_on_all(lambda: load_local(directory, abstract, partial=True))
  _verify(part, metadata)
  return part
