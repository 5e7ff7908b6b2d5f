"""Perplexity in its modes, context gain, the power law and LongPPL, by hand.

The model here makes up its losses: nll(batch) is a function of the tokens, so
every mean can be worked out without one.
"""

import json
import math
import pathlib

import numpy as np
import pytest

from longjax.errors import InputError
from longjax.evals import context_gain, longppl, perplexity
from longjax.inference.language_model import LM


def model(loss):
  """loss(rows of tokens [batch, seq]) -> [batch, seq] nats."""
  return LM(lambda batch: loss(np.asarray(batch.tokens)), None)


# The loss of a token is 1 / (tokens before it in the window).
context = model(lambda t: 1 / np.tile(np.arange(1, t.shape[1] + 1),
                                      (len(t), 1)))  # fmt: skip
# The loss of predicting token x is x / 100, whatever is before it.
value = model(lambda t: np.roll(t, -1, 1) / 100)


def document(tokens):
  return np.arange(tokens)


@pytest.mark.parametrize('tokens, length, stride', [
  (100, 32, 8), (101, 32, 8), (32, 32, 8), (20, 32, 8), (33, 32, 31),
  (90, 7, 3), (90, 7, 6),
])  # fmt: skip
def test_windows_score_each_token_but_the_first_once(tokens, length, stride):
  found = perplexity.windows(tokens, length, stride)
  scored = [t for w in found for t in range(w.scored, w.end)]
  assert scored == list(range(1, tokens))
  assert {w.end - w.start for w in found} == {min(length, tokens)}
  assert all(w.start >= 0 and w.scored > w.start for w in found)


def test_the_modes_by_hand():
  """10 tokens in windows of 4 by 2: [0, 4), [2, 6), [4, 8), [6, 10); with a
  BOS, 0 and [1, 4), 0 and [3, 6), ..."""
  documents = [document(10)]
  first, later = [1, 1 / 2, 1 / 3], [1 / 2, 1 / 3]
  run = lambda mode: math.log(
    perplexity.perplexity(mode, context, documents, 4, 2)
  )
  assert run('press') == pytest.approx(np.mean(first + 3 * later))
  assert run('prefix') == pytest.approx(np.mean(first))
  assert run('yarn_equal_window') == pytest.approx(
    np.mean([np.mean(first)] + 3 * [np.mean(later)])
  )
  assert run('longlora') == pytest.approx(np.mean(4 * first))


GOLDEN = json.loads(
  (pathlib.Path(__file__).parent / 'golden' / 'recipes.json').read_text()
)['perplexity']


@pytest.mark.parametrize('case', [
  case for case in GOLDEN['cases']
  # Without BOS PoSE's sum counts the first token, which has no loss.
  if case[4] or 'PoSE' not in case[0]
])  # fmt: skip
def test_windows_with_bos_are_those_of_the_original_code(case):
  """With a loss that depends on the token, its place and the window's first."""
  path, truncate, length, stride, bos, want = case

  def loss(tokens):
    place = np.arange(1, tokens.shape[1])
    scored = (7 * tokens[:, 1:] + 3 * place + tokens[:, :1]) % 13 / 5
    return np.pad(scored, ((0, 0), (0, 1)))

  mode = 'pose' if 'PoSE' in path else 'yarn_equal_window'
  if truncate:
    mode = 'prefix'
  documents = [np.array([1] * bos + d) for d in GOLDEN['documents']]
  got = perplexity.perplexity(mode, model(loss), documents, length, stride, bos)
  assert got == pytest.approx(want, rel=1e-6)


def test_windows_no_longer_than_the_stride_score_every_token():
  """Of 40 tokens; a stride of 256 is that of windows of 4,096."""
  found = perplexity.table(value, [document(40)], [2, 8, 16, 40], stride=16)
  every = math.exp(np.mean(np.arange(1, 40)) / 100)
  assert found['press'] == pytest.approx([every] * 4)
  with pytest.raises(InputError, match='advance by 8'):
    perplexity.windows(40, 8, 8)


def test_text_shorter_than_a_window_is_one_window():
  found = perplexity.table(value, [document(5), document(3)], [16], stride=4)
  wanted = np.mean([1, 2, 3, 4, 0, 1, 2]) / 100  # end to end
  assert math.log(found['longlora'][0]) == pytest.approx(wanted)


def test_prefix_weighs_documents_and_press_tokens():
  documents = [document(10), np.full(4, 50)]
  press = math.log(perplexity.perplexity('press', value, documents, 4, 2))
  prefix = math.log(perplexity.perplexity('prefix', value, documents, 4, 2))
  assert press == pytest.approx((45 + 150) / 12 / 100)
  assert prefix == pytest.approx((2 + 50) / 2 / 100)


def test_longlora_runs_over_document_ends():
  documents = [document(4), document(4) + 10]
  found = math.log(perplexity.perplexity('longlora', value, documents, 4, 2))
  wanted = np.mean([1, 2, 3, 3, 10, 11, 11, 12, 13]) / 100
  assert found == pytest.approx(wanted)


def test_context_gain_scores_the_same_tokens():
  seen = []

  def loss(tokens):
    seen.append(tokens)
    return np.roll(tokens, -1, 1) / 100

  gain = context_gain.gain(
    model(loss), [document(99), document(99)], (4, 16, 8), 5
  )
  assert gain['context'] == [4, 8, 16]
  assert gain['loss'] == pytest.approx([18 / 100] * 3)  # tokens 16 to 20
  assert [x.shape for x in seen] == [(2, 9), (2, 13), (2, 21)]
  assert [x[0, 0] for x in seen] == [12, 8, 0]


# arXiv:2309.16039, figure 1: alpha, beta, gamma and what they come to.
LLAMA2_LONG = {
  '7B': ((25.4, 0.45, 1.56), (1.749, 1.662, 1.634, 1.614, 1.600)),
  '13B': ((19.5, 0.48, 1.45), (1.599, 1.527, 1.505, 1.489, 1.478)),
  '34B': ((17.7, 0.50, 1.41), (1.541, 1.476, 1.456, 1.443, 1.433)),
  '70B': ((17.9, 0.51, 1.35), (1.477, 1.413, 1.394, 1.381, 1.372)),
}


def power_law(c, alpha, beta, gamma):
  return (alpha / np.asarray(c, float)) ** beta + gamma


@pytest.mark.parametrize('size', LLAMA2_LONG)
def test_the_published_curves_and_their_fit(size):
  parameters, losses = LLAMA2_LONG[size]
  contexts = [1024, 4096, 8192, 16_384, 32_768]
  curve = power_law(contexts, *parameters)
  np.testing.assert_allclose(curve, losses, atol=6e-4)  # three decimals
  found = context_gain.fit(contexts, curve)
  best = [found[name][0] for name in ('alpha', 'beta', 'gamma')]
  np.testing.assert_allclose(best, parameters, rtol=1e-3)


def test_noisy_points_give_the_truth_within_the_interval():
  """Of 80 intervals of 95 %, 76 should hold the truth; 66 is 5 sigma off."""
  contexts = 2 ** np.arange(6, 16)
  truth = dict(alpha=25.4, beta=0.45, gamma=1.56)
  clean = power_law(contexts, **truth)
  held = dict.fromkeys(truth, 0)
  for seed in range(80):
    noise = np.random.default_rng(seed).normal(0, 2e-3, len(contexts))
    found = context_gain.fit(contexts, clean + noise)
    for name, value in truth.items():
      best, low, high = found[name]
      assert low <= best <= high
      held[name] += low <= value <= high
  assert all(count >= 66 for count in held.values()), held


@pytest.mark.parametrize('losses, says', [
  ([2, 2, 2, 2], 'not fall'), ([1, 2, 3, 4], 'not fall'),
  ([3.0, 2.0, 1.5], 'at least 4'),
])  # fmt: skip
def test_losses_without_a_power_law_are_refused(losses, says):
  with pytest.raises(InputError, match=says):
    context_gain.fit([16, 32, 64, 128][: len(losses)], losses)


def test_key_tokens_by_hand():
  long = np.array([0, 1.0, 1.9, 2.1, 0.5])
  short = np.array([-np.inf, 3.1, 3.0, 9.0, 2.6])
  assert longppl.keys(long, short).tolist() == [
    False, True, False, False, True,
  ]  # fmt: skip


def test_short_losses_see_the_window_and_no_more():
  """Short 4, stride 2 over 11 tokens: tokens 4.. have 4 or 5 before them."""
  losses = longppl.short_losses(context, document(11), 4, 2)
  assert np.all(np.isinf(losses[:4]))
  wanted = [1 / 4, 1 / 5] * 4
  np.testing.assert_allclose(losses[4:], wanted[:7])
  np.testing.assert_allclose(
    longppl.long_losses(context, document(5)), [0, 1, 1 / 2, 1 / 3, 1 / 4]
  )
  assert np.all(np.isinf(longppl.short_losses(context, document(3), 4, 2)))


def test_longppl_is_over_the_key_tokens():
  """Token 10 costs 5 nats with less than 8 tokens before it, else 1."""
  far = model(lambda t: np.where(
    (np.roll(t, -1, 1) == 10) & (np.arange(t.shape[1]) < 8), 5.0, 1.0
  ))  # fmt: skip
  found = longppl.longppl(far, far, [document(16)], 4, 2)
  assert (found['key_tokens'], found['tokens']) == (1, 15)
  assert found['longppl'] == pytest.approx(math.e)
  flat = model(lambda t: np.ones(t.shape))
  assert longppl.longppl(flat, flat, [document(16)], 4, 2)['longppl'] is None
