"""Figures of reports: colors that the color-blind tell apart, PNG and SVG."""

import contextlib
import pathlib

# Okabe and Ito, Color Universal Design, 2008; black stands for the first.
COLORS = ('#000000', '#E69F00', '#0072B2', '#D55E00', '#009E73', '#CC79A7',
          '#56B4E9')  # fmt: skip
MARKERS = 'osD^vPX'


@contextlib.contextmanager
def figure(path, columns=1, width=6.0):
  """(figure, axes) of so many plots side by side, saved at the end.

  Args:
    path: of the PNG file; an SVG is written beside it.
    columns: number of plots.
    width: of each, in inches.
  """
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot

  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  drawn, axes = pyplot.subplots(
    1, columns, figsize=(1 + width * columns, 4), layout='constrained'
  )
  try:
    yield drawn, axes
    drawn.savefig(path, dpi=200)
    drawn.savefig(path.with_suffix('.svg'))
  finally:
    pyplot.close(drawn)


def lines(path, curves: dict, axis, scale=1, window=0):
  """Scores over the numbers of an axis, with bands for their intervals.

  Args:
    path: of the PNG file.
    curves: {name: {number: evaluation.Point}}.
    axis: evaluation.Axis.
    scale: that scores are multiplied by.
    window: tokens, marked where the axis has them; 0 is none.
  """
  ticks = sorted({x for points in curves.values() for x in points})
  with figure(path) as (_, axes):
    for i, (name, points) in enumerate(curves.items()):
      style = dict(color=COLORS[i % len(COLORS)])
      x = sorted(n for n in points if points[n].value is not None)
      axes.plot(
        x, [scale * points[n].value for n in x], markersize=4, label=name,
        marker=MARKERS[i % len(MARKERS)], **style,
      )  # fmt: skip
      band = [n for n in x if points[n].low is not None]
      if band:
        low, high = ([scale * points[n][k] for n in band] for k in (1, 2))
        axes.fill_between(band, low, high, alpha=0.15, linewidth=0, **style)
    if axis.log and min(ticks) > 0:
      axes.set_xscale('log', base=2)
      axes.set_xticks(ticks, labels=[f'{n:,}' for n in ticks], minor=False)
    if ticks[0] <= window < ticks[-1]:
      axes.axvline(window, color='grey', linestyle='--')
      axes.text(
        window, axes.get_ylim()[1], ' trained window', va='top', color='grey'
      )
    axes.set_xlabel(axis.x)
    axes.set_ylabel(axis.y)
    axes.legend()


def heat_maps(path, maps: dict):
  """Shares found by context length and depth, with the numbers in the cells.

  Args:
    path: of the PNG file.
    maps: {name: (lengths, depths from 0 to 1, a row of shares per length)}.
  """
  widest = max(len(lengths) for lengths, _, _ in maps.values())
  with figure(path, len(maps), max(4.0, 0.8 * widest)) as (drawn, axes):
    flat = [axes] if len(maps) == 1 else axes
    for ax, (name, (lengths, depths, rows)) in zip(flat, maps.items()):
      image = ax.imshow(
        list(zip(*rows)), vmin=0, vmax=1, cmap='cividis', aspect='auto'
      )
      for x, row in enumerate(rows):
        for y, share in enumerate(row):
          color = 'white' if share < 0.5 else 'black'
          ax.text(x, y, f'{100 * share:.0f}', ha='center', va='center',
                  color=color, fontsize=8)  # fmt: skip
      ax.set_title(name)
      ax.set_xticks(range(len(lengths)), [f'{n:,}' for n in lengths])
      ax.set_yticks(range(len(depths)), [f'{d:.0%}' for d in depths])
      ax.set_xlabel('context (tokens)')
      ax.set_ylabel('depth')
    drawn.colorbar(image, ax=axes, label='found (share)')
