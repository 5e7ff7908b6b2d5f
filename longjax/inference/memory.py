"""Inference with memory: Focused Transformer, arXiv:2307.03170, appendix.

A long text goes through the model window by window. Of each window the memory
layers keep keys, rotated as at the first position, and values; the queries of
all later windows attend to all of them, in those layers, by dense attention.
Other layers attend within their window: what a window costs them does not
depend on the length of the text, and they keep no keys of earlier windows.
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
from longjax.attention import SHARED_SEGMENT, Ids
from longjax.errors import InputError
from longjax.inference import generate, kv_cache
from longjax.inference.kv_cache import ModelOnMesh
from longjax.parallel import sharding


class Options(NamedTuple):
  """How much of a text is read at once."""

  window: int  # tokens that the model reads at once, prompt and answer
  # Tokens of a prompt that stay in the window if it does not fit; those before
  # become memory (last_context_length, arXiv:2307.03170, appendix).
  last: int = 1024
  chunk: int = 1024  # tokens whose logits exist at once, per device


class MemoryBank(NamedTuple):
  """What the memory layers keep; slots of windows not read yet are empty.

  On a mesh rows and `window` are sharded, as rows and 'seq' of activations.
  """

  k: Any  # [memory layers, windows, batch, window, kv_heads, dim]
  v: Any
  # [windows, batch, window] int32: SHARED_SEGMENT, or 0 for an empty slot.
  segment: Any


class Window(NamedTuple):
  """The tokens that are run, and their places in the window."""

  tokens: Any  # [batch, seq]
  slots: Any  # [batch, seq]
  lengths: Any  # [batch] tokens of the window that are not padding


class LocalKeys(NamedTuple):
  """The keys of the window itself."""

  slots: Any  # [batch, keys], their places in the window
  # (k, v, cache of a layer) -> keys and values of the window, with the new ones
  keep: Callable
  cache: Any = None  # of all layers, or None


def empty(
  config: llama.Llama, windows: int, batch: int, window: int, mesh=None
) -> MemoryBank:
  """A MemoryBank for so many windows of text.

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
    return MemoryBank(*(jnp.zeros(*kind) for kind in kinds))

  if mesh is None:
    return zeros()
  spec = sharding.batch_spec(mesh, batch)
  specs = P(None, None, *spec), P(None, None, *spec), P(None, *spec)
  shardings = MemoryBank(*(NamedSharding(mesh, s) for s in specs))
  return jax.jit(zeros, out_shardings=shardings)()


def nll(
  params, config: llama.Llama, batch, options: Options, mesh=None, log=None
):
  """Negative log-likelihood of each target, given all the text before it.

  Args:
    params, config: a model with memory layers.
    batch: Batch of numpy arrays [batch, seq] in the order of the text, each row
      one document and perhaps padding at its end.
    options: how much is read at once.
    mesh: shards rows and each window; None is one device.
    log: called with a progress line every few seconds, or None.

  Returns:
    [batch, seq] float32 numpy, in nats.
  """
  (rows, seq), size = batch.tokens.shape, options.window
  windows = -(-seq // size)
  split = lambda x: np.pad(x, ((0, 0), (0, windows * size - seq))).reshape(
    rows, windows, size
  )
  tokens, targets, segments = map(
    split, (batch.tokens, batch.targets, batch.segments)
  )
  model = ModelOnMesh(config, mesh)
  progress = generate.make_progress('losses', windows, 'windows', log)
  bank = empty(config, windows, rows, size, mesh)
  losses = []
  for i in range(windows):
    lengths = (segments[:, i] > 0).sum(1).astype(np.int32)
    x, bank = read(params, tokens[:, i], lengths, bank, np.int32(i), model)
    losses.append(
      _losses(params, x, targets[:, i], model=model, chunk=options.chunk)
    )
    progress.add(1)
  return np.concatenate([np.asarray(x) for x in losses], 1)[:, :seq]


def greedy(
  params, config: llama.Llama, prompts, count: int, options: Options
) -> np.ndarray:
  """The likeliest continuations of prompts of any length, on one device.

  Args:
    params: on one device, or numpy.
    config: a model with memory layers.
    prompts: list of [tokens] arrays of ids, none of them empty.
    count: tokens to generate.
    options: how much is read at once.

  Returns:
    [len(prompts), count] int32.

  Raises:
    InputError: options.last and count do not fit the window.
  """
  window, last, _ = options
  if last < 1 or last + count > window:
    raise InputError(
      f'{count} generated tokens and the last {last} of a prompt must fit the '
      f'window of {window} tokens (train.seq_len): generate fewer'
    )
  model = ModelOnMesh(config)
  lengths = np.array([len(prompt) for prompt in prompts])
  before = np.where(lengths + count <= window, 0, np.maximum(lengths - last, 0))
  windows = -(-int(before.max()) // window)
  bank = empty(config, windows, len(prompts), window) if windows else None
  for i in range(windows):
    parts = [
      prompt[i * window : min((i + 1) * window, end)]
      for prompt, end in zip(prompts, before)
    ]
    _, bank = read(params, *_rows(parts, window), bank, np.int32(i), model)
  rest = [prompt[start:] for prompt, start in zip(prompts, before)]
  tail, lengths = _rows(rest, int((lengths - before).max()))
  return np.asarray(
    _answer(params, tail, lengths, bank, config=config, count=count)
  )


def _rows(parts, width):
  """Lists of ids as [rows, width] int32 filled up with zeros, and lengths."""
  tokens = np.zeros((len(parts), width), np.int32)
  for row, part in zip(tokens, parts):
    row[: len(part)] = part
  return tokens, np.array([len(part) for part in parts], np.int32)


@functools.partial(jax.jit, static_argnames=('model', 'chunk'))
def _losses(params, x, targets, *, model, chunk):
  """[batch, window] on every device, so that every process can read it."""
  config, mesh = model
  losses = llama.losses(params, config, x, targets, chunk=chunk, mesh=mesh)
  return kv_cache.replicated(losses, mesh)


@functools.partial(jax.jit, static_argnames='model', donate_argnames='bank')
def read(params, tokens, lengths, bank, number, model: ModelOnMesh):
  """Reads a window: its hidden states, and the bank with its keys.

  Args:
    params: of a model with memory layers.
    tokens: [batch, window].
    lengths: [batch] tokens that are not padding.
    bank: MemoryBank of the windows before; it is used up.
    number: of the window, from 0.
    model: and the mesh that it is on.
  """
  slots = jnp.arange(tokens.shape[1], dtype=jnp.int32)
  slots = jnp.broadcast_to(slots, tokens.shape)
  local = LocalKeys(slots, lambda k, v, _: (k, v))
  window = Window(tokens, slots, lengths)
  x, _, (k, v) = _run(params, model, window, local, bank)
  segment = jnp.where(slots < lengths[:, None], SHARED_SEGMENT, 0)
  return x, MemoryBank(
    bank.k.at[:, number].set(k),
    bank.v.at[:, number].set(v),
    bank.segment.at[number].set(segment),
  )


@functools.partial(jax.jit, static_argnames=('config', 'count'))
def _answer(params, tail, lengths, bank, *, config, count):
  """[batch, count]: the likeliest tokens after `tail` [batch, seq]."""
  batch, seq = tail.shape
  rows = jnp.arange(batch)[:, None]
  order = jnp.arange(seq + count, dtype=jnp.int32)
  order = jnp.broadcast_to(order, (batch, seq + count))

  def through(window, cache):
    def keep(k, v, cache):
      return tuple(
        c.at[rows, window.slots].set(x) for c, x in zip(cache, (k, v))
      )

    local = LocalKeys(order, keep, cache)
    x, cache, _ = _run(params, ModelOnMesh(config), window, local, bank)
    return x, cache

  def step(carry, _):
    last, lengths, cache = carry
    token = llama.logits(params, config, last).argmax(-1).astype(jnp.int32)
    x, cache = through(Window(token, lengths[:, None], lengths + 1), cache)
    return (x, lengths + 1, cache), token[:, 0]

  shape = (config.layers, batch, seq + count, config.kv_heads, config.head_dim)
  cache = jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype)
  x, cache = through(Window(tail, order[:, :seq], lengths), cache)
  last = jnp.take_along_axis(x, lengths[:, None, None] - 1, 1)
  _, answer = jax.lax.scan(step, (last, lengths, cache), length=count)
  return answer.T


def _run(
  params, model: ModelOnMesh, window: Window, local: LocalKeys, bank
) -> tuple[Any, Any, Any]:
  """Runs the model once; without memory if `bank` is None.

  Returns:
    Hidden states, the cache, and (keys, values) [memory layers, batch, seq,
    kv_heads, dim] to remember.
  """
  config, mesh = model
  real = lambda slot: (slot < window.lengths[:, None]).astype(jnp.int32)
  ids = Ids(real(window.slots), window.slots)
  local_ids = Ids(real(local.slots), local.slots)
  strategy = 'decode' if mesh else 'blockwise'

  def attend(x: llama.AttentionInputs, cache):
    cache, stored = cache
    local_k, local_v = local.keep(x.k, x.v, cache)
    k, v, kv_ids, kept = local_k, local_v, local_ids, ()
    if stored:
      k, v, kv_ids = _join((k, v, local_ids), (*stored, bank.segment), mesh)
      kept = x.k_at_origin, x.v
    out = attention.attend(
      x.q, k, v, ids, kv_ids, strategy=strategy, mesh=mesh, **x.options
    )
    return out, ((local_k, local_v), kept)

  caches, remembered = [], 0
  for group in config.layer_groups():
    at = slice(group.start, group.stop)
    here, stored = jax.tree.map(lambda x, at=at: x[at], local.cache), ()
    if bank and group.memory:
      at = slice(remembered, remembered + group.stop - group.start)
      stored, remembered = (bank.k[at], bank.v[at]), at.stop
    caches.append(((here, stored),))
  x, caches = llama.run(
    params, config, window.tokens, window.slots, attend, caches, mesh
  )
  together = lambda parts: jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
  cache = together([here for ((here, _),) in caches])
  kept = [kept for ((_, kept),) in caches if kept]
  return x, cache, together(kept) if kept else None


def _join(local, kept, mesh):
  """(k, v, Ids) of the window's keys and of all that the bank holds.

  Each device puts together what it holds: nothing is sent.
  """

  def join(local, kept):
    flat = lambda x: x.swapaxes(0, 1).reshape(x.shape[1], -1, *x.shape[3:])
    k, v, segment = map(flat, kept)
    memory = k, v, Ids(segment, jnp.zeros_like(segment) - 1)
    return jax.tree.map(lambda *x: jnp.concatenate(x, 1), local, memory)

  if mesh is None:
    return join(local, kept)
  spec = sharding.batch_spec(mesh, local[0].shape[0])
  return jax.shard_map(
    join, mesh=mesh, in_specs=(spec, P(None, *spec)), out_specs=spec
  )(local, kept)
