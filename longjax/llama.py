"""Llama, and its kin that differ by a field: the whole model in one file.

Mistral has a `window`, Qwen2 a `bias`, Qwen3 a `qk_norm`, SmolLM3
`nope_layers`, OLMo 3 `post_norm` and windows. To add such a field: class Llama,
ARCHITECTURE below it, and config.py; weights/names.py for its tensors;
weights/families.py, and FAMILY_FIELDS in weights/config_json.py, for files. A
name that ends in norm or bias is that of a vector (for decay, LoRA, dtypes).
Modules give structure and names; training handles plain dicts of arrays:

  params = {'embedding', 'layers': {'attn_norm', 'q', 'k', 'v', 'o',
            'mlp_norm', 'gate', 'up', 'down'}, 'norm', 'head' unless tied}

Legend: B batch, T seq, D embed, N heads, K kv_heads, H head_dim, F mlp, V
vocab, L layers. Parameters are float32; `fsdp.with_gathered_weights` gathers
and casts them to `config.dtype` for the matmuls; norms, RoPE and softmax
compute in float32.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from longjax import attention, crossbatch, errors, loss, mask, rope
from longjax import config as schema
from longjax.batch import Batch
from longjax.crossbatch import Memory
from longjax.mask import Ids
from longjax.parallel import fsdp
from longjax.rope import Rope

_policies = jax.checkpoint_policies
# What is saved for the backward pass besides the input of each layer.
# `attention` saves the ring's output, which is then not computed again: better
# above about 128K tokens. `offload` saves the same, its large arrays and the
# layers' inputs in the memory of the host: for more tokens than fit the chip.
# `none` saves everything, the gathered weights too: for models that fit each
# device. plan/search.py estimates the memory of each.
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
  bias: str = 'none'  # of projections: qkv (Qwen2), or qkvo
  qk_norm: str = 'none'  # of queries and keys: each head (Qwen3), or all (OLMo)
  post_norm: bool = False  # norms come after attention and feed-forward (OLMo)
  nope_layers: tuple = ()  # layers that do not rotate (SmolLM3), from 0
  window: int = 0  # tokens that a token attends to, itself included; 0 is all
  full_layers: tuple = ()  # layers without the window, from 0
  scale_windows: bool = True  # rope.scaling in layers with a window too
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
    for field in LAYER_LIST_FIELDS:  # a list, as files have it
      object.__setattr__(self, field, tuple(getattr(self, field)))
    _check(self)

  def kind(self, layer: int) -> 'LayerKind':
    """What a layer, counted from 0, has of its own."""
    return LayerKind(
      layer in self.memory.layers,
      layer not in self.nope_layers,
      0 if layer in self.full_layers else self.window,
    )

  def layer_groups(self) -> list['LayerGroup']:
    """All layers as one group if their kinds repeat, else consecutive layers
    of one kind as a group each; each group is one scan."""
    kinds = [self.kind(layer) for layer in range(self.layers)]
    for period in range(1, MOST_UNROLLED + 1):
      repeats = kinds[:period] * (self.layers // period)
      if repeats == kinds and not (period > 1 and self.memory.layers):
        return [LayerGroup(0, self.layers, tuple(kinds[:period]))]
    groups, start = [], 0
    for kind, layers in itertools.groupby(kinds):
      stop = start + len([*layers])
      groups.append(LayerGroup(start, stop, (kind,)))
      start = stop
    return groups

  def without_memory(self) -> 'Llama':
    """The same model, of which no layer has a memory: one group of layers."""
    return dataclasses.replace(self, memory=Memory())

  def for_inference(self) -> 'Llama':
    """The same model without what only training does to it."""
    memory = dataclasses.replace(self.memory, rows=(), wrap=False)
    return dataclasses.replace(self, memory=memory, group=0)


ARCHITECTURE = ('vocab', 'layers', 'embed', 'mlp', 'heads', 'kv_heads',
                'head_dim', 'norm_eps', 'tied', 'bias', 'qk_norm', 'post_norm',
                'nope_layers')  # fmt: skip
WINDOW_FIELDS = ('window', 'full_layers')
# Fields that say how, not what, to compute.
EXECUTION = ('dtype', 'attention', 'block', 'remat', 'mlp_chunk', 'ulysses')
LAYER_LIST_FIELDS = ('nope_layers', 'full_layers')
MOST_UNROLLED = 8  # layers in the body of a scan


def _check(c: Llama):
  """ValueError naming the first field that cannot be."""
  for field in dataclasses.fields(c):
    if key := schema.KEYS.get(f'model.{field.name}'):
      schema.check_value(field.name, getattr(c, field.name), key)
  errors.check_choice('attention', c.attention, attention.STRATEGIES)
  errors.check_choice('remat', c.remat, REMAT)
  rope.frequencies(c.rope, c.head_dim)  # head_dim is even, divisors are enough
  if c.heads % c.kv_heads:
    raise ValueError(
      f'heads {c.heads} is not a multiple of kv_heads {c.kv_heads}'
    )
  lists = {field: getattr(c, field) for field in LAYER_LIST_FIELDS}
  for name, layers in (lists | {'memory layers': c.memory.layers}).items():
    if not all(0 <= layer < c.layers for layer in layers):
      raise ValueError(
        f'{name} {layers} are not all among the {c.layers} layers, which count '
        'from 0'
      )
  if c.full_layers and not c.window:
    raise ValueError(f'full_layers {c.full_layers} need a window, which is 0')
  remember = any(c.kind(layer).window for layer in c.memory.layers)
  if remember or (c.window and c.group):
    raise ValueError(
      f'window {c.window} goes neither with memory layers {c.memory.layers} '
      f'nor with group {c.group}: add the memory layers to full_layers and set '
      'group to 0, or set window to 0'
    )
  if c.memory.layers and c.rope.short_divisors:
    raise ValueError(
      'rope.short_divisors must be () with memory layers, for which a row is '
      'read in parts'
    )
  if c.group and (c.group % 2 or c.kv_heads % 2 or c.memory.rows):
    raise ValueError(
      f'group {c.group} shifts half of the heads by half of it: group and '
      f'kv_heads ({c.kv_heads}) must be even, and memory.rows empty'
    )


class LayerKind(NamedTuple):
  """What layers may have of their own; static."""

  memory: bool  # it attends to a memory too
  rotates: bool  # queries and keys, by RoPE
  window: int  # tokens that it attends to; 0 is all


class LayerGroup(NamedTuple):
  """Layers `start` to `stop`, whose kinds repeat; static."""

  start: int
  stop: int
  kinds: tuple[LayerKind, ...]

  @property
  def memory(self) -> bool:
    return any(kind.memory for kind in self.kinds)


class AttentionInputs(NamedTuple):
  """What a layer gives to `attend`."""

  q: Any  # [B, T, N, H], rotated, times log2(e) / sqrt(H)
  k: Any  # [B, T, K, H], rotated
  v: Any  # [B, T, K, H]
  k_at_origin: Any  # [B, T, K, H], as at position 0; None without a memory
  options: dict  # keyword arguments of attention.attend, static


def param(rngs, shape, fan_in=0):
  """A float32 parameter; ones where there is no fan_in."""
  if not fan_in:
    return nnx.Param(jnp.ones(shape, jnp.float32))
  normal = rngs.params.normal(shape, jnp.float32)
  return nnx.Param(normal / math.sqrt(fan_in))


def zeros(*shape):
  """A float32 parameter, of a bias."""
  return nnx.Param(jnp.zeros(shape, jnp.float32))


def rms_norm(x, scale, eps):
  """scale [D] * x [..., D] / rms(x), arXiv:1910.07467; float32 inside.

  D may be several dims.
  """
  x32, dims = x.astype(jnp.float32), tuple(range(-scale.ndim, 0))
  x32 *= jax.lax.rsqrt(jnp.mean(x32**2, dims, keepdims=True) + eps)
  return (x32 * scale).astype(x.dtype)


# What multiplies with weights: functions of a device's tokens and of gathered
# weights, called through `fsdp.with_gathered_weights`.


def look_up(tokens, table):
  """[B, T], [V, D] -> [B, T, D]."""
  # float32 around the look-up: the gradients of a row add up in float32.
  return table.astype(jnp.float32)[tokens].astype(table.dtype)


def project(x, q, k, v, *biases):
  """[B, T, D] -> queries [B, T, N, H], keys and values [B, T, K, H]."""
  heads = tuple(jnp.einsum('btd,dnh->btnh', x, w) for w in (q, k, v))
  return tuple(h + b for h, b in zip(heads, biases)) if biases else heads


def merge(heads, o, *biases):
  """[B, T, N, H] -> [B, T, D]."""
  return sum(biases, jnp.einsum('btnh,nhd->btd', heads, o))


def swiglu(x, gate, up, down):
  """[B, T, D] -> [B, T, D], arXiv:2002.05202."""
  return (jax.nn.silu(x @ gate) * (x @ up)) @ down


def to_vocab(x, head, *, tied):
  """[B, T, D] -> [B, T, V] float32; a tied head is the embedding, [V, D]."""
  equation = 'btd,vd->btv' if tied else 'btd,dv->btv'
  return jnp.einsum(equation, x, head, preferred_element_type=jnp.float32)


class Layer(nnx.Module):
  """Attention and SwiGLU, each behind or before a norm, beside a residual."""

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
    if c.bias != 'none':
      self.q_bias = zeros(N, H)
      self.k_bias, self.v_bias = zeros(K, H), zeros(K, H)
    if c.bias == 'qkvo':
      self.o_bias = zeros(D)
    if c.qk_norm != 'none':
      heads = (N, K) if c.qk_norm == 'all' else (1, 1)
      self.q_norm, self.k_norm = (param(rngs, (n * H,)) for n in heads)

  def __call__(self, x, cache, kind: LayerKind, rotations, attend, mesh):
    """x [B, T, D] and the cache of this layer -> the same, one layer on.

    attend(AttentionInputs, cache) -> out [B, T, N, H], cache. rotations: of
    queries, of keys, and of keys at the origin, or None.
    """
    c = self.config
    local = functools.partial(
      fsdp.with_gathered_weights, dtype=c.dtype, mesh=mesh
    )
    norm = lambda x, scale: rms_norm(x, scale[...], c.norm_eps)
    before = (lambda x, _: x) if c.post_norm else norm
    after = norm if c.post_norm else (lambda x, _: x)
    x = checkpoint_name(x, 'layer_in')
    with jax.named_scope('attention'):
      h = before(x, self.attn_norm)
      weights, o = [self.q, self.k, self.v], [self.o]
      if c.bias != 'none':
        weights += [self.q_bias, self.k_bias, self.v_bias]
      if c.bias == 'qkvo':
        o += [self.o_bias]
      q, k, v = local(project, [h], weights)
      inputs = self.attention_inputs(q, k, v, kind, rotations)
      out, cache = attend(inputs, cache)
      x += after(local(merge, [out], o), self.attn_norm)
    with jax.named_scope('mlp'):
      h, weights = before(x, self.mlp_norm), [self.gate, self.up, self.down]
      x += after(local(self.feed_forward, [h], weights), self.mlp_norm)
    return x, cache

  def attention_inputs(self, q, k, v, kind, rotations) -> AttentionInputs:
    """Normalizes queries and keys where the model does, and rotates them."""
    c, (of_queries, of_keys, at_origin) = self.config, rotations
    if c.qk_norm != 'none':
      dims = lambda x: x.shape[2 if c.qk_norm == 'all' else 3 :]
      q = rms_norm(q, self.q_norm[...].reshape(dims(q)), c.norm_eps)
      k = rms_norm(k, self.k_norm[...].reshape(dims(k)), c.norm_eps)
    # The factor of the logits goes into q in float32: see `scale` of `attend`.
    factor = math.log2(math.e) / math.sqrt(c.head_dim)
    return AttentionInputs(
      rope.rotate(q, *(x * factor for x in of_queries)),
      rope.rotate(k, *of_keys),
      v,
      k_at_origin=None if at_origin is None else rope.rotate(k, *at_origin),
      options=dict(
        block=c.block, ulysses=c.ulysses, window=kind.window, scale=math.log(2)
      ),
    )

  def feed_forward(self, x, *weights):
    """SwiGLU, of `mlp_chunk` tokens of a row at once."""
    if not self.config.mlp_chunk:
      return swiglu(x, *weights)
    return loss.chunked(swiglu, self.config.mlp_chunk, [x], weights)


class Transformer(nnx.Module):
  """tokens -> hidden states; the head is applied in `loss`, in chunks."""

  def __init__(self, c: Llama, rngs: nnx.Rngs):
    self.config = c
    self.embedding = param(rngs, (c.vocab, c.embed), c.embed)
    self.layers = jax.vmap(lambda r: Layer(c, r))(rngs.split(c.layers))
    self.norm = param(rngs, (c.embed,))
    if not c.tied:
      self.head = param(rngs, (c.embed, c.vocab), c.embed)

  def __call__(self, tokens, positions, attend, caches, mesh):
    """[B, T] tokens -> [B, T, D] after the last norm, and the caches."""
    c = self.config
    x = fsdp.with_gathered_weights(
      look_up, [tokens], [self.embedding], dtype=c.dtype, mesh=mesh
    )
    rotations, after = self.rotations(positions), []
    for group, cache in zip(c.layer_groups(), caches, strict=True):
      x, cache = self.scan_layers(group, x, cache, rotations, attend, mesh)
      after.append(cache)
    return rms_norm(x, self.norm[...], c.norm_eps), after

  def rotations(self, positions) -> dict:
    """{kind of layer: its rotations, as Layer takes them}."""
    c, found = self.config, {}
    origin = jnp.zeros((1, 1), jnp.int32)
    for kind in dict.fromkeys(k for g in c.layer_groups() for k in g.kinds):
      recipe = c.rope if kind.rotates else c.rope.unrotated()
      if kind.window and not c.scale_windows:
        recipe = Rope(base=c.rope.base)
      turn = functools.partial(rope.rotations, rope=recipe, head_dim=c.head_dim)
      at_origin = turn(origin)[1] if kind.memory else None
      found[kind] = (*turn(positions), at_origin)
    return found

  def scan_layers(self, group: LayerGroup, x, caches, rotations, attend, mesh):
    """x [B, T, D] and stacked caches through the layers of a group.

    Caches are a tuple, of the layers of each kind.
    """
    layers, period = self.layers, len(group.kinds)
    if (group.start, group.stop) != (0, self.config.layers):
      layers = jax.tree.map(lambda w: w[group.start : group.stop], layers)
    if period > 1:
      layers = jax.tree.map(
        lambda w: w.reshape(-1, period, *w.shape[1:]), layers
      )

    @functools.partial(
      jax.checkpoint, policy=REMAT[self.config.remat], prevent_cse=False,
      static_argnums=0,
    )  # fmt: skip
    def run_layer(kind, x, layer, cache):
      scope = jax.named_scope('windowed_layers')  # as longjax/plan looks for it
      with scope if kind.window else contextlib.nullcontext():
        return layer(x, cache, kind, rotations[kind], attend, mesh)

    def body(x, layers_and_caches):
      layers, caches = layers_and_caches
      after = []
      for i, kind in enumerate(group.kinds):
        pick = lambda w, i=i: w[i] if period > 1 else w
        layer = jax.tree.map(pick, layers)
        x, cache = run_layer(kind, x, layer, caches[i])
        after.append(cache)
      return x, tuple(after)

    with jax.named_scope('memory_layers' if group.memory else 'layers'):
      return jax.lax.scan(body, x, (layers, caches))


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
  """ValueError if params differ from the config in names or shapes.

  A scan runs over as many layers as the arrays have, whatever the config says.
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
  params, config: Llama, tokens, positions, attend, caches=None, mesh=None
) -> tuple[Any, list]:
  """Hidden states with any attention.

  Args:
    params, config: the model.
    tokens, positions: [batch, seq].
    attend: (AttentionInputs, cache) -> out [batch, seq, heads, head_dim],
      cache; called once for each kind of a group of layers, in its scan.
    caches: for each of config.layer_groups() a tuple, of a tree of arrays
      [layers of the kind, ...] for each of its kinds; or None.
    mesh: shards rows and 'seq'; None is one device.

  Returns:
    [batch, seq, embed] after the last norm, and the caches as they are now.

  Raises:
    ValueError: params of another config.
  """
  check(params, config)
  model = nnx.merge(_abstract(config)[0], params)
  if caches is None:
    caches = [(None,) * len(g.kinds) for g in config.layer_groups()]
  return model(tokens, positions, attend, caches, mesh)


def hidden(params, config: Llama, batch: Batch, mesh=None, layer_done=None):
  """The states that the head reads.

  Args:
    params: as `init` gives them.
    config: the model.
    batch: arrays of [batch, seq].
    mesh: shards `batch` over rows and 'seq'; None is one device.
    layer_done: called on the host when the attention of each layer begins.

  Returns:
    [batch, seq, embed] in config.dtype.
  """
  batch = Batch(*(jnp.asarray(x) for x in batch))
  ids = Ids(batch.segments, batch.index)
  config = config if config.memory.rows else config.without_memory()
  attention_of = functools.partial(
    attention.attend, strategy=config.attention, mesh=mesh
  )

  def attend(x: AttentionInputs, cache):
    if layer_done:
      jax.debug.callback(layer_done)
    if config.group:
      return attend_in_groups(attention_of, x, ids, config.group), cache
    k, v, kv_ids = x.k, x.v, ids
    if x.k_at_origin is not None:
      k, v, kv_ids = crossbatch.with_memory(
        k, v, x.k_at_origin, ids, config.memory, mesh
      )
    return attention_of(x.q, k, v, ids, kv_ids, **x.options), cache

  return run(params, config, batch.tokens, batch.positions, attend, mesh=mesh)[
    0
  ]


def attend_in_groups(attend, x: AttentionInputs, ids: Ids, group: int):
  """LongLoRA's attention, arXiv:2309.12307: see mask.split_in_groups."""
  outs = []
  halves = [jnp.split(heads, 2, 2) for heads in (x.q, x.k, x.v)]
  for i, (q, k, v) in enumerate(zip(*halves)):
    half_ids = mask.split_in_groups(ids, group, group // 2 * i)
    outs.append(attend(q, k, v, half_ids, half_ids, **x.options))
  return jnp.concatenate(outs, 2)


def head(params, config: Llama):
  """What `to_vocab` reads, float32."""
  return params['embedding'] if config.tied else params['head']


def nll(
  params, config: Llama, batch: Batch, *, chunk=1024, mesh=None, layer_done=None
):
  """Negative log-likelihood of each target, [batch, seq] float32, in nats.

  Raises:
    ValueError: seq is no multiple of the mesh axis 'seq'.
  """
  length = batch.tokens.shape[1]
  n = 1 if mesh is None else mesh.shape['seq']
  if length % n:
    raise ValueError(
      f"rows of {length} tokens do not divide over mesh axis 'seq' of {n} "
      f'devices; pad them to {length + -length % n}, as segment 0'
    )
  x = hidden(params, config, batch, mesh, layer_done)
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
