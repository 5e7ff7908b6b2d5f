"""Generation on any mesh, with a KV cache sharded over the sequence.

A prompt goes through the ring chunk by chunk; a generated
token attends to the keys where they lie (strategy `decode`). Shapes are
rounded up, so that one compiled program serves many lengths.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from longjax import attention, llama, rope
from longjax.attention import Ids
from longjax.errors import InputError
from longjax.inference import kv_cache, prefix
from longjax.inference.kv_cache import ModelOnMesh, Slots
from longjax.inference.prefix import Prefix, Rows, Sizes, State
from longjax.parallel import sharding
from longjax.progress import Progress

CHUNK = 512  # tokens of a prompt computed at once
BURST = 32  # tokens between two checks for stop strings


class SamplingOptions(NamedTuple):
  """How a token is drawn; the default is the likeliest one.

  A prompt has its own random numbers, by its place in the list, so neither
  the mesh nor the other prompts of a batch change what is drawn.
  """

  temperature: float = 0.0  # 0 is greedy
  top_p: float = 1.0  # of the likeliest tokens that make up this share
  seed: int = 0


GREEDY = SamplingOptions()


class Options(NamedTuple):
  """When an answer ends, how its tokens are drawn, how much is read at once."""

  ends: tuple[int, ...] = ()  # ids that end an answer, and are no part of it
  # Ids [tokens] -> whether an answer is complete; asked every BURST tokens.
  stopped: Callable | None = None
  sampling: SamplingOptions = GREEDY
  rows: int = 0  # prompts read at once; 0 is all
  chunk: int = CHUNK  # tokens of a prompt computed at once
  log: Callable[[str], object] | None = None  # called with progress lines
  # What the prompts of other calls have read, with the same params.
  prefix: Prefix | None = None


DEFAULT = Options()


class SamplingArrays(NamedTuple):
  """SamplingOptions as arrays, and the index of each prompt in the list."""

  temperature: Any
  top_p: Any
  seed: Any
  place: Any  # [batch] int32


class PromptGroup(NamedTuple):
  """What stays the same while a group of prompts is continued."""

  lengths: Any  # [batch] tokens of each prompt; 0 is a row without one
  ends: Any  # [any] ids that end an answer, filled up with -1
  draw: SamplingArrays


def place_params(params, config: llama.Llama, mesh=None):
  """The params on the devices, matrices in the dtype of the matmuls.

  A forward pass computes the same with them as with float32 masters.
  """
  if mesh is None:
    params = jax.device_put(params)
  else:
    params = jax.device_put(params, sharding.params(params, mesh))

  def cast(path, x):
    vector = path[-1].key.endswith('norm')
    return x if vector or x.dtype == config.dtype else x.astype(config.dtype)

  return jax.tree.map_with_path(cast, params)


def generate(
  params, config: llama.Llama, prompts, count: int, options=DEFAULT, mesh=None
) -> list[np.ndarray]:
  """Continues each prompt.

  Args:
    params: as `place_params` gives them.
    config: the model.
    prompts: list of [tokens] arrays of ids, of any lengths but 0.
    count: tokens to generate at most.
    options: see Options.
    mesh: of axes 'data' and 'seq'; None is one device.

  Returns:
    A list of int32 [tokens], at most `count` each; what follows the token
    that made an answer complete may be there too.

  Raises:
    InputError: an empty prompt, or an id that the model does not have.
  """
  _check(prompts, config)
  rope.check_reach(config.rope, count + max(map(len, prompts), default=0))
  rows = options.rows or max(len(prompts), 1)
  answers: list = [None] * len(prompts)
  options = options._replace(prefix=options.prefix or Prefix())
  log = options.log if len(prompts) > rows else None  # or the caller's own
  progress = make_progress('generating', len(prompts), 'prompts', log)
  # Cached keys keep their rotation: that of all that will be in the cache.
  recipes = [config.rope.at_length(count + len(prompt)) for prompt in prompts]
  for recipe in dict.fromkeys(recipes):
    model = ModelOnMesh(dataclasses.replace(config, rope=recipe), mesh)
    alike = [i for i, x in enumerate(recipes) if x == recipe]
    for first in range(0, len(alike), rows):
      places = alike[first : first + rows]
      none = [np.zeros(0, np.int32)] * (rows - len(places))
      group = [prompts[i] for i in places] + none
      found = _continue_group(params, model, group, places, count, options)
      for i, answer in zip(places, found):
        answers[i] = answer
      progress.add(len(places))
  return answers


def make_progress(what: str, total: int, unit: str, log) -> Progress:
  """Progress through so many of a unit; `log` may be None."""
  text = lambda n: f'{n:,.0f} {unit}' if n >= 100 else f'{n:.3g} {unit}'
  return Progress(f'  {what}', total, log or (lambda line: None), text)


def stop_at(tokenizer, strings) -> Callable | None:
  """ids -> whether their text holds one of the strings."""
  if not strings:
    return None
  return lambda ids: any(s in tokenizer.decode(ids) for s in strings)


def until(answer, ends):
  """The ids before the first that ends the answer."""
  at = np.flatnonzero(np.isin(answer, ends))
  return answer[: at[0]] if len(at) else answer


def _continue_group(
  params, model: ModelOnMesh, prompts, places, count, options
):
  """`generate` of one group of prompts; `places` are those in the list."""
  n, ends, sampling = model.ring, options.ends, options.sampling
  lengths = np.array([len(p) for p in prompts], np.int32)
  # A short prompt in the next power of two, and few of these.
  chunk = max(32, 1 << (int(lengths.max()) - 1).bit_length())
  chunk = min(options.chunk, chunk)
  chunk += -chunk % n
  sizes = Sizes(-(-int(lengths.max()) // chunk) * chunk, count, chunk)
  tokens = np.zeros((len(prompts), sizes.prompt), np.int32)
  for row, prompt in zip(tokens, prompts):
    row[: len(prompt)] = prompt
  rows = Rows(tokens, lengths, sizes)
  state, keep = _read(params, model, rows, options.prefix)
  stop = np.full(-(-max(len(ends), 1) // 4) * 4, -1, np.int32)
  stop[: len(ends)] = ends
  draw = SamplingArrays(
    np.float32(sampling.temperature),
    np.float32(sampling.top_p),
    np.int32(sampling.seed),
    np.array([*places, *[0] * (len(prompts) - len(places))], np.int32),
  )
  group = PromptGroup(lengths, stop, draw)
  done, answers = lengths == 0, np.zeros((len(prompts), 0), np.int32)
  while answers.shape[1] < count and not done.all():
    steps = min(BURST, count - answers.shape[1])
    state, new = decode(params, state, group, done, np.int32(steps), model)
    answers = np.concatenate([answers, np.asarray(new)[:, :steps]], 1)
    for i in np.flatnonzero(~done):
      ended = np.isin(answers[i], ends).any()
      done[i] = ended or bool(options.stopped and options.stopped(answers[i]))
  keep(state)
  return [until(answer, ends) for answer in answers]


def _read(params, model: ModelOnMesh, rows: Rows, known: Prefix):
  """(the State after prompts, a function to call with that after answers)."""
  data = model.mesh.size // model.ring if model.mesh else 1

  def read(state, start, chunk, rows):
    last = -(-int(rows.lengths.max()) // chunk) * chunk
    last = min(last, rows.tokens.shape[1])
    while start < last:
      while last - start < chunk:
        chunk //= 2
      part, at = rows.tokens[:, start : start + chunk], np.int32(start)
      state = prefill(params, state, part, rows.lengths, at, model)
      start += chunk
    return state

  count = len(rows.tokens)
  if count % data or count == data:
    state = read(*known.start(model, rows), rows)
    return state, lambda state: known.keep(model, rows, state)
  # Several prompts on a device: it reads once what all begin with.
  alike, chunk = rows.shared(rows.tokens == rows.tokens[0], model.ring)
  if not alike:
    state = prefix.empty(model, count, rows.sizes)
  else:
    tokens = np.tile(rows.tokens[0, :alike], (data, 1))
    # As if one more followed: no row ends here.
    head = Rows(tokens, np.full(data, alike + 1, np.int32), rows.sizes)
    state = read(*known.start(model, head), head)
    known.keep(model, head, state)
    state = prefix.repeated(state, count // data, model.mesh)
  return read(state, alike, chunk, rows), lambda state: None


@functools.partial(jax.jit, static_argnames='model', donate_argnames='state')
def prefill(params, state: State, tokens, lengths, start, model: ModelOnMesh):
  """Reads a chunk of each prompt.

  Args:
    params: on the mesh.
    state: after `start` tokens; it is used up.
    tokens: [batch, chunk], a multiple of the ring.
    lengths: [batch] tokens of each whole prompt; what is beyond is padding.
    start: tokens that were read before, a multiple of the chunk.
    model: and the mesh that it is on.
  """
  index = start + jnp.arange(tokens.shape[1], dtype=jnp.int32)
  index = jnp.broadcast_to(index, tokens.shape)
  ids = Ids((index < lengths[:, None]).astype(jnp.int32), index)
  slots = Slots(start // model.ring)
  x, cache = _run(params, model, state.cache, tokens, ids, slots)
  newest = (index == lengths[:, None] - 1)[:, :, None]
  last = state.last + jnp.where(newest, x, 0).sum(1)
  return prefix.constrained(State(cache, last, state.drawn), model.mesh)


@functools.partial(jax.jit, static_argnames='model', donate_argnames='state')
def decode(
  params, state: State, group: PromptGroup, done, steps, model: ModelOnMesh
):
  """Generates up to `steps` tokens, fewer if all answers have ended.

  Device i of n keeps the generated tokens i, i + n, ...

  Args:
    params: on the mesh.
    state: after the prompts; it is used up.
    group: of the prompts.
    done: [batch] bool, whose answers have ended.
    steps: at most BURST.
    model: and the mesh that it is on.

  Returns:
    The State, and the tokens [batch, BURST], of which the first `steps` count.
  """
  n, mesh = model.ring, model.mesh
  one = jnp.ones((len(group.lengths), 1), jnp.int32)

  def step(carry):
    state, done, out, i = carry
    logits = llama.logits(params, model.config, state.last[:, None])[:, 0]
    token = _draw_tokens(
      kv_cache.replicated(logits, mesh), group.draw, state.drawn
    )
    ids = Ids(one, (group.lengths + state.drawn)[:, None])
    slots = Slots(state.drawn // n, jnp.arange(n) == state.drawn % n)
    x, cache = _run(params, model, state.cache, token[:, None], ids, slots)
    done |= (token[:, None] == group.ends).any(1)
    state = State(cache, x[:, 0], state.drawn + 1)
    return prefix.constrained(state, mesh), done, out.at[:, i].set(token), i + 1

  unfinished = lambda carry: (carry[3] < steps) & ~carry[1].all()
  out = jnp.zeros((len(group.lengths), BURST), jnp.int32)
  state, _, out, _ = jax.lax.while_loop(
    unfinished, step, (state, done, out, jnp.int32(0))
  )
  return state, kv_cache.replicated(out, mesh)


def _run(params, model: ModelOnMesh, caches, tokens, ids: Ids, slots: Slots):
  """Hidden states [batch, seq, embed] of new tokens, and caches with them.

  Args:
    params, model, caches: the model and what it has read.
    tokens: [batch, seq].
    ids: Ids of [batch, seq].
    slots: where they are kept.
  """
  config, mesh = model.config.without_memory(), model.mesh
  shares = functools.partial(kv_cache.shares, slots=slots, n=model.ring)
  places, kv_ids = {}, {}  # by window
  for cache, (_, window) in zip(caches, kv_cache.kinds(config), strict=True):
    places[window] = at = slots.within(cache, window, ids)
    kv_ids[window] = Ids(*(
      kv_cache.write(old, shares(x), -1, at) for old, x in zip(cache.ids, ids)
    ))  # fmt: skip
  # A chunk is sharded over the ring, a single token is on each of its devices;
  # there the weights stay and the token moves, as XLA does by itself. Also over
  # `data`: rows of single tokens weigh less than a gathered weight.
  chunk = slots.owner is None
  strategy = 'decode' if not chunk else 'ring' if mesh else 'blockwise'
  spread = lambda x: x if chunk else kv_cache.replicated(x, mesh)

  def attend(x: llama.AttentionInputs, cached):
    q, k, v = map(spread, (x.q, x.k, x.v))
    window = x.options['window']
    flat_ids = Ids(*map(kv_cache.flat, kv_ids[window]))
    # [batch, n, kv_heads, slots, dim]
    new = shares(k).swapaxes(2, 3), shares(v).swapaxes(2, 3)
    k, v = (
      kv_cache.flat(kv_cache.write(old, x, -2, places[window]).swapaxes(2, 3))
      for old, x in zip(cached, new)
    )
    out = attention.attend(
      q, k, v, ids, flat_ids, strategy=strategy, mesh=mesh, **x.options
    )
    return spread(out), new

  each, groups = iter([(c.k, c.v) for c in caches]), config.layer_groups()
  cached = [tuple(next(each) for _ in group.kinds) for group in groups]
  x, new = llama.run(
    params, config, tokens, ids.index, attend, cached, mesh if chunk else None
  )
  after = []
  for cache, (_, window), kv in zip(
    caches, kv_cache.kinds(config), itertools.chain(*new), strict=True
  ):
    k, v = (
      kv_cache.write(old, x, -2, places[window])
      for old, x in zip((cache.k, cache.v), kv)
    )
    after.append(cache._replace(k=k, v=v, ids=kv_ids[window]))
  return x, tuple(after)


def _draw_tokens(logits, draw: SamplingArrays, number):
  """The tokens [batch] for logits [batch, vocab] float32."""

  def sample():
    scaled = logits / jnp.maximum(draw.temperature, 1e-6)
    kept = jnp.where(_nucleus(scaled, draw.top_p), scaled, -jnp.inf)
    key = jax.random.fold_in(jax.random.key(draw.seed), number)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(draw.place)
    return jax.vmap(jax.random.categorical)(keys, kept)

  greedy = lambda: logits.argmax(-1)
  token = jax.lax.cond(draw.temperature > 0, sample, greedy)
  return token.astype(jnp.int32)


def _nucleus(logits, top_p):
  """Which tokens are the likeliest that make up `top_p`, arXiv:1904.09751."""
  order = jnp.argsort(-logits, -1)
  p = jax.nn.softmax(jnp.take_along_axis(logits, order, -1), -1)
  before = jnp.cumsum(p, -1) - p
  keep = (before < top_p).at[:, 0].set(True)
  return jnp.take_along_axis(keep, jnp.argsort(order, -1), -1)


def _check(prompts, config):
  for i, prompt in enumerate(prompts):
    if not len(prompt):
      raise InputError(f'prompt {i} is empty: at least one token is needed')
    low, high = np.min(prompt), np.max(prompt)
    if low < 0 or high >= config.vocab:
      raise InputError(
        f'prompt {i} has ids from {low} to {high}, but the model has 0 to '
        f'{config.vocab - 1}; is this its tokenizer?'
      )
