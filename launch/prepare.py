"""Makes the training data of a config: documents to digest-checked shards.

  python launch/prepare.py --config configs/tiny.py --out /tmp/tiny_data

Prints a table by source and where the data is. Training does the same by
itself when the data is missing; this command is for doing it beforehand, or
for several runs in one place (data.directory).

  python launch/prepare.py --config configs/C.py --score MODEL --keep 0.5 \\
    --out DIR

keeps the half of these documents whose parts depend most on each other, as
MODEL (a run or weights in any format) sees it, and writes each score into
DIR.scores.jsonl (Prospector, arXiv:2405.17915). Train with
--config.data.directory=DIR.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from longjax import cli
from longjax.data import packages, prepare, score
from longjax.data import store as stores
from longjax.errors import InputError


def main(config, out='', score='', keep='', pairs=''):
  """Prepares and prints the table."""
  if (keep or pairs) and not score:
    raise InputError('--keep and --pairs need --score=MODEL, which ranks')
  tokens = prepare.find_tokenizer(config)
  if score:
    store = kept(config, tokens, score, keep, pairs, out)
  else:
    store = prepare.prepare(config, tokens, directory=out)
  print(table(store))
  print(f'tokenizer {tokens.digest[:12]}, data {store.digest[:12]}')
  print(store.directory)


def kept(config, tokens, model, keep, pairs, out):
  """The store of the share `keep` of documents that `model` scores best."""
  share = _number('keep', keep or '0.5', float, 1)
  sampled = _number('pairs', pairs or str(score.PAIRS), int, 10**6)
  if not out:
    raise InputError('--score needs --out=DIR for the documents that are kept')
  whole = prepare.prepare(config, tokens)
  if stores.exists(out):
    raise InputError(f'{out} holds a store already; choose another --out')
  found = score.scored(
    whole, _nll(model, tokens), f'{out.rstrip("/")}.scores.jsonl',
    dict(model=model), pairs=sampled,
  )  # fmt: skip
  chosen = score.best([s.score for s in found], share)
  about = dict(kept=share, of=whole.digest, scored_by=model)
  stores.write(
    out, score.entries(whole, chosen), vocab=tokens.vocab,
    tokenizer=tokens.digest, spec=[about, whole.manifest['spec']],
  )  # fmt: skip
  return stores.open_store(out)


def _nll(model, tokens):
  """The losses of a model; jax is only needed here."""
  from longjax import generate, weights

  params, llama = weights.load(packages.locate(model))
  if tokens.vocab > llama.vocab:
    raise InputError(
      f'{model} has {llama.vocab} ids, but the tokenizer {tokens.vocab}; set '
      'data.tokenizer to its own'
    )
  return generate.lm(params, llama, rows=8).nll


def _number(flag, text, kind, most):
  """A positive number up to `most`."""
  try:
    number = kind(text)
  except ValueError:
    number = 0
  if not 0 < number <= most:
    raise InputError(f'--{flag} is above 0 and at most {most}, got {text!r}')
  return number


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
      score='keep documents by their score; a run or weights to score with',
      keep='with --score: the share of documents to keep, default 0.5',
      pairs='with --score: pairs of 128 tokens scored a document, default 500',
    )
  )
