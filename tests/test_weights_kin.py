"""Llama and its kin against transformers: random models of every family.

Angles as in test_weights_oracle.py, which has Meta's own code.
"""

import json

import numpy as np
import pytest
import reference
import weight_files as files
from test_weights_oracle import (
  AS_IT_STANDS,
  FAR,
  LLAMA32,
  NEAR,
  TOKENS,
  assert_close,
  our_logits,
)

from longjax import llama, weights
from longjax.inference import generate
from longjax.weights import convert

pytestmark = pytest.mark.slow
torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

WINDOW = 8
SMALL = dict(
  vocab_size=96, hidden_size=48, intermediate_size=80, num_hidden_layers=4,
  num_attention_heads=4, num_key_value_heads=2, head_dim=16, rms_norm_eps=1e-5,
  max_position_embeddings=16_384, initializer_range=0.2, dtype='float32',
  rope_parameters=dict(rope_type='default', rope_theta=1e5),
  bos_token_id=None, eos_token_id=None, pad_token_id=None,
  attn_implementation='eager', tie_word_embeddings=False,
)  # fmt: skip
FULL, SLIDING = 'full_attention', 'sliding_attention'
SLIDES = dict(
  use_sliding_window=True, sliding_window=WINDOW,
  layer_types=[SLIDING, FULL, SLIDING, FULL],
)  # fmt: skip
YARN = dict(
  rope_type='yarn', rope_theta=1e5, factor=4.0, beta_fast=32.0, beta_slow=1.0,
  original_max_position_embeddings=4096,
)  # fmt: skip
PLAIN = dict(rope_type='default', rope_theta=1e5)
OUR_YARN = dict(base=1e5, scaling='yarn', factor=4.0, original_length=4096)


def roped(rope, **settings):
  """A Llama with a rope of ours, as a value of MODELS."""
  settings['rope_parameters'] = files.rope_parameters(rope)
  return 'Llama', settings, dict(rope=rope)


# By the class in transformers: name = (class, its settings, fields of ours).
MODELS = dict(
  llama2=roped(dict(base=1e4), num_key_value_heads=4),
  llama31=roped(files.LLAMA31),
  llama32=roped(LLAMA32, tie_word_embeddings=True),
  llama_yarn=roped(files.YARN),
  llama_linear=roped(files.LINEAR),
  bias=('Llama', dict(attention_bias=True), dict(bias='qkvo')),
  mistral=('Mistral', dict(sliding_window=WINDOW), dict(window=WINDOW)),
  mistral_v3=('Mistral', dict(sliding_window=None), {}),
  qwen2=('Qwen2', {}, dict(bias='qkv')),
  qwen2_windows=(
    'Qwen2',
    dict(use_sliding_window=True, sliding_window=WINDOW, max_window_layers=3),
    dict(bias='qkv', window=WINDOW, full_layers=(0, 1, 2)),
  ),
  qwen3=('Qwen3', dict(tie_word_embeddings=True), dict(qk_norm='head')),
  qwen3_all=(
    'Qwen3',
    dict(attention_bias=True, **SLIDES),
    dict(bias='qkvo', qk_norm='head', window=WINDOW, full_layers=(1, 3)),
  ),
  ministral3=(
    'Ministral3',
    dict(
      rope_parameters=YARN
      | dict(
        mscale=1.0,
        mscale_all_dim=0.5,
        llama_4_scaling_beta=0.1,
      )
    ),
    dict(rope=OUR_YARN | dict(mscale=1.0, mscale_all_dim=0.5, query_beta=0.1)),
  ),
  yarn=(
    'Qwen3',
    dict(rope_parameters=YARN | dict(attention_factor=1.3, truncate=False)),
    dict(
      qk_norm='head', rope=OUR_YARN | dict(attention_factor=1.3, truncate=False)
    ),
  ),
  olmo3=(
    'Olmo3',
    dict(
      sliding_window=WINDOW,
      layer_types=SLIDES['layer_types'],
      rope_parameters={SLIDING: PLAIN, FULL: YARN | dict(attention_factor=1.2)},
    ),
    dict(
      qk_norm='all',
      post_norm=True,
      window=WINDOW,
      full_layers=(1, 3),
      scale_windows=False,
      rope=OUR_YARN | dict(attention_factor=1.2),
    ),
  ),
  smollm3=(
    'SmolLM3',
    dict(no_rope_layers=[1, 1, 1, 0], tie_word_embeddings=True),
    dict(nope_layers=(3,)),
  ),
  smollm3_windows=(
    'SmolLM3',
    dict(no_rope_layers=[1, 0, 1, 1], **SLIDES),
    dict(nope_layers=(1,), window=WINDOW, full_layers=(1, 3)),
  ),
)


def model_of(name):
  """A random model of transformers; biases and norms are no zeros and ones."""
  kind, settings, _ = MODELS[name]
  torch.manual_seed(0)
  config = getattr(transformers, f'{kind}Config')(**SMALL | settings)
  model = getattr(transformers, f'{kind}ForCausalLM')(config).float().eval()
  with torch.no_grad():
    for key, x in model.named_parameters():
      if 'norm' in key:
        x.uniform_(0.5, 1.5)
      elif 'bias' in key:
        x.normal_(0, 0.3)
  return model


@pytest.fixture(scope='module', params=MODELS)
def saved(request, tmp_path_factory):
  """(name, model, directory), in several files."""
  model = model_of(request.param)
  directory = tmp_path_factory.mktemp(request.param)
  model.save_pretrained(directory, max_shard_size='50KB')
  return request.param, model, directory


def rope_of(name):
  """Our fields of the rope of a model."""
  return MODELS[name][2].get('rope', dict(base=1e5))


def exact_angles(model, name):
  """Makes the model take cos and sin of float64 angles."""
  rotary = model.model.rotary_emb
  frequencies, temperature = reference.rope_frequencies(
    SMALL['head_dim'], **rope_of(name)
  )

  def forward(x, position_ids, layer_type=FULL):
    turns, scale = frequencies, temperature
    if layer_type == SLIDING:  # OLMo 3 alone gives it
      turns, scale = reference.rope_frequencies(SMALL['head_dim'], base=1e5)
    angles = position_ids[..., None] * torch.tensor(turns).repeat(2)
    return tuple((f(angles) * scale).float() for f in (torch.cos, torch.sin))

  rotary.forward = forward


def theirs(model, positions):
  """Logits [48, 96]; where positions jump, with masks of our own."""
  config, mask = model.config, None
  if positions is FAR:
    ago = NEAR[:, None] - NEAR
    allowed = {FULL: ago >= 0}
    allowed[SLIDING] = (ago >= 0) & (ago < WINDOW)
    mask = {
      k: torch.tensor(np.where(x, 0, -np.inf)[None, None]).float()
      for k, x in allowed.items()
    }
    if not getattr(config, 'layer_types', None):
      mask = mask[SLIDING if getattr(config, 'sliding_window', 0) else FULL]
  with torch.no_grad():
    ids = dict(position_ids=torch.tensor(positions[None]), attention_mask=mask)
    return model(torch.tensor(TOKENS[None]), **ids).logits[0].numpy()


def test_logits_near_and_far_are_those_of_transformers(saved):
  name, model, directory = saved
  config = weights.config(directory)
  wanted = llama.Llama(
    **{f: getattr(config, f) for f in llama.ARCHITECTURE} | MODELS[name][2]
    | dict(rope=rope_of(name), dtype='float32')
  )  # fmt: skip
  assert config == wanted
  near, far = (our_logits(directory, x) for x in (NEAR, FAR))
  assert_close(near, theirs(model, NEAR))
  assert_close(far, theirs(model, FAR), AS_IT_STANDS)
  plain = model.model.rotary_emb.forward
  exact_angles(model, name)
  assert_close(far, theirs(model, FAR))
  model.model.rotary_emb.forward = plain


def test_the_greedy_text_of_100_tokens_is_that_of_transformers(saved):
  """The prompt is longer than the windows, and read in chunks."""
  name, model, directory = saved
  kind, _, fields = MODELS[name]
  if kind == 'Llama' or not {'window', 'nope_layers', 'rope'} & fields.keys():
    pytest.skip('is as Llama, whose text test_generate_smollm2.py compares')
  settings = transformers.GenerationConfig(
    max_new_tokens=100, do_sample=False, eos_token_id=None, pad_token_id=0
  )
  prompt = torch.tensor(TOKENS[None])
  wanted = model.generate(
    prompt, settings, attention_mask=torch.ones_like(prompt)
  )[0, 48:].numpy()
  params, config = weights.load(directory)
  options = generate.Options(chunk=16)
  (found,) = generate.generate(params, config, [TOKENS], 100, options)
  np.testing.assert_array_equal(found, wanted)


def test_there_and_back_every_file_is_the_same(saved, tmp_path):
  _, model, directory = saved
  run, out = tmp_path / 'run', tmp_path / 'out'
  convert.to_checkpoint(directory, run, log=lambda _: None)
  convert.to_huggingface(run, out, shard_bytes=50_000, log=lambda _: None)
  files = [path.name for path in directory.glob('*.safetensors*')]
  assert len(files) > 2
  for file in files:
    assert (out / file).read_bytes() == (directory / file).read_bytes(), file
  there, back = (
    json.loads((x / 'config.json').read_text()) for x in (directory, out)
  )
  differ = {k for k in there if k in back and there[k] != back[k]}
  assert not differ - {'sliding_window'}  # of a model that does not use it
  assert (back['architectures'], back['model_type']) == (
    there['architectures'], there['model_type'],
  )  # fmt: skip
  again, told = transformers.AutoModelForCausalLM.from_pretrained(
    out, output_loading_info=True, attn_implementation='eager'
  )
  assert type(again) is type(model) and not any(told[key] for key in told)
  for at in (NEAR, FAR):
    np.testing.assert_array_equal(theirs(again, at), theirs(model, at))
