"""What `launch/convert.py show` prints: format, model, tensors, digests."""

import dataclasses
import math
import os

from longjax import checkpoint, weights
from longjax.data import downloads
from longjax.progress import size
from longjax.weights import checkpoint_arrays, names, tensors


def describe(path, digests=True) -> str:
  """A table of what a path holds, whatever the format.

  Args:
    path: as for `weights.load`.
    digests: whether to read all files for their sha256.
  """
  source = weights.find(path)
  return _checkpoint(path) if source is None else _source(source, digests)


def _source(source, digests) -> str:
  config = weights.as_config(source.path, source.fields, 'float32')
  tensors.check(source)
  lines = [f'{source.path}: {source.format}', *_model(config)]
  if source.window:
    lines.append(f'window: {source.window:,} tokens')
  for file in source.files:
    line = f'{os.path.basename(file)}: {size(os.path.getsize(file))}'
    lines.append(
      line + (f', sha256 {downloads.sha256_of(file)}' if digests else '')
    )
  dtypes, shapes = tensors.dtypes(source), names.shapes(source.fields)
  rows = [
    [row.path, 'x'.join(map(str, shapes[row.path])), dtypes[row.path],
     names.name(row, source.format, 0)]
    for row in names.rows(source.fields)
  ]  # fmt: skip
  return '\n'.join(lines) + '\n\n' + _table(rows)


def _checkpoint(path) -> str:
  root, step = checkpoint.find(path)
  metadata = checkpoint.metadata(path)
  config = weights.as_config(path, metadata.get('model'), 'float32')
  lines = [f'{root / str(step)}: a checkpoint of longjax', *_model(config)]
  lines.append(f'tokenizer: {metadata.get("tokenizer")}')
  if origin := metadata.get('source'):
    lines.append(f'imported from {origin["format"]}')
    lines += [f'{f}: sha256 {d}' for f, d in origin['sha256'].items()]
  paths = list(names.shapes(metadata['model']))
  settings = metadata.get('config', {}).get('lora', {})
  if settings.get('rank'):
    lines.append(
      f'LoRA of rank {settings["rank"]}, alpha {settings["alpha"]:g}, which '
      'export and evaluation add to the weights'
    )
    paths += [f'lora/{name}/{x}' for name in settings['weights'] for x in 'ab']
  rows = []
  for name in paths:
    array = checkpoint_arrays.open_array(root / str(step), name)
    digest = metadata.get('digests', {}).get(f'params/{name}')
    shape = 'x'.join(map(str, array.shape))
    rows.append([name, shape, array.dtype.name, digest])
  return '\n'.join(lines) + '\n\n' + _table(rows)


def _model(config) -> list[str]:
  shapes = names.shapes(dataclasses.asdict(config))
  count = sum(math.prod(shape) for shape in shapes.values())
  return [
    f'{count:,} parameters: {config.layers} layers, embed {config.embed}, mlp '
    f'{config.mlp}, {config.heads} heads, {config.kv_heads} kv heads of '
    f'{config.head_dim}, vocab {config.vocab}'
    + (', tied' if config.tied else ''),
    f'norm_eps {config.norm_eps}; {config.rope}',
  ]


def _table(rows) -> str:
  widths = [max(len(str(cell)) for cell in column) for column in zip(*rows)]
  return '\n'.join(
    '  '.join(f'{cell!s:{width}}' for cell, width in zip(row, widths)).rstrip()
    for row in rows
  )
