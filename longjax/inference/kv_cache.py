"""A KV cache sharded over the sequence.

Each device of the ring holds a share of the slots and the ids that say what is
in them: chunks of a prompt stay where they were computed, generated tokens go
to the devices in turn, so memory per device is O(seq / n) and nothing moves
once it is written.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from longjax import llama
from longjax.attention import Ids
from longjax.parallel import sharding


class Program(NamedTuple):
  """What decides the compiled code, beside shapes."""

  config: llama.Llama
  mesh: Any = None  # shards cache and params over 'seq', rows over the rest

  @property
  def ring(self) -> int:
    """Devices over which the cache is sharded."""
    return self.mesh.shape['seq'] if self.mesh else 1


class Cache(NamedTuple):
  """Keys and values of the tokens that were read, and their ids.

  The slots of device i of the ring of n are [:, :, i]. RoPE is in the keys.
  Those of a head lie together, as a matrix that a single query multiplies.
  """

  k: Any  # [layers, batch, n, kv_heads, slots, dim]
  v: Any  # [layers, batch, n, kv_heads, slots, dim]
  ids: Ids  # of [batch, n, slots]; segment 0 is an empty slot


class Slots(NamedTuple):
  """Where new tokens go in the cache."""

  start: Any  # the first slot to write, the same on each device
  # [n] bool: the device that keeps a single token. None is a chunk: each device
  # keeps an equal share.
  owner: Any = None


def empty(program: Program, rows: int, slots: int) -> Cache:
  """A cache with nothing in it, of so many slots a device."""
  config, n = program.config, program.ring
  shape = (config.layers, rows, n, config.kv_heads, slots, config.head_dim)
  dtype = jnp.dtype(config.dtype)
  slot = jnp.zeros((rows, n, slots), jnp.int32)
  return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype),
               Ids(slot, slot))  # fmt: skip


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
  if slots.owner is not None:
    there = jax.lax.dynamic_slice(old, at, new.shape)
    owner = slots.owner.reshape(-1, *[1] * (1 if axis == -1 else 3))
    new = jnp.where(owner, new, there)
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
