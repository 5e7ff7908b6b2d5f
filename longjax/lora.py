"""LoRA: frozen weights plus trained low-rank factors.

Each weight W that `config.lora.weights` names gets two factors, and the model
computes with W + alpha / rank * A B (arXiv:2106.09685, section 4.1):

  params['lora'] = {'q': {'a': [layers, embed, rank],
                          'b': [layers, rank, heads, head_dim]}, ...}

The sum is formed outside of the model, so what is evaluated and exported is
what was trained. Only trained parameters have moments, which is the memory that
LoRA saves. Frozen weights get no gradient. For a weight with factors the full
gradient is computed, in the sharding of the weight, and then contracted to the
gradients of A and B.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from longjax.errors import InputError

# Dims of a layer's weight that its input has; the rest is the output's.
INPUTS = dict(q=1, k=1, v=1, o=2, gate=1, up=1, down=1)


def check(options, params):
  """InputError where the section `lora` of a config is invalid.

  Args:
    options: the section.
    params: tree of the model, for its names.
  """
  if not options.rank:
    return
  if unknown := [name for name in options.weights if name not in INPUTS]:
    raise InputError(
      f'config.lora.weights {tuple(unknown)} are none of {", ".join(INPUTS)}'
    )
  if not options.weights or len(set(options.weights)) < len(options.weights):
    raise InputError(
      'config.lora.weights must name one or more weights, without repeats, got '
      f'{tuple(options.weights)}'
    )
  named = {path[-1].key for path, _ in jax.tree.leaves_with_path(params)}
  for part in options.whole:
    if not any(part in name for name in named):
      raise InputError(
        f'config.lora.whole has {part!r}, which is in none of the names '
        f'{", ".join(sorted(named))}'
      )


def init(params, options, key) -> dict:
  """{'lora': factors} to add to `params`; {} if rank is 0.

  A is uniform within 1 / sqrt(its inputs), as in PEFT, and B is 0: at first
  the sum is W.

  Args:
    params: of the model, arrays or their shapes.
    options: the section `lora` of a config.
    key: jax.random key.
  """
  factors = {}
  for i, name in enumerate(options.weights if options.rank else ()):
    layers, *dims = params['layers'][name].shape
    inputs, outputs = dims[: INPUTS[name]], dims[INPUTS[name] :]
    most = 1 / math.sqrt(math.prod(inputs))
    shape = (layers, *inputs, options.rank)
    a = jax.random.uniform(
      jax.random.fold_in(key, i), shape, jnp.float32, -most, most
    )
    b = jnp.zeros((layers, options.rank, *outputs), jnp.float32)
    factors[name] = dict(a=a, b=b)
  return dict(lora=factors) if factors else {}


def split(params, options):
  """(trained, frozen): params, each with None in place of the other's.

  Without a rank all of them are trained; else the factors, and the parameters
  whose names contain a word of options.whole.
  """

  def trained(path):
    whole = any(part in path[-1].key for part in options.whole)
    return not options.rank or path[0].key == 'lora' or whole

  pick = lambda wanted: jax.tree.map_with_path(
    lambda path, x: x if trained(path) == wanted else None, params
  )
  return pick(True), pick(False)


def join(trainable, frozen):
  """Undoes `split`."""
  return jax.tree.map(
    lambda x, y: y if x is None else x,
    trainable, frozen, is_leaf=lambda x: x is None,
  )  # fmt: skip


def merged(params, alpha: float, mesh=None):
  """The params that the model reads: sums, and no factors any more.

  Args:
    params: with or without factors.
    alpha: config.lora.alpha.
    mesh: over which the weights are sharded; the small factors are gathered
      and each device forms its shard of the sum.
  """
  if 'lora' not in params:
    return params
  layers = dict(params['layers'])
  for name, factors in params['lora'].items():
    a, b = factors['a'], factors['b']
    if mesh is not None:
      everywhere = NamedSharding(mesh, P())
      a, b = (jax.lax.with_sharding_constraint(x, everywhere) for x in (a, b))
    # On a TPU float32 would be multiplied as bfloat16.
    of_layer = lambda a, b: jnp.tensordot(a, b, 1, precision='highest')
    scale = alpha / b.shape[1]
    layers[name] = layers[name] + scale * jax.vmap(of_layer)(a, b)
  plain = {k: v for k, v in params.items() if k != 'lora'}
  return plain | dict(layers=layers)


def part(factors, alpha: float, where) -> np.ndarray:
  """What `merged` adds to a rectangle of a weight; numpy.

  Args:
    factors: {'a', 'b'} of the weight, numpy.
    alpha: config.lora.alpha.
    where: a slice for each dim of the weight, layers first.
  """
  a, b = factors['a'][where[0]], factors['b'][where[0]]
  inputs = a.ndim - 2
  a = a[(slice(None), *where[1 : 1 + inputs])]
  b = b[(slice(None), slice(None), *where[1 + inputs :])]
  scale = np.float32(alpha / b.shape[1])
  return scale * np.stack([np.tensordot(*pair, 1) for pair in zip(a, b)])


def frozen_matmuls(params, options) -> int:
  """Frozen parameters of matmuls, see flops.train_step."""
  _, frozen = split(params, options)
  return sum(
    x.size for path, x in jax.tree.leaves_with_path(frozen)
    if not any(x in path[-1].key for x in ('embedding', 'norm', 'bias'))
  )  # fmt: skip
