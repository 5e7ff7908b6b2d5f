"""Generation against whole forward passes, on one device and on eight."""

import functools
import re

import jax
import numpy as np
import pytest
from test_llama import packed, params_of, small

from longjax import llama
from longjax.batch import one_document
from longjax.data import tokenizer
from longjax.errors import InputError
from longjax.inference import generate, language_model, prefix
from longjax.inference.generate import Options
from longjax.inference.kv_cache import ModelOnMesh
from longjax.inference.prefix import Sizes
from longjax.parallel import sharding
from longjax.progress import Progress
from longjax.rope import Rope

CONFIG = small(layers=2)
LENGTHS = (5, 77, 75)  # two at once or three: the same shapes


@pytest.fixture(scope='module')
def params():
  return params_of(CONFIG)


@pytest.fixture(scope='module')
def prompts():
  rng = np.random.default_rng(0)
  return [rng.integers(0, CONFIG.vocab, n) for n in LENGTHS]


@pytest.fixture(scope='module')
def one_device(params, prompts):
  return generate.generate(params, CONFIG, prompts, 70, Options(chunk=32))


forward = jax.jit(llama.forward, static_argnums=1)
nll = jax.jit(llama.nll, static_argnums=1)


def likeliest(params, config, prompt, answer):
  """The likeliest token at each place of an answer, by one whole pass."""
  tokens = np.zeros(150, np.int64)
  tokens[: len(prompt) + 70] = np.concatenate([prompt, answer])
  logits = forward(params, config, one_document(tokens))[0]
  return np.asarray(logits.argmax(-1))[len(prompt) - 1 :][:70]


def test_each_token_is_that_of_a_whole_forward_pass(
  params, prompts, one_device
):
  """Teacher forcing: one pass over prompt and answer checks every token."""
  for prompt, answer in zip(prompts, one_device):
    assert len(answer) == 70
    np.testing.assert_array_equal(
      answer, likeliest(params, CONFIG, prompt, answer)
    )


@pytest.mark.parametrize('devices', [
  1, pytest.param(8, marks=pytest.mark.slow)
])  # fmt: skip
def test_layers_with_windows_keep_no_more_than_these(devices, make_mesh):
  """Texts longer than the cache goes round, beside a prompt that is short."""
  config = small(layers=2, window=9, full_layers=(1,), nope_layers=(1,))
  mesh = make_mesh(1, devices) if devices > 1 else None
  params, rng = params_of(config), np.random.default_rng(0)
  prompts = [rng.integers(0, 96, n) for n in LENGTHS]
  sharded = generate.place_params(params, config, mesh)
  answers = generate.generate(
    sharded, config, prompts, 70, Options(chunk=16), mesh
  )
  for prompt, answer in zip(prompts, answers):
    np.testing.assert_array_equal(
      answer, likeliest(params, config, prompt, answer)
    )
  caches = prefix.empty(ModelOnMesh(config, mesh), 3, Sizes(80, 70, 16)).cache
  slots = [cache.k.shape[4] * devices for cache in caches]
  assert slots[0] <= 16 + 16 + 9 + 7 and slots[1] >= 150


@pytest.fixture
def reads(monkeypatch):
  """Tokens of each chunk that is read; hidden states before answers."""
  chunks, states = [], []
  prefill, decode = generate.prefill, generate.decode

  def reading(params, state, tokens, *rest):
    chunks.append(tokens.size)
    return prefill(params, state, tokens, *rest)

  def answering(params, state, *rest):
    states.append(np.asarray(state.last))
    return decode(params, state, *rest)

  monkeypatch.setattr(generate, 'prefill', reading)
  monkeypatch.setattr(generate, 'decode', answering)
  return chunks, states


@pytest.mark.parametrize('shape, rows, chunk, text, ends, tokens', [
  (None, 1, 32, 100, (5, 20, 27), 128 + 32 + 32),
  (None, 2, 32, 100, (5, 20, 27), 96 + 2 * 32 + 2 * 32),
  # The rest in smaller chunks; the cache grows.
  pytest.param(None, 1, 128, 170, (5, 60, 20), 256 + 128 + 32,
               marks=pytest.mark.slow),
  pytest.param((1, 8), 1, 128, 170, (5, 60, 20), 256 + 128 + 64,
               marks=pytest.mark.slow),
  pytest.param((2, 4), 4, 128, 170, (5, 60, 20, 31, 9),
               2 * 128 + 4 * 128 + 4 * 64, marks=pytest.mark.slow),
])  # fmt: skip
def test_what_prompts_begin_with_is_read_once(
  params, rng, make_mesh, reads, shape, rows, chunk, text, ends, tokens
):
  """Questions of several lengths about a text: answers as of each alone."""
  chunks, states = reads
  mesh = shape and make_mesh(*shape)
  sharded = generate.place_params(params, CONFIG, mesh)
  text = rng.integers(0, CONFIG.vocab, text)
  asked = [np.append(text, rng.integers(0, CONFIG.vocab, n)) for n in ends]
  lm = language_model.with_cache(
    sharded, CONFIG, mesh, Options(rows=rows, chunk=chunk)
  )
  found = lm.generate(asked[:-1], 4) + lm.generate(asked[-1:], 4)
  assert sum(chunks) == tokens
  hidden = np.concatenate(states)
  for i, prompt in enumerate(asked):
    del states[:]
    alone = Options(chunk=chunk)
    wanted = generate.generate(sharded, CONFIG, [prompt], 4, alone, mesh)
    np.testing.assert_array_equal(found[i], wanted[0])
    np.testing.assert_allclose(hidden[i], states[0][0], atol=1e-5)


def test_64_bit_jax_generates_the_same(params, prompts, one_device):
  with jax.enable_x64(True):
    answers = generate.generate(params, CONFIG, prompts, 4, Options(chunk=32))
  np.testing.assert_array_equal(answers, [a[:4] for a in one_device])


def test_eight_devices_and_odd_chunks_generate_the_same_tokens(
  params, prompts, one_device, make_mesh
):
  mesh = make_mesh(2, 4)
  sharded = generate.place_params(params, CONFIG, mesh)
  answers = generate.generate(
    sharded, CONFIG, prompts, 70, Options(rows=2, chunk=21), mesh
  )
  np.testing.assert_array_equal(answers, one_device)


def test_samples_are_those_of_the_seed_on_any_mesh_and_in_any_group(
  params, prompts, make_mesh
):
  def draw(seed, mesh=None, rows=0, chunk=32):
    sampling = generate.SamplingOptions(1.0, 0.9, seed)
    options = Options(sampling=sampling, rows=rows, chunk=chunk)
    placed = generate.place_params(params, CONFIG, mesh)
    return generate.generate(placed, CONFIG, prompts, 70, options, mesh)

  first = draw(7)
  np.testing.assert_array_equal(first, draw(7, make_mesh(2, 4), 2, 21))
  assert not np.array_equal(first, draw(8))


def test_the_nucleus_is_the_least_set_of_the_likeliest(rng):
  logits = np.log([[0.5, 0.05, 0.3, 0.15], [0.1, 0.2, 0.3, 0.4]])
  kept = lambda p: np.asarray(generate._nucleus(logits, p)).tolist()
  assert kept(0.6) == [[True, False, True, False], [False, False, True, True]]
  assert kept(0.0) == [[True, False, False, False], [False, False, False, True]]
  assert np.all(kept(1.0))


def test_samples_have_the_probabilities_of_the_model():
  """20,000 draws from three tokens: within five standard deviations."""
  p = np.array([0.6, 0.3, 0.1])
  logits = np.tile(np.log(p), (20_000, 1)).astype(np.float32)
  draw = generate.SamplingArrays(1.0, 1.0, 0, np.arange(20_000))
  tokens = jax.jit(generate._draw_tokens)(logits, draw, 3)
  counts = np.bincount(tokens, minlength=3)
  deviation = np.sqrt(20_000 * p * (1 - p))
  assert np.all(np.abs(counts - 20_000 * p) < 5 * deviation)


def test_an_answer_ends_before_an_end_and_at_a_stop_string(
  params, prompts, one_device
):
  end = int(one_device[0][12])
  ended = generate.generate(
    params, CONFIG, prompts, 70, Options((end,), chunk=32)
  )
  asked = []
  stopped = lambda ids: asked.append(len(ids)) or len(ids) >= 40
  cut = generate.generate(
    params, CONFIG, prompts, 70, Options(stopped=stopped, chunk=32)
  )
  assert asked == [32] * 3 + [64] * 3
  for answer, short, long in zip(one_device, ended, cut):
    at = [*np.flatnonzero(answer == end), 70][0]
    np.testing.assert_array_equal(short, answer[:at])
    np.testing.assert_array_equal(long, answer[:64])


def test_stop_strings_are_looked_for_in_the_text():
  tokens = tokenizer.load('bytes')
  stopped = generate.stop_at(tokens, ['\n\n', 'END'])
  assert not stopped(tokens.encode('one\ntwo EN'))
  assert stopped(tokens.encode('one\ntwo END of it'))
  assert generate.stop_at(tokens, []) is None


def test_many_lengths_share_a_few_programs(rng):
  """Prompts to 60 tokens, answers to 60: a program for a power of two."""
  config = small(layers=1, mlp=24)  # of no other test
  params, before = params_of(config), generate.decode._cache_size()
  for length, count in ((33, 3), (40, 60), (49, 9), (60, 30), (5, 20)):
    prompt = [rng.integers(0, config.vocab, length)]
    generate.generate(params, config, prompt, count, Options(chunk=32))
  assert generate.decode._cache_size() - before == 2  # 64 and 128 slots


def test_the_cache_is_sharded_and_never_gathered(params, make_mesh):
  """A device holds a quarter of the slots of its row, in what is compiled too.
  A single token goes to the weights, which are not gathered either."""
  mesh = make_mesh(2, 4)
  sharded = generate.place_params(params, CONFIG, mesh)
  model = ModelOnMesh(CONFIG, mesh)
  state = prefix.empty(model, 2, Sizes(4000, 96, 64))
  (cache,) = state.cache
  slots = cache.k.shape[4]
  assert 1024 <= slots <= 1152
  shard = cache.k.addressable_shards[0].data.shape
  assert shard == (CONFIG.layers, 1, 1, CONFIG.kv_heads, slots, CONFIG.head_dim)
  lengths = np.array([4000, 70], np.int32)
  reading = generate.prefill.lower(
    sharded, state, np.zeros((2, 64), np.int32), lengths, np.int32(0), model
  )
  draw = generate.SamplingArrays(0.0, 1.0, 0, np.arange(2))
  group = generate.PromptGroup(lengths, np.full(4, -1), draw)
  writing = generate.decode.lower(
    sharded, state, group, np.zeros(2, bool), np.int32(9), model
  )
  # The keys of one layer would be four times as many elements; the smallest
  # matrix that multiplies is that of k.
  keys = slots * CONFIG.kv_heads * CONFIG.head_dim
  weight = CONFIG.embed * CONFIG.kv_heads * CONFIG.head_dim
  for lowered, most in ((reading, keys), (writing, weight)):
    text = lowered.compile().as_text()
    gathered = re.findall(r'= \w+\[([\d,]*)\]\S* all-gather', text)
    sizes = [np.prod([int(d) for d in x.split(',')]) for x in gathered if x]
    assert max(sizes, default=0) < most


def test_longrope_rotates_each_prompt_by_its_own_length(rng):
  scaled = Rope(
    scaling='longrope', factor=4.0, original_length=24,
    divisors=(4.0,) * 4, short_divisors=(1.0,) * 4,
  )  # fmt: skip
  config = small(layers=1, rope=scaled)
  params = params_of(config)
  prompts = [rng.integers(0, config.vocab, n) for n in (10, 40, 12)]
  ask = functools.partial(
    generate.generate, params, config, count=8, options=Options(rows=3)
  )
  alone = [ask([prompt])[0] for prompt in prompts]
  together = ask(prompts)
  jax.tree.map(np.testing.assert_array_equal, together, alone)


def test_losses_come_back_in_the_order_of_the_text(
  params, rng, make_mesh, monkeypatch
):
  batch = packed(rng, CONFIG.vocab, (3, 61 + 3))
  wanted = np.asarray(nll(params, CONFIG, batch))
  mesh, lines = make_mesh(2, 4), []
  model = language_model.with_cache(
    params, CONFIG, mesh, Options(rows=2, log=lines.append), layout='zigzag',
    chunk=16,
  )  # fmt: skip
  each = functools.partial(Progress, every_seconds=0)
  monkeypatch.setattr(generate, 'Progress', each)
  monkeypatch.setattr(language_model, 'LONG', 1)
  seen = batch.segments > 0
  np.testing.assert_allclose(model.nll(batch)[seen], wanted[seen], atol=1e-4)
  # A line per layer, of groups of two rows and of one, and one per group.
  done = [float(re.search(r'losses: ([\d.]+) tokens', x)[1]) for x in lines]
  shares = 64 * np.arange(1, CONFIG.layers + 2) / (CONFIG.layers + 1)
  np.testing.assert_allclose(done, [*(2 * shares), *(128 + shares)], rtol=6e-3)
  short = type(batch)(*(x[:, :57] for x in batch))
  seen = short.segments > 0
  np.testing.assert_allclose(
    model.nll(short)[seen], wanted[:, :57][seen], atol=1e-4
  )


def test_matrices_are_kept_in_the_dtype_of_the_matmuls(rng):
  config = small(layers=2, dtype='bfloat16')
  params = params_of(config)
  kept = generate.place_params(params, config)
  assert kept['layers']['q'].dtype == 'bfloat16'
  assert kept['layers']['attn_norm'].dtype == 'float32'
  batch = packed(rng, config.vocab)
  np.testing.assert_array_equal(
    nll(params, config, batch), nll(kept, config, batch)
  )


def test_what_cannot_be_continued_is_refused(params):
  run = lambda *prompts: generate.generate(params, CONFIG, prompts, 4)
  with pytest.raises(InputError, match='prompt 1 is empty'):
    run([1, 2], [])
  with pytest.raises(InputError, match='the model has 0 to 95'):
    run([1, 96])
  assert run() == []


def test_params_lie_where_the_mesh_says(params, make_mesh):
  mesh = make_mesh(1, 8)
  placed = generate.place_params(jax.device_get(params), CONFIG, mesh)
  wanted = sharding.params(params, mesh)
  assert placed['embedding'].sharding == wanted['embedding']
