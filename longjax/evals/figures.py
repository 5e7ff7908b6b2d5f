"""Figures of reports."""

import contextlib
import pathlib


@contextlib.contextmanager
def figure(path, columns=1):
  """(figure, axes) of so many plots side by side, saved at the end."""
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot

  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  drawn, axes = pyplot.subplots(
    1, columns, figsize=(1 + 6 * columns, 4), layout='constrained'
  )
  try:
    yield drawn, axes
    drawn.savefig(path, dpi=120)
  finally:
    pyplot.close(drawn)


def finish(axes, x: str, y: str):
  """Labels of lines over x, and their legend."""
  axes.set_xlabel(x)
  axes.set_ylabel(y)
  axes.legend()


def lengths(axes, values):
  """A logarithmic x axis with a tick at each number of tokens."""
  ticks = sorted(set(values))
  axes.set_xscale('log', base=2)
  axes.set_xticks(ticks, labels=[f'{n:,}' for n in ticks])
