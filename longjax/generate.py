"""Greedy generation on one device, with a KV cache whose ids say what is full.

The cache has a slot for each token of prompt and answer; empty slots carry
segment 0, which nobody sees, so prompts of different lengths share a batch.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from longjax import attention, llama
from longjax.attention import Ids


def greedy(params, config: llama.Llama, prompts, count: int) -> np.ndarray:
  """Continues each prompt with the likeliest tokens.

  Args:
    params: on one device, or numpy.
    config: the model.
    prompts: list of [tokens] arrays of ids, none of them empty.
    count: tokens to generate.

  Returns:
    [len(prompts), count] int32.
  """
  lengths = np.array([len(p) for p in prompts], np.int32)
  tokens = np.zeros((len(prompts), lengths.max()), np.int32)
  for row, prompt in zip(tokens, prompts):
    row[: len(prompt)] = prompt
  return np.asarray(_greedy(params, config, tokens, lengths, count))


@functools.partial(jax.jit, static_argnums=(1, 4))
def _greedy(params, config, tokens, lengths, count):
  slots = jnp.arange(tokens.shape[1], dtype=jnp.int32)
  slots = jnp.broadcast_to(slots, tokens.shape)
  cache = _empty(config, tokens.shape[0], tokens.shape[1] + count)
  x, cache = _run(params, config, tokens, slots, lengths, cache)
  last = jnp.take_along_axis(x, lengths[:, None, None] - 1, 1)

  def step(carry, _):
    last, lengths, cache = carry
    token = llama.logits(params, config, last).argmax(-1).astype(jnp.int32)
    slot = lengths[:, None]
    x, cache = _run(params, config, token, slot, lengths + 1, cache)
    return (x, lengths + 1, cache), token[:, 0]

  carry = (last, lengths, cache)
  _, answer = jax.lax.scan(step, carry, length=count)
  return answer.T


def _empty(config, batch, seq):
  shape = (config.layers, batch, seq, config.kv_heads, config.head_dim)
  return jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype)


def _run(params, config, tokens, slots, lengths, cache):
  """Hidden states of `tokens` [batch, seq], which go into their slots.

  `lengths` [batch] tokens of each row are real once these are in.
  """
  rows = jnp.arange(tokens.shape[0])[:, None]
  order = jnp.arange(cache[0].shape[2], dtype=jnp.int32)
  order = jnp.broadcast_to(order, (tokens.shape[0], order.shape[0]))
  real = lambda slot: (slot < lengths[:, None]).astype(jnp.int32)

  def attend(q, k, v, cache):
    k, v = cache[0].at[rows, slots].set(k), cache[1].at[rows, slots].set(v)
    out = attention.attend(
      q, k, v, Ids(real(slots), slots), Ids(real(order), order),
      strategy='blockwise', block=config.block,
    )  # fmt: skip
    return out, (k, v)

  return llama.run(params, config, tokens, slots, attend, cache)
