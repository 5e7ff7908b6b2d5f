"""Tables and numbers of reports."""


def table(head, rows) -> str:
  """A Markdown table."""
  lines = [head, ['---'] * len(head), *rows]
  return '\n'.join('| ' + ' | '.join(map(str, x)) + ' |' for x in lines)


def side_by_side(head, keys, results: dict, cell) -> str:
  """A table with a column for each model.

  Args:
    head: of the first columns.
    keys: what these have, a list for each row.
    results: {name of a model: its results}.
    cell: (results, number of the row) -> text.
  """
  rows = [
    [*key, *(cell(result, i) for result in results.values())]
    for i, key in enumerate(keys)
  ]
  return table([*head, *results], rows)


def number(value) -> str:
  """Three decimals, '-' for none."""
  return '-' if value is None else f'{value:.3f}'


def section(title: str, *paragraphs: str) -> str:
  """Paragraphs under a heading, without those that are empty."""
  return '\n\n'.join([f'## {title}', *filter(None, paragraphs)])


def figure(name: str, file: str) -> str:
  return f'![{name}](plots/{file})'


def bullets(lines) -> str:
  return '\n'.join(f'- {line}' for line in lines)


def aligned(head, rows) -> str:
  """A table for a terminal: numbers are flush right."""
  cells = [list(map(str, row)) for row in [head, *rows]]
  widths = [max(map(len, column)) for column in zip(*cells)]
  return '\n'.join(
    '  '.join(
      cell.rjust(width) if i else cell.ljust(width)
      for i, (cell, width) in enumerate(zip(row, widths))
    )
    for row in cells
  )
