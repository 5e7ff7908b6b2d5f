"""Between the files of others and checkpoints of ours, in little memory.

A tensor at a time goes from its file, which is mapped into memory, to where it
belongs, and what is made is there whole or not at all. Files in a bucket (gs://)
pass through the local disk; checkpoints there are read directly.
"""

import itertools
import json
import math
import os
import pathlib
import tempfile
import threading

import numpy as np

from longjax import checkpoint, errors, lora, weights
from longjax.data import downloads, tokenizer
from longjax.progress import Progress
from longjax.weights import directories, export, files, names, stored
from longjax.weights import source as sources
from longjax.weights.work import each_in_parallel

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
    path: weights of others, weights.OTHERS.
    directory: is made: a run directory with checkpoints/ and tokenizer/.
    dtype: of the parameters that are stored.
    log: called with lines for a person.
  """
  with directories.fetched(path) as local:
    _to_checkpoint(local, directory, dtype, log)


def _to_checkpoint(path, directory, dtype, log):
  source = weights.find(path)
  if source is None:
    raise errors.InputError(
      f'{path} holds no weights of others, which are {weights.OTHERS}'
    )
  vocab = weights.as_config(path, source.fields, 'float32').vocab
  sources.check(source)
  shapes = sources.shapes(source.fields)
  with directories.whole(
    directory, _bytes(shapes, dict.fromkeys(shapes, dtype))
  ) as made:
    about = dict(
      model=source.fields,
      window=source.window,
      tokenizer=_keep_tokenizer(path, made, vocab, log),
      generation=_generation(path),
    )
    writer = stored.Writer(made / 'checkpoints', source.fields, dtype)
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
    digests[os.path.basename(file)] = downloads.sha256_of(file)
    progress.add(sizes[file])

  def move(row, number):
    name = names.name(row, source.format, number)
    matrix = sources.matrix(source, row, number)
    writer.write(row, number, matrix, (name, source.path))
    progress.add(source.tensors[name].nbytes)

  place = {name: i for i, name in enumerate(source.tensors)}
  moves = sorted(
    (
      (row, number)
      for row in names.rows(source.fields)
      for number in names.layers(row, source.fields)
    ),
    key=lambda move: place[names.name(move[0], source.format, move[1])],
  )
  jobs: list = [(move, row, number) for row, number in moves]
  # In the order of the files, and each digest about when its file is read: so
  # a disk is read once even if memory does not hold all files.
  for i, file in reversed([*enumerate(source.files)]):
    jobs.insert(i * len(moves) // len(source.files), (digest, file))
  each_in_parallel(jobs)
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
  tokens = _tokenizer(kept, about.get('tokenizer'), log)
  configs = {
    'config.json': export.config_json(
      config, _window(root, about), dtypes['embedding'], tokens
    ),
    GENERATION: about.get('generation') or export.generation_json(tokens),
  }
  with directories.whole(directory, _bytes(shapes, dtypes)) as made:
    for name, value in configs.items():
      export.write_json(made / name, value)
    if tokens:
      tokens.save(made)
      directories.copy_files(kept, made, TOKENIZER_FILES)
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
    array, lead = arrays[path], int(names.is_layered(path))
    axes = [*range(lead), *(lead + dim for dim in names.order(rows[path]))]
    view, seen = None, None
    for start, shape in pieces:
      where = tuple(slice(a, a + n) for a, n in zip(start, shape))
      part = stored.read(step, path, array[where].transpose(axes))
      ours = part.transpose(np.argsort(axes))
      more = stored.part_sums(ours, start, array.shape)
      with lock:
        sums[path] += more
      if path in factors:
        part = part + lora.part(factors[path], alpha, where).transpose(axes)
      here = [where[axis] for axis in axes][lead:]
      for i in range(shape[0]) if lead else (None,):
        layer = None if i is None else start[0] + i
        if view is None or seen != layer:  # a new mapping costs page faults
          view, seen = out.view(rows[path], layer), layer
        values = part if i is None else part[i]
        sources.copy(view[tuple(here)], values, path, f'checkpoint {step}')
      progress.add(part.nbytes)

  groups = [(path, pieces) for path in rows
            for pieces in _by_layer(path, arrays[path])]  # fmt: skip
  largest = max(math.prod(shape) for _, pieces in groups for _, shape in pieces)
  workers = max(1, PIECES_BYTES // (2 * 4 * largest))  # float32, twice
  each_in_parallel([(move, *group) for group in groups], workers)
  for path, found in sums.items():
    stored.verify(step, about, path, found)


def _by_layer(path, array) -> list[list]:
  """The pieces of an array as `stored.pieces` has them, a list a layer."""
  layer = lambda piece: names.is_layered(path) and piece[0][0]
  pieces = itertools.groupby(stored.pieces(array), layer)
  return [list(group) for _, group in pieces]


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
    directories.copy_files(root, made / 'tokenizer', TOKENIZER_FILES)
  return found.digest


def _tokenizer(directory, digest, log):
  """The tokenizer of a run, or None; refuses a damaged one.

  Args:
    directory: tokenizer/ of a run.
    digest: of the tokenizer that the checkpoint was made with, or None.
    log: called with a line if that is gone, or another.
  """
  with tempfile.TemporaryDirectory() as local:
    directories.copy_files(directory, local, TOKENIZER_FILES)
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


def _generation(path):
  """What generation_config.json says, if there is one."""
  file = os.path.join(path, GENERATION)
  return files.load_json(file) if os.path.isfile(file) else None
