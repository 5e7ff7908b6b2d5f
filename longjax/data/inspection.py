"""What a batch holds, for a person: documents, lengths, masks, borders.

Only numpy and matplotlib; `launch/prepare.py --inspect` prints and plots it.
"""

import pathlib

import numpy as np

SHOWN_BORDERS = 3  # of each row
AROUND = 12  # tokens on either side of a border


def describe(pipe, store, tokens, number=0) -> str:
  """The rows of batch `number` in words, in the order of their text.

  Args:
    pipe: a pipeline.Pipeline.
    store: what it reads.
    tokens: the tokenizer.
    number: of the step.
  """
  step, made = pipe.plan(number), in_order(pipe.batch(number))
  lines = [
    f'batch {number}: {len(step.places)} rows, {step.tokens:,} tokens, '
    f'{np.count_nonzero(made.weights) / step.tokens:.1%} predicted, '
    f'{np.count_nonzero(made.segments == 0) / step.tokens:.1%} padding'
  ]
  for row, place in enumerate(step.places.tolist()):
    lines += _row(pipe, store, tokens, step, made, row, place)
  return '\n'.join(lines)


def in_order(batch):
  """The batch with the columns of each row in the order of its text."""
  order = np.argsort(batch.index, axis=1)
  return type(batch)(*(np.take_along_axis(x, order, axis=1) for x in batch))


def plot(pipe, number, path):
  """Rows as bars: segments alternate in colour, what is not predicted is pale.

  Writes a PNG.
  """
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot

  step, made = pipe.plan(number), in_order(pipe.batch(number))
  rows, seq = made.segments.shape
  columns = np.linspace(0, seq - 1, min(seq, 2000)).astype(int)
  segments, weights = made.segments[:, columns], made.weights[:, columns]
  shade = np.where(segments > 0, 0.45 + 0.4 * (segments % 2), 0.0)
  shade = np.where((weights > 0) | (segments == 0), shade, shade - 0.3)
  figure, axes = pyplot.subplots(
    2, 1, figsize=(9, 2.5 + 0.25 * rows), height_ratios=(3, 1),
    constrained_layout=True,
  )  # fmt: skip
  axes[0].imshow(
    shade, aspect='auto', cmap='Blues', vmin=0, vmax=1, interpolation='nearest',
    extent=(0, seq, rows - 0.5, -0.5),
  )  # fmt: skip
  names = [pipe.parts[step.parts[place]].name for place in step.places]
  axes[0].set(yticks=range(rows), yticklabels=names, xlabel='token')
  axes[0].set_title(f'batch {number}: segments; pale: not predicted')
  lengths = np.concatenate([np.bincount(r)[1:] for r in made.segments])
  axes[1].hist(np.log2(lengths[lengths > 0]), bins=40)
  axes[1].set(xlabel='log2 of tokens in a segment', ylabel='segments')
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=110)
  pyplot.close(figure)


def _row(pipe, store, tokens, step, made, row, place):
  plan, part = step.plans[place], pipe.parts[step.parts[place]]
  lengths = np.bincount(made.segments[row])[1:]  # 1.. without gaps
  documents = [int(d) for d in dict.fromkeys(plan.document.tolist())]
  domains = sorted({store.source(d) for d in documents})
  lines = [
    '',
    f'row {row}: {part.name} ({", ".join(domains)}), {len(lengths)} segments '
    f'of {lengths.min()} to {lengths.max()} tokens, '
    f'{np.count_nonzero(made.weights[row]):,} predicted, positions to '
    f'{made.positions[row].max()}, cost {plan.squares():.3g}',
    f'  documents: {_some([store.names[d] for d in documents])}',
  ]
  seams = np.flatnonzero(np.diff(made.segments[row])) + 1
  for at in [0, *seams[:SHOWN_BORDERS].tolist()]:
    before = tokens.decode(made.tokens[row, max(0, at - AROUND) : at])
    after = tokens.decode(made.tokens[row, at : at + AROUND])
    lines.append(f'  {at:>7} {before!r} | {after!r}')
  return lines


def _some(names, most=4) -> str:
  more = f' and {len(names) - most} more' if len(names) > most else ''
  return ', '.join(names[:most]) + more
