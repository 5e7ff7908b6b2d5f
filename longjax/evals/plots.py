"""The figures of a report: one function a figure, each of {name: results}."""

import contextlib
import pathlib

from longjax.evals import scaling


def loss_by_position(path, curves, window: int):
  """Lines of loss over position; the old window is marked."""
  with _figure(path) as (_, axes):
    for name, curve in curves.items():
      starts = [0, *curve['end'][:-1]]
      middle = [(a + b) / 2 for a, b in zip(starts, curve['end'])]
      axes.plot(middle, curve['loss'], marker='o', markersize=3, label=name)
    if window:
      axes.axvline(window, color='grey', linestyle='--')
      axes.text(
        window, axes.get_ylim()[1], ' trained window', va='top', color='grey'
      )
    axes.set_xlabel('position in the document (tokens)')
    axes.set_ylabel('loss (nats per token)')
    axes.legend()


def heat_maps(path, maps):
  """Needles found by context length and depth, from 0 (red) to 1 (green)."""
  with _figure(path, len(maps)) as (figure, all_axes):
    all_axes = [all_axes] if len(maps) == 1 else all_axes
    images = []
    for axes, (name, found) in zip(all_axes, maps.items()):
      columns = list(zip(*found['score']))  # [depths, lengths]
      images.append(
        axes.imshow(columns, vmin=0, vmax=1, cmap='RdYlGn', aspect='auto')
      )
      axes.set_title(name)
      axes.set_xticks(
        range(len(found['length'])), [f'{n:,}' for n in found['length']]
      )
      axes.set_yticks(
        range(len(found['depths'])), [f'{d:.0%}' for d in found['depths']]
      )
      axes.set_xlabel('context (tokens)')
      axes.set_ylabel('depth of the needle')
    figure.colorbar(images[0], ax=all_axes, label='share of the keywords')


def scores_by_length(path, lines):
  """Mean score in percent over context length.

  Args:
    lines: {name: {length: (score, low, high)}}, from 0 to 1.
  """
  with _figure(path) as (_, axes):
    for name, points in lines.items():
      lengths = sorted(points)
      score, low, high = zip(*(points[n] for n in lengths))
      scale = lambda values: [100 * x for x in values]
      (line,) = axes.plot(lengths, scale(score), marker='o', label=name)
      axes.fill_between(
        lengths, scale(low), scale(high), alpha=0.15, color=line.get_color()
      )
    axes.set_xscale('log', base=2)
    axes.set_xticks(
      sorted({n for points in lines.values() for n in points}),
      labels=[f'{n:,}' for n in sorted({m for p in lines.values() for m in p})],
    )
    axes.set_ylim(0, 100)
    axes.set_xlabel('context (tokens)')
    axes.set_ylabel('mean score (%)')
    axes.legend()


def power_law(path, gains):
  """Loss over context, and the fitted law through it."""
  with _figure(path) as (_, axes):
    for name, gain in gains.items():
      (line,) = axes.plot(
        gain['context'], gain['loss'], marker='o', linestyle='', label=name
      )
      if gain['fit']:
        values = [gain['fit'][k][0] for k in ('alpha', 'beta', 'gamma')]
        curve = scaling.power_law(gain['context'], *values)
        axes.plot(gain['context'], curve, color=line.get_color())
    axes.set_xscale('log', base=2)
    axes.set_xlabel('context before the scored tokens (tokens)')
    axes.set_ylabel('loss (nats per token)')
    axes.legend()


@contextlib.contextmanager
def _figure(path, columns=1):
  """A figure of so many plots side by side, saved at the end."""
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot

  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  figure, axes = pyplot.subplots(
    1, columns, figsize=(1 + 6 * columns, 4), layout='constrained'
  )
  try:
    yield figure, axes
    figure.savefig(path, dpi=120)
  finally:
    pyplot.close(figure)
