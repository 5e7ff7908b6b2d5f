"""The arrays of an Orbax checkpoint a piece at a time, in little memory.

Orbax saves arrays that are in memory. A model that is not gets its checkpoint
in two steps: Orbax saves the tree with one element for each array; then each
is declared at its true size and filled, a file for each layer. What results is
a checkpoint like any other, which restores on any mesh.

Such a file is a shard of Zarr 3, which Orbax writes too: chunks of plain
numbers one after the other, then a table of where each is. Inside a chunk the
dims lie in the order of Hugging Face's tensors, so nothing is transposed until
somebody restores it; nor is it compressed, which costs more than writing it.
https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed
"""

import contextlib
import json
import math
import os
import threading

import numpy as np
import tensorstore
from etils import epath
from orbax.checkpoint import v1 as ocp

from longjax import errors
from longjax.weights import names, source

CHUNK_BYTES = 1 << 24  # is read whole, also for a part of it
UNSYNCED_BYTES = 1 << 27  # of a file, before it is written to the disk
RUN = 128  # of a row of theirs in a chunk: fewer take twice as long
ODD = 2654435761  # of longjax.checkpoint's digest
ABOUT = '_CHECKPOINT_METADATA'  # Orbax's file of `custom_metadata`, JSON


class Writer:
  """A checkpoint at step 0 whose arrays are still to be filled."""

  def __init__(self, directory, fields, dtype: str):
    """Makes the checkpoint.

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
    self.step = epath.Path(directory) / '0'
    self.shapes, self.dtype = source.shapes(fields), np.dtype(dtype)
    tiny = {p: np.zeros((1,) * len(s), dtype) for p, s in self.shapes.items()}
    context = ocp.Context()
    context.array_options.saving.use_ocdbt = False  # files, not a database
    with context, ocp.training.Checkpointer(str(directory)) as orbax:
      orbax.save(0, dict(params=source.tree(tiny)))
    self._chunks = {row.path: self._declare(row) for row in names.rows(fields)}
    self._sums = {path: np.zeros(2, np.uint32) for path in self.shapes}
    self._lock = threading.Lock()

  def _declare(self, row) -> list[int]:
    """Gives an array its size and layout; the shape of its chunks."""
    shape = self.shapes[row.path]
    lead = len(shape) - len(row.dims)  # 1 in front of the layers' dims
    chunk = [1] * lead + _chunk(shape[lead:], self.dtype)
    file = list(chunk)
    file[lead] *= _count(shape[lead], chunk[lead])
    order = [*range(lead), *(lead + dim for dim in names.order(row))]
    plain = _named('bytes', endian='little')
    shard = _named(
      'sharding_indexed',
      chunk_shape=chunk,
      codecs=[_named('transpose', order=order), plain],
      index_codecs=[plain],
    )
    metadata = dict(
      shape=shape,
      data_type=self.dtype.name,
      chunk_grid=_named('regular', chunk_shape=file),
      codecs=[shard],
    )
    spec = dict(_spec(self.step, row.path), metadata=metadata)
    tensorstore.open(spec, create=True, delete_existing=True).result()
    return chunk

  def write(self, row, layer, matrix, origin):
    """Writes the file of one layer. Threads may share the writer.

    Args:
      row: of names.TABLE.
      layer: its number; None where the row is outside of them.
      matrix: [rows, columns], as Hugging Face stores it.
      origin: (name, path) of the tensor, for errors.

    Raises:
      InputError: it holds NaN or infinity.
    """
    rows, columns = matrix.shape
    size = math.prod(self._chunks[row.path])
    # Chunks cut our first dim: columns of what lies transposed, the last of
    # them perhaps in part; else rows, which follow each other anyway.
    transposed = names.order(row)[0] != 0
    width = size // rows if transposed else columns
    strides = (1, rows) if transposed else (columns, 1)  # of positions
    first = (layer or 0) * matrix.size
    block = np.zeros((_count(source.BLOCK, width), width), self.dtype)
    sums = np.zeros(2, np.uint32)
    often = _count(UNSYNCED_BYTES, len(block) * columns * self.dtype.itemsize)
    with open(self._file(row.path, layer), 'wb') as file:
      for top in range(0, rows, len(block)):
        for left in range(0, columns, width):
          here = matrix[top : top + len(block), left : left + width]
          part = block[: len(here), : here.shape[1]]
          source.copy(part, here, *origin)
          block[:, here.shape[1] :] = 0
          corner = first + top * strides[0] + left * strides[1]
          sums += _sums(part, corner, strides)
          file.seek((left * rows + top * width) * self.dtype.itemsize)
          file.write(block[: len(here)].view(np.uint8).data)
        if (top // len(block) + 1) % often == 0:
          _to_disk(file)
      _write_table(file, _count(matrix.size, size), size * self.dtype.itemsize)
      _to_disk(file)
    with self._lock:
      self._sums[row.path] += sums

  def _file(self, path, layer) -> epath.Path:
    """Where Zarr looks for a layer; its directory is made."""
    index = [layer or 0] + [0] * (len(self.shapes[path]) - 1)
    file = _array(self.step, path).joinpath('c', *map(str, index))
    file.parent.mkdir(parents=True, exist_ok=True)
    return file

  def close(self, about: dict):
    """Writes what is to be known beside the arrays, and their digests."""
    file = self.step / ABOUT
    metadata = json.loads(file.read_text())
    digests = {f'params/{path}': hexes(s) for path, s in self._sums.items()}
    metadata['custom_metadata'] = dict(about, digests=digests)
    file.write_text(json.dumps(metadata))
    for folder, _, files in os.walk(self.step):
      for name in files:
        with open(os.path.join(folder, name), 'rb') as written:
          os.fsync(written.fileno())


def _write_table(file, chunks, chunk_bytes):
  """Ends a shard: where each chunk begins, and its bytes."""
  table = np.full((chunks, 2), chunk_bytes, '<u8')
  table[:, 0] *= np.arange(chunks, dtype='<u8')
  file.seek(chunks * chunk_bytes)
  file.write(table.tobytes())


def _to_disk(file):
  """Syncs a file now, while other threads go on, and not all at the end.

  Nor does it stay in memory: on a virtual machine, pages that were never used
  cost three times what writing to used ones does.
  """
  file.flush()
  os.fsync(file.fileno())
  if hasattr(os, 'posix_fadvise'):  # not on a Mac
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _chunk(shape, dtype) -> list[int]:
  """The dims of a layer, the first cut to what CHUNK_BYTES hold."""
  rows, *rest = shape
  least = RUN if len(rest) == 1 else 1  # with heads, one is a run
  most = max(CHUNK_BYTES // (math.prod(rest) * dtype.itemsize), least)
  if rows > most:  # parts that meshes cut too, if there are such
    even = max(n for n in range(1, most + 1) if rows % n == 0)
    rows = even if even > most // 4 else most
  return [rows, *rest]


def _count(whole, part) -> int:
  """Parts that cover the whole."""
  return -(-whole // part)


def array(step, path):
  """A parameter of a checkpoint as a TensorStore, not read yet."""
  with _readable(step, path):
    return tensorstore.open(_spec(step, path), read=True, open=True).result()


def read(step, path, stored) -> np.ndarray:
  """What `array` gave, or a part of it, as a numpy array."""
  with _readable(step, path):
    return stored.read().result()


@contextlib.contextmanager
def _readable(step, path):
  """Whatever TensorStore raises is an InputError that names the parameter."""
  try:
    yield
  except ValueError as error:
    reason = ' '.join(str(error).split())[:300]
    raise errors.InputError(
      f'checkpoint {step} is damaged: {path}: {reason}'
    ) from None


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
      pair[factor] = whole = read(step, path, array(step, path))
      sums = part_sums(whole, [0] * whole.ndim, whole.shape)
      verify(step, about, path, sums)
    found[f'layers/{name}'] = pair
  return found, ask['alpha']


def verify(step, about, path, sums):
  """InputError where the sums of an array are not its digest."""
  if about.get('digests', {}).get(f'params/{path}') != hexes(sums):
    raise errors.InputError(
      f'checkpoint {step} is damaged: {path} differs from its digest'
    )


def pieces(stored):
  """(start, shape) of the rectangles that are best read at once."""
  chunk = stored.chunk_layout.read_chunk.shape
  grid = [range(0, n, c) for n, c in zip(stored.shape, chunk)]
  for corner in np.ndindex(*map(len, grid)):
    start = [g[i] for g, i in zip(grid, corner)]
    ends = [min(a + c, n) for a, c, n in zip(start, chunk, stored.shape)]
    yield start, [b - a for a, b in zip(start, ends)]


def _array(step, path) -> epath.Path:
  """Where Orbax keeps a parameter: its names have dots."""
  return step / 'state' / '.'.join(['params', *path.split('/')])


def _spec(step, path) -> dict:
  """Where TensorStore finds a parameter, in files or in Orbax's database."""
  place = _array(epath.Path(step), path)
  if not (place.parent / 'manifest.ocdbt').exists():
    return dict(driver='zarr3', kvstore=_store(place))
  base = _store(place.parent)
  store = dict(driver='ocdbt', base=base, path=f'{place.name}/')
  return dict(driver='zarr3', kvstore=store)


def _store(directory) -> str | dict:
  """A directory for TensorStore; in a URL, some letters would mean more."""
  path = f'{directory}/'
  return path if '://' in path else dict(driver='file', path=path)


def _named(name, **configuration) -> dict:
  """A codec or grid in the metadata of Zarr 3."""
  return dict(name=name, configuration=configuration)


# Digests as those of longjax.checkpoint, of parts, on the host.


def part_sums(part, start, shape) -> np.ndarray:
  """What a part adds to the digest of its array, [2] uint32.

  Args:
    part: numpy array, a rectangle of the whole; its dims may lie in memory in
      any order.
    start: where it begins in the whole, an index per dim.
    shape: of the whole.
  """
  strides = [math.prod(shape[dim + 1 :]) for dim in range(len(shape))]
  first = sum(a * n for a, n in zip(start, strides))
  # As in memory; dims in which positions go on evenly are one.
  order = sorted(range(part.ndim), key=lambda dim: -part.strides[dim])
  runs = [(1, 1), (1, 1)]
  for dim in order:
    size, stride = part.shape[dim], strides[dim]
    if runs[-1][1] == size * stride:
      runs[-1] = (runs[-1][0] * size, stride)
    elif size > 1:
      runs.append((size, stride))
  *leads, rows, columns = runs
  blocks = part.transpose(order).reshape([size for size, _ in runs])
  total = np.zeros(2, np.uint32)
  for index in np.ndindex(*(size for size, _ in leads)):
    corner = first + sum(i * n for i, (_, n) in zip(index, leads))
    total += _sums(blocks[index], corner, (rows[1], columns[1]))
  return total


def _sums(block, first, strides) -> np.ndarray:
  """`part_sums` of a matrix.

  The digest adds up bits * (position * ODD | 1). Since ODD is odd, | 1 adds 1
  where the position is even; and a sum weighted by positions needs the sums of
  rows and of columns only.

  Args:
    block: [rows, columns].
    first: the position of its corner in the whole.
    strides: of positions, from row to row and from column to column.
  """
  down, right = strides
  bits = block.view(f'u{block.dtype.itemsize}')
  rows = bits.sum(1, dtype=np.uint32)
  # Of even rows, then of odd.
  columns = [bits[odd::2].sum(0, dtype=np.uint32) for odd in (0, 1)]
  total = int(rows.sum(dtype=np.uint32))
  weighted = first * total + down * _ramp(rows) + right * _ramp(sum(columns))
  even = 0
  for odd, sums in enumerate(columns):
    at = first + odd * down  # the position that the first column has
    if right % 2:
      sums = sums[at % 2 :: 2]
    elif at % 2:
      continue
    even += int(sums.sum(dtype=np.uint32))
  weighted = weighted * ODD + even
  return np.array([total % 2**32, weighted % 2**32], np.uint32)


def _ramp(sums) -> int:
  """0 * sums[0] + 1 * sums[1] + ..., modulo 2**32."""
  ramp = np.arange(len(sums), dtype=np.uint32)
  return int((sums * ramp).sum(dtype=np.uint32))


def hexes(sums) -> str:
  """A digest as longjax.checkpoint writes it."""
  return f'{int(sums[0]):08x}{int(sums[1]):08x}'
