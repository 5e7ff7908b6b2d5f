"""A KV cache sharded over the sequence.

Each device of the ring holds a share of the slots and the ids that say what is
in them: chunks of a prompt stay where they were computed, generated tokens go
to the devices in turn, so memory per device is O(seq / n) and nothing moves
once it is written. In layers with a window the slots for prompts and those for
answers are two ring buffers, whose oldest entries are overwritten.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from longjax import llama
from longjax.attention import Ids
from longjax.parallel import sharding

# Slots, up to which their number is a power of two: few programs are compiled.
SMALL = 512


class ModelOnMesh(NamedTuple):
  """What decides the compiled code, beside shapes."""

  config: llama.Llama
  mesh: Any = None  # shards cache and params over 'seq', rows over the rest

  @property
  def ring(self) -> int:
    """Devices over which the cache is sharded."""
    return self.mesh.shape['seq'] if self.mesh else 1


class Cache(NamedTuple):
  """Keys and values of the tokens that layers of one kind keep, and their ids.

  The slots of device i of the ring of n are [:, :, i]. RoPE is in the keys.
  Those of a head lie together, as a matrix that a single query multiplies.
  """

  k: Any  # [layers, batch, n, kv_heads, slots, dim]
  v: Any  # [layers, batch, n, kv_heads, slots, dim]
  ids: Ids  # of [batch, n, slots]; segment 0 is an empty slot
  prompt: Any  # slots that tokens of prompts go round in; answers have the rest


class Slots(NamedTuple):
  """Where new tokens go in the cache."""

  start: Any  # the first slot to write, the same on each device
  # [n] bool: the device that keeps a single token. None is a chunk: each device
  # keeps an equal share.
  owner: Any = None
  write_mask: Any = None  # [batch, n, slots] bool: of a chunk, what is written

  def within(self, cache: Cache, window: int, ids: Ids) -> 'Slots':
    """Those of a cache, `start` being counted as if nothing went round.

    Padding after a short prompt must not take the place of its tokens.
    """
    answer = cache.ids.segment.shape[2] - cache.prompt
    if self.owner is not None:
      return self._replace(start=cache.prompt + self.start % answer)
    n = cache.ids.segment.shape[1]
    mask = shares(ids.segment > 0, self, n) if window else None
    return self._replace(start=self.start % cache.prompt, write_mask=mask)


def kinds(config: llama.Llama) -> list[tuple[int, int]]:
  """(layers, window) of each Cache of a model, as llama.run takes them."""
  return [
    ((group.stop - group.start) // len(group.kinds), kind.window)
    for group in config.layer_groups()
    for kind in group.kinds
  ]


def sizes(n: int, window: int, prompt: int, count: int, chunk: int):
  """Slots of a device for prompts and for answers.

  Args:
    n: devices of the ring.
    window: tokens that a layer attends to; 0 is all.
    prompt: tokens of the longest prompt, to a multiple of the chunk.
    count: tokens to generate.
    chunk: tokens of a prompt that are computed at once.
  """
  prompts, slots = prompt // n, -(-(prompt + count) // n)
  if slots <= SMALL:
    slots = 1 << (slots - 1).bit_length()
  answers = rounded(slots) - prompts
  if window:  # that before a chunk, in whole chunks, and the chunk itself
    prompts = min(prompts, (-(-(window - 1) // chunk) + 1) * chunk // n)
    answers = min(answers, rounded(-(-window // n)))
  return prompts, answers


def empty(
  model: ModelOnMesh, rows: int, slots: tuple[int, ...], prompts
) -> tuple[Cache, ...]:
  """Caches with nothing in them; of each of `kinds`, the slots of a device and
  how many of them prompts have."""
  config, n = model.config, model.ring
  dtype, caches = jnp.dtype(config.dtype), []
  for (layers, _), size, first in zip(
    kinds(config), slots, prompts, strict=True
  ):
    shape = (layers, rows, n, config.kv_heads, size, config.head_dim)
    slot = jnp.zeros((rows, n, size), jnp.int32)
    caches.append(Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype),
                        Ids(slot, slot), first))  # fmt: skip
  return tuple(caches)


def shares(x, slots: Slots, n: int):
  """[batch, seq, ...] of new tokens -> [batch, n, seq / n or 1, ...]."""
  if slots.owner is None:
    return x.reshape(x.shape[0], n, -1, *x.shape[2:])
  owner = slots.owner.reshape(1, n, 1, *[1] * (x.ndim - 2))
  return jnp.where(owner, x[:, None], 0)


def write(old, new, axis: int, slots: Slots):
  """`old` with `new` in the slots.

  Args:
    old, new: ids [..., n, slots], or keys [..., n, kv_heads, slots, dim].
    axis: of the slots, -1 or -2.
    slots: where.
  """
  at = [jnp.int32(0)] * old.ndim
  at[axis] = jnp.int32(slots.start)
  kept = slots.write_mask if slots.owner is None else slots.owner[None, :, None]
  if kept is not None:
    there = jax.lax.dynamic_slice(old, at, new.shape)
    kept = kept if axis == -1 else kept[:, :, None, :, None]
    new = jnp.where(kept, new, there)
  return jax.lax.dynamic_update_slice(old, new, at)


def flat(x):
  """[batch, n, slots, ...] -> [batch, n * slots, ...]."""
  return x.reshape(x.shape[0], -1, *x.shape[3:])


def constrained(cache: Cache, mesh) -> Cache:
  """The cache, with its shardings told to the compiler."""
  if mesh is None:
    return cache
  rows = sharding.batch_spec(mesh, cache.k.shape[1])[0]
  place = lambda x, *spec: jax.lax.with_sharding_constraint(
    x, NamedSharding(mesh, P(*spec))
  )
  return Cache(
    place(cache.k, None, rows, 'seq'),
    place(cache.v, None, rows, 'seq'),
    Ids(*(place(x, rows, 'seq') for x in cache.ids)),
    cache.prompt,
  )


def replicated(x, mesh):
  """On every device, so that every process can read it."""
  if mesh is None:
    return x
  return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P()))


def rounded(size: int) -> int:
  """Up to a multiple of an eighth of a power of two: few shapes are compiled,
  and less than a seventh is wasted."""
  grain = 1 << max(size.bit_length() - 3, 0)
  return size + -size % grain
