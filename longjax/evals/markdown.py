"""Tables and numbers of reports."""


def table(head, rows) -> str:
  """A Markdown table."""
  lines = [head, ['---'] * len(head), *rows]
  return '\n'.join('| ' + ' | '.join(map(str, x)) + ' |' for x in lines)


def number(value) -> str:
  """Three decimals, '-' for none."""
  return '-' if value is None else f'{value:.3f}'


def section(title: str, *paragraphs: str) -> str:
  """Paragraphs under a heading, without those that are empty."""
  return '\n\n'.join([f'## {title}', *filter(None, paragraphs)])


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
