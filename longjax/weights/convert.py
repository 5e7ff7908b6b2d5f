"""Weights of other formats to checkpoints of ours, and checkpoints to Hugging
Face's form, in little memory.

Tensors go one at a time from their file, which is mapped into memory, to their
place; safetensors on the Hub that are not in its cache are read by ranges and
not kept. What is made is there whole or not at all. Files in a bucket (gs://)
pass through the local disk; checkpoints there are read directly.
"""

import concurrent.futures
import hashlib
import itertools
import math
import os
import pathlib
import re
import tempfile
import threading

import numpy as np
from etils import epath

from longjax import checkpoint, digest, errors, hub, lora, storage, weights
from longjax.data import downloads, tokenizer
from longjax.progress import Progress
from longjax.weights import checkpoint_arrays as arrays
from longjax.weights import (
  config_json,
  directories,
  huggingface,
  names,
  released,
  tensor_files,
  tensors,
)

WORKERS = min(2 * (os.cpu_count() or 1), 16)  # half of them wait for the disk
STREAMS = 4  # files read from the Hub at once, of each a tensor in memory
PIECES_BYTES = 1 << 30  # of what all workers of an export hold, about


# Import


def to_checkpoint(path, directory, dtype='float32', log=print):
  """Makes a checkpoint of weights in another format.

  Args:
    path: the weights, see weights.OTHERS.
    directory: is made: a run directory with checkpoints/ and tokenizer/.
    dtype: of the parameters that are stored.
    log: called with progress lines.

  Raises:
    InputError: names the file or tensor that is missing or damaged.
  """
  path, remote = hub.stream(path) if hub.is_name(path) else (path, {})
  with directories.fetched(path) as local:
    source = huggingface.source(local, remote) if remote else None
    _to_checkpoint(local, source or weights.find(local), directory, dtype, log)


def _to_checkpoint(path, source, directory, dtype, log):
  if source is None:
    raise errors.InputError(
      f'{path}: no weights to import found; expected {weights.OTHERS}'
    )
  vocab = weights.as_config(path, source.fields, 'float32').vocab
  tensors.check(source)
  shapes = names.shapes(source.fields)
  needed = _bytes(shapes, dict.fromkeys(shapes, dtype))
  with directories.create(directory, needed) as made:
    digest = _import_tokenizer(path, made, vocab, log)
    writer = arrays.Writer(made / 'checkpoints', source.fields, dtype)
    there = hub.origin(path)
    origin = dict(
      **(dict(hub=there) if there else {}),
      format=source.format,
      dtypes=tensors.dtypes(source),
      sha256=_Import(source, writer, log).run(),
    )
    writer.close(
      dict(
        model=source.fields,
        tokenizer=digest,
        source=origin,
        **released.read(path, source),
      )
    )


class _Import:
  """Writes every tensor of weights into a checkpoint, and hashes their files.

  Attributes:
    digests: {file name: sha256} of what was read.
  """

  def __init__(self, source, writer, log):
    self.source, self.writer, self.digests = source, writer, {}
    self.rows = {
      names.name(row, source.format, layer): (row, layer)
      for row in names.rows(source.fields)
      for layer in names.layers(row, source.fields)
    }
    self.ended = threading.Event()
    self.sizes = {file: os.path.getsize(file) for file in source.files}
    total = sum(self.sizes.values())
    total += sum(x.nbytes for x in source.tensors.values())
    total += sum(file.size for file, _ in source.streams)
    self.progress = Progress('importing', total, log)

  def run(self) -> dict[str, str]:
    """Writes all; `digests`, sorted."""
    files, streams = self.source.files, self.source.streams
    streamed = {name for _, found in streams for name in found}
    here = [name for name in self.source.tensors if name not in streamed]
    jobs: list = [(self.write, name) for name in here]
    # In the order of the files, each hashed about when its tensors are read: so
    # a disk is read once even if memory does not hold all files.
    for i, file in reversed([*enumerate(files)]):
      jobs.insert(i * len(here) // len(files), (self.hash_file, file))
    _in_threads(jobs, WORKERS)
    _in_threads([(self.stream, *x) for x in streams], STREAMS, self.ended)
    return dict(sorted(self.digests.items()))

  def write(self, name, source=None):
    """Writes a tensor of the source, or of another with the same fields."""
    source, (row, layer) = source or self.source, self.rows[name]
    matrix = tensors.matrix(source, row, layer)
    self.writer.write(row, layer, matrix, (name, source.path))
    self.progress.add(source.tensors[name].nbytes)

  def hash_file(self, path):
    found, cure = downloads.sha256_of(path), 'delete it and run again'
    self.keep_digest(path, found, hub.sha256(path), cure)
    self.progress.add(self.sizes[path])

  def stream(self, file, found):
    """Writes the tensors of a file, which come in the order of its bytes."""
    first = file.size - sum(tensor.nbytes for tensor in found.values())
    hashed = hashlib.sha256(file.read(0, first))
    self.progress.add(first)
    for name, tensor in found.items():
      if self.ended.is_set():
        return
      array = tensor.read()
      hashed.update(array.reshape(-1).view(np.uint8))
      self.progress.add(tensor.nbytes)
      if name in self.source.tensors:  # not a tied head, stored again
        here = tensor._replace(read=lambda array=array: array)
        self.write(name, self.source._replace(tensors={name: here}))
    path = f'{file.name}/{file.file}'
    self.keep_digest(path, hashed.hexdigest(), file.sha256, 'run again')

  def keep_digest(self, path, found, wanted, cure):
    self.digests[os.path.basename(path)] = found
    if wanted not in ('', found):
      raise errors.InputError(f'{path}: damaged: its sha256 is {found}; {cure}')


def _in_threads(jobs, workers, ended=None):
  """Calls each (function, *arguments); the first error ends the rest, and is
  said to those that run by the event `ended`."""
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    futures = [pool.submit(*job) for job in jobs]
    try:
      for future in concurrent.futures.as_completed(futures):
        future.result()
    except BaseException:
      if ended:
        ended.set()
      pool.shutdown(cancel_futures=True)
      raise


def _bytes(shapes, dtypes) -> int:
  return sum(
    math.prod(shape) * np.dtype(dtypes[path]).itemsize
    for path, shape in shapes.items()
  )


# Export


def to_huggingface(
  path, directory, dtype='', shard_bytes=5 * 10**9, log=print, max_length=0
):
  """Writes a checkpoint in the form that transformers loads.

  Args:
    path: a run directory or one of its checkpoints.
    directory: is made.
    dtype: of the tensors; '' is that of the files they were imported from, or
      float32 if they were trained since.
    shard_bytes: of tensors in a file.
    log: called with progress lines.
    max_length: tokens to write as the model's window; 0 is the longest that it
      was released or trained for.

  Raises:
    InputError: the checkpoint is damaged, transformers has no such rope, or
      would take another from max_length.
  """
  root, step = checkpoint.find(path)
  storage.check_files(root / str(step))
  metadata = checkpoint.metadata(path)
  config = weights.as_config(path, metadata.get('model'), 'float32')
  if config.memory.layers:
    log('its memory layers are exported as plain ones: transformers has none')
  shapes = names.shapes(metadata['model'])
  imported = metadata.get('source', {}).get('dtypes', {})
  dtypes = {p: dtype or imported.get(p, 'float32') for p in shapes}
  kept = root.parent / 'tokenizer'
  tokens = _load_tokenizer(kept, metadata.get('tokenizer'), log)
  configs = {
    config_json.NAME: config_json.content(
      config,
      _window(metadata, max_length),
      dtypes['embedding'],
      tokens,
      metadata.get('family', 'llama'),
    ),
    released.GENERATION: released.generation(metadata, tokens),
  }
  with directories.create(directory, _bytes(shapes, dtypes)) as made:
    for name, value in configs.items():
      tensor_files.write_json(made / name, value)
    if tokens:
      tokens.save(made)
      if not tokens.starts_in_transformers:
        log(
          "the tokenizer is exported as SentencePiece's model, since a "
          'tokenizer.json would give other ids; transformers puts no '
          f'{tokens.settings.bos} before a text with it, so add that'
        )
    writer = tensor_files.Writer(made, metadata['model'], dtypes, shard_bytes)
    _Export(root / str(step), metadata, writer, log).run()


def write_card(path, directory):
  """README.md of an export: the report of its run, as the Hub shows it.

  Args:
    path: the run directory or one of its checkpoints.
    directory: of the export.

  Raises:
    InputError: the report is a link out of the run directory.
  """
  root, step = checkpoint.find(path)
  report = epath.Path(root).parent / 'REPORT.md'
  there = checkpoint.metadata(path).get('source', {}).get('hub', '')
  text = f'# {report.parent.name}\n'
  if storage.is_safe_file(report):
    text = storage.content(report).decode(errors='replace')
  # Plots stay in the run.
  text = re.sub(r'!\[[^][]*\]\([^()]*\)\n*', '', text)
  lines = [
    *('---', 'library_name: transformers', 'pipeline_tag: text-generation'),
    *('tags: [longjax, long-context]', '---', ''),
    *(text.rstrip(), '', f'Exported by longjax from step {step}.'),
    *([f'Its weights began as {there}.'] if there else []),
  ]
  (pathlib.Path(directory) / 'README.md').write_text('\n'.join(lines) + '\n')


class _Export:
  """Copies every array of a checkpoint into safetensors, and verifies it."""

  def __init__(self, step, metadata, writer, log):
    self.step, self.metadata, self.writer = step, metadata, writer
    self.rows = {row.path: row for row in names.rows(metadata['model'])}
    self.arrays = {path: arrays.open_array(step, path) for path in self.rows}
    self.factors, self.alpha = arrays.lora_factors(step, metadata)
    self.sums = {path: np.zeros(2, np.uint32) for path in self.rows}
    self.lock = threading.Lock()
    total = sum(x.size * x.dtype.numpy_dtype.itemsize
                for x in self.arrays.values())  # fmt: skip
    self.progress = Progress('exporting', total, log)

  def run(self):
    """Copies all; refuses a checkpoint that differs from its digests."""
    groups = [
      (path, list(pieces))
      for path, array in self.arrays.items()
      for _, pieces in itertools.groupby(
        arrays.pieces(array),
        lambda piece, path=path: names.is_layered(path) and piece[0][0],
      )
    ]
    largest = max(math.prod(s) for _, pieces in groups for _, s in pieces)
    workers = max(1, PIECES_BYTES // (2 * 4 * largest))  # float32, twice
    jobs = [(self.copy, *group) for group in groups]
    _in_threads(jobs, min(workers, WORKERS))
    for path, sums in self.sums.items():
      arrays.verify(self.step, self.metadata, path, sums)

  def copy(self, path, pieces):
    """Copies pieces of a parameter, which begin in the same layer."""
    array, row, views = self.arrays[path], self.rows[path], {}
    lead = int(names.is_layered(path))
    # Read as they lie in files of either side: layer, then Hugging Face's dims.
    axes = [*range(lead), *(lead + dim for dim in names.order(row))]
    strides = [math.prod(array.shape[dim + 1 :]) for dim in range(array.rank)]
    for start, shape in pieces:
      where = tuple(slice(a, a + n) for a, n in zip(start, shape))
      part = arrays.read(self.step, path, array[where].transpose(axes))
      sums = digest.sums(
        part,
        sum(a * stride for a, stride in zip(start, strides)),
        [strides[axis] for axis in axes],
      )
      with self.lock:
        self.sums[path] += sums
      if path in self.factors:
        added = lora.part(self.factors[path], self.alpha, where)
        part = part + added.transpose(axes)
      here = tuple(where[axis] for axis in axes[lead:])
      for i in range(shape[0]) if lead else (None,):
        layer = None if i is None else start[0] + i
        if layer not in views:  # a new mapping costs page faults
          views = {layer: self.writer.view(row, layer)}
        values = part if i is None else part[i]
        tensors.copy(
          views[layer][here], values, path, f'checkpoint {self.step}'
        )
      self.progress.add(part.nbytes)


def _window(metadata, max_length) -> int:
  """Tokens that config.json gives as the window."""
  recipe = metadata['model']['rope']
  if recipe.get('scaling') == 'yarn':  # transformers 4 takes factor from these
    window = round(recipe['original_length'] * recipe['factor'])
    if max_length not in (0, window):
      raise errors.InputError(
        f'--max-length is {max_length}; with yarn it must be original_length * '
        f'factor = {window}, from which transformers computes the rope'
      )
    return window
  return max_length or released.window(metadata) or released.DEFAULT_WINDOW


# The tokenizer, and the files of its directory


def _import_tokenizer(path, made, vocab, log) -> str | None:
  """Puts the tokenizer into the run directory; its digest, if there is one."""
  directory = os.path.isdir(path)
  root = pathlib.Path(path) if directory else pathlib.Path(path).parent
  try:
    found = tokenizer.load(path)
  except errors.InputError as error:
    if directory and list(root.glob('tokenizer.*')):
      raise  # it is there, and damaged
    log(f'without a tokenizer: {error}')
    return None
  if found.vocab > vocab:
    raise errors.InputError(
      f'{path}: its tokenizer has {found.vocab} ids, the model only {vocab}'
    )
  found.save(made / 'tokenizer')
  return found.digest


def _load_tokenizer(directory, digest, log):
  """The tokenizer of a run, or None; refuses a damaged one.

  Args:
    directory: tokenizer/ of a run.
    digest: of the tokenizer that the checkpoint was made with, or None.
    log: called with a line if that is gone, or another.
  """
  with tempfile.TemporaryDirectory() as local:
    directories.copy_files(directory, local, tokenizer.FILES)
    if not os.listdir(local):
      if digest:
        log(f'without a tokenizer: {directory} holds none')
      return None
    try:
      found = tokenizer.load(local)
    except errors.InputError as error:
      reason = str(error).replace(local, str(directory))
      raise errors.InputError(
        f'{reason}; copy it again, or move it away to export without one'
      ) from None
  if digest and found.digest != digest:
    log(f'{directory} is not the tokenizer that the checkpoint was made with')
  return found
