"""Makes the training data of a config: documents to digest-checked shards.

  python launch/prepare.py --config configs/tiny.py --out /tmp/tiny_data

Prints a table by source and where the data is. Training does the same by
itself when the data is missing; this command is for doing it beforehand, or
for several runs in one place (data.directory). A store that is there is
verified whole; one that was interrupted goes on where it was. With --inspect
also says what the first batch holds, and plots it into
runs/NAME/plots/batch_0.png.

  python launch/prepare.py --config configs/C.py --score MODEL --keep 0.5 \\
    --out DIR

keeps the half of these documents whose parts depend most on each other, as
MODEL (a run or weights in any format) sees it, and writes each score into
DIR.scores.jsonl (Prospector, arXiv:2405.17915). Train with
--config.data.directory=DIR.

  python launch/prepare.py --config configs/C.py --synthesize CHATS.jsonl \\
    --config.data.synthesis.endpoint=http://localhost:8000/v1 \\
    --config.data.synthesis.model=NAME

appends a conversation for each document of data.sources, about its whole text
(Llama 2 Long, arXiv:2309.16039, 4.3); the key, if any, is in $OPENAI_API_KEY.
data.synthesis.kind=tables makes lengthy tables instead, without a model. Train
on them with a source of kind 'chat'. Run it again to go on.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from longjax import cli
from longjax.data import (
  chat,
  downloads,
  filters,
  inspection,
  pipeline,
  prepare,
  tokenizer,
)
from longjax.errors import InputError

ANSWER = 512  # tokens at most that a model of ours writes


def main(
  config, out='', score='', keep='', pairs='', synthesize='', inspect=False
):
  """Prepares and prints the table."""
  if (keep or pairs) and not score:
    raise InputError('--keep and --pairs need --score=MODEL, which ranks')
  if synthesize:
    print(filters.converse(config, synthesize, _answers))
    return
  if inspect:
    pipeline.check(config)
  tokens = prepare.find_tokenizer(config)
  if score:
    store = filters.keep(config, tokens, score, keep, pairs, out, _nll)
  else:
    store = prepare.prepare(config, tokens, directory=out)
  store.verify()
  print(table(store))
  for line in left_out(store):
    print(line)
  print(f'tokenizer {tokens.digest[:12]}, data {store.digest[:12]}')
  print(store.directory)
  if inspect:
    show(config, store, tokens)


def show(config, store, tokens):
  """Says and plots what the first batch holds."""
  pipe = pipeline.Pipeline(store, config)
  print(pipe.summary(config.train.steps))
  print(inspection.describe(pipe, store, tokens))
  path = pathlib.Path('runs') / config.name / 'plots' / 'batch_0.png'
  inspection.plot(pipe, 0, path)
  print(path)


def left_out(store):
  """Yields a line for each source of which something was not taken."""
  for name in sorted({told['source'] for told in store.manifest['left_out']}):
    mine = [t for t in store.manifest['left_out'] if t['source'] == name]
    counts = {k: sum(t[k] for t in mine) for k in ('bad', 'short', 'language')}
    sources = {s['name']: s for s in store.manifest['sources']}
    counts['duplicates'] = sources.get(name, {}).get('duplicates', 0)
    if any(counts.values()):
      said = ', '.join(f'{n} {k}' for k, n in counts.items() if n)
      named = [what for t in mine for what in t['named']]
      yield f'{name}: left out {said}' + ''.join(f'\n  {w}' for w in named)


def _answers(model: str, template: str):
  """prompt -> answer of a model of ours, which must know how to chat."""
  from longjax import weights
  from longjax.inference import generate

  path = downloads.locate(model)
  tokens = tokenizer.load(path)
  end = tokens.ident(chat.ENDS[template]) if template in chat.ENDS else None
  params, llama = weights.load(path)
  lm = generate.lm(params, llama, ends=() if end is None else (end,))

  def complete(prompt: str) -> str:
    messages = [dict(role='user', content=prompt)]
    (ids,) = lm.generate([chat.prompt(messages, tokens, template)], ANSWER)
    return tokens.decode(ids)

  return complete


def _nll(model: str, tokens):
  """Batch -> losses of a model; jax is only needed here and above."""
  from longjax import weights
  from longjax.inference import generate

  params, llama = weights.load(downloads.locate(model))
  if tokens.vocab > llama.vocab:
    raise InputError(
      f'{model} has {llama.vocab} ids, but the tokenizer {tokens.vocab}; set '
      'data.tokenizer to its own'
    )
  return generate.lm(params, llama, rows=8).nll


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
      switches=('inspect',),
      inspect='also say and plot what the first batch holds',
      out='directory for the shards, default: a place in the cache',
      synthesize='a jsonl file of conversations to make, or to go on with',
      score='keep documents by their score; a run or weights to score with',
      keep='with --score: the share of documents to keep, default 0.5',
      pairs='with --score: pairs of 128 tokens scored a document, default 500',
    )
  )
