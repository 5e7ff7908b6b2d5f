"""Long-dependency scores of documents: Prospector's ProLong, arXiv:2405.17915.

How much do the parts of a document depend on each other? A document is cut into
chunks of 128 tokens; a model gives the perplexity of a chunk alone, and after
another chunk that comes before it. Over sampled pairs of chunks (i after j):

  strength     (ppl_i - ppl_ij) / ppl_i
  distance     (i - j) / 255, in shares of the longest document scored, as in
               the authors' code (October2001/ProLong, prolong/run.py)
  specificity  1 - H(p_i) / ln n_i, with p_i the softmax over the n_i sampled j
               of ppl_i - ppl_ij: 1 if i depends on one j, 0 if on all alike (so
               repeated text does not count as dependency)
  score        sum of (strength + distance) * specificity where strength > 0.1

The model is a function that the caller passes; nothing here computes with it.
"""

import json
import math
import pathlib
from typing import NamedTuple

import numpy as np

from longjax import errors
from longjax.batch import Batch
from longjax.data import store as stores

CHUNK_TOKENS = 128
CHUNKS = 256  # of a document at most; 32,768 tokens
# Of a document, as in the authors' code; the paper samples 5,000. A chunk with
# one sampled pair has specificity 1, so few pairs of many chunks mean little.
PAIRS = 500
STRONG = 0.1
ROWS = 64  # of a batch given to the model


class Score(NamedTuple):
  """The score of a document and its terms."""

  score: float
  strength: float  # mean over the pairs
  distance: float  # mean over the strong pairs, 0 if there is none
  specificity: float  # mean over the later chunks
  pairs: int


def score_document(ids, nll, rng, pairs=PAIRS) -> Score:
  """The score of a document.

  Args:
    ids: [tokens].
    nll: Batch of numpy arrays -> [batch, seq] nats, as that of an LM.
    rng: a numpy Generator; it chooses chunks and pairs.
    pairs: how many are sampled. Where there are fewer, all are scored (the
      authors' code then gives 0).
  """
  chunks = to_chunks(ids, rng)
  if len(chunks) < 2:
    return Score(0.0, 0.0, 0.0, 0.0, 0)
  later, earlier = sample_pairs(len(chunks), pairs, rng)
  alone, after = perplexities(chunks, later, earlier, nll)
  return combine(alone, after, later, earlier)


def to_chunks(ids, rng) -> np.ndarray:
  """[tokens] -> [chunks, 128]: whole chunks, at most 256, in order."""
  ids = np.asarray(ids)[: len(ids) // CHUNK_TOKENS * CHUNK_TOKENS]
  chunks = ids.astype(np.int32).reshape(-1, CHUNK_TOKENS)
  if len(chunks) > CHUNKS:
    chunks = chunks[np.sort(rng.choice(len(chunks), CHUNKS, replace=False))]
  return chunks


def sample_pairs(chunks: int, pairs: int, rng) -> tuple[np.ndarray, np.ndarray]:
  """(later, earlier) [pairs]: different pairs of chunks, later > earlier."""
  later, earlier = np.tril_indices(chunks, -1)
  if len(later) > pairs:
    chosen = np.sort(rng.choice(len(later), pairs, replace=False))
    later, earlier = later[chosen], earlier[chosen]
  return later, earlier


def perplexities(chunks, later, earlier, nll):
  """Perplexities of chunks alone and after others, without their first tokens.

  Args:
    chunks: [chunks, 128] ids.
    later, earlier: [pairs] numbers of chunks.
    nll: as for `score_document`.

  Returns:
    alone: float64 [chunks], nan for chunks that are never `later`.
    after: float64 [pairs].
  """
  # Two chunks alone share a row, so that all rows have one shape.
  each = np.unique(later)
  lone = np.pad(chunks[each], ((0, len(each) % 2), (0, 0)))
  lone = lone.reshape(-1, 2 * CHUNK_TOKENS)
  both = np.concatenate([chunks[earlier], chunks[later]], axis=1)
  alone = np.full(len(chunks), np.nan)
  with np.errstate(over='ignore'):
    losses = _mean_losses(lone, nll, masked=True).reshape(-1)
    alone[each] = np.exp(losses[: len(each)])
    return alone, np.exp(_mean_losses(both, nll, masked=False)[:, 1])


def combine(alone, after, later, earlier) -> Score:
  """The score from perplexities; see the top of this file.

  Args:
    alone: [chunks] perplexities.
    after: [pairs] perplexities of chunk `later` after chunk `earlier`.
    later, earlier: [pairs].
  """
  with np.errstate(invalid='ignore'):
    gain = np.nan_to_num(alone[later] - after)
    strength = np.nan_to_num(gain / alone[later])
  distance = (later - earlier) / (CHUNKS - 1)
  each = np.unique(later)
  specific = np.zeros(len(alone))
  for i in each:
    specific[i] = specificity(gain[later == i])
  strong = strength > STRONG
  scores = (strength + distance) * specific[later]
  return Score(
    float(scores[strong].sum()),
    float(strength.mean()),
    float(distance[strong].mean()) if strong.any() else 0.0,
    float(specific[each].mean()),
    len(later),
  )


def specificity(gain) -> float:
  """1 if one earlier chunk has all of the gain, 0 if all have the same."""
  if len(gain) == 1:
    return 1.0
  exponent = gain - gain.max()
  share = np.exp(exponent) / np.exp(exponent).sum()
  entropy = -np.sum(share * np.log(np.maximum(share, 1e-300)))
  return float(np.clip(1 - entropy / math.log(len(gain)), 0, 1))


def best(scores, keep: float) -> np.ndarray:
  """Numbers of the share `keep` of documents with the best scores, rising.

  Equal scores go by number; one document at least is kept.
  """
  order = np.argsort(-np.asarray(scores), kind='stable')
  return np.sort(order[: max(1, round(keep * len(order)))])


def score_store(
  store: stores.Store, nll, path, metadata: dict, log=print, pairs=PAIRS
) -> list[Score]:
  """Scores every document of a store but those that are in a file already.

  Args:
    nll: as for `score_document`.
    path: a jsonl file, to which a line for each document is appended.
    metadata: what else the scores depend on (the model), as JSON.
    log: called with a line for each document.
    pairs: as for `score_document`.

  Raises:
    InputError: the file holds something else.
  """
  path = pathlib.Path(path)
  # Scores made before distances were shares of CHUNKS are not continued.
  header = dict(data=store.digest, pairs=pairs, chunks=CHUNKS, **metadata)
  path.parent.mkdir(parents=True, exist_ok=True)
  scores = _read_scores(path, header)
  with open(path, 'a', encoding='utf-8') as file:
    if not path.stat().st_size:
      file.write(json.dumps(header) + '\n')
    for number in range(len(scores), len(store.lengths)):
      rng, name = np.random.default_rng(number), store.name(number)
      score = score_document(store.tokens(number), nll, rng, pairs)
      line = dict(document=number, name=name, **score._asdict())
      file.write(json.dumps(line) + '\n')
      file.flush()
      scores.append(score)
      log(f'{number + 1} of {len(store.lengths)}: {score.score:.1f}, {name}')
  return scores


def entries(store, documents):
  """Yields some documents of a store as entries of another."""
  sources = {s['name']: s for s in store.manifest['sources']}
  for number in documents:
    source = sources[store.source(number)]
    ids, mask = store.tokens(number), store.mask(number)
    share = len(ids) / source['tokens']  # bytes are only known by source
    yield stores.Entry(
      store.name(number), source['name'], ids,
      round(share * source['text_bytes']), None if mask.all() else mask,
    )  # fmt: skip


def _read_scores(path, header) -> list[Score]:
  """The scores in a file; removes a last line that was cut off."""
  if not path.exists():
    return []
  content = path.read_bytes()
  complete = content[: content.rfind(b'\n') + 1]
  try:
    first, *lines = [json.loads(x) for x in complete.splitlines()] or [header]
    scores = [Score(*(line[key] for key in Score._fields)) for line in lines]
    numbers = [line['document'] for line in lines]
  except (ValueError, KeyError, TypeError) as error:
    raise errors.InputError(
      f'{path}: not a file of scores ({error})'
    ) from error
  if first != header or numbers != list(range(len(scores))):
    raise errors.InputError(
      f'{path}: holds scores of other data, of another model or by another '
      'rule; delete it or choose another place'
    )
  if complete != content:
    path.write_bytes(complete)
  return scores


def _mean_losses(rows, nll, masked: bool) -> np.ndarray:
  """Mean loss of each half of a row, without the first token of the half.

  Args:
    rows: [rows, 256] ids.
    nll: as for `score_document`.
    masked: the halves do not attend to each other.

  Returns:
    float64 [rows, 2].
  """
  half = rows.shape[1] // 2
  order = np.arange(rows.shape[1], dtype=np.int32)
  segment = order // half if masked else np.zeros_like(order)
  weights = (order % half < half - 1).astype(np.float32)
  means = []
  for start in range(0, len(rows), ROWS):
    tokens = rows[start : start + ROWS]
    same = (np.broadcast_to(x, tokens.shape) for x in (
      weights, segment + 1, order - segment * half, order
    ))  # fmt: skip
    batch = Batch(tokens, np.roll(tokens, -1, axis=1), *same)
    losses = np.asarray(nll(batch), np.float64) * weights
    means.append(losses.reshape(-1, 2, half).sum(2) / (half - 1))
  return np.concatenate(means)
