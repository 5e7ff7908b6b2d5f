"""Data that a model helps to make: documents kept by score, conversations.

What launch/prepare.py does with --score and --synthesize. The models come as
functions of their paths, so that nothing here imports jax.
"""

from collections.abc import Callable, Iterator

from longjax import errors
from longjax.data import downloads, prepare, prospector, sources, synthetic
from longjax.data import store as stores


def keep(config, tokens, model: str, share, pairs, out, nll) -> stores.Store:
  """Makes a store of the documents that a model scores best (data/score).

  Args:
    config: its data is prepared first.
    tokens: the tokenizer.
    model: a path or 'package:...', which `nll` loads.
    share: text of the share of documents to keep; '' is a half.
    pairs: text of the pairs of chunks scored; '' is prospector.PAIRS.
    out: a new directory; the scores go into OUT.scores.jsonl.
    nll: (model, tokens) -> the function that data/score asks.

  Returns:
    The opened store.
  """
  share = _number('keep', share or '0.5', float, 1)
  pairs = _number('pairs', pairs or str(prospector.PAIRS), int, 10**6)
  if not out:
    raise errors.InputError('--score needs --out=DIR for what is kept')
  if stores.exists(out):
    raise errors.InputError(f'{out} holds a store already; choose another')
  downloads.locate(model)
  whole = prepare.prepare(config, tokens)
  found = prospector.score_store(
    whole, nll(model, tokens), f'{out.rstrip("/")}.scores.jsonl',
    dict(model=model), pairs=pairs,
  )  # fmt: skip
  chosen = prospector.best([s.score for s in found], share)
  about = dict(kept=share, of=whole.digest, scored_by=model, pairs=pairs)
  stores.write(
    out, prospector.entries(whole, chosen), vocab=tokens.vocab,
    tokenizer=tokens.digest, spec=[about, whole.manifest['spec']],
  )  # fmt: skip
  return stores.open_store(out)


def converse(config, path: str, local: Callable) -> str:
  """Makes the conversations that data.synthesis asks for (data/synthetic).

  Args:
    config: `data.synthesis`, `data.sources` and `seed` are read.
    path: the jsonl file, which is appended to.
    local: (model, template) -> a function prompt -> answer.

  Returns:
    A line that says how much was made.
  """
  ask = config.data.synthesis
  if ask.kind == 'tables':
    counts = synthetic.tables(path, ask.tables, ask.rows, config.seed)
  elif ask.kind == 'questions':
    counts = synthetic.questions(
      _documents(config, ask.max_tokens), _answering(ask, local), path,
      chunk_chars=ask.chunk_chars, seed=config.seed,
      parallel=ask.parallel if ask.endpoint else 1,
    )  # fmt: skip
  else:
    raise errors.InputError(
      f"data.synthesis.kind {ask.kind!r} is neither 'questions' nor 'tables'"
    )
  return f'{path}: ' + ', '.join(f'{n} {key}' for key, n in counts.items())


def _documents(config, most: int) -> Iterator[tuple[str, str]]:
  """Yields (name, text) of data.sources, cut to `most` tokens if not 0."""
  tokens = prepare.find_tokenizer(config) if most else None
  for name in sorted(config.data.sources):
    for document in sources.documents(name, config.data.sources[name]):
      text = document.text
      if tokens:
        text = tokens.decode(tokens.encode(text)[:most])
      yield f'{name}/{document.name}', text


def _answering(ask, local) -> Callable:
  """prompt -> answer: from a server, a model of ours, or a record alone."""
  complete = None
  if ask.endpoint:
    complete = synthetic.endpoint(ask.endpoint, ask.model, ask.key)
  elif ask.model:
    complete = local(ask.model, ask.template)
  if ask.record:
    return synthetic.recorded(ask.record, complete)
  if complete is None:
    raise errors.InputError(
      'data.synthesis needs a model, or endpoint and model, or a record'
    )
  return complete


def _number(flag, text, kind, most):
  """A positive number up to `most`."""
  try:
    number = kind(text)
  except ValueError:
    number = 0
  if not 0 < number <= most:
    raise errors.InputError(
      f'--{flag} must be above 0 and at most {most}, got {text!r}'
    )
  return number
