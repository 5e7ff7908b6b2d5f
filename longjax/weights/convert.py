"""Between the files of others and checkpoints of ours, in little memory.

A tensor at a time goes from its file, which is mapped into memory, to where it
belongs. What is being made lies beside its place under another name and gets
its own at the end, so a directory is there whole or not at all. Files in a
bucket (gs://) pass through the local disk; checkpoints there are read directly.
"""

import concurrent.futures
import contextlib
import hashlib
import itertools
import json
import math
import os
import pathlib
import shutil
import tempfile
import threading
import time

import numpy as np
from etils import epath

from longjax import checkpoint, errors, lora, metrics, weights
from longjax.data import tokenizer
from longjax.run import mirror
from longjax.weights import export, files, names, stored
from longjax.weights import source as sources

WORKERS = min(os.cpu_count() or 1, 8)
PIECES_BYTES = 1 << 30  # of what all workers hold, about
# Copied as they are: a tokenizer is more than the ids it gives.
TOKENIZER_FILES = (
  'tokenizer.json', 'tokenizer.model', 'tokenizer_config.json',
  'special_tokens_map.json', 'added_tokens.json', 'chat_template.jinja',
)  # fmt: skip
GENERATION = 'generation_config.json'


def to_checkpoint(path, directory, dtype='float32', log=print):
  """Makes a checkpoint of the weights of others.

  Args:
    path: weights in one of weights.FORMATS.
    directory: is made: a run directory with checkpoints/ and tokenizer/.
    dtype: of the parameters that are stored.
    log: called with lines for a person.
  """
  with fetched(path) as local:
    _to_checkpoint(local, directory, dtype, log)


def _to_checkpoint(path, directory, dtype, log):
  source = weights.find(path)
  if source is None:
    raise errors.InputError(f'{path} holds no weights of others')
  vocab = weights.as_config(path, source.fields, 'float32').vocab
  sources.check(source)
  shapes = sources.shapes(source.fields)
  with whole(directory, _bytes(shapes, dict.fromkeys(shapes, dtype))) as made:
    about = dict(
      model=source.fields,
      window=source.window,
      tokenizer=_keep_tokenizer(path, made, vocab, log),
      generation=_generation(path),
    )
    writer = stored.Writer(made / 'checkpoints', shapes, dtype)
    about['source'] = dict(
      format=source.format,
      dtypes=sources.dtypes(source),
      sha256=_import(source, writer, log),
    )
    writer.close(about)


def _import(source, writer, log) -> dict:
  """Writes every tensor; {file name: sha256} of what was read."""
  digests = {}
  sizes = {file: os.path.getsize(file) for file in source.files}
  total = sum(sizes.values()) + sum(x.nbytes for x in source.tensors.values())
  progress = Progress('importing', total, log)

  def digest(file):
    with open(file, 'rb') as stream:
      sha256 = hashlib.file_digest(stream, 'sha256').hexdigest()
    digests[os.path.basename(file)] = sha256
    progress.add(sizes[file])

  def move(row, number):
    lead = [] if number is None else [number]
    name = names.name(row, source.format, number)
    array = sources.layer(source, row, number)
    rows = writer.chunks[row.path][len(lead)]
    buffer = np.empty((rows, *array.shape[1:]), writer.dtype)
    for start in range(0, len(array), rows):
      here = array[start : start + rows]
      part = buffer[: len(here)]
      sources.copy(part, here, name, source.path)
      at = [*lead, start, *(0 for _ in here.shape[1:])]
      writer.write(row.path, at, part.reshape([1] * len(lead) + [*part.shape]))
    progress.add(source.tensors[name].nbytes)

  each_in_parallel(
    [
      *((digest, file) for file in source.files),
      *(
        (move, row, number)
        for row in names.rows(source.fields)
        for number in names.layers(row, source.fields)
      ),
    ]
  )
  return dict(sorted(digests.items()))


def to_huggingface(path, directory, dtype='', shard_bytes=5 * 10**9, log=print):
  """Writes a checkpoint in the form that transformers loads.

  Args:
    path: a run directory or one of its checkpoints.
    directory: is made.
    dtype: of the tensors; '' is that of the files they came from, or float32
      if they were trained since.
    shard_bytes: of tensors in a file.
    log: called with lines for a person.
  """
  root, step = checkpoint.find(path)
  about = checkpoint.about(path)
  config = weights.as_config(path, about.get('model'), 'float32')
  if config.memory.layers:
    log('its memory layers are exported as plain ones: transformers has none')
  shapes = sources.shapes(about['model'])
  stored_in = about.get('source', {}).get('dtypes', {})
  dtypes = {p: dtype or stored_in.get(p, 'float32') for p in shapes}
  kept = root.parent / 'tokenizer'
  tokens = _tokenizer(kept)
  configs = {
    'config.json': export.config_json(
      config, _window(root, about), dtypes['embedding'], tokens
    ),
    GENERATION: about.get('generation') or export.generation_json(tokens),
  }
  with whole(directory, _bytes(shapes, dtypes)) as made:
    for name, value in configs.items():
      export.write_json(made / name, value)
    if tokens:
      tokens.save(made)
      copy_files(kept, made, TOKENIZER_FILES)
    out = export.Files(made, about['model'], dtypes, shard_bytes)
    _export(root / str(step), about, out, log)


def _export(step, about, out, log):
  """Writes every tensor; refuses a checkpoint that differs from its digests."""
  rows = {row.path: row for row in names.rows(about['model'])}
  arrays = {path: stored.array(step, path) for path in rows}
  factors, alpha = stored.factors(step, about)
  sums = {path: np.zeros(2, np.uint32) for path in rows}
  lock = threading.Lock()
  total = sum(array.size * array.dtype.numpy_dtype.itemsize
              for array in arrays.values())  # fmt: skip
  progress = Progress('exporting', total, log)

  def move(path, pieces):
    array, stacked = arrays[path], path.startswith('layers/')
    view, seen = None, None
    for start, shape in pieces:
      where = tuple(slice(a, a + n) for a, n in zip(start, shape))
      part = array[where].read().result()
      more = stored.part_sums(part, start, array.shape)
      with lock:
        sums[path] += more
      if path in factors:
        part = part + lora.part(factors[path], alpha, where)
      for i in range(shape[0]) if stacked else (None,):
        layer = None if i is None else start[0] + i
        if view is None or seen != layer:  # a new mapping costs page faults
          view, seen = out.view(rows[path], layer), layer
        into, values = (
          (view[where[1:]], part[i]) if stacked else (view[where], part)
        )
        sources.copy(into, values, path, f'checkpoint {step}')
      progress.add(part.nbytes)

  jobs, largest = [], 1
  for path in rows:
    pieces = list(stored.pieces(arrays[path]))
    largest = max(largest, *(math.prod(shape) * 4 for _, shape in pieces))
    first = lambda piece, path=path: path.startswith('layers/') and piece[0][0]
    jobs += [
      (move, path, list(group)) for _, group in itertools.groupby(pieces, first)
    ]
  each_in_parallel(jobs, max(1, PIECES_BYTES // (2 * largest)))
  for path, found in sums.items():
    stored.verify(step, about, path, found)


def _bytes(shapes, dtypes) -> int:
  return sum(
    math.prod(shape) * np.dtype(dtypes[path]).itemsize
    for path, shape in shapes.items()
  )


def _window(root, about) -> int:
  """Tokens that a model is for: the largest number that anything says."""
  told = [about.get('window', 0), about.get('seq_len', 0)]
  config = root.parent / 'config.json'
  if config.is_file():  # of a run
    told += list(json.loads(config.read_text()).get('eval', {}).values())
  rope = about['model']['rope']
  told.append(round(rope.get('original_length', 0) * rope.get('factor', 1)))
  return max(n for n in told if type(n) is int) or 2048


# The tokenizer and what is kept of its directory


def _keep_tokenizer(path, made, vocab, log):
  """Puts the tokenizer into the run directory; its digest, or None."""
  root = (
    pathlib.Path(path) if os.path.isdir(path) else pathlib.Path(path).parent
  )
  try:
    found = tokenizer.load(path)
  except errors.InputError as error:
    if os.path.isdir(path) and list(root.glob('tokenizer.*')):
      raise  # it is there, and damaged
    log(f'without a tokenizer: {error}')
    return None
  if found.vocab > vocab:
    raise errors.InputError(
      f'{path}: its tokenizer has {found.vocab} ids, the model only {vocab}'
    )
  found.save(made / 'tokenizer')
  if os.path.isdir(path):
    for name in TOKENIZER_FILES:
      if (root / name).is_file():
        files.inside(root, name)
    copy_files(root, made / 'tokenizer', TOKENIZER_FILES)
  return found.digest


def _tokenizer(directory):
  """The tokenizer of a run, or None."""
  with tempfile.TemporaryDirectory() as local:
    copy_files(directory, local, TOKENIZER_FILES)
    try:
      return tokenizer.load(local)
    except errors.InputError:
      return None


def _generation(path):
  """What generation_config.json says, if there is one."""
  file = os.path.join(path, GENERATION)
  return files.load_json(file) if os.path.isfile(file) else None


# Work


@contextlib.contextmanager
def whole(directory, needed_bytes):
  """A directory to fill, which becomes `directory` if all went well.

  Raises:
    InputError: it exists, or the disk has too little space.
  """
  if not mirror.is_remote(directory):
    with _whole(pathlib.Path(directory).absolute(), needed_bytes) as made:
      yield made
    return
  bucket = mirror.place(directory)
  _refuse_existing(bucket)
  with tempfile.TemporaryDirectory() as scratch:
    local = pathlib.Path(scratch) / 'made'
    with _whole(local, needed_bytes) as made:
      yield made
    copy_tree(local, bucket)


def _refuse_existing(target):
  if target.exists():
    raise errors.InputError(f'{target} exists: name a new directory')


@contextlib.contextmanager
def _whole(target, needed_bytes):
  """`whole` on this machine."""
  _refuse_existing(target)
  target.parent.mkdir(parents=True, exist_ok=True)
  free = shutil.disk_usage(target.parent).free
  if free < needed_bytes * 1.05:
    raise errors.InputError(
      f'{target} needs {gigabytes(needed_bytes)}, the disk has '
      f'{gigabytes(free)}'
    )
  made = tempfile.mkdtemp(prefix=f'{target.name}.partial-', dir=target.parent)
  try:
    os.chmod(made, 0o777 & ~_umask())
    yield pathlib.Path(made)
    os.rename(made, target)
  except BaseException:
    shutil.rmtree(made, ignore_errors=True)
    raise


@contextlib.contextmanager
def fetched(path):
  """The path itself, or a local copy of what is in a bucket."""
  if not mirror.is_remote(path):
    yield path
    return
  remote = mirror.place(path)
  with tempfile.TemporaryDirectory() as scratch:
    local = pathlib.Path(scratch) / remote.name
    if remote.is_dir():
      copy_tree(remote, local)
    elif remote.exists():
      remote.copy(local)
    else:
      raise errors.InputError(f'{path} does not exist')
    yield local


def copy_tree(source, target):
  """Copies a directory; what makes it count as a checkpoint comes last."""
  source, target = epath.Path(source), epath.Path(target)
  last = lambda path: path.name == stored.ABOUT
  for path in sorted(_files(source), key=last):
    to = target / path.relative_to(source)
    to.parent.mkdir(parents=True, exist_ok=True)
    path.copy(to)


def _files(directory):
  for path in directory.iterdir():
    if path.is_dir():
      yield from _files(path)
    else:
      yield path


def copy_files(source, directory, names):
  """Copies those of the files that are there."""
  for name in names:
    path = epath.Path(source) / name
    if path.exists():
      path.copy(epath.Path(directory) / name, overwrite=True)


def _umask():
  mask = os.umask(0)
  os.umask(mask)
  return mask


def each_in_parallel(jobs, workers=WORKERS):
  """Calls each (function, *arguments); the first error ends the rest."""
  with concurrent.futures.ThreadPoolExecutor(min(workers, WORKERS)) as pool:
    futures = [pool.submit(*job) for job in jobs]
    try:
      for future in concurrent.futures.as_completed(futures):
        future.result()
    except BaseException:
      pool.shutdown(cancel_futures=True)
      raise


class Progress:
  """Lines about bytes that are done: share, speed, time left."""

  def __init__(self, what, total_bytes, log, every_seconds=5):
    self.what, self.total, self.log = what, total_bytes, log
    self.every, self.done = every_seconds, 0
    self.began = self.said = time.monotonic()
    self._lock = threading.Lock()

  def add(self, done_bytes):
    with self._lock:
      self.done += done_bytes
      now = time.monotonic()
      if now - self.said < self.every:
        return
      self.said, rate = now, self.done / (now - self.began)
    left = metrics.duration((self.total - self.done) / rate)
    self.log(
      f'{self.what}: {gigabytes(self.done)} of {gigabytes(self.total)}, '
      f'{gigabytes(rate)}/s, {left} left'
    )


def gigabytes(count) -> str:
  return f'{count / 1e9:.1f} GB' if count >= 1e8 else f'{count / 1e6:.2f} MB'
