"""Where arrays live: the mesh, parameters over all of it, batches over it.

The mesh has axes `data` (rows) and `seq` (the ring). Matrices of parameters and
of optimizer state are sharded over both, along dims that these divide; `fsdp`
gathers them where they are used. A new parameter needs nothing here: its name
and shape decide.
"""

import glob
import importlib.util
import math
import os

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from longjax.errors import InputError
from longjax.parallel import processes, topology

AXES = ('data', 'seq')


def start(devices: int, compiled: str | os.PathLike = ''):
  """Prepares the backend; call before anything else touches jax devices.

  On a CPU `devices` are simulated, divided among the processes of the job
  (processes.job_from_environment).

  Args:
    devices: of the mesh.
    compiled: directory of compiled programs, maybe gs://, unless
      JAX_COMPILATION_CACHE_DIR is set.

  Raises:
    InputError: the variables LONGJAX_... describe no job.
  """
  if compiled and not os.environ.get('JAX_COMPILATION_CACHE_DIR'):
    jax.config.update('jax_compilation_cache_dir', str(compiled))
  job = processes.job_from_environment()
  jax.config.update('jax_num_cpu_devices', max(devices // job.processes, 1))
  if not on_tpu():
    _allow_slow_collectives()
    if importlib.util.find_spec('libtpu'):
      # libtpu is here to plan with; without a TPU it warns at length.
      platforms = os.environ.get('JAX_PLATFORMS') or 'cpu'
      jax.config.update('jax_platforms', platforms)
  processes.join(job, on_tpu())


def _allow_slow_collectives():
  """Simulated devices share a few cores and may wait long for each other.

  XLA would end the process when one is 40 seconds late in a collective.
  """
  flags = os.environ.get('XLA_FLAGS', '')
  for name, seconds in (('warn_stuck', 600), ('terminate', 7200)):
    flag = f'--xla_cpu_collective_call_{name}_timeout_seconds'
    if flag not in flags:
      flags += f' {flag}={seconds}'
  os.environ['XLA_FLAGS'] = flags.strip()


def on_tpu() -> bool:
  """Whether this machine has TPU chips and libtpu."""
  chips = glob.glob('/dev/accel*') + glob.glob('/dev/vfio/[0-9]*')
  wanted = os.environ.get('JAX_PLATFORMS', 'tpu').startswith('tpu')
  return wanted and bool(chips) and bool(importlib.util.find_spec('libtpu'))


def make_mesh(data: int, seq: int, devices=None) -> Mesh:
  """A mesh of all devices, or InputError where they do not fit.

  Args:
    data: rings, over which the rows of a batch are sharded.
    seq: devices of a ring; neighbours are linked (longjax.parallel.topology).
    devices: None is all of this job.
  """
  devices = jax.devices() if devices is None else devices
  if data < 1 or seq < 1 or data * seq != len(devices):
    raise InputError(
      f'mesh data {data} x seq {seq} needs {data * seq} devices, but '
      f'{len(devices)} exist ({devices[0].device_kind}); set '
      '--config.mesh.data and --config.mesh.seq'
    )
  return Mesh(topology.ring_order(devices, data, seq), AXES)


def rows_axes(mesh) -> tuple[str, ...]:
  """The mesh axes that shard the rows of a batch: all but `seq`.

  An axis of one device shards nothing and is left out.
  """
  return tuple(a for a, n in mesh.shape.items() if a != 'seq' and n > 1)


def batch_spec(mesh, rows: int) -> P:
  """[batch, seq]; rows that do not divide over the mesh are replicated."""
  axes = rows_axes(mesh)
  divides = rows % math.prod(mesh.shape[a] for a in axes) == 0
  return P(axes if axes and divides else None, 'seq')


def sharded_dims(shape, mesh) -> dict[str, int]:
  """{mesh axis: dim of a weight that it shards}: the first that it divides.

  `seq` shards before the axes of the rows; an axis that divides no dim leaves
  the weight replicated along it. Vectors (norms) are not sharded.
  """
  left, dims = list(shape), {}
  for axis in ('seq', *rows_axes(mesh)) if len(shape) > 1 else ():
    n = mesh.shape[axis]
    dim = next((d for d, size in enumerate(left) if size % n == 0), None)
    if dim is not None:
      left[dim] //= n
      dims[axis] = dim
  return dims


def spec(shape, mesh) -> P:
  """The PartitionSpec of a weight of this shape, see `sharded_dims`."""
  dims = sharded_dims(shape, mesh)
  along = lambda dim: tuple(axis for axis in dims if dims[axis] == dim)
  return P(*(along(dim) or None for dim in range(len(shape))))


def params(abstract, mesh):
  """A NamedSharding for each parameter.

  Args:
    abstract: tree of arrays or ShapeDtypeStructs; those under 'layers' have a
      leading dim of layers, which is not sharded since a scan runs along it.
    mesh: the devices.
  """

  def shard(path, leaf):
    if path[0].key == 'layers':
      return NamedSharding(mesh, P(None, *spec(leaf.shape[1:], mesh)))
    return NamedSharding(mesh, spec(leaf.shape, mesh))

  return jax.tree.map_with_path(shard, abstract)


def local_slices(shape, mesh) -> list[tuple[slice, list[slice]]]:
  """The parts of a batch that the devices of this process hold.

  Args:
    shape: (batch, seq).
    mesh: the devices.

  Returns:
    [(rows, [columns, ...])], all slices with a start.
  """
  parts, sharding = {}, NamedSharding(mesh, batch_spec(mesh, shape[0]))
  for index in sharding.addressable_devices_indices_map(tuple(shape)).values():
    assert index is not None  # jax's type for devices elsewhere
    rows, columns = (i.indices(n)[:2] for i, n in zip(index, shape))
    parts.setdefault(rows, set()).add(columns)
  return [
    (slice(*rows), [slice(*c) for c in sorted(columns)])
    for rows, columns in sorted(parts.items())
  ]


def make_global(parts, shape, mesh):
  """The parts of `local_slices` as one global Batch.

  Args:
    parts: a Batch of arrays for each (rows, columns) of `local_slices`.
    shape: (batch, seq) of the whole.
    mesh: the devices.
  """
  where = [
    (rows.start, columns.start)
    for rows, cuts in local_slices(shape, mesh) for columns in cuts
  ]  # fmt: skip
  sharding = NamedSharding(mesh, batch_spec(mesh, shape[0]))

  def place(*arrays):
    by_start = dict(zip(where, arrays, strict=True))

    def read(index):
      return by_start[index[0].start or 0, index[1].start or 0]

    return jax.make_array_from_callback(shape, sharding, read)

  return jax.tree.map(place, *parts)


def put(batch, mesh):
  """A host batch as global arrays: each process places what it holds."""

  def place(x):
    sharding = NamedSharding(mesh, batch_spec(mesh, x.shape[0]))
    return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])

  return jax.tree.map(place, batch)
