"""How often the TPU kernel would do a pair of blocks again, on real weights.

  python tests/bench/redo.py [--lengths 4096,8192,16384] [--weights FILE]

Runs SmolLM2-135M over Paradise Lost on a CPU and applies the kernel's rule
(longjax/attention/pallas.py) to the logits of each layer: a query's reference
is the logit of its own key, and a pair is done again where a sum reaches LIMIT.
Beyond its window of 8,192 tokens the model has the base of
configs/smollm2_135m_abf_16k.py. Prints a line a length: pairs, those done
again, and how far log-sum-exps lie above own logits.
"""

import argparse
import dataclasses
import functools
import math
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from configs import smollm2_135m_abf_16k
from longjax import attention, llama, weights
from longjax.attention.pallas import LANES, LIMIT
from longjax.attention.tiles import TILES
from longjax.batch import one_document
from longjax.data import downloads, prepare, tokenizer
from longjax.mask import Ids


def count(q, k, tiles=TILES['tpu7x']):
  """([pairs, pairs done again], log-sum-exp over own logit [T, N] in nats).

  Args:
    q: [T, N, H], whose products with k [T, K, H] are logits in units of log 2.
    k: keys of one document.
    tiles: sizes of the kernel's blocks.
  """
  seq, heads, _ = q.shape
  kv_heads = k.shape[1]
  k = jnp.repeat(k, heads // kv_heads, 1)
  rows = tiles.rows // (heads // kv_heads) // LANES * LANES
  keys = min(tiles.keys, seq)
  own = jnp.einsum('tnh,tnh->nt', q, k)
  places = jnp.arange(seq)

  def block(i):
    at = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=i * rows,
                           slice_size=rows)  # fmt: skip
    reference, here = at(own, axis=1), at(places)

    def add(state, j):
      reference, total, again = state
      cut = lambda x: jax.lax.dynamic_slice_in_dim(x, j * keys, keys)
      logits = jnp.einsum('tnh,snh->nts', at(q), cut(k))
      logits = jnp.where(here[:, None] >= cut(places), logits, -jnp.inf)
      after = total + jnp.exp2(logits - reference[..., None]).sum(-1)
      over = (after >= LIMIT).reshape(kv_heads, -1).any(1)

      def online():
        redo = jnp.repeat(over, heads // kv_heads)[:, None]
        largest = jnp.maximum(reference, logits.max(-1))
        moved = total * jnp.exp2(reference - largest)
        moved += jnp.exp2(logits - largest[..., None]).sum(-1)
        return (
          jnp.where(redo, largest, reference),
          jnp.where(redo, moved, after),
        )

      kept = lambda: (reference, after)
      return *jax.lax.cond(over.any(), online, kept), again + over.sum()

    def next_keys(state, j):
      live = j * keys < (i + 1) * rows
      return jax.lax.cond(live, add, lambda state, j: state, state, j), None

    state = reference, jnp.zeros_like(reference), jnp.zeros((), jnp.int32)
    (last, total, again), _ = jax.lax.scan(
      next_keys, state, jnp.arange(seq // keys)
    )
    live = ((i + 1) * rows - 1) // keys + 1
    above = (last + jnp.log2(total) - reference) * math.log(2)
    return jnp.stack([live * kv_heads, again]), above

  pairs, above = jax.lax.map(block, jnp.arange(seq // rows))
  return pairs.sum(0), above


def measure(params, config, tokens):
  """(pairs, pairs done again, nats above own logits) of all layers."""
  row = jax.tree.map(jnp.asarray, one_document(tokens))
  ids = Ids(row.segments, row.index)

  def attend(x, _):
    counted = count(x.q[0], x.k[0])
    out = attention.attend(
      x.q, x.k, x.v, ids, ids, strategy='blockwise', **x.options
    )
    return out, counted

  zeros = lambda heads: jnp.zeros((len(tokens), heads, config.head_dim))
  found = jax.eval_shape(
    lambda: count(zeros(config.heads), zeros(config.kv_heads))
  )
  empty = lambda x: jnp.zeros((config.layers, *x.shape), x.dtype)
  run = jax.jit(lambda params, row: llama.run(
    params, config, row.tokens, row.positions, attend,
    [(jax.tree.map(empty, found),)],
  )[1])  # fmt: skip
  ((pairs, above),) = run(params, row)[0]
  return *np.asarray(pairs).sum(0), np.asarray(above)


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--weights', default=smollm2_135m_abf_16k.WEIGHTS)
  parser.add_argument('--lengths', default='4096,8192,16384')
  flags = parser.parse_args()
  path = str(downloads.locate(flags.weights))
  tokens, recipe = tokenizer.load(path), smollm2_135m_abf_16k.get_config()
  params, released = weights.load(path)
  lengths = [int(n) for n in flags.lengths.split(',')]
  text = prepare.held_out(recipe, tokens).tokens(0, 0, max(lengths))
  for length in lengths:
    base = released.rope.base if length <= 8192 else recipe.model.rope.base
    config = dataclasses.replace(
      released, rope=dataclasses.replace(released.rope, base=base), block=512
    )
    pairs, again, above = measure(params, config, text[:length])
    nats = ', '.join(f'{np.quantile(above, q):.1f}' for q in (0.5, 0.999, 1))
    print(
      f'{length:6,} tokens, base {base:g}: {again:,} of {pairs:,} pairs done '
      f'again; log-sum-exp above own logit: median, 0.999, most {nats} nats',
      flush=True,
    )


if __name__ == '__main__':
  main()
