"""The arrays of an Orbax checkpoint a piece at a time, in little memory.

Orbax saves arrays that are in memory. A model that is not gets its checkpoint
in two steps: Orbax saves the tree with one element for each array; then each
is made anew at its true size in the same database and filled piece by piece,
by TensorStore, which Orbax itself uses. What results is a checkpoint like any
other, which restores on any mesh.
"""

import json
import math
import os
import threading

import numpy as np
import tensorstore
from etils import epath
from orbax.checkpoint import v1 as ocp

from longjax import errors
from longjax.weights import source

CHUNK_BYTES = 1 << 24  # larger buffers cost more in page faults than they save
# float32 is stored as lz4 of its bytes sorted by place: what was bfloat16 is
# half as large, at a third of the time of Orbax's zstd.
BLOSC = dict(cname='lz4', clevel=1, shuffle='shuffle', blocksize=0, typesize=4)
ABOUT = '_CHECKPOINT_METADATA'  # Orbax's file of `custom_metadata`, JSON
# TensorStore would wait for the disk after each piece; `close` waits once.
UNSYNCED = tensorstore.Context(dict(file_io_sync=False))


class Writer:
  """A checkpoint at step 0 whose arrays are still to be filled.

  Attributes:
    chunks: {path: shape} of what is to be written at once: a layer or less.
  """

  def __init__(self, directory, shapes, dtype: str):
    """Makes the checkpoint.

    Args:
      directory: of checkpoints, absolute; made here.
      shapes: {path: shape} of the parameters.
      dtype: of all of them.
    """
    self.step = epath.Path(directory) / '0'
    self.shapes, self.dtype = shapes, np.dtype(dtype)
    tiny = {p: np.zeros((1,) * len(s), dtype) for p, s in shapes.items()}
    with ocp.training.Checkpointer(str(directory)) as orbax:
      orbax.save(0, dict(params=source.tree(tiny)))
    self.chunks = {p: _chunk(p, s, self.dtype) for p, s in shapes.items()}
    self._arrays = {path: self._create(path) for path in shapes}
    self._sums = {path: np.zeros(2, np.uint32) for path in shapes}
    self._lock = threading.Lock()

  def _create(self, path):
    codecs: list = [dict(name='bytes', configuration=dict(endian='little'))]
    if self.dtype == np.float32:
      codecs.append(dict(name='blosc', configuration=BLOSC))
    metadata = dict(
      shape=self.shapes[path],
      data_type=self.dtype.name,
      chunk_grid=dict(
        name='regular', configuration=dict(chunk_shape=self.chunks[path])
      ),
      codecs=codecs,
    )
    spec = dict(_spec(self.step, path), metadata=metadata)
    return tensorstore.open(
      spec, create=True, delete_existing=True, context=UNSYNCED
    ).result()

  def write(self, path, start, part):
    """Fills the rectangle that begins at `start`. Threads may share it."""
    where = tuple(slice(a, a + n) for a, n in zip(start, part.shape))
    writing = self._arrays[path][where].write(part)
    sums = part_sums(part, start, self.shapes[path])
    with self._lock:
      self._sums[path] += sums
    writing.result()

  def close(self, about: dict):
    """Writes what is to be known beside the arrays, and their digests."""
    file = self.step / ABOUT
    metadata = json.loads(file.read_text())
    digests = {f'params/{path}': hexes(s) for path, s in self._sums.items()}
    metadata['custom_metadata'] = dict(about, digests=digests)
    file.write_text(json.dumps(metadata))
    for folder, _, names in os.walk(self.step):
      for name in names:
        with open(os.path.join(folder, name), 'rb') as written:
          os.fsync(written.fileno())


def array(step, path):
  """A parameter of a checkpoint as a TensorStore, not read yet."""
  return tensorstore.open(_spec(step, path), read=True, open=True).result()


def factors(step, about) -> tuple[dict, float]:
  """({path of a weight: its factors of LoRA}, alpha), of a run that has them.

  Args:
    step: directory of the checkpoint.
    about: what was saved beside it.

  Raises:
    InputError: one differs from its digest.
  """
  ask = about.get('config', {}).get('lora', {})
  if not ask.get('rank'):
    return {}, 0.0
  found = {}
  for name in ask['weights']:
    pair = {}
    for factor in ('a', 'b'):
      path = f'lora/{name}/{factor}'
      pair[factor] = whole = array(step, path).read().result()
      sums = part_sums(whole, [0] * whole.ndim, whole.shape)
      verify(step, about, path, sums)
    found[f'layers/{name}'] = pair
  return found, ask['alpha']


def verify(step, about, path, sums):
  """InputError where the sums of an array are not its digest."""
  if about['digests'].get(f'params/{path}') != hexes(sums):
    raise errors.InputError(
      f'checkpoint {step} is damaged: {path} differs from its digest'
    )


def pieces(stored):
  """(start, shape) of the rectangles that an array was written in."""
  chunk = stored.chunk_layout.write_chunk.shape
  grid = [range(0, n, c) for n, c in zip(stored.shape, chunk)]
  for corner in np.ndindex(*map(len, grid)):
    start = [g[i] for g, i in zip(grid, corner)]
    ends = [min(a + c, n) for a, c, n in zip(start, chunk, stored.shape)]
    yield start, [b - a for a, b in zip(start, ends)]


def _spec(step, path) -> dict:
  """Where TensorStore finds a parameter; Orbax's names have dots."""
  base = f'{step}/state/'
  base = base if '://' in base else f'file://{base}'
  name = '.'.join(['params', *path.split('/')])
  return dict(
    driver='zarr3', kvstore=dict(driver='ocdbt', base=base, path=f'{name}/')
  )


def _chunk(path, shape, dtype) -> list[int]:
  """One layer, or as many of its rows as CHUNK_BYTES hold."""
  lead = [1] if path.startswith('layers/') else []
  rows, *rest = shape[len(lead) :]
  most = max(CHUNK_BYTES // (math.prod(rest) * dtype.itemsize), 1)
  if rows > most:  # parts that meshes cut too, if there are such
    even = max(n for n in range(1, most + 1) if rows % n == 0)
    rows = even if even > most // 4 else most
  return [*lead, rows, *rest]


# Digests as those of longjax.checkpoint, of parts, on the host.


def part_sums(part, start, shape) -> np.ndarray:
  """What a part adds to the digest of its array, [2] uint32.

  Args:
    part: numpy array, a rectangle of the whole.
    start: where it begins in the whole, an index per dim.
    shape: of the whole.
  """
  # Dims that are whole make one run of positions with the dim before them.
  run = len(shape)
  while run and part.shape[run - 1] == shape[run - 1]:
    run -= 1
  lead = max(run - 1, 0)
  strides = [math.prod(shape[dim + 1 :]) for dim in range(len(shape))]
  first = sum(a * n for a, n in zip(start, strides))
  bits = np.ascontiguousarray(part).view(f'u{part.dtype.itemsize}')
  total = np.zeros(2, np.uint32)
  for index in np.ndindex(part.shape[:lead]):
    offset = first + sum(i * n for i, n in zip(index, strides))
    total += _run_sums(bits[index].reshape(-1), offset)
  return total


def _run_sums(bits, offset, block=1 << 16) -> np.ndarray:
  """`part_sums` of elements that lie one after the other; in cache."""
  odd, total = 2654435761, np.zeros(2, np.uint32)
  ramp = np.arange(min(block, bits.size), dtype=np.uint32) * np.uint32(odd)
  for i in range(0, bits.size, block):
    values = bits[i : i + block].astype(np.uint32, copy=False)
    weight = ramp[: values.size] + np.uint32((offset + i) * odd % 2**32)
    weight |= np.uint32(1)
    weight *= values
    sums = [values.sum(dtype=np.uint32), weight.sum(dtype=np.uint32)]
    total += np.array(sums, np.uint32)
  return total


def hexes(sums) -> str:
  """A digest as longjax.checkpoint writes it."""
  return f'{int(sums[0]):08x}{int(sums[1]):08x}'
