"""Lengthy tables with questions that have one answer each.

LongSkywork, arXiv:2406.00605; the questions are our own.
"""

QUESTIONS = 3  # about a table, in turns


def conversation(rng, rows: int, asked=QUESTIONS) -> list[dict]:
  """A conversation about a table whose names and amounts are all different.

  Args:
    rng: a numpy Generator.
    rows: of the table, at least 2.
    asked: questions about it, at most 5.

  Returns:
    Messages: the table and the first question, its answer, and so on.
  """
  names = [f'{a}-{b}' for a in SYLLABLES for b in range(rows // 40 + 1)]
  names = rng.permutation(names)[:rows].tolist()
  columns = {
    'name': names,
    'city': rng.choice(CITIES, rows).tolist(),
    'year': rng.integers(1950, 2025, rows).tolist(),
    'amount': (rng.permutation(9 * rows) + rows)[:rows].tolist(),
  }
  lines = [' | '.join(columns), ' | '.join('---' for _ in columns)]
  lines += [' | '.join(map(str, row)) for row in zip(*columns.values())]
  turns = []
  for kind in rng.permutation(len(LOOKUPS))[:asked]:
    question, answer = LOOKUPS[kind](columns, int(rng.integers(rows)))
    turns += [dict(role='user', content=question)]
    turns += [dict(role='assistant', content=str(answer))]
  head = 'Read the table and answer the questions about it.\n\n'
  turns[0]['content'] = head + '\n'.join(lines) + '\n\n' + turns[0]['content']
  return turns


SYLLABLES = [
  a + b
  for a in ('Bar', 'Cor', 'Dal', 'Fen', 'Gor', 'Hul', 'Lin', 'Mor')
  for b in ('den', 'fax', 'lo', 'mir', 'ton')
]
CITIES = (
  'Basel', 'Cork', 'Delft', 'Graz', 'Lille', 'Porto', 'Turku', 'Vilnius',
)  # fmt: skip


def _cell(columns, i):
  column = ('city', 'year', 'amount')[i % 3]
  question = f'What is the {column} of {columns["name"][i]}?'
  return question, columns[column][i]


def _name_of_amount(columns, i):
  question = f'Which name has the amount {columns["amount"][i]}?'
  return question, columns['name'][i]


def _largest_in_city(columns, i):
  city = columns['city'][i]
  both = zip(columns['amount'], columns['name'], columns['city'])
  best = max((amount, name) for amount, name, where in both if where == city)
  return f'Which name in {city} has the largest amount?', best[1]


def _count_of_city(columns, i):
  city = columns['city'][i]
  return f'How many rows have the city {city}?', columns['city'].count(city)


def _next_row(columns, i):
  before = max(0, i - 1)
  question = f'Which name is in the row after {columns["name"][before]}?'
  return question, columns['name'][before + 1]


LOOKUPS = (
  _cell, _name_of_amount, _largest_in_city, _count_of_city, _next_row,
)  # fmt: skip
