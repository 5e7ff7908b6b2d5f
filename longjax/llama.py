"""Llama 2, 3, 3.1, 3.2 and SmolLM2: the whole model in one file.

Modules give structure and names; training handles plain dicts of arrays:

  params = {'embedding', 'layers': {'attn_norm', 'q', 'k', 'v', 'o',
            'mlp_norm', 'gate', 'up', 'down'}, 'norm', 'head' unless tied}

Legend: B batch, T seq, D embed, N heads, K kv_heads, H head_dim, F mlp, V
vocab, L layers. Parameters are float32; `use` casts them to `config.dtype` for
the matmuls; norms, RoPE and softmax compute in float32.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from longjax import attention, loss, rope, sharding
from longjax.attention import Ids
from longjax.batch import Batch
from longjax.rope import Rope

_policies = jax.checkpoint_policies
# What the backward pass finds instead of computing it again. `attention` keeps
# the ring from going round twice: right from about 128K tokens on.
REMAT = dict(
  none=_policies.everything_saveable,
  attention=_policies.save_only_these_names('attn_out', 'attn_lse'),
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
  block: int = 512  # queries and keys per block of attention
  remat: str = 'attention'  # a key of REMAT

  def __post_init__(self):
    counts = ('vocab', 'layers', 'embed', 'mlp', 'heads', 'kv_heads',
              'head_dim', 'block')  # fmt: skip
    for field in counts:
      if getattr(self, field) < 1:
        raise ValueError(
          f'{field} must be at least 1, is {getattr(self, field)}'
        )
    if self.head_dim % 2 or self.norm_eps <= 0:
      raise ValueError(
        f'head_dim must be even and norm_eps positive, they are '
        f'{self.head_dim} and {self.norm_eps}'
      )
    if self.heads % self.kv_heads:
      raise ValueError(
        f'heads {self.heads} is not a multiple of kv_heads {self.kv_heads}'
      )
    for field, known in (
      ('attention', attention.STRATEGIES),
      ('remat', REMAT),
      ('dtype', ('bfloat16', 'float32')),
    ):
      if getattr(self, field) not in known:
        raise ValueError(
          f'{field} {getattr(self, field)!r} is none of {", ".join(known)}'
        )


ARCHITECTURE = ('vocab', 'layers', 'embed', 'mlp', 'heads', 'kv_heads',
                'head_dim', 'norm_eps', 'tied')  # fmt: skip


def param(rngs, shape, axes, fan_in=0):
  """A float32 parameter with logical axes; ones where there is no fan_in."""
  if not fan_in:
    return nnx.Param(jnp.ones(shape), axes=axes)
  return nnx.Param(rngs.params.normal(shape) / math.sqrt(fan_in), axes=axes)


def rms_norm(x, scale, eps):
  x32 = x.astype(jnp.float32)
  x32 *= jax.lax.rsqrt(jnp.mean(x32**2, -1, keepdims=True) + eps)
  return (x32 * scale).astype(x.dtype)


class Layer(nnx.Module):
  """Attention and SwiGLU, each behind a norm and beside a residual."""

  def __init__(self, c: Llama, rngs: nnx.Rngs):
    D, F, N, K, H = c.embed, c.mlp, c.heads, c.kv_heads, c.head_dim
    self.config = c
    self.attn_norm = param(rngs, (D,), ('embed',))
    self.q = param(rngs, (D, N, H), ('embed', 'heads', 'head_dim'), D)
    self.k = param(rngs, (D, K, H), ('embed', 'kv_heads', 'head_dim'), D)
    self.v = param(rngs, (D, K, H), ('embed', 'kv_heads', 'head_dim'), D)
    self.o = param(rngs, (N, H, D), ('heads', 'head_dim', 'embed'), N * H)
    self.mlp_norm = param(rngs, (D,), ('embed',))
    self.gate = param(rngs, (D, F), ('embed', 'mlp'), D)
    self.up = param(rngs, (D, F), ('embed', 'mlp'), D)
    self.down = param(rngs, (F, D), ('mlp', 'embed'), F)

  def __call__(self, x, cos, sin, attend, cache, mesh):
    """x [B, T, D] -> x, cache. attend(q, k, v, cache) -> out, cache."""
    c = self.config
    use = functools.partial(sharding.use, dtype=c.dtype, mesh=mesh)
    with jax.named_scope('attention'):
      h = rms_norm(x, self.attn_norm[...], c.norm_eps)
      q, k, v = (
        jnp.einsum('btd,dnh->btnh', h, use(w)) for w in (self.q, self.k, self.v)
      )
      q, k = rope.rotate(q, cos, sin), rope.rotate(k, cos, sin)
      out, cache = attend(q, k, v, cache)
      x += jnp.einsum('btnh,nhd->btd', out, use(self.o))
    with jax.named_scope('mlp'):
      h = rms_norm(x, self.mlp_norm[...], c.norm_eps)
      h = jax.nn.silu(h @ use(self.gate)) * (h @ use(self.up))
      x += h @ use(self.down)
    return sharding.constrain(x, mesh), cache


class Transformer(nnx.Module):
  """tokens -> hidden states; the head is applied in `loss`, in chunks."""

  def __init__(self, c: Llama, rngs: nnx.Rngs):
    self.config = c
    self.embedding = param(
      rngs, (c.vocab, c.embed), ('vocab', 'embed'), c.embed
    )
    self.layers = jax.vmap(lambda r: Layer(c, r))(rngs.split(c.layers))
    self.norm = param(rngs, (c.embed,), ('embed',))
    if not c.tied:
      self.head = param(rngs, (c.embed, c.vocab), ('embed', 'vocab'), c.embed)

  def __call__(self, tokens, positions, attend, cache, mesh):
    """[B, T] tokens -> [B, T, D] after the last norm, and the cache."""
    c = self.config
    # float32 around the look-up: the gradients of a row add up in float32.
    table = sharding.use(self.embedding, c.dtype, mesh).astype(jnp.float32)
    x = sharding.constrain(table[tokens].astype(c.dtype), mesh)
    cos, sin = rope.cos_sin(positions, c.rope, c.head_dim)

    def body(x, layer_and_cache):
      layer, cache = layer_and_cache
      return layer(x, cos, sin, attend, cache, mesh)

    body = jax.checkpoint(body, policy=REMAT[c.remat], prevent_cse=False)
    x, cache = jax.lax.scan(body, x, (self.layers, cache))
    return rms_norm(x, self.norm[...], c.norm_eps), cache


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


def axes(config: Llama):
  """Like params: the logical axes of each, without the leading one of L."""
  is_variable = lambda x: isinstance(x, nnx.Variable)
  state = _abstract(config)[1]
  names = jax.tree.map(
    lambda v: v.get_metadata()['axes'], state, is_leaf=is_variable
  )
  return nnx.to_pure_dict(names)


def run(params, config: Llama, tokens, positions, attend, cache, mesh=None):
  """Hidden states with any attention: attend(q, k, v, cache) -> out, cache."""
  model = nnx.merge(_abstract(config)[0], params)
  return model(tokens, positions, attend, cache, mesh)


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

  def attend(q, k, v, cache):
    out = attention.attend(
      q, k, v, ids, ids,
      strategy=config.attention, mesh=mesh, block=config.block,
    )  # fmt: skip
    return out, cache

  x, _ = run(params, config, batch.tokens, batch.positions, attend, None, mesh)
  return x


def head(params, config: Llama):
  """[embed, vocab] float32."""
  return params['embedding'].T if config.tied else params['head']


def nll(params, config: Llama, batch: Batch, *, chunk=1024, mesh=None):
  """Negative log-likelihood of each target, [batch, seq] float32, in nats."""
  x = hidden(params, config, batch, mesh)
  weights = sharding.use(head(params, config), config.dtype, mesh)
  return loss.nll(x, weights, batch.targets, chunk=chunk, mesh=mesh)


def logits(params, config: Llama, x):
  """[batch, seq, vocab] float32 from hidden states [batch, seq, embed]."""
  weights = jnp.asarray(head(params, config)).astype(config.dtype)
  return jnp.einsum(
    'btd,dv->btv', x, weights, preferred_element_type=jnp.float32
  )


def forward(params, config: Llama, batch: Batch):
  """Whole logits [batch, seq, vocab] float32: for small inputs and tests."""
  return logits(params, config, hidden(params, config, batch))
