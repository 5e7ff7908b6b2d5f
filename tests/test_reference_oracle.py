"""Holds the oracle itself, reference.py, to Hugging Face's transformers.

Random weights, float64. Whatever the model's dtype, transformers normalizes
and makes its angles in float32: as it stands it differs by up to 4e-5 in
logits of order 1, and by 5e-14 once those two are done in float64. Skipped
where transformers is not installed.
"""

import numpy as np
import pytest
import reference

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

SHAPE = dict(
  vocab_size=97, hidden_size=64, intermediate_size=112, num_hidden_layers=2
)
YARN = dict(scaling='yarn', base=1e4, factor=4.0, original_length=64)
LLAMA3 = dict(
  scaling='llama3',
  base=5e5,
  factor=8.0,
  original_length=256,
  low_freq_factor=1.0,
  high_freq_factor=4.0,
)
MODELS = {  # query heads, kv heads, tied, rope
  'llama2': (4, 4, False, dict(base=1e4)),
  'llama3': (8, 2, False, dict(base=5e5)),
  'llama31': (4, 2, True, LLAMA3),
  'linear': (4, 1, False, dict(scaling='linear', base=1e4, factor=4.0)),
  'yarn': (2, 2, False, YARN),
}


def huggingface_rope(rope):
  """Our RoPE fields under the names that transformers 5 gives them."""
  names = dict(
    base='rope_theta',
    scaling='rope_type',
    original_length='original_max_position_embeddings',
  )
  renamed = {names.get(key, key): value for key, value in rope.items()}
  return {'rope_type': 'default', **renamed}


def huggingface_model(heads, kv_heads, tied, rope):
  """A LlamaForCausalLM in float64 with random weights."""
  config = transformers.LlamaConfig(
    **SHAPE,
    num_attention_heads=heads,
    num_key_value_heads=kv_heads,
    max_position_embeddings=1024,
    tie_word_embeddings=tied,
    rms_norm_eps=1e-5,
    rope_parameters=huggingface_rope(rope),
    initializer_range=0.2,
  )
  torch.manual_seed(0)
  model = transformers.LlamaForCausalLM(config).double().eval()
  with torch.no_grad():  # norms are born as ones, which would hide mistakes
    for name, x in model.named_parameters():
      if 'norm' in name:
        x.uniform_(0.5, 1.5)
  return model


def our_params(model):
  """The model's weights in longjax's layout, typed out by hand."""
  weights = {name: x.detach().numpy() for name, x in model.named_parameters()}
  dim = model.config.head_dim

  def stack(name):
    return np.stack(
      [weights[f'model.layers.{i}.{name}.weight'].T for i in range(2)]
    )

  def heads(name):
    x = stack(name)
    return x.reshape(*x.shape[:2], -1, dim)

  o = stack('self_attn.o_proj')
  params = {
    'embedding': weights['model.embed_tokens.weight'],
    'norm': weights['model.norm.weight'],
    'layers': {
      'attn_norm': stack('input_layernorm'),
      'mlp_norm': stack('post_attention_layernorm'),
      'q': heads('self_attn.q_proj'),
      'k': heads('self_attn.k_proj'),
      'v': heads('self_attn.v_proj'),
      'o': o.reshape(2, -1, dim, o.shape[-1]),
      'gate': stack('mlp.gate_proj'),
      'up': stack('mlp.up_proj'),
      'down': stack('mlp.down_proj'),
    },
  }
  if not model.config.tie_word_embeddings:
    params['head'] = weights['lm_head.weight'].T
  return params


def reference_logits(model, rope, tokens, **where):
  config = dict(layers=2, norm_eps=1e-5, rope=rope)
  return reference.forward(our_params(model), config, tokens, **where)


def in_float64(model, rope):
  """Replaces the two float32 parts of transformers; angles are ours."""

  def norm(module):
    return lambda x: torch.nn.functional.rms_norm(
      x, module.weight.shape, module.weight, 1e-5
    )

  for module in model.modules():
    if type(module).__name__ == 'LlamaRMSNorm':
      module.forward = norm(module)
  frequencies, temperature = reference.rope_frequencies(
    model.config.head_dim, **rope
  )

  def cos_sin(x, position_ids):
    angles = position_ids[..., None] * torch.tensor(frequencies).repeat(2)
    return angles.cos() * temperature, angles.sin() * temperature

  model.model.rotary_emb.forward = cos_sin
  return model


@pytest.mark.parametrize('name', MODELS)
def test_logits_equal_transformers(name):
  *shape, rope = MODELS[name]
  model = huggingface_model(*shape, rope)
  tokens = np.random.default_rng(1).integers(0, 97, [2, 160])
  order = np.broadcast_to(np.arange(160), tokens.shape)
  found = reference_logits(
    model,
    rope,
    tokens,
    segments=np.ones_like(tokens),
    positions=order,
    index=order,
  )
  with torch.no_grad():
    as_it_stands = model(torch.tensor(tokens)).logits.numpy()
    exact = in_float64(model, rope)(torch.tensor(tokens)).logits.numpy()
  assert exact.std() > 0.5
  np.testing.assert_allclose(found, as_it_stands, rtol=0, atol=1e-4)
  np.testing.assert_allclose(found, exact, rtol=0, atol=1e-11)


def test_packed_documents_equal_transformers_with_their_own_mask():
  model = huggingface_model(8, 2, False, dict(base=5e5))
  rng = np.random.default_rng(2)
  tokens = rng.integers(0, 97, [1, 96])
  segments = np.repeat([[1, 2, 3]], [40, 24, 32], axis=1)
  positions = np.sort(rng.integers(0, 4000, [1, 96]))  # skips, as in PoSE
  order = np.arange(96)[None]
  found = reference_logits(
    model,
    dict(base=5e5),
    tokens,
    segments=segments,
    positions=positions,
    index=order,
  )
  sees = np.tril(segments[:, :, None] == segments[:, None, :])
  with torch.no_grad():
    wanted = in_float64(model, dict(base=5e5))(
      torch.tensor(tokens),
      position_ids=torch.tensor(positions),
      attention_mask=torch.tensor(np.where(sees, 0.0, -np.inf))[:, None],
    ).logits.numpy()
  np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-11)


@pytest.mark.parametrize('head_dim', [64, 128])
@pytest.mark.parametrize('rope', [
  dict(base=1e4),
  dict(scaling='linear', base=1e4, factor=8.0),
  dict(YARN, factor=16.0, original_length=4096),
  dict(YARN, factor=4.0, original_length=8192, base=5e5),
  dict(YARN, factor=32.0, original_length=2048, beta_fast=24.0, beta_slow=2.0),
  dict(LLAMA3, original_length=8192),
  dict(LLAMA3, original_length=8192, factor=32.0),
])  # fmt: skip
def test_frequencies_equal_transformers(rope, head_dim):
  config = transformers.LlamaConfig(
    hidden_size=head_dim,
    num_attention_heads=1,
    max_position_embeddings=131_072,
    rope_parameters=huggingface_rope(rope),
  )
  rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
  found, temperature = reference.rope_frequencies(head_dim, **rope)
  np.testing.assert_allclose(found, rotary.inv_freq.numpy(), rtol=1e-5)
  assert temperature == pytest.approx(rotary.attention_scaling, rel=1e-12)


def test_ntk_base_is_the_paper_s():
  """NTK-aware has no transformers counterpart: b * s ^ (D / (D - 2))."""
  found, _ = reference.rope_frequencies(128, scaling='ntk', factor=8.0)
  plain, _ = reference.rope_frequencies(128, base=82_684.6)
  np.testing.assert_allclose(found, plain, rtol=1e-6)


def test_nope_does_not_rotate():
  x = np.random.default_rng(0).normal(size=[1, 5, 2, 8])
  turn = reference.rope_frequencies(8, scaling='nope')
  np.testing.assert_array_equal(
    reference.rotate(x, np.arange(5)[None], *turn), x
  )


def test_a_query_that_sees_nothing_gets_zero():
  q, k, v = np.random.default_rng(0).normal(size=[3, 1, 4, 2, 8])
  segments, index = np.array([[1, 1, 0, 0]]), np.arange(4)[None]
  out = reference.attention(q, k, v, segments, index)
  np.testing.assert_array_equal(out[:, 2:], 0)
  np.testing.assert_allclose(out[:, 0], v[:, 0])
