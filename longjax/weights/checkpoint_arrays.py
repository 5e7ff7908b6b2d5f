"""The arrays of a checkpoint one piece at a time, in little memory.

Orbax saves arrays that are in memory. A model that is not in memory is written
in two steps: TensorStore writes each array as Zarr 3, in chunks; then Orbax
saves a tree with one element for each array, and its files are replaced by
those of TensorStore. The result restores on any mesh, like any checkpoint.

Inside a chunk the dims lie in the order of Hugging Face's tensors, so that an
import copies rows. Nothing is compressed: lz4 costs more than writing.
"""

import contextlib
import math
import os
import re
import threading

import numpy as np
import tensorstore
from etils import epath
from orbax.checkpoint import v1 as ocp

from longjax import digest, errors
from longjax.weights import names, tensors

CHUNK_BYTES = 1 << 24  # a file, and read whole also for a part of it
ALIGNMENT = 64  # bytes
MIN_CHUNK_COLUMNS = 128  # of a stored matrix: fewer take twice as long


class Writer:
  """A checkpoint at step 0 that is written tensor by tensor."""

  def __init__(self, directory, fields, dtype: str):
    """Declares the arrays.

    Args:
      directory: of checkpoints, absolute; made here.
      fields: of a llama.Llama.
      dtype: of all parameters.

    Raises:
      InputError: TensorStore would take the name of the directory for another.
    """
    if '\\' in str(directory):
      raise errors.InputError(
        f'{directory}: no checkpoint can be where a name has \\; name another '
        'directory'
      )
    self.directory = epath.Path(directory)
    self.shapes, self.dtype = names.shapes(fields), np.dtype(dtype)
    self._arrays = {row.path: self._declare(row) for row in names.rows(fields)}
    self._sums = {path: np.zeros(2, np.uint32) for path in self.shapes}
    self._lock, self._local = threading.Lock(), threading.local()

  def _declare(self, row):
    """Makes an array, still without chunks."""
    shape = self.shapes[row.path]
    lead = len(shape) - len(row.dims)  # 1 in front of the layers' dims
    order = [*range(lead), *(lead + dim for dim in names.order(row))]
    metadata = dict(
      shape=shape,
      data_type=self.dtype.name,
      chunk_grid=_named(
        'regular', chunk_shape=[1] * lead + _chunk(shape[lead:], self.dtype)
      ),
      codecs=[
        _named('transpose', order=order), _named('bytes', endian='little')
      ],
    )  # fmt: skip
    place = self.directory / 'arrays' / _file_name(row.path)
    spec = dict(driver='zarr3', kvstore=_store(place), metadata=metadata)
    with _system_errors():
      return tensorstore.open(spec, create=True).result()

  def write(self, row: names.Row, layer, matrix, origin):
    """Writes one layer. Threads may share the writer.

    Args:
      layer: its number; None where the row is not in layers.
      matrix: [rows, columns], as Hugging Face stores it.
      origin: (name, path) of the tensor, for errors.

    Raises:
      InputError: it holds NaN or infinity.
    """
    array = self._arrays[row.path]
    if layer is not None:
      array = array[layer]
    first_dim, *rest = array.shape
    # Our first dim, which chunks cut, runs along rows or columns of `matrix`.
    transposed = names.order(row)[0] != 0
    rows = matrix.T if transposed else matrix
    each = len(rows) // first_dim  # rows to an index of the first dim
    step = _chunk(array.shape, self.dtype)[0]
    sums = np.zeros(2, np.uint32)
    for start in range(0, first_dim, step):
      part = rows[start * each : (start + step) * each]
      part = part.T if transposed else part
      block = self._block(part.shape)
      tensors.copy(block, part, *origin)
      ours = (block.T if transposed else block).reshape(-1, *rest)
      written = array[start : start + len(ours)].write(ours)
      position = (layer or 0) * matrix.size + start * each * rows.shape[1]
      strides = (1, rows.shape[1]) if transposed else (rows.shape[1], 1)
      sums += digest.sums(block, position, strides)
      with _system_errors():
        written.result()
      index = [*([] if layer is None else [layer]), start // step]
      self._drop_from_cache(row.path, index + [0] * len(rest))
    with self._lock:
      self._sums[row.path] += sums

  def _drop_from_cache(self, path, chunk):
    """Frees the page cache of a chunk, which TensorStore has synced.

    On a virtual machine, pages that were never used cost three times what
    used ones do.
    """
    if hasattr(os, 'posix_fadvise'):  # not on a Mac
      name = '/'.join(map(str, chunk))
      place = self.directory / 'arrays' / _file_name(path) / 'c' / name
      with open(place, 'rb') as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

  def _block(self, shape) -> np.ndarray:
    """Memory of this thread, reused, since new pages are slow to get.

    It is aligned so that JAX reads it in place.
    """
    needed = math.prod(shape) * self.dtype.itemsize
    if len(getattr(self._local, 'bytes', ())) < needed:
      found = np.empty(needed + ALIGNMENT, np.uint8)
      self._local.bytes = found[-found.ctypes.data % ALIGNMENT :]
    return self._local.bytes[:needed].view(self.dtype).reshape(shape)

  def close(self, metadata: dict):
    """Makes the checkpoint of the arrays, with `metadata` and their digests."""
    digests = {
      f'params/{path}': digest.text(sums) for path, sums in self._sums.items()
    }
    tiny = {
      path: np.zeros((1,) * len(shape), self.dtype)
      for path, shape in self.shapes.items()
    }
    context = ocp.Context()
    context.array_options.saving.use_ocdbt = False  # files, not a database
    with context, ocp.training.Checkpointer(str(self.directory)) as orbax:
      orbax.save(
        0,
        dict(params=tensors.tree(tiny)),
        custom_metadata=dict(metadata, digests=digests),
      )
    made = self.directory / 'arrays'
    for path in self.shapes:
      place = _place(self.directory / '0', path)
      place.rmtree()
      (made / _file_name(path)).rename(place)
    made.rmdir()


def _chunk(shape, dtype) -> list[int]:
  """The dims of a layer, the first cut to what CHUNK_BYTES hold."""
  rows, *rest = shape
  least = (
    MIN_CHUNK_COLUMNS if len(rest) == 1 else 1
  )  # with heads, one is enough
  most = max(CHUNK_BYTES // (math.prod(rest) * dtype.itemsize), least)
  if rows > most:  # parts that meshes cut too, if there are such
    even = max(n for n in range(1, most + 1) if rows % n == 0)
    rows = even if even > most // 4 else most
  return [rows, *rest]


def open_array(step, path):
  """A parameter of a checkpoint as a TensorStore, not read yet.

  Args:
    step: directory of the checkpoint.
    path: of the parameter, e.g. 'layers/q'.
  """
  place = _place(epath.Path(step), path)
  spec: dict = dict(driver='zarr3', kvstore=_store(place))
  if (place.parent / 'manifest.ocdbt').exists():  # Orbax's database
    spec['kvstore'] = dict(
      driver='ocdbt', base=_store(place.parent), path=f'{place.name}/'
    )
  with _readable(step, path):
    return tensorstore.open(spec, read=True, open=True).result()


def read(step, path, array) -> np.ndarray:
  """An `open_array`, or a part of it, as a numpy array."""
  with _readable(step, path):
    return array.read().result()


@contextlib.contextmanager
def _readable(step, path):
  """Makes what TensorStore raises an InputError that names the parameter."""
  try:
    yield
  except ValueError as error:
    reason = ' '.join(str(error).split())[:300]
    raise errors.InputError(
      f'checkpoint {step} is damaged: {path}: {reason}'
    ) from None


@contextlib.contextmanager
def _system_errors():
  """Makes TensorStore's errors of writing the OSErrors that they were."""
  try:
    yield
  except ValueError as error:
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if not code:
      raise
    raise OSError(int(code[1]), os.strerror(int(code[1]))) from error


def lora_factors(step, metadata) -> tuple[dict, float]:
  """({path of a weight: its factors a and b}, alpha); ({}, 0) without LoRA.

  Args:
    step: directory of the checkpoint.
    metadata: what was saved with it.

  Raises:
    InputError: one differs from its digest.
  """
  settings = metadata.get('config', {}).get('lora', {})
  if not settings.get('rank'):
    return {}, 0.0
  found = {}
  for name in settings['weights']:
    pair = {}
    for factor in ('a', 'b'):
      path = f'lora/{name}/{factor}'
      pair[factor] = read(step, path, open_array(step, path))
      verify(step, metadata, path, digest.sums(pair[factor]))
    found[f'layers/{name}'] = pair
  return found, settings['alpha']


def verify(step, metadata, path, sums):
  """InputError where the sums of an array are not its digest."""
  digests = metadata.get('digests', {})
  if digests.get(f'params/{path}') != digest.text(sums):
    raise errors.InputError(
      f'checkpoint {step} is damaged: {path} differs from its digest'
    )


def pieces(array):
  """(start, shape) of the chunks of an `open_array`."""
  chunk = array.chunk_layout.read_chunk.shape
  grid = [range(0, n, c) for n, c in zip(array.shape, chunk)]
  for corner in np.ndindex(*map(len, grid)):
    start = [g[i] for g, i in zip(grid, corner)]
    ends = [min(a + c, n) for a, c, n in zip(start, chunk, array.shape)]
    yield start, [b - a for a, b in zip(start, ends)]


def _place(step, path) -> epath.Path:
  """Where Orbax keeps a parameter."""
  return step / 'state' / _file_name(path)


def _file_name(path) -> str:
  return '.'.join(['params', *path.split('/')])


def _store(directory) -> str | dict:
  """A directory for TensorStore; in a URL, some letters would mean more."""
  path = f'{directory}/'
  return path if '://' in path else dict(driver='file', path=path)


def _named(name, **configuration) -> dict:
  """A codec or grid in the metadata of Zarr 3."""
  return dict(name=name, configuration=configuration)
