"""A common beginning of prompts is read once: questions about one text.

The State after earlier prompts is kept, and later ones reuse it for the tokens
that they share; rows of a group share the tokens that all begin with.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from longjax.attention import Ids
from longjax.inference import kv_cache
from longjax.inference.kv_cache import Cache, ModelOnMesh

SMALLEST = 32  # tokens of a chunk


class State(NamedTuple):
  """What generation carries from token to token."""

  cache: tuple[Cache, ...]  # of each of kv_cache.kinds
  last: Any  # [batch, embed] hidden state of the newest token
  drawn: Any  # number of tokens generated


class Sizes(NamedTuple):
  """What `kv_cache.sizes` takes."""

  prompt: int  # tokens of the longest prompt, to a multiple of the chunk
  count: int  # tokens to generate
  chunk: int  # tokens of a prompt computed at once


def empty(model: ModelOnMesh, rows: int, sizes: Sizes) -> State:
  """A State before the first token."""
  model = model._replace(config=model.config.without_memory())
  split = [
    kv_cache.sizes(model.ring, window, *sizes)
    for _, window in kv_cache.kinds(model.config)
  ]
  # Compiled for the sums, which many lengths share.
  slots, prompts = tuple(map(sum, split)), [np.int32(n) for n, _ in split]
  return _empty(model, rows, slots, prompts)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _empty(model: ModelOnMesh, rows: int, slots: tuple[int, ...], prompts):
  cache = kv_cache.empty(model, rows, slots, prompts)
  last = jnp.zeros((rows, model.config.embed), model.config.dtype)
  return constrained(State(cache, last, jnp.int32(0)), model.mesh)


def constrained(state: State, mesh) -> State:
  """The state, with its shardings told to the compiler."""
  return State(
    tuple(kv_cache.constrained(cache, mesh) for cache in state.cache),
    kv_cache.replicated(state.last, mesh),
    kv_cache.replicated(state.drawn, mesh),
  )


class Prefix:
  """The State after some prompts, for those that begin like them."""

  def __init__(self):
    self.forget()

  def forget(self):
    """Frees the cache."""
    self.key = self.state = None
    self.tokens = np.zeros((0, 0), np.int32)

  def keep(self, model: ModelOnMesh, rows: 'Rows', state: State):
    """Keeps the State after prompts, or after answers to them; not one with
    windows, which has lost what is before them."""
    self.forget()
    if not any(window for _, window in kv_cache.kinds(model.config)):
      self.key, self.state = (model, rows.sizes.chunk), state
      there = np.arange(rows.tokens.shape[1]) < rows.lengths[:, None]
      self.tokens = np.where(there, rows.tokens, -1)

  def start(self, model: ModelOnMesh, rows: 'Rows') -> tuple[State, int, int]:
    """(the State from which prompts are read, tokens that it has of them, in
    which chunks the rest is read)."""
    state, known, chunk = self.state, 0, rows.sizes.chunk
    if self.key == (model, chunk) and len(rows.tokens) == len(self.tokens):
      width = min(rows.tokens.shape[1], self.tokens.shape[1])
      alike = rows.tokens[:, :width] == self.tokens[:, :width]
      known, chunk = rows.shared(alike, model.ring)
    self.forget()
    if state is None or not known:
      del state  # before there is another
      return empty(model, len(rows.tokens), rows.sizes), 0, chunk
    slots, answers = kv_cache.sizes(model.ring, 0, *rows.sizes)
    if state.cache[0].ids.index.shape[2] != slots + answers:
      state = _resized(state, slots + answers, model.mesh)
    small = state._replace(cache=tuple(c._replace(k=None, v=None)
                                       for c in state.cache))  # fmt: skip
    small = _rewound(small, np.int32(known), np.int32(slots))
    cache = [new._replace(k=old.k, v=old.v)
             for new, old in zip(small.cache, state.cache)]  # fmt: skip
    return small._replace(cache=tuple(cache)), known, chunk


class Rows(NamedTuple):
  """Prompts as an array."""

  tokens: Any  # [batch, sizes.prompt] int32
  lengths: Any  # [batch] tokens of each; 0 is a row without a prompt
  sizes: Sizes

  def shared(self, same, ring: int) -> tuple[int, int]:
    """(tokens that need not be read again, in which chunks the rest is read).

    Args:
      same: [batch, tokens] bool, whether a token is known; the last of a prompt
        is read in any case.
      ring: devices that divide a chunk.
    """
    real = self.lengths > 0
    same = same[real].all(0)
    equal = len(same) if same.all() else int(same.argmin())
    equal = min(equal, int(self.lengths[real].min()) - 1)
    longest, chunk = int(self.lengths.max()), self.sizes.chunk

    def start(small):
      # Slots of a ring are in the order of the tokens by whole chunks alone.
      grain = small if ring == 1 else self.sizes.chunk
      return equal // grain * grain

    # The rest in at most two small chunks, of few sizes.
    while (half := chunk // 2) >= SMALLEST and chunk % (2 * ring) == 0 and (
      longest - start(half) <= 2 * half
    ):  # fmt: skip
      chunk = half
    return (start(chunk), chunk) if start(chunk) else (0, self.sizes.chunk)


@functools.partial(jax.jit, static_argnums=(1, 2))
def repeated(state: State, times: int, mesh) -> State:
  """Each row so many times, one after another."""
  again = lambda x, axis: jnp.repeat(x, times, axis)
  cache = [
    Cache(again(c.k, 1), again(c.v, 1), Ids(*(again(x, 0) for x in c.ids)),
          c.prompt)
    for c in state.cache
  ]  # fmt: skip
  return constrained(State(tuple(cache), again(state.last, 0), state.drawn),
                     mesh)  # fmt: skip


@functools.partial(jax.jit, static_argnums=(1, 2))
def _resized(state: State, slots: int, mesh) -> State:
  """With so many slots on each device; more are empty."""

  def fit(x, axis):
    x = jax.lax.slice_in_dim(x, 0, min(slots, x.shape[axis]), axis=axis)
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, slots - x.shape[axis])
    return jnp.pad(x, widths)

  cache = [Cache(fit(c.k, 4), fit(c.v, 4), Ids(*(fit(x, 2) for x in c.ids)),
                 c.prompt) for c in state.cache]  # fmt: skip
  return constrained(state._replace(cache=tuple(cache)), mesh)


@jax.jit
def _rewound(state: State, known, slots) -> State:
  """As after the first `known` tokens of prompts, which have `slots`."""

  def rewound(cache: Cache) -> Cache:
    segment, index = cache.ids
    ids = Ids(jnp.where(index < known, segment, 0), index)
    return cache._replace(ids=ids, prompt=jnp.zeros_like(cache.prompt) + slots)

  zeros = map(jnp.zeros_like, (state.last, state.drawn))
  return State(tuple(map(rewound, state.cache)), *zeros)
