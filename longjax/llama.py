"""Llama 2, 3, 3.1, 3.2 and SmolLM2: the whole model in one file.

Modules give structure and names; training handles plain dicts of arrays:

  params = {'embedding', 'layers': {'attn_norm', 'q', 'k', 'v', 'o',
            'mlp_norm', 'gate', 'up', 'down'}, 'norm', 'head' unless tied}

Legend: B batch, T seq, D embed, N heads, K kv_heads, H head_dim, F mlp, V
vocab, L layers. Parameters are float32; `fsdp.with_gathered_weights` gathers
and casts them to `config.dtype` for the matmuls; norms, RoPE and softmax
compute in float32.
"""

import dataclasses
import functools
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from longjax import attention, crossbatch, loss, mask, rope
from longjax.batch import Batch
from longjax.chunks import chunked
from longjax.crossbatch import Memory
from longjax.mask import Ids
from longjax.parallel import fsdp
from longjax.rope import Rope

_policies = jax.checkpoint_policies
# What the backward pass finds instead of computing it again, besides the input
# of each layer. `attention` keeps the ring from going round twice: right from
# about 128K tokens on. `offload` keeps the same, the large arrays of it and the
# inputs in the memory of the host: for more tokens than fit the chip. `none`
# keeps everything, the gathered weights too: for models that fit each device.
REMAT = dict(
  none=_policies.everything_saveable,
  attention=_policies.save_only_these_names('attn_out', 'attn_lse'),
  offload=_policies.save_and_offload_only_these_names(
    names_which_can_be_saved=['attn_lse'],
    names_which_can_be_offloaded=['attn_out', 'layer_in'],
    offload_src='device',
    offload_dst='pinned_host',
  ),
  full=_policies.nothing_saveable,
)


@dataclasses.dataclass(frozen=True)
class Llama:
  """An architecture, its RoPE, and how to compute it.

  Every field changes the program that is traced (tests/test_llama.py).
  """

  vocab: int
  layers: int
  embed: int
  mlp: int
  heads: int
  kv_heads: int
  head_dim: int
  norm_eps: float = 1e-5
  tied: bool = False  # the head is the embedding
  rope: Rope = dataclasses.field(default_factory=Rope)
  dtype: str = 'bfloat16'  # of matmuls
  attention: str = 'ring'  # a key of attention.STRATEGIES
  block: int = 512  # keys per block of attention; 2048 fills a TPU best
  ulysses: int = 0  # devices that exchange heads in hybrid; 0 is the most
  remat: str = 'attention'  # a key of REMAT
  mlp_chunk: int = 0  # tokens of a row in the feed-forward at once; 0 is all
  memory: Memory = dataclasses.field(default_factory=Memory)
  group: int = 0  # tokens that LongLoRA's training attends to; 0 is all

  def __post_init__(self):
    for field, kind in (('rope', Rope), ('memory', Memory)):
      value = getattr(self, field)
      if not isinstance(value, kind):  # a mapping, as configs and files have it
        object.__setattr__(self, field, kind(**value))
    self._check_numbers()
    self._check_names()
    rope.frequencies(self.rope, self.head_dim)  # a divisor for each pair
    self._check_layers()

  def _check_numbers(self):
    counts = ('vocab', 'layers', 'embed', 'mlp', 'heads', 'kv_heads',
              'head_dim', 'block')  # fmt: skip
    limits = ('mlp_chunk', 'ulysses', 'group')
    for field in (*counts, *limits):
      value, least = getattr(self, field), int(field in counts)
      if value < least:
        raise ValueError(f'{field} must be at least {least}, is {value}')
    if self.head_dim % 2 or self.norm_eps <= 0:
      raise ValueError(
        f'head_dim must be even and norm_eps positive, they are '
        f'{self.head_dim} and {self.norm_eps}'
      )
    if self.heads % self.kv_heads:
      raise ValueError(
        f'heads {self.heads} is not a multiple of kv_heads {self.kv_heads}'
      )

  def _check_names(self):
    for field, known in (
      ('attention', attention.STRATEGIES),
      ('remat', REMAT),
      ('dtype', ('bfloat16', 'float32')),
    ):
      if getattr(self, field) not in known:
        raise ValueError(
          f'{field} {getattr(self, field)!r} is none of {", ".join(known)}'
        )

  def _check_layers(self):
    if any(layer >= self.layers for layer in self.memory.layers):
      raise ValueError(
        f'memory layers {self.memory.layers} are not all among the '
        f'{self.layers} layers, which count from 0'
      )
    if self.group and (self.group % 2 or self.kv_heads % 2 or self.memory.rows):
      raise ValueError(
        f'group {self.group} shifts half of the heads by half of it: group and '
        f'kv_heads ({self.kv_heads}) must be even, and memory.rows empty'
      )

  def runs(self) -> list[tuple[int, int, bool]]:
    """(first layer, layer after the last, do they have a memory): layers of one
    kind that follow one another."""
    kinds = [layer in self.memory.layers for layer in range(self.layers)]
    starts = [
      i for i in range(self.layers) if not i or kinds[i] != kinds[i - 1]
    ]
    return [
      (start, stop, kinds[start])
      for start, stop in zip(starts, [*starts[1:], self.layers])
    ]

  def at_rest(self) -> 'Llama':
    """The same model without what only training does to it."""
    memory = dataclasses.replace(self.memory, rows=(), wrap=False)
    return dataclasses.replace(self, memory=memory, group=0)


ARCHITECTURE = ('vocab', 'layers', 'embed', 'mlp', 'heads', 'kv_heads',
                'head_dim', 'norm_eps', 'tied')  # fmt: skip


def param(rngs, shape, fan_in=0):
  """A float32 parameter; ones where there is no fan_in."""
  if not fan_in:
    return nnx.Param(jnp.ones(shape, jnp.float32))
  normal = rngs.params.normal(shape, jnp.float32)
  return nnx.Param(normal / math.sqrt(fan_in))


def rms_norm(x, scale, eps):
  """scale [D] * x [..., D] / rms(x), arXiv:1910.07467; float32 inside."""
  x32 = x.astype(jnp.float32)
  x32 *= jax.lax.rsqrt(jnp.mean(x32**2, -1, keepdims=True) + eps)
  return (x32 * scale).astype(x.dtype)


# What multiplies with weights: functions of the tokens of a device and of whole
# weights, called through `fsdp.with_gathered_weights`.


def look_up(tokens, table):
  """[B, T], [V, D] -> [B, T, D]."""
  # float32 around the look-up: the gradients of a row add up in float32.
  return table.astype(jnp.float32)[tokens].astype(table.dtype)


def project(x, q, k, v):
  """[B, T, D] -> queries [B, T, N, H], keys and values [B, T, K, H]."""
  return tuple(jnp.einsum('btd,dnh->btnh', x, w) for w in (q, k, v))


def merge(heads, o):
  """[B, T, N, H] -> [B, T, D]."""
  return jnp.einsum('btnh,nhd->btd', heads, o)


def swiglu(x, gate, up, down):
  """[B, T, D] -> [B, T, D], arXiv:2002.05202."""
  return (jax.nn.silu(x @ gate) * (x @ up)) @ down


def to_vocab(x, head, *, tied):
  """[B, T, D] -> [B, T, V] float32; a tied head is the embedding, [V, D]."""
  equation = 'btd,vd->btv' if tied else 'btd,dv->btv'
  return jnp.einsum(equation, x, head, preferred_element_type=jnp.float32)


class Layer(nnx.Module):
  """Attention and SwiGLU, each behind a norm and beside a residual."""

  def __init__(self, c: Llama, rngs: nnx.Rngs):
    D, F, N, K, H = c.embed, c.mlp, c.heads, c.kv_heads, c.head_dim
    self.config = c
    self.attn_norm = param(rngs, (D,))
    self.q = param(rngs, (D, N, H), D)
    self.k = param(rngs, (D, K, H), D)
    self.v = param(rngs, (D, K, H), D)
    self.o = param(rngs, (N, H, D), N * H)
    self.mlp_norm = param(rngs, (D,))
    self.gate = param(rngs, (D, F), D)
    self.up = param(rngs, (D, F), D)
    self.down = param(rngs, (F, D), F)

  def __call__(self, x, rotation, attend, cache, mesh, first=None):
    """x [B, T, D] -> x, cache.

    attend(q, k, v, cache) -> out, cache. rotation and first: `rope.rotations`
    of the tokens and of their first position; with `first`, which is given in
    memory layers, attend gets as fifth argument the keys rotated by it.
    """
    c = self.config
    local = functools.partial(
      fsdp.with_gathered_weights, dtype=c.dtype, mesh=mesh
    )
    x = checkpoint_name(x, 'layer_in')
    with jax.named_scope('attention'):
      h = rms_norm(x, self.attn_norm[...], c.norm_eps)
      q, k, v = local(project, [h], [self.q, self.k, self.v])
      far = [] if first is None else [rope.rotate(k, *first[1])]
      q, k = rope.rotate(q, *rotation[0]), rope.rotate(k, *rotation[1])
      out, cache = attend(q, k, v, cache, *far)
      x += local(merge, [out], [self.o])
    with jax.named_scope('mlp'):
      h = rms_norm(x, self.mlp_norm[...], c.norm_eps)
      x += local(self.feed_forward, [h], [self.gate, self.up, self.down])
    return x, cache

  def feed_forward(self, x, *weights):
    """SwiGLU, of `mlp_chunk` tokens of a row at once."""
    if not self.config.mlp_chunk:
      return swiglu(x, *weights)
    return chunked(swiglu, self.config.mlp_chunk, [x], weights)


class Transformer(nnx.Module):
  """tokens -> hidden states; the head is applied in `loss`, in chunks."""

  def __init__(self, c: Llama, rngs: nnx.Rngs):
    self.config = c
    self.embedding = param(rngs, (c.vocab, c.embed), c.embed)
    self.layers = jax.vmap(lambda r: Layer(c, r))(rngs.split(c.layers))
    self.norm = param(rngs, (c.embed,))
    if not c.tied:
      self.head = param(rngs, (c.embed, c.vocab), c.embed)

  def __call__(self, tokens, positions, attend, cache, mesh, recall=None):
    """[B, T] tokens -> [B, T, D] after the last norm, and the cache."""
    c = self.config
    x = fsdp.with_gathered_weights(
      look_up, [tokens], [self.embedding], dtype=c.dtype, mesh=mesh
    )
    rotation = rope.rotations(positions, c.rope, c.head_dim)
    if recall is None:
      x, cache = self.walk(x, self.layers, rotation, attend, cache, mesh)
      return rms_norm(x, self.norm[...], c.norm_eps), cache
    start = rope.rotations(jnp.zeros((1, 1), jnp.int32), c.rope, c.head_dim)
    caches = []
    for (first, stop, remembers), here in zip(c.runs(), cache):
      layers = jax.tree.map(
        operator.itemgetter(slice(first, stop)), self.layers
      )
      how = (recall, here, mesh, start) if remembers else (attend, here, mesh)
      with jax.named_scope('memory_layers' if remembers else 'layers'):
        x, here = self.walk(x, layers, rotation, *how)
      caches.append(here)
    return rms_norm(x, self.norm[...], c.norm_eps), caches

  def walk(self, x, layers, rotation, attend, cache, mesh, first=None):
    """Through layers of one kind, stacked: [B, T, D] -> [B, T, D], cache."""

    def body(x, layer_and_cache):
      layer, cache = layer_and_cache
      return layer(x, rotation, attend, cache, mesh, first)

    policy = REMAT[self.config.remat]
    body = jax.checkpoint(body, policy=policy, prevent_cse=False)
    return jax.lax.scan(body, x, (layers, cache))


@functools.lru_cache
def _abstract(config: Llama):
  """(graph definition, state of ShapeDtypeStructs): no memory is used."""
  return nnx.split(nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(0))))


def init(config: Llama, key):
  """Random params, normal with variance 1/fan_in; the same on any mesh."""
  model = Transformer(config, nnx.Rngs(params=key))
  return nnx.to_pure_dict(nnx.state(model))


def abstract(config: Llama):
  """The params as ShapeDtypeStructs."""
  return nnx.to_pure_dict(_abstract(config)[1])


def check(params, config: Llama):
  """ValueError where params have not the names and shapes of the config.

  A scan walks over as many layers as there are, whatever the config says.
  """

  def shapes(tree):
    name = functools.partial(jax.tree_util.keystr, simple=True, separator='/')
    return {name(path): x.shape for path, x in jax.tree.leaves_with_path(tree)}

  given, wanted = shapes(params), shapes(abstract(config))
  for name in sorted({*given, *wanted}):
    if given.get(name) != wanted.get(name):
      raise ValueError(
        f'params {name}: the config has {wanted.get(name, "none")}, given is '
        f'{given.get(name, "none")}'
      )


def run(
  params, config: Llama, tokens, positions, attend, cache, mesh=None,
  recall=None,
) -> tuple[Any, Any]:  # fmt: skip
  """Hidden states with any attention.

  Args:
    params, config: the model.
    tokens, positions: [batch, seq].
    attend: (q, k, v, cache) -> out, cache.
    cache: a tree of arrays with a leading dim of layers, or None.
    mesh: shards rows and 'seq'; None is one device.
    recall: (q, k, v, cache, keys as at the first position) -> out, cache: the
      attention of memory layers. None: they attend as all layers do. If given,
      `cache` is a list of trees, one for each of config.runs().

  Returns:
    [batch, seq, embed] after the last norm, and the cache as it is now.

  Raises:
    ValueError: params of another config.
  """
  check(params, config)
  model = nnx.merge(_abstract(config)[0], params)
  return model(tokens, positions, attend, cache, mesh, recall)


def hidden(params, config: Llama, batch: Batch, mesh=None):
  """The states that the head reads.

  Args:
    params: as `init` gives them.
    config: the model.
    batch: arrays of [batch, seq].
    mesh: shards `batch` over rows and 'seq'; None is one device.

  Returns:
    [batch, seq, embed] in config.dtype.
  """
  batch = Batch(*(jnp.asarray(x) for x in batch))
  ids = Ids(batch.segments, batch.index)

  over = functools.partial(
    attention.attend, strategy=config.attention, mesh=mesh, block=config.block,
    ulysses=config.ulysses,
  )  # fmt: skip

  def attend(q, k, v, cache, kv_ids=ids):
    return over(q, k, v, ids, kv_ids), cache

  def recall(q, k, v, cache, far):
    k, v, kv_ids = crossbatch.beside(k, v, far, ids, config.memory, mesh)
    return attend(q, k, v, cache, kv_ids)

  def in_groups(q, k, v, cache):
    outs = []
    halves = [jnp.split(x, 2, 2) for x in (q, k, v)]
    for i, half in enumerate(zip(*halves)):
      here = mask.split_in_groups(ids, config.group, config.group // 2 * i)
      outs.append(over(half[0], half[1], half[2], here, here))
    return jnp.concatenate(outs, 2), cache

  run_ = functools.partial(run, params, config, batch.tokens, batch.positions)
  if config.memory.rows:
    return run_(attend, [None] * len(config.runs()), mesh, recall)[0]
  return run_(in_groups if config.group else attend, None, mesh)[0]


def head(params, config: Llama):
  """What `to_vocab` reads, float32."""
  return params['embedding'] if config.tied else params['head']


def nll(params, config: Llama, batch: Batch, *, chunk=1024, mesh=None):
  """Negative log-likelihood of each target, [batch, seq] float32, in nats."""
  x = hidden(params, config, batch, mesh)
  return losses(params, config, x, batch.targets, chunk=chunk, mesh=mesh)


def losses(params, config: Llama, x, targets, *, chunk, mesh=None):
  """`nll` of targets [batch, seq] from hidden states [batch, seq, embed]."""
  logits = functools.partial(to_vocab, tied=config.tied)
  of_tokens = functools.partial(loss.nll, logits=logits, chunk=chunk)
  return fsdp.with_gathered_weights(
    of_tokens, [x, jnp.asarray(targets)], [head(params, config)],
    dtype=config.dtype, mesh=mesh,
  )  # fmt: skip


def logits(params, config: Llama, x):
  """[batch, seq, vocab] float32 from hidden states [batch, seq, embed]."""
  weights = jnp.asarray(head(params, config)).astype(config.dtype)
  return to_vocab(x, weights, tied=config.tied)


def forward(params, config: Llama, batch: Batch):
  """Whole logits [batch, seq, vocab] float32: for small inputs and tests."""
  return logits(params, config, hidden(params, config, batch))
