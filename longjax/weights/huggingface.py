"""Hugging Face's form of a Llama: config.json beside files of tensors.

Llama 2, 3, 3.1, 3.2, SmolLM2, OpenLLaMA and LongLLaMA (its memory layers are
set by the config that trains it, its weights are OpenLLaMA's). The rope is
read in either dialect, `rope_theta` with `rope_scaling` or `rope_parameters`
of transformers 5, and written in both: transformers 4 would otherwise take
base 10,000.
"""

import math
import os
import re
import sys

from longjax import errors, llama, rope
from longjax.weights import tensor_files as files
from longjax.weights.tensors import (
  TensorSource,
  count,
  flag,
  is_plain_rope,
  positive,
  same,
)

CONFIG = 'config.json'
ARCHITECTURES = ('LlamaForCausalLM', 'LLaMAForCausalLM', 'LongLlamaForCausalLM')
# Whole or as an index of shards, in the order in which transformers looks.
WEIGHTS = (
  'model.safetensors',
  'model.safetensors.index.json',
  'pytorch_model.bin',
  'pytorch_model.bin.index.json',
)
# What would change the maths, and the values with which it does not.
NEUTRAL = {
  'hidden_act': ('silu', 'swish'),
  'attention_bias': (False, None),
  'mlp_bias': (False, None),
  'sliding_window': (None,),
  'partial_rotary_factor': (1, None),
  'quantization_config': (None,),
  'num_local_experts': (None, 0, 1),
  'no_rope_layers': (None, []),
  'attn_logit_softcapping': (None,),
  'final_logit_softcapping': (None,),
  'embedding_multiplier': (1, None),
  'attention_multiplier': (None,),
  'residual_multiplier': (1, None),
  'logits_scaling': (1, None),
}
# Keys of `rope_scaling` and `rope_parameters`, and ours.
ROPE_KEYS = dict(
  factor='factor',
  original_max_position_embeddings='original_length',
  low_freq_factor='low_freq_factor',
  high_freq_factor='high_freq_factor',
  beta_fast='beta_fast',
  beta_slow='beta_slow',
)
MOST_TEMPERATURE = 4  # of LongRoPE; published ones are below 1.5
ROPE_TYPES = {
  'default': (),
  'linear': ('factor',),
  'llama3': (
    'factor',
    'original_max_position_embeddings',
    'low_freq_factor',
    'high_freq_factor',
  ),
  'yarn': (
    'factor',
    'original_max_position_embeddings',
    'beta_fast',
    'beta_slow',
  ),
  'longrope': (
    'factor',
    'original_max_position_embeddings',
    'short_factor',
    'long_factor',
    'attention_factor',
  ),
}
HEADS = 'num_attention_heads'
HEAD, EMBEDDING = 'lm_head.weight', 'model.embed_tokens.weight'


def source(directory) -> TensorSource:
  """The model of a directory with config.json."""
  path = os.path.join(directory, CONFIG)
  config = files.load_json(path)
  try:
    fields = _fields(config)
  except errors.InputError as error:
    raise errors.InputError(f'{path}: {error}') from None
  tensors, read = _tensors(directory)
  tensors = _without_frequencies(directory, tensors, fields)
  tensors = _without_tied_head(directory, tensors, fields)
  return TensorSource(
    str(directory),
    'huggingface',
    fields,
    tensors,
    (path, *read),
    window=_window(config),
  )


# config.json, read


def _fields(config) -> dict:
  """The fields of a llama.Llama."""
  _refuse_other_models(config)
  embed, heads = count(config, 'hidden_size'), count(config, HEADS)
  if 'head_dim' not in config and embed % heads:
    raise errors.InputError(
      f'hidden_size {embed} is not a multiple of num_attention_heads {heads}'
    )
  head_dim = count(config, 'head_dim', embed // heads)
  return dict(
    vocab=count(config, 'vocab_size'),
    layers=count(config, 'num_hidden_layers'),
    embed=embed,
    mlp=count(config, 'intermediate_size'),
    heads=heads,
    kv_heads=count(config, 'num_key_value_heads', heads),
    head_dim=head_dim,
    norm_eps=positive(config, 'rms_norm_eps', 1e-6),
    tied=flag(config, 'tie_word_embeddings'),
    rope=_rope(config),
  )


def _refuse_other_models(config):
  names = config.get('architectures') or []
  kind = config.get('model_type')
  if not isinstance(names, list):
    raise errors.InputError(f'architectures = {names!r} is not a list')
  if not all(name in ARCHITECTURES for name in names) or (
    not names and kind not in ('llama', 'longllama')
  ):
    raise errors.InputError(
      f'architectures {names}, model_type {kind!r}: read are '
      f'{", ".join(ARCHITECTURES)}'
    )
  for key, neutral in NEUTRAL.items():
    if key in config and config[key] not in neutral:
      raise errors.InputError(
        f'{key} = {str(config[key])[:80]} would change the model in a way that '
        'longjax does not have'
      )


def _window(config) -> int:
  window = config.get('max_position_embeddings')
  return window if type(window) is int and window > 0 else 0


def _rope(config) -> dict:
  """The fields of a rope.Rope, from either dialect or from both alike."""
  plain = dict(base=positive(config, 'rope_theta', 10_000.0))
  told = [
    _rope_dialect(config, config[key], key)
    for key in ('rope_parameters', 'rope_scaling')
    if config.get(key) is not None
  ]
  found = told[0] if told else plain
  base = plain['base'] if 'rope_theta' in config else found['base']
  if any(other != found for other in told) or base != found['base']:
    raise errors.InputError(
      'rope_parameters contradicts rope_theta and rope_scaling: remove those '
      'with which the model was not trained'
    )
  return found


def _rope_dialect(config, settings, where) -> dict:
  if not isinstance(settings, dict):
    raise errors.InputError(f'{where} = {settings!r} is not an object')
  settings = {k: v for k, v in settings.items() if v is not None}
  names = {str(settings.pop(k)) for k in ('rope_type', 'type') if k in settings}
  kind = ' and '.join(sorted(names)) or 'default'
  if kind not in ROPE_TYPES:
    raise errors.InputError(
      f'{where} has the type {kind!r}; read are {", ".join(ROPE_TYPES)}'
    )
  base = positive(settings, 'rope_theta', config.get('rope_theta', 10_000.0))
  settings.pop('rope_theta', None)
  fields: dict = dict(base=base)
  try:
    if kind != 'default':
      numbers = _longrope if kind == 'longrope' else _rope_numbers
      fields |= dict(scaling=kind, **numbers(config, settings, kind))
    known = {*ROPE_TYPES[kind], *_harmless(settings, rope.Rope(**fields))}
  except ValueError as error:
    raise errors.InputError(f'{where}: {error}') from None
  unknown = sorted(settings.keys() - known)
  if unknown:
    raise errors.InputError(
      f'{where}.{unknown[0]} = {settings[unknown[0]]!r} is not read for '
      f'{kind!r}: longjax has no such rope'
    )
  return fields


def _rope_numbers(config, settings, kind) -> dict:
  """The numbers of a scaling; what is left out is as in transformers."""
  defaults = dict(beta_fast=32.0, beta_slow=1.0)
  if kind in ('yarn', 'llama3'):
    window = config.get('original_max_position_embeddings', _window(config))
    defaults['original_max_position_embeddings'] = window
  fields = {}
  for key in ROPE_TYPES[kind]:
    fields[ROPE_KEYS[key]] = positive(settings, key, defaults.get(key))
  if 'original_length' in fields:
    fields['original_length'] = int(fields['original_length'])
  return fields


def _longrope(config, settings, kind) -> dict:
  """Divisors, and the factor whose temperature is `attention_factor`."""
  divisors = settings.get('long_factor')
  if not isinstance(divisors, list) or not all(
    type(x) in (int, float) and 0 < x <= sys.float_info.max for x in divisors
  ):
    raise errors.InputError('long_factor is not a list of positive numbers')
  if divisors != settings.get('short_factor'):
    raise errors.InputError(
      'short_factor and long_factor differ, but longjax rotates short and '
      'long rows alike: write those that you want as both'
    )
  key = 'original_max_position_embeddings'
  length = int(positive(settings, key, config.get(key, _window(config))))
  factor = positive(
    settings, 'factor', max(_window(config) / max(length, 1), 1.0)
  )
  fields: dict = dict(
    factor=max(factor, 1.0), original_length=length, divisors=tuple(divisors)
  )
  if 'attention_factor' in settings:
    told = positive(settings, 'attention_factor')
    if not 1 <= told < MOST_TEMPERATURE:
      raise errors.InputError(
        f'attention_factor = {told} is not from 1 to below {MOST_TEMPERATURE}: '
        'longjax has no such rope'
      )
    wanted = rope.temperature(rope.Rope(scaling=kind, **fields))
    if not math.isclose(told, wanted, rel_tol=1e-6):
      fields['factor'] = length ** (told**2 - 1)
  return fields


def _harmless(settings, recipe: rope.Rope):
  """Keys that say what holds anyway."""
  wanted = rope.temperature(recipe)
  told = positive(settings, 'attention_factor', wanted)
  if math.isclose(told, wanted, rel_tol=1e-6):
    yield 'attention_factor'
  if settings.get('truncate') is True:
    yield 'truncate'
  if settings.get('partial_rotary_factor') == 1:
    yield 'partial_rotary_factor'
  yield 'finetuned'
  yield 'max_position_embeddings'
  if recipe.scaling in ('none', 'linear'):
    yield 'original_max_position_embeddings'


# Tensors


def _tensors(directory):
  """({name: Tensor}, the files that hold them)."""
  found = next(
    (n for n in WEIGHTS if os.path.lexists(os.path.join(directory, n))), None
  )
  if found is None:
    raise errors.InputError(
      f'{directory}: has {CONFIG} but none of {", ".join(WEIGHTS)}'
    )
  path = files.inside(directory, found)
  if not found.endswith('.json'):
    return files.read(path), (path,)
  places = files.load_json(path).get('weight_map')
  if not isinstance(places, dict) or not places:
    raise errors.InputError(f'{path}: has no weight_map')
  paths = {
    name: files.inside(directory, name)
    for name in sorted({*map(str, places.values())})
  }
  tensors = {}
  for name, shard in paths.items():
    here = files.read(shard)
    listed = {tensor for tensor, place in places.items() if place == name}
    for verb, wrong in (
      ('lacks', listed - here.keys()),
      ('has, and the index does not list,', here.keys() - listed),
    ):
      if wrong:
        raise errors.InputError(f'{shard}: {verb} tensor {min(wrong)}')
    tensors |= here
  return tensors, (path, *paths.values())


def _without_frequencies(directory, tensors, fields):
  """Old files hold RoPE's plain frequencies; they must be those we use."""
  kept = {}
  for name, tensor in tensors.items():
    if not re.fullmatch(
      r'model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq', name
    ):
      kept[name] = tensor
    elif not is_plain_rope(tensor, fields):
      raise errors.InputError(
        f'{directory}: {name} is not the rope of base {fields["rope"]["base"]} '
        f'in {CONFIG}'
      )
  return kept


def _without_tied_head(directory, tensors, fields):
  """A tied model may store its head too; it must be the embedding."""
  if not fields['tied'] or HEAD not in tensors or EMBEDDING not in tensors:
    return tensors
  if not same(tensors[HEAD], tensors[EMBEDDING]):
    raise errors.InputError(
      f'{directory}: {HEAD} is not {EMBEDDING}, but {CONFIG} says '
      'tie_word_embeddings'
    )
  return {name: x for name, x in tensors.items() if name != HEAD}


# config.json, written


def rope_settings(config: llama.Llama) -> dict:
  """`rope_parameters` of transformers 5.

  Raises:
    InputError: transformers has no such rope.
  """
  settings, dim = config.rope, config.head_dim
  if settings.scaling == 'nope' or settings.xpos:
    name = 'xpos' if settings.xpos else 'nope'
    raise errors.InputError(
      f"rope {name!r} has no equivalent in transformers' Llama; only longjax "
      'runs this model'
    )
  found: dict = dict(rope_type='default', rope_theta=settings.base)
  if settings.scaling == 'none':
    return found
  if settings.scaling == 'ntk':  # is a larger base
    base = settings.base * settings.factor ** (dim / (dim - 2))
    return found | dict(rope_theta=base)
  found |= dict(rope_type=settings.scaling, factor=settings.factor)
  if settings.scaling == 'linear':
    return found
  found |= dict(original_max_position_embeddings=settings.original_length)
  if settings.scaling == 'llama3':
    return found | dict(
      low_freq_factor=settings.low_freq_factor,
      high_freq_factor=settings.high_freq_factor,
    )
  if settings.scaling == 'yarn':
    return found | dict(
      beta_fast=settings.beta_fast, beta_slow=settings.beta_slow
    )
  # Any other divides each frequency by a number, as LongRoPE does.
  plain, _ = rope.frequencies(rope.Rope(base=settings.base), dim)
  scaled, temperature = rope.frequencies(settings, dim)
  divisors = (plain / scaled).tolist()
  return found | dict(
    rope_type='longrope',
    short_factor=divisors,
    long_factor=divisors,
    attention_factor=temperature,
  )


def config_json(config: llama.Llama, window: int, dtype: str, tokens) -> dict:
  """What config.json says.

  Args:
    config: the model.
    window: tokens that it was trained for.
    dtype: of the tensors.
    tokens: the data.tokenizer.Tokenizer, or None.
  """
  settings = rope_settings(config)
  scaling = {k: v for k, v in settings.items() if k != 'rope_theta'}
  if config.rope.scaling == 'yarn':  # transformers 4 takes factor from these
    window = round(config.rope.original_length * config.rope.factor)
  return dict(
    architectures=['LlamaForCausalLM'],
    attention_bias=False,
    attention_dropout=0.0,
    bos_token_id=tokens and tokens.bos,
    dtype=dtype,
    eos_token_id=tokens and tokens.eos,
    head_dim=config.head_dim,
    hidden_act='silu',
    hidden_size=config.embed,
    intermediate_size=config.mlp,
    max_position_embeddings=window,
    mlp_bias=False,
    model_type='llama',
    num_attention_heads=config.heads,
    num_hidden_layers=config.layers,
    num_key_value_heads=config.kv_heads,
    rms_norm_eps=config.norm_eps,
    rope_parameters=settings,
    rope_scaling=scaling if scaling['rope_type'] != 'default' else None,
    rope_theta=settings['rope_theta'],
    tie_word_embeddings=config.tied,
    torch_dtype=dtype,
    use_cache=True,
    vocab_size=config.vocab,
  )


def generation_json(tokens) -> dict:
  """What generation_config.json says."""
  ends = (
    dict(bos_token_id=tokens.bos, eos_token_id=tokens.eos) if tokens else {}
  )
  return dict({'_from_model_config': True}, **ends)
