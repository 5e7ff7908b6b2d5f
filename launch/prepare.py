"""Makes the training data of a config: documents to digest-checked shards.

  python launch/prepare.py --config configs/tiny.py --out /tmp/tiny_data

Prints a table by source and where the data is. Training does the same by
itself when the data is missing; this command is for doing it beforehand, or
for several runs in one place (data.directory).
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from longjax import cli
from longjax.data import prepare


def main(config, out=''):
  """Prepares and prints the table."""
  tokens = prepare.find_tokenizer(config)
  store = prepare.prepare(config, tokens, directory=out)
  print(table(store))
  print(f'tokenizer {tokens.digest[:12]}, data {store.digest[:12]}')
  print(store.directory)


def table(store) -> str:
  """A line per source and one for the sum."""
  keys = ('documents', 'tokens', 'longest', 'text_bytes')
  rows = [
    [s['name'], *(s[key] for key in keys)] for s in store.manifest['sources']
  ]
  columns = list(zip(*rows))[1:]
  totals = [max(c) if k == 'longest' else sum(c) for k, c in zip(keys, columns)]
  lines = [('source', 'documents', 'tokens', 'longest', 'bytes')]
  lines += [
    (n, *(f'{x:,}' for x in xs)) for n, *xs in [*rows, ['all', *totals]]
  ]
  return '\n'.join(
    f'{name:24}' + ''.join(f'{cell:>14}' for cell in cells)
    for name, *cells in lines
  )


if __name__ == '__main__':
  sys.exit(
    cli.run(
      main,
      __doc__,
      out='directory for the shards, default: a place in the cache',
    )
  )
