"""A store of the documents that a score keeps: prepare --score.

By a model, the best (prospector); by gzip, the middle: OLMo 3 (2512.13961)
leaves out the 20 % of its long documents that gzip compresses most, which
repeat themselves, and the 20 % that it compresses least.
"""

import gzip

import numpy as np

from longjax import errors
from longjax.data import downloads, prepare, prospector
from longjax.data import store as stores


def keep(
  config, tokenizer, model: str, share: float, pairs: int, out: str, nll
) -> stores.Store:
  """Makes a store of the documents that a score keeps.

  Args:
    config: its data is prepared first.
    tokenizer: the tokenizer.
    model: a path or 'package:...', which `nll` loads; or 'gzip'.
    share: of the documents to keep, above 0 and at most 1.
    pairs: of chunks scored; gzip has none.
    out: a new directory; the scores go into OUT.scores.jsonl.
    nll: (model, tokenizer) -> the function that gives the prospector losses;
      passed in, so that nothing here imports jax.

  Returns:
    The opened store.
  """
  by_gzip = model == 'gzip'
  if not out:
    raise errors.InputError('--score needs --out=DIR for what is kept')
  if stores.exists(out):
    raise errors.InputError(f'{out} holds a store already; choose another')
  if not by_gzip:
    downloads.locate(model)
  whole = prepare.prepare(config, tokenizer)
  made_by = dict(kept=share, of=whole.digest, scored_by=model)
  if by_gzip:
    kept = middle(compression(whole, tokenizer), share)
  else:
    made_by['pairs'] = pairs
    scores = prospector.score_store(
      whole, nll(model, tokenizer), f'{out.rstrip("/")}.scores.jsonl',
      dict(model=model), pairs=pairs,
    )  # fmt: skip
    kept = prospector.best([s.score for s in scores], share)
  if not len(kept):
    raise errors.InputError(
      f'--keep {share} of {len(whole.lengths)} documents keeps none'
    )
  stores.write(
    out, prospector.entries(whole, kept), vocab=tokenizer.vocab,
    tokenizer=tokenizer.digest, spec=[made_by, whole.manifest['spec']],
  )  # fmt: skip
  return stores.open_store(out)


def compression(store, tokenizer) -> np.ndarray:
  """float [documents]: bytes of the text over those that gzip makes of it."""
  ratios = []
  for number in range(len(store.lengths)):
    text = tokenizer.decode(store.tokens(number)).encode('utf-8', 'replace')
    ratios.append(len(text) / len(gzip.compress(text, mtime=0)))
  return np.array(ratios)


def middle(ratios, share: float) -> np.ndarray:
  """Numbers of the documents in the middle share of these ratios, rising."""
  order = np.argsort(ratios, kind='stable')
  cut = round(len(order) * (1 - share) / 2)
  return np.sort(order[cut : len(order) - cut])
