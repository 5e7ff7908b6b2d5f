"""Inference with memory: Focused Transformer, arXiv:2307.03170, appendix.

A long text goes through the model window by window. Of each window the memory
layers keep keys, turned as at the first position, and values; all later
windows see them whole, in those layers, by dense attention. Other layers see
their own window alone. A window costs the same compute in them however long
the text is, and no more memory than its own keys.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from longjax import attention, llama
from longjax.attention import SHARED_SEGMENT, Ids
from longjax.parallel import sharding


class Store(NamedTuple):
  """What the memory layers keep; windows that were not read hold nobody.

  On a mesh rows and `window` are sharded, as rows and 'seq' of activations.
  """

  k: Any  # [memory layers, windows, batch, window, kv_heads, dim]
  v: Any
  segment: (
    Any  # [windows, batch, window] int32: SHARED_SEGMENT, or 0 for nobody
  )


def empty(
  config: llama.Llama, windows: int, batch: int, window: int, mesh=None
):
  """A Store for so many windows of text.

  Raises:
    ValueError: a model without memory layers.
  """
  if not config.memory.layers:
    raise ValueError(
      'a text longer than its window needs memory layers, and the model has '
      'none: set config.model.memory.layers'
    )
  shape = (windows, batch, window)
  heads = (config.kv_heads, config.head_dim)
  keys = (len(config.memory.layers), *shape, *heads)
  kinds = (keys, config.dtype), (keys, config.dtype), (shape, jnp.int32)

  def zeros():
    return Store(*(jnp.zeros(*kind) for kind in kinds))

  if mesh is None:
    return zeros()
  spec = sharding.batch_spec(mesh, batch)
  specs = P(None, None, *spec), P(None, None, *spec), P(None, *spec)
  shardings = Store(*(NamedSharding(mesh, s) for s in specs))
  return jax.jit(zeros, out_shardings=shardings)()


def nll(params, config: llama.Llama, batch, *, window, chunk=1024, mesh=None):
  """Negative log-likelihood of each target, given all the text before it.

  Args:
    params, config: a model with memory layers.
    batch: Batch of numpy arrays [batch, seq] in the order of the text, each row
      one document and perhaps padding at its end.
    window: tokens of a window.
    chunk: as for llama.nll.
    mesh: shards rows and each window; None is one device.

  Returns:
    [batch, seq] float32 numpy, in nats.
  """
  rows, seq = batch.tokens.shape
  windows = -(-seq // window)
  cut = lambda x: np.pad(x, ((0, 0), (0, windows * window - seq))).reshape(
    rows, windows, window
  )
  tokens, targets, segments = map(
    cut, (batch.tokens, batch.targets, batch.segments)
  )
  store = empty(config, windows, rows, window, mesh)
  losses = []
  for i in range(windows):
    lengths = (segments[:, i] > 0).sum(1).astype(np.int32)
    x, store = _read(
      params, tokens[:, i], lengths, store, np.int32(i), config=config,
      mesh=mesh,
    )  # fmt: skip
    losses.append(
      _losses(params, x, targets[:, i], config=config, chunk=chunk, mesh=mesh)
    )
  return np.concatenate([np.asarray(x) for x in losses], 1)[:, :seq]


def greedy(
  params, config: llama.Llama, prompts, count: int, *, window: int, last: int
) -> np.ndarray:
  """As generate.greedy, of prompts of any length.

  Args:
    params: on one device, or numpy.
    config: a model with memory layers.
    prompts: list of [tokens] arrays of ids, none of them empty.
    count: tokens to generate.
    window: tokens that the model sees locally, prompt and answer.
    last: tokens of a prompt that stay local if it does not fit the window; what
      is before them becomes memory (`last_context_length`).

  Returns:
    [len(prompts), count] int32.

  Raises:
    ValueError: last and count do not fit the window.
  """
  if last < 1 or last + count > window:
    raise ValueError(
      f'the last {last} tokens of a prompt and {count} generated ones must fit '
      f'the window of {window}; use a smaller `last`'
    )
  lengths = np.array([len(prompt) for prompt in prompts])
  before = np.where(lengths + count <= window, 0, np.maximum(lengths - last, 0))
  windows = -(-int(before.max()) // window)
  store = None
  if windows:
    store = empty(config, windows, len(prompts), window)
  for i in range(windows):
    parts = [
      prompt[i * window : min((i + 1) * window, end)]
      for prompt, end in zip(prompts, before)
    ]
    _, store = _read(
      params, *_rows(parts, window), store, np.int32(i), config=config,
      mesh=None,
    )  # fmt: skip
  rest = [prompt[start:] for prompt, start in zip(prompts, before)]
  tail, lengths = _rows(rest, int((lengths - before).max()))
  return np.asarray(
    _answer(params, tail, lengths, store, config=config, count=count)
  )


def _rows(parts, width):
  """Lists of ids as [rows, width] int32 filled up with zeros, and lengths."""
  tokens = np.zeros((len(parts), width), np.int32)
  for row, part in zip(tokens, parts):
    row[: len(part)] = part
  return tokens, np.array([len(part) for part in parts], np.int32)


@functools.partial(jax.jit, static_argnames=('config', 'chunk', 'mesh'))
def _losses(params, x, targets, *, config, chunk, mesh):
  """[batch, window] on every device, so that every process can read it."""
  found = llama.losses(params, config, x, targets, chunk=chunk, mesh=mesh)
  if mesh is None:
    return found
  return jax.lax.with_sharding_constraint(found, NamedSharding(mesh, P()))


@functools.partial(
  jax.jit, static_argnames=('config', 'mesh'), donate_argnames='store'
)
def _read(params, tokens, lengths, store, number, *, config, mesh):
  """Hidden states of a window [batch, window], and the store with it."""
  slots = jnp.arange(tokens.shape[1], dtype=jnp.int32)
  slots = jnp.broadcast_to(slots, tokens.shape)
  keep = lambda k, v, _: (k, v)
  x, _, (k, v) = _run(
    params, config, tokens, slots, lengths, slots, keep, None, store, mesh
  )
  segment = jnp.where(slots < lengths[:, None], SHARED_SEGMENT, 0)
  return x, Store(
    store.k.at[:, number].set(k),
    store.v.at[:, number].set(v),
    store.segment.at[number].set(segment),
  )


@functools.partial(jax.jit, static_argnames=('config', 'count'))
def _answer(params, tail, lengths, store, *, config, count):
  """[batch, count]: the likeliest tokens after `tail` [batch, seq]."""
  batch, seq = tail.shape
  rows = jnp.arange(batch)[:, None]
  order = jnp.arange(seq + count, dtype=jnp.int32)
  order = jnp.broadcast_to(order, (batch, seq + count))

  def through(tokens, slots, lengths, cache):
    def keep(k, v, cache):
      return tuple(c.at[rows, slots].set(x) for c, x in zip(cache, (k, v)))

    x, cache, _ = _run(
      params, config, tokens, slots, lengths, order, keep, cache, store, None
    )
    return x, cache

  def step(carry, _):
    last, lengths, cache = carry
    token = llama.logits(params, config, last).argmax(-1).astype(jnp.int32)
    x, cache = through(token, lengths[:, None], lengths + 1, cache)
    return (x, lengths + 1, cache), token[:, 0]

  shape = (config.layers, batch, seq + count, config.kv_heads, config.head_dim)
  cache = jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype)
  x, cache = through(tail, order[:, :seq], lengths, cache)
  last = jnp.take_along_axis(x, lengths[:, None, None] - 1, 1)
  _, answer = jax.lax.scan(step, (last, lengths, cache), length=count)
  return answer.T


def _run(
  params, config, tokens, slots, lengths, key_slots, keep, cache, store, mesh
) -> tuple[Any, Any, Any]:
  """Through the model once.

  Args:
    tokens, slots: [batch, seq], the tokens and their places in the window.
    lengths: [batch] tokens of the window that are real.
    key_slots: [batch, keys], places of the local keys that `keep` returns.
    keep: (k, v, cache of a layer) -> local keys and values, with the new ones.
    cache: of all layers, or None.
    store: None is no memory.
    mesh: see `nll`.

  Returns:
    Hidden states, the cache, and (keys, values) [memory layers, batch, seq,
    kv_heads, dim] to remember.
  """
  real = lambda slot: (slot < lengths[:, None]).astype(jnp.int32)
  ids, local = Ids(real(slots), slots), Ids(real(key_slots), key_slots)
  strategy = 'decode' if mesh else 'blockwise'

  def attend(x: llama.AttentionInputs, cache):
    cache, stored = cache
    local_k, local_v = keep(x.k, x.v, cache)
    k, v, kv_ids, kept = local_k, local_v, local, ()
    if stored:
      k, v, kv_ids = _join((k, v, local), (*stored, store.segment), mesh)
      kept = x.k_at_origin, x.v
    out = attention.attend(
      x.q, k, v, ids, kv_ids, strategy=strategy, mesh=mesh, **x.options
    )
    return out, ((local_k, local_v), kept)

  if store is None:
    config = config.without_memory()
  caches, remembered = [], 0
  for group in config.layer_groups():
    at = slice(group.start, group.stop)
    here, stored = jax.tree.map(lambda x, at=at: x[at], cache), ()
    if store and group.memory:
      at = slice(remembered, remembered + group.stop - group.start)
      stored, remembered = (store.k[at], store.v[at]), at.stop
    caches.append((here, stored))
  x, caches = llama.run(params, config, tokens, slots, attend, caches, mesh)
  together = lambda parts: jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
  cache = together([here for here, _ in caches])
  kept = [kept for _, kept in caches if kept]
  return x, cache, together(kept) if kept else None


def _join(local, stored, mesh):
  """(k, v, Ids) of the local keys and of all that is stored.

  Each device puts together what it holds: nothing travels.
  """

  def join(local, stored):
    flat = lambda x: x.swapaxes(0, 1).reshape(x.shape[1], -1, *x.shape[3:])
    k, v, segment = map(flat, stored)
    memory = k, v, Ids(segment, jnp.zeros_like(segment) - 1)
    return jax.tree.map(lambda *x: jnp.concatenate(x, 1), local, memory)

  if mesh is None:
    return join(local, stored)
  spec = sharding.batch_spec(mesh, local[0].shape[0])
  return jax.shard_map(
    join, mesh=mesh, in_specs=(spec, P(None, *spec)), out_specs=spec
  )(local, stored)
