"""Long-dependency scores: by hand, and with models of a few lines."""

import json
import math

import numpy as np
import pytest

from longjax import errors
from longjax.data import prospector, store


def copying(batch):
  """A model that knows two words in a row again: 1 nat, any other 3."""
  losses = np.full(batch.tokens.shape, 3.0)
  for r, (tokens, targets, segments) in enumerate(
    zip(batch.tokens, batch.targets, batch.segments)
  ):
    seen = set()
    for t, pair in enumerate(zip(segments, tokens, targets)):
      losses[r, t] = 1.0 if pair in seen else 3.0
      seen.add(pair)
  return losses


def forgetful(batch):
  """A model whose loss is the token itself, whatever came before."""
  return batch.targets / 100


def telling(rng, chunks=12):
  """A document whose second half quotes the first, each chunk another one."""
  first = rng.integers(0, 800, (chunks // 2, 128))
  second = first[rng.permutation(chunks // 2)]
  second[rng.random(second.shape) < 0.1] = 800
  return np.concatenate([first, second]).reshape(-1)


def test_the_score_by_hand():
  # Chunk 2 alone has perplexity 10: 5 after chunk 0 and 10 after chunk 1.
  alone = np.array([4.0, 8.0, 10.0])
  after = np.array([6.0, 5.0, 10.0])
  later, earlier = np.array([1, 2, 2]), np.array([0, 0, 1])
  got = prospector.combine(alone, after, later, earlier)
  p = 1 / (1 + math.exp(-5))  # softmax of gains 5 and 0
  entropy = -(p * math.log(p) + (1 - p) * math.log(1 - p))
  specific = 1 - entropy / math.log(2)
  # Pair (1, 0): strength 0.25, distance 1, the only one of its chunk.
  want = (0.25 + 1 / 255) * 1 + (0.5 + 2 / 255) * specific
  assert got.score == pytest.approx(want, rel=1e-12)
  assert got.strength == pytest.approx((0.25 + 0.5 + 0) / 3)
  assert got.distance == pytest.approx(1.5 / 255)
  assert got.specificity == pytest.approx((1 + specific) / 2)


def authors_score(alone, after, chunk_num=256):
  """compute_lds of prolong/run.py; `after` is inf where no pair is sampled."""
  count, total = len(alone), 0.0
  for i in range(count):
    gains = [alone[i] - after[i][j] for j in range(i) if after[i][j] < math.inf]
    if not gains:
      continue
    share = np.exp(np.array(gains) - max(gains))
    share /= share.sum()
    most = math.log(len(gains))
    specific = 1 if len(gains) == 1 else (
      (most + np.sum(share * np.log(share))) / most
    )  # fmt: skip
    for j in range(i):
      gain = (alone[i] - after[i][j]) / alone[i]
      if gain > 0.1:
        distance = min((i - j) / (chunk_num - 1), 1)
        total += (gain + distance) * specific
  return total


@pytest.mark.parametrize('chunks, pairs', [(2, 1), (40, 500), (256, 500)])
def test_the_score_is_that_of_the_authors(chunks, pairs, rng):
  later, earlier = prospector.sample_pairs(chunks, pairs, rng)
  alone = rng.uniform(2, 9, chunks)
  after = rng.uniform(1, 9, len(later))
  table = np.full((chunks, chunks), math.inf)
  table[later, earlier] = after
  got = prospector.combine(alone, after, later, earlier)
  assert got.score == pytest.approx(authors_score(alone, table), rel=1e-9)


def test_weak_pairs_do_not_count():
  later, earlier = np.array([1, 2]), np.array([0, 0])
  got = prospector.combine(
    np.array([5.0, 10, 10]), np.array([9.0, 9.01]), later, earlier
  )
  assert got.score == 0.0  # 0.1 and 0.099: neither is above 0.1


def test_specificity_is_0_for_all_alike_and_1_for_one():
  assert prospector.specificity(np.full(7, 3.0)) == pytest.approx(0, abs=1e-12)
  assert prospector.specificity(np.array([900.0, 0, 0])) == pytest.approx(1)
  assert prospector.specificity(np.array([-5.0])) == 1


def test_repetition_is_no_dependency(rng):
  page = rng.choice(1000, 128, replace=False)
  again = prospector.score_document(np.tile(page, 10), copying, rng)
  # Chunk 1 has a single chunk before it, and so specificity 1 by rule.
  assert again.strength > 0.5 and again.specificity == pytest.approx(1 / 9)
  assert again.score == pytest.approx(again.strength + 1 / 255)


def test_a_document_beats_its_shuffled_words(rng):
  ids = telling(rng)
  whole = prospector.score_document(ids, copying, np.random.default_rng(1))
  mixed = prospector.score_document(rng.permutation(ids), copying, rng)
  assert whole.score > 2.5 and mixed.score < 0.1


def test_a_model_without_memory_finds_nothing(rng):
  found = prospector.score_document(rng.integers(0, 300, 2000), forgetful, rng)
  assert (found.score, found.strength) == (0.0, 0.0)


def test_perplexities_leave_out_the_first_token_and_keep_chunks_apart():
  chunks = np.arange(3 * 128, dtype=np.int32).reshape(3, 128)
  pair = np.array([2]), np.array([0])
  alone, after = prospector.perplexities(chunks, *pair, forgetful)
  means = [np.mean(chunk[1:]) / 100 for chunk in chunks]
  assert np.log(alone[2]) == pytest.approx(means[2])
  assert np.log(after) == pytest.approx(means[2:])
  repeated = np.concatenate([chunks[:1]] * 2)  # the same chunk twice
  alone, after = prospector.perplexities(
    repeated, np.array([1]), np.array([0]), copying
  )
  assert np.log(alone[1]) == pytest.approx(3)
  assert np.log(after) == pytest.approx([1])


def test_chunks_and_pairs_are_sampled_in_order_without_repeats(rng):
  chunks = prospector.to_chunks(np.arange(300 * 128 + 5), rng)
  assert chunks.shape == (256, 128)
  assert (np.diff(chunks[:, 0]) > 0).all() and (chunks[:, 0] % 128 == 0).all()
  later, earlier = prospector.sample_pairs(40, 500, rng)
  assert len({*zip(later.tolist(), earlier.tolist())}) == 500
  assert (earlier < later).all() and later.max() < 40
  assert len(prospector.sample_pairs(5, 500, rng)[0]) == 10  # all there are
  assert prospector.score_document(np.arange(200), copying, rng).pairs == 0


def test_the_better_half_is_kept():
  assert prospector.best([1, 5, 3, 5], 0.5).tolist() == [1, 3]
  assert prospector.best([1, 5, 3], 0.01).tolist() == [1]
  assert prospector.best([0, 0, 0, 0], 0.5).tolist() == [0, 1]


@pytest.fixture
def made(rng, tmp_path):
  documents = [telling(rng), rng.integers(0, 300, 500), telling(rng)]
  entries = [
    store.Entry(f'{i}.txt', 'books', ids, 4 * len(ids))
    for i, ids in enumerate(documents)
  ]
  store.write(tmp_path / 'in', entries, vocab=801, tokenizer='t', spec=[])
  return store.open_store(tmp_path / 'in')


def test_scoring_goes_on_where_it_was_cut_off(made, tmp_path):
  path = tmp_path / 'scores.jsonl'
  whole = prospector.score_store(
    made, copying, path, dict(model='m'), lambda _: None
  )
  text = path.read_text()
  path.write_text(text[: text.rindex('"document"') + 20])  # the third is lost
  counted = []

  def counting(batch):
    counted.append(len(batch.tokens))
    return copying(batch)

  again = prospector.score_store(
    made, counting, path, dict(model='m'), lambda _: None
  )
  assert again == whole and path.read_text() == text
  assert 0 < len(counted) < 4  # of the third document only
  with pytest.raises(errors.InputError, match='another model'):
    prospector.score_store(made, copying, path, dict(model='n'), lambda _: None)
  path.write_text('{"data": 1}\nnonsense\n')
  with pytest.raises(errors.InputError, match='not a file of scores'):
    prospector.score_store(made, copying, path, dict(model='m'), lambda _: None)


def test_the_documents_kept_make_a_store(made, tmp_path):
  path = tmp_path / 'scores.jsonl'
  found = prospector.score_store(made, copying, path, {}, lambda _: None)
  assert len(path.read_text().splitlines()) == 4
  assert json.loads(path.read_text().splitlines()[2])['name'] == '1.txt'
  chosen = prospector.best([s.score for s in found], 0.67)
  store.write(
    tmp_path / 'out', prospector.entries(made, chosen), vocab=801,
    tokenizer='t',
    spec=[],
  )  # fmt: skip
  kept = store.open_store(tmp_path / 'out')
  assert list(kept.names) == ['0.txt', '2.txt']
  assert kept.tokens(1).tolist() == made.tokens(2).tolist()
  assert kept.manifest['sources'][0]['text_bytes'] == 4 * 2 * 12 * 128
