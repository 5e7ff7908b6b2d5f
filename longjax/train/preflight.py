"""Start-up checks, on all processes alike, before any weight is loaded."""

import contextlib
import functools
import hashlib
import json
import os
import pathlib
import re
import secrets
import shutil
import sys
import time
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from longjax import hbm, slices
from longjax.errors import InputError
from longjax.parallel import processes
from longjax.train import provenance


def same_everywhere(config):
  """Refuses a job whose processes differ in config, code or versions."""
  processes.require_equal(
    'config', digest(json.dumps(config.to_dict(), sort_keys=True))
  )
  processes.require_equal('code', code())
  environment = ('XLA_FLAGS', 'LIBTPU_INIT_ARGS')
  versions = provenance.versions() | dict(
    python=sys.version.split()[0],
    **{k: os.environ[k] for k in environment if k in os.environ},
  )
  processes.require_equal(
    'versions', ' '.join(f'{k}={v}' for k, v in versions.items())
  )
  if jax.default_backend() == 'tpu':
    libtpu_pair()


def digest(text: str) -> str:
  """Twelve hex digits of SHA-256, to compare and to print."""
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def code() -> str:
  """The digest of the source files of longjax on this machine."""
  root = pathlib.Path(__file__).parents[1]
  files = sorted(root.rglob('*.py'))
  parts = (f'{f.relative_to(root)}\0{f.read_text()}' for f in files)
  return digest('\0'.join(parts))


def libtpu_pair():
  """Refuses a libtpu other than the one that this jax was released with."""
  required = metadata.requires('jax') or ()
  wanted = next((r for r in required if r.startswith('libtpu')), '')
  version = re.match(r'libtpu\s*==\s*([\d.]+)', wanted)
  have = provenance.versions().get('libtpu', 'no libtpu')
  if version and not f'{have}.'.startswith(version[1].rstrip('.') + '.'):
    raise InputError(
      f'jax {jax.__version__} needs {wanted.split(";")[0].strip()}, but '
      f"libtpu {have} is installed; pip install 'jax[tpu]=={jax.__version__}'"
    )


def check_collectives(mesh):
  """Refuses devices that compute a wrong sum, or receive a wrong number from
  their neighbour in the ring."""
  axes, ring, size = mesh.axis_names, mesh.shape['seq'], mesh.size
  numbers = np.arange(size, dtype=np.int32)
  x = jax.make_array_from_callback(
    (size,), NamedSharding(mesh, P(axes)), lambda i: numbers[i]
  )

  @jax.jit
  @functools.partial(
    jax.shard_map, mesh=mesh, in_specs=P(axes), out_specs=(P(), P())
  )
  def sum_and_errors(x):
    next_in_ring = [(i, (i + 1) % ring) for i in range(ring)]
    received = jax.lax.ppermute(x, 'seq', next_in_ring)
    expected = (x // ring) * ring + (x - 1) % ring
    wrong = (received != expected).astype(jnp.int32)
    return jax.lax.psum(x, axes), jax.lax.psum(wrong, axes)

  total, wrong = (int(a[0]) for a in jax.device_get(sum_and_errors(x)))
  if total != size * (size - 1) // 2 or wrong:
    raise InputError(
      f'the devices gave wrong results: {total} as the sum of 0 to {size - 1}, '
      f'and {wrong} of {size} received a wrong number from their neighbour in '
      'the ring; restart on another slice'
    )


def compiled(lowered, device_kind: str):
  """The compiled step; refuses one that leaves too little of a chip's memory,
  by the rule of launch/plan.py."""
  chip = slices.chip(device_kind)
  if chip is None:
    return lowered.compile()
  try:
    step = lowered.compile()
    need = hbm.memory(step.memory_analysis(), chip)['peak_gib']
  except jax.errors.JaxRuntimeError as error:
    step, need = None, hbm.out_of_memory(error, chip)['needed_gib']
  if step is None or not hbm.fits(need, chip):
    raise InputError(
      f'the train step needs {need:.2f} GiB of the {chip.hbm / hbm.GIB:.2f} '
      f'GiB of a {chip.name}, of which {slices.HBM_MARGIN:.0%} must stay free; '
      'raise mesh.seq or train.micro_batches, lower train.loss_chunk, or '
      'choose another model.remat'
    )
  return step


def shared(directory):
  """Refuses a directory that is not one and the same on all hosts."""
  if jax.process_count() == 1:
    return

  def write() -> str:
    name = f'.shared-{secrets.token_hex(4)}'
    (directory / name).write_text('')
    return name

  probe = directory / processes.from_primary(write)

  def appears():
    for seconds in (0, 1, 2, 4, 8):  # where listings are kept for a while
      time.sleep(seconds)
      if probe.exists():
        return
    raise InputError(
      f'{directory} is not the same directory on all hosts: use one that they '
      'share, or gs://BUCKET/RUN, as --workdir'
    )

  try:
    processes.raise_on_all(appears)
  finally:
    if processes.is_primary():
      probe.unlink(missing_ok=True)


def storage(directory, state, count: int):
  """Refuses a directory that cannot take so many checkpoints.

  Args:
    directory: of checkpoints, an epath.Path.
    state: arrays or ShapeDtypeStructs of one checkpoint.
    count: checkpoints that must fit.
  """
  probe = directory / f'.probe-{jax.process_index()}-{os.getpid()}'
  try:
    directory.mkdir(parents=True, exist_ok=True)
    probe.write_text('written')
    moved = probe.rename(directory / f'{probe.name}-moved')
    moved.unlink()
  except Exception as error:  # local or remote: whatever its library raises
    with contextlib.suppress(Exception):
      probe.unlink()
    raise InputError(
      f'{directory}: checkpoints cannot be written there: {error}'
    ) from None
  if '://' in str(directory):
    return
  each = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
  need = count * each
  free = shutil.disk_usage(directory).free
  if free < need:
    which = 'a checkpoint needs' if count == 1 else f'{count} checkpoints need'
    raise InputError(
      f'{directory}: {free / 2**30:.2f} GiB are free, but {which} '
      f'{need / 2**30:.2f}; free space, or use another --workdir'
    )
