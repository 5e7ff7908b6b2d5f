"""Where arrays live: the mesh, parameters over all of it, batches over it.

The mesh has axes `data` (rows) and `seq` (the ring). Parameters and optimizer
state are sharded over both, whatever the axes mean for activations, and are
gathered in the compute dtype where they are used.
"""

import glob
import importlib.util
import math
import os

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from longjax import topology
from longjax.errors import InputError

AXES = ('data', 'seq')
# The logical axes by which a parameter may be cut, best first.
CUT = ('embed', 'mlp', 'vocab', 'heads', 'kv_heads', 'head_dim')


def start(devices: int):
  """Prepares the backend; call before anything else touches jax devices.

  A TPU has the devices it has. A CPU pretends to have `devices`, shared by
  the processes that LONGJAX_COORDINATOR (host:port), LONGJAX_PROCESSES and
  LONGJAX_PROCESS name, if they are set.
  """
  address = os.environ.get('LONGJAX_COORDINATOR')
  processes = int(os.environ.get('LONGJAX_PROCESSES', '1'))
  jax.config.update('jax_num_cpu_devices', max(devices // processes, 1))
  if address:
    number = int(os.environ['LONGJAX_PROCESS'])
    jax.distributed.initialize(address, processes, number)
  elif on_tpu():
    jax.distributed.initialize()  # a worker finds its peers by itself


def on_tpu() -> bool:
  """Whether this machine has TPU chips and the library that drives them."""
  chips = glob.glob('/dev/accel*') + glob.glob('/dev/vfio/[0-9]*')
  wanted = os.environ.get('JAX_PLATFORMS', 'tpu').startswith('tpu')
  return wanted and bool(chips) and bool(importlib.util.find_spec('libtpu'))


def make_mesh(data: int, seq: int, devices=None) -> Mesh:
  """A mesh of all devices, or InputError saying what does not fit.

  Args:
    data: rings, over which the rows of a batch are sharded.
    seq: devices of a ring; neighbours are linked (longjax.topology).
    devices: those to take instead of all that are here.
  """
  devices = jax.devices() if devices is None else devices
  if data < 1 or seq < 1 or data * seq != len(devices):
    raise InputError(
      f'mesh data {data} x seq {seq} needs {data * seq} devices, but '
      f'{len(devices)} are here ({devices[0].device_kind}); set '
      '--config.mesh.data and --config.mesh.seq'
    )
  return Mesh(topology.ring_order(devices, data, seq), AXES)


def rows_axes(mesh) -> tuple[str, ...]:
  """The mesh axes that shard the rows of a batch: all but `seq`."""
  return tuple(a for a in mesh.axis_names if a != 'seq')


def batch_spec(mesh, rows: int) -> P:
  """[batch, seq]; rows that do not divide over the mesh are replicated."""
  axes = rows_axes(mesh)
  divides = rows % math.prod(mesh.shape[a] for a in axes) == 0
  return P(axes if divides else None, 'seq')


def use(weight, dtype, mesh=None):
  """A parameter as the matmul needs it: cast, then whole on each device."""
  weight = weight[...].astype(dtype)
  if mesh is None:
    return weight
  return jax.lax.with_sharding_constraint(weight, NamedSharding(mesh, P()))


def constrain(x, mesh=None):
  """Keeps activations [batch, seq, ...] sharded like their batch."""
  if mesh is None:
    return x
  spec = batch_spec(mesh, x.shape[0])
  return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def params(axes, abstract, mesh):
  """A NamedSharding for each parameter, over all devices where it divides.

  Args:
    axes: tree of tuples, the logical axes of each (llama.axes).
    abstract: tree of ShapeDtypeStructs; may have a leading layer dim more.
    mesh: the devices.
  """
  devices = math.prod(mesh.shape.values())

  def shard(names, leaf):
    names = (None,) * (leaf.ndim - len(names)) + tuple(names)
    spec = [None] * leaf.ndim
    sizes = dict(zip(names, leaf.shape))
    for name in CUT:
      if name in sizes and sizes[name] % devices == 0:
        spec[names.index(name)] = tuple(mesh.axis_names)
        break
    return NamedSharding(mesh, P(*spec))

  is_names = lambda x: isinstance(x, tuple)
  return jax.tree.map(shard, axes, abstract, is_leaf=is_names)


def put(batch, mesh):
  """A host batch as global arrays: each process places what it holds."""

  def place(x):
    sharding = NamedSharding(mesh, batch_spec(mesh, x.shape[0]))
    return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])

  return jax.tree.map(place, batch)
