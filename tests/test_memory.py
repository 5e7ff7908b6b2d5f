"""Inference with memory against the model that sees all rows at once.

A text read in windows is a pack whose rows see all rows before them, which
tests/test_crossbatch.py holds to float64.
"""

import dataclasses

import jax
import numpy as np
import pytest
import reference
from test_crossbatch import FORWARD, NO_MEMORY, SEQ, model, params_of

from longjax import llama
from longjax.attention import SHARED_SEGMENT
from longjax.batch import Batch, one_document
from longjax.crossbatch import Memory
from longjax.errors import InputError
from longjax.inference import memory
from longjax.inference.kv_cache import ModelOnMesh

LAYERS, WINDOWS = (0, 2), 4
ALL_BEFORE = tuple(
  tuple(-o for o in range(1, i + 1)) for i in range(WINDOWS)
)  # fmt: skip
READS = model(Memory(LAYERS))
SEES = model(Memory(LAYERS, ALL_BEFORE))


def text(rng, rows=2, length=WINDOWS * SEQ):
  """Documents, the first of them shorter than the rows."""
  batch = Batch(
    *map(np.array, one_document(rng.integers(0, 64, (rows, length))))
  )
  batch.segments[0, -5:] = 0
  return batch


def as_rows(batch):
  """[rows, windows * SEQ] -> [rows * windows, SEQ], each from position 0."""
  cut = Batch(*(x.reshape(-1, SEQ) for x in batch))
  order = np.broadcast_to(np.arange(SEQ, dtype=np.int32), cut.tokens.shape)
  return cut._replace(positions=order, index=order)


def wanted(batch):
  """Losses [rows, seq] of the text as packs."""
  logits = FORWARD(params_of(SEES), SEES, as_rows(batch))
  losses = reference.token_nll(np.float64(logits), as_rows(batch).targets)
  return losses.reshape(batch.tokens.shape)


@pytest.mark.parametrize('data, seq', [(0, 0), (2, 4)])
def test_a_text_in_windows_is_a_pack_that_sees_all_before(
  data, seq, rng, make_mesh
):
  batch, mesh = text(rng), make_mesh(data, seq) if data else None
  params = params_of(READS)
  got = memory.nll(params, READS, batch, memory.Options(SEQ, chunk=7), mesh)
  real = batch.segments > 0
  np.testing.assert_allclose(got[real], wanted(batch)[real], rtol=0, atol=2e-5)


def test_a_text_within_one_window_is_a_plain_forward(rng):
  batch, params = text(rng, length=13), params_of(READS)
  got = memory.nll(params, READS, batch, memory.Options(SEQ))
  logits = FORWARD(params, model(NO_MEMORY), batch)
  want = reference.token_nll(np.float64(logits), batch.targets)
  real = batch.segments > 0
  np.testing.assert_allclose(got[real], want[real], rtol=0, atol=2e-5)


def test_memory_changes_what_later_windows_predict(rng):
  """Else the tests above would hold of a model that forgets."""
  batch = text(rng)
  other = batch._replace(tokens=batch.tokens.copy())
  other.tokens[:, :SEQ] += 1
  params = params_of(READS)
  losses = [
    memory.nll(
      params,
      READS,
      x._replace(tokens=x.tokens % 64),
      memory.Options(SEQ, chunk=7),
    )
    for x in (batch, other)
  ]
  difference = np.abs(losses[0] - losses[1])[:, SEQ:]
  assert (difference.max(1) > 1e-3).all()


def test_prompts_within_the_window_continue_as_without_memory(rng):
  params = params_of(READS)
  prompts = [rng.integers(0, 64, n) for n in (3, 9)]
  got = memory.greedy(params, READS, prompts, 4, memory.Options(SEQ, 2))
  for prompt, answer in zip(prompts, got):
    whole = np.zeros(SEQ, np.int32)
    whole[: len(prompt) + 4] = np.concatenate([prompt, answer])
    logits = FORWARD(params, model(NO_MEMORY), one_document(whole))[0]
    want = logits[len(prompt) - 1 :][:4].argmax(-1)
    np.testing.assert_array_equal(answer, want)


def test_answers_are_the_likeliest_tokens_given_memory(rng):
  """Each answer again as the last row of a pack, logits at once."""
  params, last, count = params_of(READS), 5, 4
  prompts = [rng.integers(0, 64, n) for n in (3 * SEQ + last, 2 * SEQ + 9)]
  got = memory.greedy(params, READS, prompts, count, memory.Options(SEQ, last))
  for prompt, answer in zip(prompts, got):
    before, tail = np.split(prompt, [len(prompt) - last])
    rows = [before[i * SEQ : (i + 1) * SEQ] for i in range(3)]
    rows.append(np.concatenate([tail, answer]))
    pad = lambda row: np.pad(row, (0, SEQ - len(row)))
    tokens = np.stack([pad(row) for row in rows]).astype(np.int32)
    batch = as_rows(one_document(tokens))
    for segment, row in zip(batch.segments, rows):
      segment[len(row) :] = 0
    logits = FORWARD(params, SEES, batch)[-1]
    at = slice(last - 1, last - 1 + count)
    np.testing.assert_array_equal(logits[at].argmax(-1), answer)


def test_a_window_attends_to_each_of_64k_tokens_of_memory(rng):
  """One layer and head; in float64 with all keys in one array."""
  window, tokens = 32, rng.integers(0, 64, (1, 32)).astype(np.int32)
  config = model(Memory((0,)), layers=1, heads=1, kv_heads=1, block=512)
  params = jax.device_get(params_of(config))
  bank = memory.empty(config, 2**16 // window + 1, 1, window)
  draw = lambda x: rng.standard_normal(x.shape, np.float32)
  full = np.full_like(bank.segment, SHARED_SEGMENT)
  full[-1] = 0  # where the window itself will go
  before = memory.MemoryBank(draw(bank.k), draw(bank.v), full)
  got, after = memory.read(
    params, tokens, np.array([window]), before, np.int32(len(full) - 1),
    ModelOnMesh(config),
  )  # fmt: skip
  want = one_layer(params, config, tokens, before.k, before.v)
  np.testing.assert_allclose(got, want, rtol=0, atol=2e-5)
  np.testing.assert_array_equal(after.k[:, :-1], before.k[:, :-1])
  assert (np.asarray(after.segment) == SHARED_SEGMENT).all()


def one_layer(params, config, tokens, k_stored, v_stored):
  """Hidden states [1, window, D] in float64, all but the last window seen."""
  p = {k: np.float64(v[0]) for k, v in params['layers'].items()}
  turn = reference.rope_frequencies(
    config.head_dim, **dataclasses.asdict(config.rope)
  )
  x = np.float64(params['embedding'])[tokens]
  h = reference.rms_norm(x, p['attn_norm'], config.norm_eps)
  q, k, v = (np.tensordot(h, p[name], axes=1) for name in 'qkv')
  order = np.arange(tokens.shape[1])[None]
  q, k = (reference.rotate(y, order, *turn) for y in (q, k))
  flat = lambda x: np.float64(x[0, :-1]).reshape(1, -1, *x.shape[-2:])
  k, v = (
    np.concatenate([y, flat(kept)], 1)
    for y, kept in ((k, k_stored), (v, v_stored))
  )
  before = np.full((1, k.shape[1] - order.size), -1)
  ids = order * 0 + 1, order
  keys = [np.concatenate([y, before], 1) for y in ids]
  out = reference.attention(q, k, v, *ids, keys)
  x = x + np.tensordot(out, p['o'], axes=2)
  h = reference.rms_norm(x, p['mlp_norm'], config.norm_eps)
  gate = h @ p['gate']
  x = x + (gate / (1 + np.exp(-gate)) * (h @ p['up'])) @ p['down']
  return reference.rms_norm(x, np.float64(params['norm']), config.norm_eps)


def test_reading_a_window_needs_no_memory_that_grows_with_what_was_read():
  """Beside the bank itself, which is given up to be updated in place."""

  def temporaries(tokens):
    bank = jax.eval_shape(lambda: memory.empty(READS, tokens // 256, 1, 256))
    ints = lambda *shape: jax.ShapeDtypeStruct(shape, np.int32)
    compiled = memory.read.lower(
      llama.abstract(READS), ints(1, 256), ints(1), bank, ints(),
      ModelOnMesh(READS),
    ).compile()  # fmt: skip
    return compiled.memory_analysis().temp_size_in_bytes

  layer = lambda tokens: 2 * tokens * READS.kv_heads * READS.head_dim * 4
  more = temporaries(2**18) - temporaries(2**14)
  # One layer's keys and values, put beside those of the window and cut into
  # blocks, and the list of blocks; not the bank, and nothing quadratic. That
  # is 3.8 of a layer where JAX 0.10 compiles it, and 4.1 with 0.12.
  assert more < 4.5 * layer(2**18)


def test_what_cannot_be_read_is_refused(rng):
  params, prompt = params_of(READS), rng.integers(0, 64, 40)
  with pytest.raises(InputError, match=f'window of {SEQ}'):
    memory.greedy(params, READS, [prompt], 12, memory.Options(SEQ, 5))
  with pytest.raises(ValueError, match='needs memory layers'):
    memory.greedy(params, model(), [prompt], 4, memory.Options(SEQ, 5))
