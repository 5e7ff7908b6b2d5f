"""Saving and restoring training state with Orbax, and proof that it is whole.

Orbax notices a damaged file only sometimes, so each array's digest is stored
beside it and compared after loading; the newest checkpoint that verifies wins.
The digest does not depend on the mesh.
"""

import functools
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from longjax.errors import InputError

BITS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def _array_digest(x):
  """[2] uint32: sum of the bits, and sum weighted by an odd position."""
  bits = jax.lax.bitcast_convert_type(x, BITS[x.dtype.itemsize])
  bits = bits.astype(jnp.uint32)
  position = jnp.zeros(x.shape, jnp.uint32)
  for dim, size in enumerate(x.shape):
    along = jax.lax.broadcasted_iota(jnp.uint32, x.shape, dim)
    position = position * jnp.uint32(size) + along
  weight = (position * jnp.uint32(2654435761)) | jnp.uint32(1)
  return jnp.stack([
    bits.sum(dtype=jnp.uint32), (bits * weight).sum(dtype=jnp.uint32)
  ])  # fmt: skip


_tree_digest = jax.jit(lambda tree: jax.tree.map(_array_digest, tree))


def digest(tree) -> dict[str, str]:
  """{path: hex}: equal if and, but for chance, only if the arrays are."""
  found = jax.device_get(_tree_digest(tree))
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): (
      f'{int(sums[0]):08x}{int(sums[1]):08x}'
    )
    for path, sums in jax.tree.leaves_with_path(
      found, is_leaf=lambda x: isinstance(x, np.ndarray)
    )
  }


class Checkpoints:
  """The checkpoints of one run, in `directory`/<step>."""

  def __init__(self, directory, keep: int, log=print):
    self.directory = pathlib.Path(directory).resolve()
    self.keep, self.log = keep, log

  @functools.cached_property
  def orbax(self):
    """Opened when it is first needed: that makes the directory."""
    policies = ocp.training.preservation_policies
    return ocp.training.Checkpointer(
      str(self.directory),
      preservation_policy=policies.LatestN(self.keep),  # pyright: ignore
      cleanup_tmp_directories=True,
    )

  def save(self, state, about: dict):
    """Starts saving in the background; waits for the one before.

    Args:
      state: {'params', 'opt', 'step'}.
      about: small JSON to store beside it.
    """
    step = int(state['step'])
    self.orbax.wait()
    about = dict(about, digests=digest(state))
    if self.orbax.save_async(step, state, custom_metadata=about) is None:
      raise RuntimeError(f'Orbax did not save step {step}')

  def restore(self, abstract):
    """(state, about) of the newest checkpoint that verifies, or None.

    Newer ones, that do not, are renamed to <step>.damaged.

    Args:
      abstract: the state as ShapeDtypeStructs with shardings.
    """
    found = steps(self.directory)
    for i, step in enumerate(found):
      try:
        state = self.orbax.load(step, abstract)
        about = self.orbax.metadata(step).custom_metadata or {}
        _verify(state, about)
      except Exception as error:  # whatever Orbax raises: try the one before
        self.log(
          f'checkpoint {self.directory / str(step)} passed over: '
          f'{reason(error)}'
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

  def _put_aside(self, damaged):
    """Out of the way of the steps that will be saved again."""
    if not damaged:
      return
    self.orbax.close()
    del self.orbax
    for step in damaged if jax.process_index() == 0 else ():
      path = self.directory / str(step)
      path.rename(path.with_name(f'{step}.damaged-{time.time_ns()}'))

  def close(self):
    """Waits for what is being saved."""
    if 'orbax' not in self.__dict__:
      return
    self.orbax.wait()
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


def steps(directory) -> list[int]:
  """Steps of the finished checkpoints in a directory, newest first."""
  directory = pathlib.Path(directory)
  names = [p.name for p in directory.iterdir()] if directory.is_dir() else []
  return sorted((int(n) for n in names if n.isdigit()), reverse=True)


def reason(error) -> str:
  """The first cause, in one line: Orbax wraps it."""
  while error.__cause__ is not None:
    error = error.__cause__
  text = ' '.join(str(error).split())
  return f'{type(error).__name__}: {text[:200]}'


def load_params(path, shardings=None):
  """(params, about) of a run directory or one of its checkpoints.

  Args:
    path: a run directory, its checkpoints/, or one of these.
    shardings: of each parameter; without them the params are numpy arrays.

  Returns:
    The params in float32, whatever they were stored in; what was saved beside.

  Raises:
    InputError: nothing there, or it does not verify.
  """
  root, step = find(path)
  try:
    with ocp.training.Checkpointer(str(root)) as orbax:
      metadata = orbax.metadata(step)
      saved = metadata.metadata['params']
      params = _load(orbax, step, saved, shardings or _host(saved))
      about = metadata.custom_metadata or {}
      _verify(dict(params=params), about)
      params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
  except Exception as error:  # whatever Orbax raises
    raise InputError(
      f'checkpoint {root / str(step)} cannot be used: {reason(error)}'
    ) from error
  return params if shardings else jax.device_get(params), about


def about(path) -> dict:
  """What was saved beside the newest checkpoint of a run directory."""
  root, step = find(path)
  try:
    with ocp.training.Checkpointer(str(root)) as orbax:
      return orbax.metadata(step).custom_metadata or {}
  except Exception as error:  # whatever Orbax raises
    raise InputError(
      f'checkpoint {root / str(step)} cannot be used: {reason(error)}'
    ) from error


def find(path):
  """(directory of checkpoints, step): the newest of a run directory, or the
  one that `path` is."""
  path = pathlib.Path(path).resolve()
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
  context = ocp.Context()
  context.pytree_options.loading.partial_load = True
  with context:
    return orbax.load(step, dict(params=abstract))['params']
