"""Makes the training data of a config: documents to digest-checked shards.

  python launch/prepare.py --config configs/tiny.py --out /tmp/tiny_data

Prints a table by source and where the data is. Training does the same by
itself when the data is missing; this command does it beforehand, or for several
runs in one place (data.directory). A store that exists is verified whole; run
the same command to resume one that was interrupted. --inspect also prints what
the first batch holds, and plots it into runs/NAME/plots/batch_0.png.

  python launch/prepare.py --config configs/C.py --score MODEL --keep 0.5 \\
    --out DIR

keeps the half of these documents whose parts depend most on each other by the
losses of MODEL (a run or weights in any format), and writes each score into
DIR.scores.jsonl (Prospector, arXiv:2405.17915). Train with
--config.data.directory=DIR. --score gzip keeps the middle 0.6 instead, without
those that gzip compresses most and least (OLMo 3, arXiv:2512.13961).

  python launch/prepare.py --config configs/C.py --synthesize CHATS.jsonl \\
    --synthesis endpoint=http://localhost:8000/v1,model=NAME

appends a conversation for each document of data.sources, about its whole text
(Llama 2 Long, arXiv:2309.16039, 4.3); the key, if any, is in $OPENAI_API_KEY.
--synthesis kind=tables makes lengthy tables instead, without a model; all keys
are in longjax/data/synthetic.py. Train on them with a source of kind 'chat'.
"""

import pathlib
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from longjax import cli, errors
from longjax.data import (
  chat,
  downloads,
  filters,
  inspection,
  pipeline,
  prepare,
  prospector,
  synthetic,
)
from longjax.data import tokenizer as tokenizers
from longjax.errors import InputError

ANSWER_TOKENS = 512  # at most, of a local model with --synthesize


def main(
  config, out='', score='', keep='', pairs='', synthesize='', synthesis='',
  inspect=False,
):  # fmt: skip
  """Prepares and prints the table."""
  if (keep or pairs) and not score:
    raise InputError('--keep and --pairs have no effect without --score=MODEL')
  if synthesis and not synthesize:
    raise InputError('--synthesis has no effect without --synthesize=FILE')
  if synthesize:
    options = parse_options(synthesis)
    print(synthetic.synthesize(config, synthesize, options, local_model))
    return
  if inspect:
    pipeline.check(config)
  tokenizer = prepare.find_tokenizer(config)
  check_tokenizer(config, tokenizer)
  if score:
    by_gzip = score == 'gzip'
    if by_gzip and pairs:
      raise InputError('--pairs has no effect with --score=gzip')
    share = cli.number('keep', keep, 0.6 if by_gzip else 0.5, 1e-9, 1)
    count = cli.number('pairs', pairs, prospector.PAIRS, 1)
    store = filters.keep(config, tokenizer, score, share, count, out, load_nll)
  else:
    store = prepare.prepare(config, tokenizer, directory=out)
  store.verify()
  print(prepare.report(store))
  print(f'tokenizer {tokenizer.digest[:12]}, data {store.digest[:12]}')
  print(store.directory)
  if inspect:
    pipe = pipeline.Pipeline(store, config)
    print(pipe.summary(config.train.steps))
    print(inspection.describe(pipe, store, tokenizer))
    path = pathlib.Path('runs') / config.name / 'plots' / 'batch_0.png'
    inspection.plot(pipe, 0, path)
    print(path)


def parse_options(text: str) -> synthetic.Options:
  """Options from 'KEY=VALUE,KEY=VALUE'; InputError for what they cannot be."""
  pairs = (pair.partition('=') for pair in text.split(',') if pair)
  given = {key: value for key, _, value in pairs}
  errors.refuse_unknown_keys('--synthesis', given, synthetic.Options._fields)
  values: dict[str, Any] = dict(given)
  for key, least in synthetic.MINIMA.items():
    if key in given:
      values[key] = cli.number(f'synthesis={key}', given[key], 0, least, 10**9)
  options = synthetic.Options(**values)
  errors.check_choice('--synthesis: kind', options.kind, synthetic.KINDS)
  return options


def check_tokenizer(config, tokenizer):
  """InputError if weights that lie here were trained with another."""
  path = pathlib.Path(config.weights).expanduser()
  if config.data.tokenizer and config.weights and path.exists():
    from longjax.weights import released

    released.check_tokenizer(path, tokenizer, config)


def local_model(model: str, template: str):
  """A function prompt -> answer of a chat model in a file or run."""
  from longjax import weights
  from longjax.inference import generate, language_model

  path = downloads.locate(model)
  tokenizer = tokenizers.load(path)
  end = tokenizer.token_to_id(chat.end(tokenizer, template))
  ends = language_model.stop_token_ids(tokenizer, end)
  params, llama = weights.load(path)
  options = generate.Options(ends=ends)
  lm = language_model.with_cache(params, llama, options=options)

  def complete(prompt: str) -> str:
    ids = chat.prompt([dict(role='user', content=prompt)], tokenizer, template)
    return tokenizer.decode(lm.generate([ids], ANSWER_TOKENS)[0])

  return complete


def load_nll(model: str, tokenizer):
  """A function Batch -> losses of a model."""
  from longjax import weights
  from longjax.inference import generate, language_model

  params, llama = weights.load(downloads.locate(model))
  if tokenizer.vocab > llama.vocab:
    raise InputError(
      f'{model} has {llama.vocab} ids, but the tokenizer {tokenizer.vocab}; '
      'set data.tokenizer to its own'
    )
  options = generate.Options(rows=8)
  return language_model.with_cache(params, llama, options=options).nll


if __name__ == '__main__':
  sys.exit(
    cli.run(
      main,
      __doc__,
      switches=('inspect',),
      inspect='also print and plot what the first batch holds',
      out='directory for the shards, default: a place in the cache',
      synthesize='a jsonl file to append conversations to',
      synthesis='KEY=VALUE,... for --synthesize',
      score='keep documents by their score; a run or weights to score with, or '
      'gzip',
      keep='with --score: the share of documents to keep, default 0.5, of gzip '
      '0.6',
      pairs='with --score: pairs of chunks of 128 tokens scored per document, '
      'default 500',
    )
  )
