"""Long-dependency score of documents: Prospector's ProLong, arXiv:2405.17915.

How much do the parts of a document say of each other? It is cut in chunks of
128 tokens; a model gives the perplexity of a chunk alone, and after another
chunk that comes before it. Over sampled pairs of chunks (i after j):

  strength     (ppl_i - ppl_ij) / ppl_i
  distance     (i - j) / (chunks - 1)
  specificity  1 - H(p_i) / ln n_i, with p_i the softmax over the n_i sampled j
               of ppl_i - ppl_ij: does i lean on some j, or on all alike? (So
               repeated text is not taken for dependency.)
  score        sum of (strength + distance) * specificity where strength > 0.1

The model is a function that the caller gives; nothing here computes with it.
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
CHUNKS = 256  # of a document; 32,768 tokens
# Of a document, as the authors' code; the paper samples 5,000. A chunk of which
# one pair is sampled has specificity 1, so few pairs of many chunks say little.
PAIRS = 500
STRONG = 0.1
ROWS = 64  # given to the model at once


class Score(NamedTuple):
  """Of a document."""

  score: float
  strength: float  # mean over the pairs
  distance: float  # mean over the pairs that are strong, 0 if none is
  specificity: float  # mean over the later chunks
  pairs: int


def document(ids, nll, rng, pairs=PAIRS) -> Score:
  """The score of a document.

  Args:
    ids: [tokens].
    nll: Batch of numpy arrays -> [batch, seq] nats, as inference.generate.LM.
    rng: a numpy Generator; it chooses chunks and pairs.
    pairs: how many are sampled. Where there are fewer, all are scored (the
      authors' code then gives 0).
  """
  chunks = cut(ids, rng)
  if len(chunks) < 2:
    return Score(0.0, 0.0, 0.0, 0.0, 0)
  later, earlier = sample(len(chunks), pairs, rng)
  alone, after = perplexities(chunks, later, earlier, nll)
  return combine(alone, after, later, earlier, len(chunks))


def cut(ids, rng) -> np.ndarray:
  """[tokens] -> [chunks, 128]: whole ones; of too many, some, in order."""
  ids = np.asarray(ids)[: len(ids) // CHUNK_TOKENS * CHUNK_TOKENS]
  chunks = ids.astype(np.int32).reshape(-1, CHUNK_TOKENS)
  if len(chunks) > CHUNKS:
    chunks = chunks[np.sort(rng.choice(len(chunks), CHUNKS, replace=False))]
  return chunks


def sample(chunks: int, pairs: int, rng) -> tuple[np.ndarray, np.ndarray]:
  """(later, earlier) [pairs]: different pairs of chunks, later > earlier."""
  later, earlier = np.tril_indices(chunks, -1)
  if len(later) > pairs:
    chosen = np.sort(rng.choice(len(later), pairs, replace=False))
    later, earlier = later[chosen], earlier[chosen]
  return later, earlier


def perplexities(chunks, later, earlier, nll):
  """Of chunks alone and after others, over all tokens but a chunk's first.

  Args:
    chunks: [chunks, 128] ids.
    later, earlier: [pairs] numbers of chunks.
    nll: as of `document`.

  Returns:
    alone [chunks], nan of chunks that are never `later`; after [pairs].
    float64.
  """
  # Two lone chunks share a row, so that all rows have one shape.
  each = np.unique(later)
  lone = np.pad(chunks[each], ((0, len(each) % 2), (0, 0)))
  lone = lone.reshape(-1, 2 * CHUNK_TOKENS)
  both = np.concatenate([chunks[earlier], chunks[later]], axis=1)
  alone = np.full(len(chunks), np.nan)
  with np.errstate(over='ignore'):
    alone[each] = np.exp(_means(lone, 2, nll).reshape(-1)[: len(each)])
    return alone, np.exp(_means(both, 1, nll)[:, 1])


def combine(alone, after, later, earlier, chunks: int) -> Score:
  """The score from perplexities; see the top of this file.

  Args:
    alone: [chunks] perplexities.
    after: [pairs] perplexities of chunk `later` after chunk `earlier`.
    later, earlier: [pairs].
    chunks: how many the document has.
  """
  with np.errstate(invalid='ignore'):
    gain = np.nan_to_num(alone[later] - after)
    strength = np.nan_to_num(gain / alone[later])
  distance = np.clip((later - earlier) / max(1, chunks - 1), 0, 1)
  each = np.unique(later)
  specific = np.zeros(chunks)
  for i in each:
    specific[i] = specificity(gain[later == i])
  strong = strength > STRONG
  parts = (strength + distance) * specific[later]
  return Score(
    float(parts[strong].sum()),
    float(strength.mean()),
    float(distance[strong].mean()) if strong.any() else 0.0,
    float(specific[each].mean()),
    len(later),
  )


def specificity(gain) -> float:
  """1 where one earlier chunk explains it all, 0 where all do alike."""
  if len(gain) == 1:
    return 1.0
  exponent = gain - gain.max()
  share = np.exp(exponent) / np.exp(exponent).sum()
  entropy = -np.sum(share * np.log(np.maximum(share, 1e-300)))
  return float(np.clip(1 - entropy / math.log(len(gain)), 0, 1))


def best(scores, keep: float) -> np.ndarray:
  """Numbers of the share `keep` of documents with the best scores, in order.

  Equal scores go by number; one document at least is kept.
  """
  if not 0 < keep <= 1:
    raise errors.InputError(f'keep must be above 0 and at most 1, got {keep}')
  order = np.argsort(-np.asarray(scores), kind='stable')
  return np.sort(order[: max(1, round(keep * len(order)))])


def scored(
  store, nll, path, about: dict, log=print, pairs=PAIRS
) -> list[Score]:
  """Scores every document of a store; what is in `path` is not done again.

  Args:
    store: a store.Store.
    nll: as of `document`.
    path: a jsonl file that is appended to, a line for each document.
    about: what else the scores depend on (the model), as JSON.
    log: called with a line now and then.
    pairs: as of `document`.
  """
  path = pathlib.Path(path)
  head = dict(data=store.digest, pairs=pairs, **about)
  path.parent.mkdir(parents=True, exist_ok=True)
  done = _resumed(path, head)
  with open(path, 'a', encoding='utf-8') as file:
    if not path.stat().st_size:
      file.write(json.dumps(head) + '\n')
    for number in range(len(done), len(store.lengths)):
      rng = np.random.default_rng(number)
      found = document(store.tokens(number), nll, rng, pairs)
      line = dict(document=number, name=store.names[number], **found._asdict())
      file.write(json.dumps(line) + '\n')
      file.flush()
      done.append(found)
      log(f'{number + 1} of {len(store.lengths)}: {found.score:.1f}, '
          f'{store.names[number]}')  # fmt: skip
  return done


def entries(store, documents):
  """Yields some documents of a store as entries of another."""
  sources = {s['name']: s for s in store.manifest['sources']}
  for number in documents:
    source = sources[store.source(number)]
    ids = store.tokens(number)
    mask = store.mask(number)
    share = len(ids) / source['tokens']  # bytes are only known by source
    yield stores.Entry(
      store.names[number], source['name'], ids,
      round(share * source['text_bytes']), None if mask.all() else mask,
    )  # fmt: skip


def _resumed(path, head) -> list[Score]:
  """The scores in a file; a last line that was cut off is removed."""
  if not path.exists():
    return []
  whole = path.read_bytes()
  whole = whole[: whole.rfind(b'\n') + 1]
  try:
    lines = [json.loads(line) for line in whole.splitlines()]
    made = [Score(*(line[key] for key in Score._fields)) for line in lines[1:]]
    numbers = [line['document'] for line in lines[1:]]
  except (ValueError, KeyError, TypeError) as error:
    raise errors.InputError(
      f'{path}: not a file of scores ({error})'
    ) from error
  if lines and (lines[0] != head or numbers != list(range(len(made)))):
    raise errors.InputError(
      f'{path}: holds scores of other data or of another model; delete it or '
      'choose another place'
    )
  if len(whole) != path.stat().st_size:
    path.write_bytes(whole)
  return made


def _means(rows, segments: int, nll) -> np.ndarray:
  """Mean loss of each half of a row over all but the half's first token.

  Args:
    rows: [rows, 256] ids.
    segments: 1: the second half sees the first; 2: it does not.
    nll: as of `document`.

  Returns:
    float64 [rows, 2].
  """
  half = rows.shape[1] // 2
  order = np.arange(rows.shape[1], dtype=np.int32)
  which = order // half if segments == 2 else np.zeros_like(order)
  weights = (order % half < half - 1).astype(np.float32)
  means = []
  for start in range(0, len(rows), ROWS):
    tokens = rows[start : start + ROWS]
    same = (np.broadcast_to(x, tokens.shape) for x in (
      weights, which + 1, order - which * half, order
    ))  # fmt: skip
    batch = Batch(tokens, np.roll(tokens, -1, axis=1), *same)
    losses = np.asarray(nll(batch), np.float64) * weights
    means.append(losses.reshape(-1, 2, half).sum(2) / (half - 1))
  return np.concatenate(means)
