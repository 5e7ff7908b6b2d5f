"""What `launch/convert.py show` prints: format, model, tensors, digests."""

import dataclasses
import math
import os

from longjax import checkpoint, weights
from longjax.data import downloads
from longjax.progress import size
from longjax.weights import names, stored
from longjax.weights import source as sources


def describe(path, digests=True) -> str:
  """A table of what a path holds, whatever the format."""
  source = weights.find(path)
  return _checkpoint(path) if source is None else _source(source, digests)


def _source(source, digests) -> str:
  config = weights.as_config(source.path, source.fields, 'float32')
  sources.check(source)
  lines = [f'{source.path}: {source.format}', *_model(config)]
  if source.window:
    lines.append(f'window: {source.window:,} tokens')
  for file in source.files:
    lines.append(
      f'{os.path.basename(file)}: {size(os.path.getsize(file))}'
      + (f', sha256 {downloads.sha256_of(file)}' if digests else '')
    )
  dtypes = sources.dtypes(source)
  rows = [
    [path, 'x'.join(map(str, shape)), dtypes[path],
     names.name(row, source.format, 0)]
    for row, (path, shape) in zip(
      names.rows(source.fields), sources.shapes(source.fields).items()
    )
  ]  # fmt: skip
  return '\n'.join(lines) + '\n\n' + _table(rows)


def _checkpoint(path) -> str:
  root, step = checkpoint.find(path)
  about = checkpoint.about(path)
  config = weights.as_config(path, about.get('model'), 'float32')
  lines = [f'{root / str(step)}: a checkpoint of longjax', *_model(config)]
  lines.append(f'tokenizer: {about.get("tokenizer")}')
  origin = about.get('source')
  if origin:
    lines.append(f'imported from {origin["format"]}')
    lines += [f'{f}: sha256 {d}' for f, d in origin['sha256'].items()]
  ask = about.get('config', {}).get('lora', {})
  paths = list(sources.shapes(about['model']))
  if ask.get('rank'):
    lines.append(
      f'LoRA of rank {ask["rank"]}, alpha {ask["alpha"]:g}, which export and '
      'evaluation add to the weights'
    )
    paths += [f'lora/{name}/{x}' for name in ask['weights'] for x in 'ab']
  rows = []
  for name in paths:
    array = stored.array(root / str(step), name)
    digest = about.get('digests', {}).get(f'params/{name}')
    shape = 'x'.join(map(str, array.shape))
    rows.append([name, shape, array.dtype.name, digest])
  return '\n'.join(lines) + '\n\n' + _table(rows)


def _model(config) -> list[str]:
  shapes = sources.shapes(dataclasses.asdict(config))
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
