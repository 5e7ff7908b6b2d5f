"""A batch as text and as a figure: documents, lengths, masks, borders.

`launch/prepare.py --inspect` prints and plots it.
"""

import pathlib

import numpy as np

BORDERS = 3  # shown of each row
CONTEXT = 12  # tokens shown on either side of a border
NAMES = 4  # documents named of each row


def describe(pipe, store, tokenizer, step=0) -> str:
  """The rows of a batch as text, in the order of their tokens.

  Args:
    pipe: a pipeline.Pipeline.
    store: the store that it reads.
    tokenizer: decodes the tokens.
    step: of the batch.
  """
  plan, batch = pipe.plan(step), in_text_order(pipe.batch(step))
  lines = [
    f'batch {step}: {len(plan.rows)} rows, {plan.tokens:,} tokens, '
    f'{np.count_nonzero(batch.weights) / plan.tokens:.1%} predicted, '
    f'{np.count_nonzero(batch.segments == 0) / plan.tokens:.1%} padding'
  ]
  for r, number in enumerate(plan.row_order.tolist()):
    row = type(batch)(*(x[r] for x in batch))
    row_plan = plan.rows[number]
    name = pipe.components[plan.components[number]].name
    documents = dict.fromkeys(row_plan.document.tolist())
    sources = sorted({store.source(d) for d in documents})
    lengths = np.bincount(row.segments)[1:]  # segments count from 1
    lines += [
      '',
      f'row {r}: {name} ({", ".join(sources)}), {len(lengths)} segments of '
      f'{lengths.min()} to {lengths.max()} tokens, '
      f'{np.count_nonzero(row.weights):,} predicted, positions to '
      f'{row.positions.max()}, cost {row_plan.squared_lengths():.3g}',
      f'  documents: {_some([store.name(d) for d in documents])}',
      *_borders(row, tokenizer),
    ]
  return '\n'.join(lines)


def in_text_order(batch):
  """The batch with the columns of each row in the order of its text."""
  order = np.argsort(batch.index, axis=1)
  return type(batch)(*(np.take_along_axis(x, order, axis=1) for x in batch))


def plot(pipe, step, path):
  """A PNG: rows as bars of segments, pale where tokens are not predicted, and
  a histogram of the lengths of segments."""
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot

  plan, batch = pipe.plan(step), in_text_order(pipe.batch(step))
  rows, seq = batch.segments.shape
  columns = np.linspace(0, seq - 1, min(seq, 2000)).astype(int)
  segments, weights = batch.segments[:, columns], batch.weights[:, columns]
  shade = np.where(segments > 0, 0.45 + 0.4 * (segments % 2), 0.0)
  shade = np.where((weights > 0) | (segments == 0), shade, shade - 0.3)
  figure, (bars, histogram) = pyplot.subplots(
    2, 1, figsize=(9, 2.5 + 0.25 * rows), height_ratios=(3, 1),
    constrained_layout=True,
  )  # fmt: skip
  bars.imshow(
    shade, aspect='auto', cmap='Blues', vmin=0, vmax=1, interpolation='nearest',
    extent=(0, seq, rows - 0.5, -0.5),
  )  # fmt: skip
  names = [pipe.components[plan.components[n]].name for n in plan.row_order]
  bars.set(yticks=range(rows), yticklabels=names, xlabel='token')
  bars.set_title(f'batch {step}: segments; pale: not predicted')
  lengths = np.concatenate([np.bincount(r)[1:] for r in batch.segments])
  histogram.hist(np.log2(lengths[lengths > 0]), bins=40)
  histogram.set(xlabel='log2 of tokens in a segment', ylabel='segments')
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=110)
  pyplot.close(figure)


def _borders(row, tokenizer):
  """Yields the text before and after the first borders between segments."""
  borders = np.flatnonzero(np.diff(row.segments)) + 1
  for at in [0, *borders[:BORDERS].tolist()]:
    before = tokenizer.decode(row.tokens[max(0, at - CONTEXT) : at])
    after = tokenizer.decode(row.tokens[at : at + CONTEXT])
    yield f'  {at:>7} {before!r} | {after!r}'


def _some(names) -> str:
  more = f' and {len(names) - NAMES} more' if names[NAMES:] else ''
  return ', '.join(names[:NAMES]) + more
