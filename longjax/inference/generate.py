"""Generation on any mesh, with a KV cache sharded over the sequence.

Each device of the ring holds a share of the slots and the ids that say what is
in them: chunks of prompt stay where they were computed, generated tokens are
dealt out one by one, so memory per chip is O(seq / n) and nothing moves when
it is written. A prompt goes through the ring chunk by chunk; a generated token
asks every device about the keys that it holds (`decode`). Shapes are rounded
up, so that one compiled program serves many lengths.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from longjax import attention, llama
from longjax.attention import Ids
from longjax.batch import Batch
from longjax.data import layout
from longjax.errors import InputError
from longjax.parallel import sharding

CHUNK = 512  # tokens of a prompt computed at once
BURST = 32  # tokens between two looks at the stop strings


class Sampling(NamedTuple):
  """How a token is drawn; the default is the likeliest one.

  A prompt has its own random numbers, by its place in the list, so neither
  the mesh nor what shares the batch changes what is drawn.
  """

  temperature: float = 0.0  # 0 is greedy
  top_p: float = 1.0  # of the likeliest tokens that make up this share
  seed: int = 0


GREEDY = Sampling()


class LM(NamedTuple):
  """What evaluations receive: a model as two functions."""

  # Batch of numpy arrays in the order of the text -> [batch, seq] float32 nats.
  nll: Callable
  # (prompts, count, stopped=None) -> list of ids, as `generate` without params.
  generate: Callable


class Cache(NamedTuple):
  """Keys and values of what was read, and who they are.

  The slots of device i of the ring of n are [:, :, i]. RoPE is in the keys.
  Those of a head lie together, as a matrix that a single query multiplies.
  """

  k: Any  # [layers, batch, n, kv_heads, slots, dim]
  v: Any  # [layers, batch, n, kv_heads, slots, dim]
  ids: Ids  # of [batch, n, slots]; segment 0 is an empty slot


class State(NamedTuple):
  """Between two tokens."""

  cache: Cache
  last: Any  # [batch, embed] hidden state of the newest token
  drawn: Any  # tokens generated


def lm(
  params, config: llama.Llama, *, mesh=None, rows=1, chunk=CHUNK, ends=(),
  arrangement='contiguous', loss_chunk=1024,
) -> LM:  # fmt: skip
  """The functions of a model that evaluations call.

  Args:
    params: numpy, or on the mesh.
    config: the model.
    mesh: the devices; None is one.
    rows: prompts or rows that are read at once.
    chunk: tokens of a prompt computed at once.
    ends: ids that end an answer.
    arrangement: of the rows whose loss is computed, a name in data.layout.
    loss_chunk: tokens whose logits exist at once, per device.
  """
  params = placed(params, config, mesh)

  def nll(batch: Batch):
    size = min(rows, len(batch.tokens))
    size += -size % (mesh.shape['data'] if mesh else 1)
    parts = [
      _losses(params, config, part, mesh, arrangement, loss_chunk)
      for part in _groups(batch, size)
    ]
    return np.concatenate(parts)[: len(batch.tokens)]

  run = functools.partial(
    generate, params, config, mesh=mesh, rows=rows, chunk=chunk, ends=ends
  )
  return LM(nll, run)


def placed(params, config: llama.Llama, mesh=None):
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
  params, config: llama.Llama, prompts, count: int, stopped=None, *, mesh=None,
  sampling=GREEDY, ends=(), rows=0, chunk=CHUNK,
) -> list[np.ndarray]:  # fmt: skip
  """Continues each prompt.

  Args:
    params: as `placed` gives them.
    config: the model.
    prompts: list of [tokens] arrays of ids, of any lengths but 0.
    count: tokens to generate at most.
    stopped: ids [tokens] -> whether an answer is complete, or None.
    mesh: shards cache and params over 'seq', rows over the rest; None is one
      device.
    sampling: how tokens are drawn.
    ends: ids that end an answer, and are not part of it.
    rows: prompts read at once; 0 is all.
    chunk: tokens of a prompt computed at once.

  Returns:
    A list of int32 [tokens], at most `count` each; what follows the token
    that made an answer complete may be there too.

  Raises:
    InputError: an empty prompt, or an id that the model does not have.
  """
  _check(prompts, config)
  rows = rows or max(len(prompts), 1)
  answers = []
  for first in range(0, len(prompts), rows):
    group = list(prompts[first : first + rows])
    group += [np.zeros(0, np.int32)] * (rows - len(group))
    answers += _answers(
      params, config, group, count, stopped, mesh, sampling, ends, chunk, first
    )
  return answers[: len(prompts)]


def stop_at(tokenizer, strings) -> Callable | None:
  """ids -> whether their text holds one of the strings."""
  if not strings:
    return None
  return lambda ids: any(s in tokenizer.decode(ids) for s in strings)


def _answers(
  params, config, prompts, count, stopped, mesh, sampling, ends, chunk, first
):
  """`generate` of one group of prompts; `first` is the number of its first."""
  n = _ring(mesh)
  lengths = np.array([len(p) for p in prompts], np.int32)
  # A short prompt in the next power of two, and few of these.
  chunk = min(chunk, max(32, 1 << (int(lengths.max()) - 1).bit_length()))
  chunk += -chunk % n
  chunks = -(-int(lengths.max()) // chunk)
  state = _prefilled(params, config, prompts, lengths, chunks, count, chunk,
                     mesh)  # fmt: skip
  draw = (
    np.float32(sampling.temperature),
    np.float32(sampling.top_p),
    np.int32(sampling.seed),
    np.arange(first, first + len(prompts), dtype=np.int32),
  )
  stop = np.full(-(-max(len(ends), 1) // 4) * 4, -1, np.int32)
  stop[: len(ends)] = ends
  done, answers = lengths == 0, np.zeros((len(prompts), 0), np.int32)
  while answers.shape[1] < count and not done.all():
    steps = min(BURST, count - answers.shape[1])
    state, tokens = _decode(
      params, state, lengths, done, np.int32(chunks * chunk // n),
      np.int32(steps), stop, draw, config=config, mesh=mesh,
    )  # fmt: skip
    answers = np.concatenate([answers, np.asarray(tokens)[:, :steps]], 1)
    for i in np.flatnonzero(~done):
      ended = np.isin(answers[i], ends).any()
      done[i] = ended or (stopped is not None and stopped(answers[i]))
  return [until(answer, ends) for answer in answers]


def _prefilled(params, config, prompts, lengths, chunks, count, chunk, mesh):
  """The State after the prompts."""
  tokens = np.zeros((len(prompts), chunks * chunk), np.int32)
  for row, prompt in zip(tokens, prompts):
    row[: len(prompt)] = prompt
  state = empty(config, len(prompts), chunks * chunk + count, mesh)
  for start in range(0, tokens.shape[1], chunk):
    state = prefill(
      params, state, tokens[:, start : start + chunk], lengths,
      np.int32(start), config=config, mesh=mesh,
    )  # fmt: skip
  return state


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _empty(config, rows, n, slots, mesh):
  shape = (config.layers, rows, n, config.kv_heads, slots, config.head_dim)
  dtype = jnp.dtype(config.dtype)
  slot = jnp.zeros((rows, n, slots), jnp.int32)
  cache = Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype),
                Ids(slot, slot))  # fmt: skip
  last = jnp.zeros((rows, config.embed), dtype)
  return _held(State(cache, last, jnp.int32(0)), mesh)


def empty(config, rows: int, tokens: int, mesh=None) -> State:
  """Nothing read yet, and room for `tokens` in each row, or a little more."""
  n = _ring(mesh)
  return _empty(config, rows, n, _rounded(-(-tokens // n)), mesh)


@functools.partial(
  jax.jit, static_argnames=('config', 'mesh'), donate_argnums=1
)
def prefill(params, state: State, tokens, lengths, start, *, config, mesh):
  """Reads a chunk of each prompt.

  Args:
    params: on the mesh.
    state: after `start` tokens; it is used up.
    tokens: [batch, chunk], a multiple of the ring.
    lengths: [batch] tokens of each whole prompt; what is beyond is padding.
    start: tokens that were read before, a multiple of the chunk.
    config: the model.
    mesh: the devices, or None.
  """
  n = _ring(mesh)
  index = start + jnp.arange(tokens.shape[1], dtype=jnp.int32)
  index = jnp.broadcast_to(index, tokens.shape)
  ids = Ids((index < lengths[:, None]).astype(jnp.int32), index)
  deal = lambda x: x.reshape(x.shape[0], n, -1, *x.shape[2:])
  keep = functools.partial(_write, slot=start // n)
  x, cache = _run(params, config, state.cache, tokens, ids, deal, keep, mesh)
  newest = (index == lengths[:, None] - 1)[:, :, None]
  last = state.last + jnp.where(newest, x, 0).sum(1)
  return _held(State(cache, last, state.drawn), mesh)


@functools.partial(
  jax.jit, static_argnames=('config', 'mesh'), donate_argnums=1
)
def _decode(
  params, state, lengths, done, slot, steps, ends, draw, *, config, mesh
):
  """Generates up to `steps` tokens, fewer if all answers have ended.

  Device i of n holds the generated tokens i, i + n, ... from `slot` on.
  """
  n, one = _ring(mesh), jnp.ones((len(lengths), 1), jnp.int32)
  member = jnp.arange(n)[None, :, None]

  def step(carry):
    state, done, out, i = carry
    logits = llama.logits(params, config, state.last[:, None])[:, 0]
    token = _drawn(_everywhere(logits, mesh), draw, state.drawn)
    ids = Ids(one, (lengths + state.drawn)[:, None])
    mine = member == state.drawn % n
    deal = lambda x: jnp.where(
      mine.reshape(1, n, 1, *[1] * (x.ndim - 2)), x[:, None], 0
    )
    keep = functools.partial(_write, slot=slot + state.drawn // n, mine=mine)
    x, cache = _run(
      params, config, state.cache, token[:, None], ids, deal, keep, mesh
    )
    done |= (token[:, None] == ends).any(1)
    state = State(cache, x[:, 0], state.drawn + 1)
    return _held(state, mesh), done, out.at[:, i].set(token), i + 1

  go_on = lambda carry: (carry[3] < steps) & ~carry[1].all()
  out = jnp.zeros((len(lengths), BURST), jnp.int32)
  state, _, out, _ = jax.lax.while_loop(
    go_on, step, (state, done, out, jnp.int32(0))
  )
  return state, _everywhere(out, mesh)


def _run(params, config, cache: Cache, tokens, ids: Ids, deal, keep, mesh):
  """Hidden states [batch, seq, embed] of new tokens, and the cache with them.

  Args:
    deal: [batch, seq, ...] of the new tokens -> [batch, n, slots, ...], where
      they are kept.
    keep: (old, dealt, axis of the slots) -> old with the new slots.
  """
  kv_ids = Ids(*(keep(old, deal(x), -1) for old, x in zip(cache.ids, ids)))
  by_head = lambda x: deal(x).swapaxes(2, 3)  # [batch, n, kv_heads, slots, dim]
  # A chunk is whole on the ring, a single token on each of its devices; there
  # the weights stay and the token moves, as XLA does by itself.
  whole = tokens.shape[1] % _ring(mesh) == 0 and tokens.shape[1] > 1
  strategy = 'decode' if not whole else 'ring' if mesh else 'blockwise'
  # Also over `data`: rows of single tokens weigh less than a gathered weight.
  around = (lambda x: x) if whole else lambda x: _everywhere(x, mesh)

  def attend(x: llama.AttentionInputs, held):
    q, k, v = map(around, (x.q, x.k, x.v))
    new = by_head(k), by_head(v)
    k, v = (_flat(keep(old, x, -2).swapaxes(2, 3)) for old, x in zip(held, new))
    out = attention.attend(
      q, k, v, ids, Ids(*map(_flat, kv_ids)), strategy=strategy, mesh=mesh,
      **x.options,
    )  # fmt: skip
    return around(out), new

  x, (new,) = llama.run(
    params, config.without_memory(), tokens, ids.index, attend,
    [(cache.k, cache.v)], mesh if whole else None,
  )  # fmt: skip
  k, v = (keep(old, x, -2) for old, x in zip((cache.k, cache.v), new))
  return x, Cache(k, v, kv_ids)


def _write(old, new, axis: int, *, slot, mine=None):
  """`old` with `new` in the slots from one on.

  Args:
    old, new: ids [..., n, slots], or keys [..., n, kv_heads, slots, dim].
    axis: of the slots, -1 or -2.
    slot: the first that is written.
    mine: [1, n, 1], on which devices; None is all.
  """
  at = [jnp.int32(0)] * old.ndim
  at[axis] = jnp.int32(slot)
  if mine is not None:
    there = jax.lax.dynamic_slice(old, at, new.shape)
    on = mine.reshape(-1, *[1] * (1 if axis == -1 else 3))
    new = jnp.where(on, new, there)
  return jax.lax.dynamic_update_slice(old, new, at)


def _drawn(logits, draw, number):
  """The tokens [batch] for logits [batch, vocab] float32."""
  temperature, top_p, seed, row = draw

  def sample():
    scaled = logits / jnp.maximum(temperature, 1e-6)
    kept = jnp.where(_nucleus(scaled, top_p), scaled, -jnp.inf)
    key = jax.random.fold_in(jax.random.key(seed), number)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(row)
    return jax.vmap(jax.random.categorical)(keys, kept)

  greedy = lambda: logits.argmax(-1)
  token = jax.lax.cond(temperature > 0, sample, greedy)
  return token.astype(jnp.int32)


def _nucleus(logits, top_p):
  """Which tokens are the likeliest that make up `top_p`, arXiv:1904.09751."""
  order = jnp.argsort(-logits, -1)
  p = jax.nn.softmax(jnp.take_along_axis(logits, order, -1), -1)
  before = jnp.cumsum(p, -1) - p
  keep = (before < top_p).at[:, 0].set(True)
  return jnp.take_along_axis(keep, jnp.argsort(order, -1), -1)


def until(answer, ends):
  """The ids before the first that ends the answer."""
  at = np.flatnonzero(np.isin(answer, ends))
  return answer[: at[0]] if len(at) else answer


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


def _rounded(size: int) -> int:
  """Up to a multiple of an eighth of a power of two: few shapes are compiled,
  and less than a seventh is wasted."""
  grain = 1 << max(size.bit_length() - 3, 0)
  return size + -size % grain


def _ring(mesh) -> int:
  return mesh.shape['seq'] if mesh else 1


def _flat(x):
  """[batch, n, slots, ...] -> [batch, n * slots, ...]."""
  return x.reshape(x.shape[0], -1, *x.shape[3:])


def _held(state: State, mesh) -> State:
  """Says where the state lives."""
  if mesh is None:
    return state
  rows = sharding.batch_spec(mesh, len(state.last))[0]
  place = lambda x, *spec: jax.lax.with_sharding_constraint(
    x, NamedSharding(mesh, P(*spec))
  )
  k, v, ids = state.cache
  return State(
    Cache(
      place(k, None, rows, 'seq'),
      place(v, None, rows, 'seq'),
      Ids(*(place(x, rows, 'seq') for x in ids)),
    ),
    place(state.last),
    place(state.drawn),
  )


def _everywhere(x, mesh):
  """On every device, so that every process can read it."""
  if mesh is None:
    return x
  return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P()))


def _groups(batch: Batch, rows: int):
  """Batches of exactly `rows` rows; the last is filled up with padding."""
  for i in range(0, len(batch.tokens), rows):
    part = Batch(*(np.asarray(x)[i : i + rows] for x in batch))
    missing = rows - len(part.tokens)
    yield Batch(*(np.pad(x, ((0, missing), (0, 0))) for x in part))


def _losses(params, config, batch, mesh, arrangement, chunk):
  """[batch, seq] of a batch in the order of its text, on the host."""
  seq, n = batch.tokens.shape[1], _ring(mesh)
  length = _rounded(seq)
  length += -length % (2 * n)  # what zigzag needs
  widths = ((0, 0), (0, length - seq))
  batch = Batch(*(np.pad(x, widths) for x in batch))
  place = np.tile(np.arange(batch.tokens.shape[1]), (len(batch.tokens), 1))
  # The model does not read `weights`: they say where each token came from.
  dealt = layout.arrange(
    batch._replace(weights=place), arrangement, n, config.block
  )
  inputs = dealt._replace(weights=np.zeros(place.shape, np.float32))
  if mesh:
    inputs = sharding.put(inputs, mesh)
  losses = _nll(params, inputs, config=config, mesh=mesh, chunk=chunk)
  found = np.empty(place.shape, np.float32)
  np.put_along_axis(found, dealt.weights, np.asarray(losses), 1)
  return found[:, :seq]


@functools.partial(jax.jit, static_argnames=('config', 'mesh', 'chunk'))
def _nll(params, batch, *, config, mesh, chunk):
  nll = llama.nll(params, config, batch, chunk=chunk, mesh=mesh)
  return _everywhere(nll, mesh)
