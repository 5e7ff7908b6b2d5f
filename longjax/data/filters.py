"""A store of the documents that a model scores best: prepare --score."""

from longjax import errors
from longjax.data import downloads, prepare, prospector
from longjax.data import store as stores


def keep(config, tokens, model: str, share, pairs, out, nll) -> stores.Store:
  """Makes a store of the documents that a model scores best (prospector).

  Args:
    config: its data is prepared first.
    tokens: the tokenizer.
    model: a path or 'package:...', which `nll` loads.
    share: text of the share of documents to keep; '' is a half.
    pairs: text of the pairs of chunks scored; '' is prospector.PAIRS.
    out: a new directory; the scores go into OUT.scores.jsonl.
    nll: (model, tokens) -> the function that gives the prospector losses;
      passed in, so that nothing here imports jax.

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
  scores = prospector.score_store(
    whole, nll(model, tokens), f'{out.rstrip("/")}.scores.jsonl',
    dict(model=model), pairs=pairs,
  )  # fmt: skip
  best = prospector.best([s.score for s in scores], share)
  made_by = dict(kept=share, of=whole.digest, scored_by=model, pairs=pairs)
  stores.write(
    out, prospector.entries(whole, best), vocab=tokens.vocab,
    tokenizer=tokens.digest, spec=[made_by, whole.manifest['spec']],
  )  # fmt: skip
  return stores.open_store(out)


def _number(flag, text, kind, most):
  """A positive number up to `most`."""
  try:
    number = kind(text)
  except ValueError:
    number = 0
  if not 0 < number <= most:
    raise errors.InputError(
      f'--{flag} is {text!r}; it must be above 0 and at most {most}'
    )
  return number
