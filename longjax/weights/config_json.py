"""config.json of Hugging Face, read and written.

The rope is read in either form, `rope_theta` with `rope_scaling` or
`rope_parameters` of transformers 5, and written in both: transformers 4 would
otherwise take base 10,000.
"""

import dataclasses
import math
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from longjax import errors, llama, rope
from longjax.weights.tensors import count, flag, positive

NAME = 'config.json'


NOTHING: Mapping = MappingProxyType({})


class Family(NamedTuple):
  """A class of transformers that is our model with some fields."""

  architectures: tuple[str, ...]  # written is the first
  reads: tuple[str, ...] = ()  # keys of NEUTRAL that it reads
  fields: Mapping = NOTHING  # that all its models have
  defaults: Mapping = NOTHING  # of absent keys, where they are not Llama's


WINDOWS = ('sliding_window', 'use_sliding_window', 'layer_types')
FAMILIES = dict(  # by model_type; what several can express is the first's
  llama=Family(
    ('LlamaForCausalLM', 'LLaMAForCausalLM', 'LongLlamaForCausalLM'),
    ('attention_bias',),
  ),
  mistral=Family(
    ('MistralForCausalLM',),
    ('sliding_window',),
    defaults=dict(sliding_window=4096),
  ),
  qwen2=Family(
    ('Qwen2ForCausalLM',),
    WINDOWS,
    fields=dict(bias='qkv'),
    defaults=dict(sliding_window=4096),
  ),
  qwen3=Family(
    ('Qwen3ForCausalLM',),
    ('attention_bias', *WINDOWS),
    fields=dict(qk_norm='head'),
    defaults=dict(sliding_window=4096, head_dim=128),
  ),
  ministral3=Family(('Ministral3ForCausalLM',), ('sliding_window',)),
  smollm3=Family(
    ('SmolLM3ForCausalLM',),
    ('attention_bias', 'no_rope_layers', *WINDOWS),
    defaults=dict(rope_theta=2e6, tie_word_embeddings=True),
  ),
)
FULL, SLIDING = 'full_attention', 'sliding_attention'
# What would change the maths, and the values with which it does not.
NEUTRAL = {
  'hidden_act': ('silu', 'swish'),
  'attention_bias': (False, None),
  'mlp_bias': (False, None),
  'sliding_window': (None,),
  'use_sliding_window': (False, None),
  'layer_types': (None, FULL),
  'partial_rotary_factor': (1, None),
  'quantization_config': (None,),
  'num_local_experts': (None, 0, 1),
  'num_experts': (None, 0, 1),
  'no_rope_layers': (None, []),
  'attention_chunk_size': (None,),
  'attn_temperature_tuning': (None, False, 0),
  'clip_qkv': (None,),
  'attn_logit_softcapping': (None,),
  'final_logit_softcapping': (None,),
  'embedding_multiplier': (1, None),
  'attention_multiplier': (None,),
  'residual_multiplier': (1, None),
  'logits_scaling': (1, None),
  'logit_scale': (1, None),
}
LENGTH = 'original_max_position_embeddings'
# By type, its keys and the fields of rope.Rope that they are. LongRoPE, whose
# keys are no fields, has functions of its own.
ROPES = {
  'default': {},
  'linear': dict(factor='factor'),
  'llama3': {
    'factor': 'factor',
    LENGTH: 'original_length',
    'low_freq_factor': 'low_freq_factor',
    'high_freq_factor': 'high_freq_factor',
  },
  'yarn': {
    'factor': 'factor',
    LENGTH: 'original_length',
    'beta_fast': 'beta_fast',
    'beta_slow': 'beta_slow',
  },
}
# Of yarn, and of Ministral 3; written where they are not the default.
OPTIONAL = dict(
  attention_factor='attention_factor',
  mscale='mscale',
  mscale_all_dim='mscale_all_dim',
  llama_4_scaling_beta='query_beta',
)
LONGROPE = ('factor', LENGTH, 'short_factor', 'long_factor', 'attention_factor')
DEFAULTS = {
  field.name: field.default
  for field in dataclasses.fields(llama.Llama)
  if field.name in ('bias', 'qk_norm', 'nope_layers', 'window', 'full_layers')
}
MOST_LAYERS = 10_000
MOST_TEMPERATURE = 4  # of LongRoPE; published ones are below 1.5


# Read


def fields(config) -> dict:
  """The fields of a llama.Llama.

  Raises:
    InputError: names the key that is wrong or would be another model.
  """
  name = family(config)
  config = FAMILIES[name].defaults | {
    k: v
    for k, v in config.items()
    if k in FAMILIES[name].reads or v is not None
  }
  heads = 'num_attention_heads'
  embed, head_count = count(config, 'hidden_size'), count(config, heads)
  if 'head_dim' not in config and embed % head_count:
    raise errors.InputError(
      f'hidden_size {embed} is not a multiple of {heads} {head_count}'
    )
  return dict(
    vocab=count(config, 'vocab_size'),
    layers=count(config, 'num_hidden_layers'),
    embed=embed,
    mlp=count(config, 'intermediate_size'),
    heads=head_count,
    kv_heads=count(config, 'num_key_value_heads', head_count),
    head_dim=count(config, 'head_dim', embed // head_count),
    norm_eps=positive(config, 'rms_norm_eps', 1e-6),
    tied=flag(config, 'tie_word_embeddings'),
    rope=_rope(config),
    **_of_family(config, name),
  )


def _of_family(config, name) -> dict:
  """The fields that only some families have, where they are not the default."""
  layers, reads = config['num_hidden_layers'], FAMILIES[name].reads
  found = dict(FAMILIES[name].fields)
  if 'attention_bias' in reads and flag(config, 'attention_bias'):
    found['bias'] = 'qkvo'
  if 'sliding_window' not in reads:
    return found
  if layers > MOST_LAYERS:  # damaged: don't list as many
    raise errors.InputError(
      f'num_hidden_layers {layers} is above {MOST_LAYERS}'
    )
  if 'no_rope_layers' in reads:
    every = count(config, 'no_rope_layer_interval', 4)
    rotates = config.get('no_rope_layers') or [
      int((i + 1) % every != 0) for i in range(layers)
    ]
    found['nope_layers'] = _where(config, 'no_rope_layers', rotates, 0, (0, 1))
  types = 'layer_types' in reads and config.get('layer_types')
  types = types or _layer_types(config, name)
  sliding = _where(config, 'layer_types', types, SLIDING, (FULL, SLIDING))
  if sliding:
    found['window'] = count(config, 'sliding_window')
    found['full_layers'] = tuple(i for i in range(layers) if i not in sliding)
  return {k: v for k, v in found.items() if v != ()}


def _layer_types(config, name) -> list[str]:
  """What transformers takes for `layer_types` where they are not given."""
  layers = config['num_hidden_layers']
  windowed = config.get('sliding_window') is not None
  if 'use_sliding_window' in FAMILIES[name].reads:
    windowed &= flag(config, 'use_sliding_window')
  if windowed and name == 'smollm3':
    raise errors.InputError(
      'use_sliding_window needs layer_types, which say what layers it is of'
    )
  first = 0 if 'stral' in name else count(config, 'max_window_layers', 28)
  return [SLIDING if windowed and i >= first else FULL for i in range(layers)]


def _where(config, key, values, wanted, known) -> tuple[int, ...]:
  """The layers for which a list that a key holds has the wanted value."""
  layers = config['num_hidden_layers']
  if (
    not isinstance(values, list)
    or len(values) != layers
    or any(x not in known for x in values)
  ):
    raise errors.InputError(
      f'{key} = {str(values)[:80]} is not one of {known} for each of the '
      f'{layers} layers'
    )
  return tuple(i for i, x in enumerate(values) if x == wanted)


def window(config) -> int:
  """Tokens that the model was trained for; 0 if the config does not say."""
  tokens = config.get('max_position_embeddings')
  return tokens if type(tokens) is int and tokens > 0 else 0


def family(config) -> str:
  """The key of FAMILIES of a config.json; refuses settings of no effect here.

  Raises:
    InputError: another model, or a key that would change the maths.
  """
  names, kind = config.get('architectures') or [], config.get('model_type')
  if not isinstance(names, list):
    raise errors.InputError(f'architectures = {names!r} is not a list')
  kind = 'llama' if kind == 'longllama' else kind
  found = {
    name for name, it in FAMILIES.items() if {*names} & {*it.architectures}
  } or {kind}
  known = {x for it in FAMILIES.values() for x in it.architectures}
  if (
    not {*names} <= known
    or kind not in (None, *found)
    or (len(found) > 1 or not found <= FAMILIES.keys())
  ):
    raise errors.InputError(
      f'architectures {names}, model_type {config.get("model_type")!r}; '
      f'supported: {", ".join(sorted(known))}'
    )
  (name,) = found
  for key, neutral in NEUTRAL.items():
    given = config.get(key)
    if key == 'layer_types' and isinstance(given, list) and {*given} == {FULL}:
      given = None
    if (
      key in config and key not in FAMILIES[name].reads and given not in neutral
    ):
      raise errors.InputError(
        f'{key} = {str(config[key])[:80]} is a setting that longjax does '
        f'not support in a {FAMILIES[name].architectures[0]}'
      )
  return name


def _rope(config) -> dict:
  """The fields of a rope.Rope, from either form or from both alike."""
  base = positive(config, 'rope_theta', 10_000.0)
  forms = [
    _rope_from(config, config[key], key)
    for key in ('rope_parameters', 'rope_scaling')
    if config.get(key) is not None
  ] or [dict(base=base)]
  found = forms[0]
  if any(other != found for other in forms) or (
    'rope_theta' in config and base != found['base']
  ):
    raise errors.InputError(
      'rope_parameters contradicts rope_theta and rope_scaling: remove those '
      'with which the model was not trained'
    )
  return found


def _rope_from(config, settings, where) -> dict:
  """The fields of a rope.Rope from one form's object."""
  if not isinstance(settings, dict):
    raise errors.InputError(f'{where} = {settings!r} is not an object')
  settings = {k: v for k, v in settings.items() if v is not None}
  names = {str(settings.pop(k)) for k in ('rope_type', 'type') if k in settings}
  kind = ' and '.join(sorted(names)) or 'default'
  if kind not in (*ROPES, 'longrope'):
    raise errors.InputError(
      f'{where} has the type {kind!r}; supported: {", ".join(ROPES)}, longrope'
    )
  base = positive(settings, 'rope_theta', config.get('rope_theta', 10_000.0))
  settings.pop('rope_theta', None)
  found: dict = dict(base=base)
  try:
    if kind == 'longrope':
      found |= _longrope(config, settings)
    elif kind != 'default':
      found |= dict(scaling=kind, **_numbers(config, settings, kind))
    known = {*ROPES.get(kind, LONGROPE)}
    if kind == 'yarn':
      found |= _optional(config, settings, rope.Rope(**found))
      known |= {*OPTIONAL, 'truncate'}
    known |= _harmless(settings, rope.Rope(**found))
  except ValueError as error:
    raise errors.InputError(f'{where}: {error}') from None
  if unknown := sorted(settings.keys() - known):
    raise errors.InputError(
      f'{where}.{unknown[0]} = {settings[unknown[0]]!r} is not '
      f'supported for {kind!r}'
    )
  return found


def _numbers(config, settings, kind) -> dict:
  """The numbers of a scaling; the defaults are those of transformers."""
  defaults = dict(beta_fast=32.0, beta_slow=1.0)
  if LENGTH in ROPES[kind]:
    defaults[LENGTH] = config.get(LENGTH, window(config))
  found = {
    ours: positive(settings, theirs, defaults.get(theirs))
    for theirs, ours in ROPES[kind].items()
  }
  if 'original_length' in found:
    found['original_length'] = int(found['original_length'])
  return found


def _optional(config, settings, plain: rope.Rope) -> dict:
  """What yarn may have besides, where it is not as without it."""
  given = {k: positive(settings, k) for k in OPTIONAL if settings.get(k)}
  if 'llama_4_scaling_beta' in given and family(config) != 'ministral3':
    raise errors.InputError(
      'llama_4_scaling_beta is read in a Ministral3ForCausalLM alone'
    )
  # As transformers: the attention_factor, else both of the others, else none.
  if 'attention_factor' in given or not {'mscale', 'mscale_all_dim'} <= {
    *given
  }:
    given = {k: v for k, v in given.items() if 'mscale' not in k}
  usual = rope.temperature(plain)
  if math.isclose(given.get('attention_factor', 0), usual, rel_tol=1e-6):
    del given['attention_factor']
  found: dict = {OPTIONAL[k]: v for k, v in given.items()}
  if settings.get('truncate', True) is False:
    found['truncate'] = False
  return found


def _longrope(config, settings) -> dict:
  """Divisors, and the factor whose temperature is `attention_factor`."""
  divisors = settings.get('long_factor')
  if not isinstance(divisors, list) or not all(
    type(x) in (int, float) and 0 < x <= sys.float_info.max for x in divisors
  ):
    raise errors.InputError('long_factor is not a list of positive numbers')
  if divisors != settings.get('short_factor'):
    raise errors.InputError(
      'short_factor and long_factor differ, but longjax has one list for all '
      'lengths: set both to the factors that you want'
    )
  length = int(positive(settings, LENGTH, config.get(LENGTH, window(config))))
  default = max(window(config) / max(length, 1), 1.0)
  found: dict = dict(
    scaling='longrope',
    factor=max(positive(settings, 'factor', default), 1.0),
    original_length=length,
    divisors=tuple(divisors),
  )
  if 'attention_factor' in settings:
    given = positive(settings, 'attention_factor')
    if not 1 <= given < MOST_TEMPERATURE:
      raise errors.InputError(
        f'attention_factor = {given}; longjax has ropes from 1 to below '
        f'{MOST_TEMPERATURE}'
      )
    wanted = rope.temperature(rope.Rope(**found))
    if not math.isclose(given, wanted, rel_tol=1e-6):
      found['factor'] = length ** (given**2 - 1)
  return found


def _harmless(settings, recipe: rope.Rope) -> set[str]:
  """Keys whose values hold anyway."""
  found = {'finetuned', 'max_position_embeddings'}
  wanted = rope.temperature(recipe)
  given = positive(settings, 'attention_factor', wanted)
  if math.isclose(given, wanted, rel_tol=1e-6):
    found.add('attention_factor')
  if settings.get('partial_rotary_factor') == 1:
    found.add('partial_rotary_factor')
  if recipe.scaling in ('none', 'linear'):
    found.add(LENGTH)
  return found


# Written


def content(
  config: llama.Llama, window: int, dtype: str, tokens, kind='llama'
) -> dict:
  """What config.json holds.

  Args:
    config: the model.
    window: tokens that it was trained for.
    dtype: of the tensors.
    tokens: the data.tokenizer.Tokenizer, or None.
    kind: the key of FAMILIES that it was, taken if it can still express it.

  Raises:
    InputError: transformers has no such model.
  """
  general = _general(config, window, dtype, tokens)
  ours = dataclasses.asdict(config)
  names = (kind, *FAMILIES) if not config.rope.query_beta else ('ministral3',)
  for name in dict.fromkeys(names):
    if name == 'ministral3' and not config.rope.query_beta:
      continue
    found = general | _written(config, name)
    read = fields(found)
    if all(ours[k] == v for k, v in (DEFAULTS | read).items() if k != 'rope'):
      return found
  own = ', '.join(
    f'{k} {ours[k]!r}' for k in DEFAULTS if ours[k] != DEFAULTS[k]
  )
  raise errors.InputError(
    f'no model of transformers has all of {own}; only longjax runs this one'
  )


def _written(config: llama.Llama, name: str) -> dict:
  """The keys by which a family differs from others."""
  it, layers = FAMILIES[name], range(config.layers)
  windows = [config.kind(layer).window for layer in layers]
  own = dict(
    attention_bias=config.bias == 'qkvo',
    sliding_window=config.window or None,
    use_sliding_window=any(windows),
    layer_types=[SLIDING if window else FULL for window in windows],
    no_rope_layers=[int(layer not in config.nope_layers) for layer in layers],
  )
  found = {key: own[key] for key in it.reads}
  return dict(architectures=[it.architectures[0]], model_type=name) | found


def _general(config: llama.Llama, window: int, dtype: str, tokens) -> dict:
  """The keys that all families have."""
  settings = rope_parameters(config)
  scaling = {k: v for k, v in settings.items() if k != 'rope_theta'}
  return dict(
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
    num_attention_heads=config.heads,
    num_hidden_layers=config.layers,
    num_key_value_heads=config.kv_heads,
    pad_token_id=tokens and tokens.pad,
    rms_norm_eps=config.norm_eps,
    rope_parameters=settings,
    rope_scaling=scaling if scaling['rope_type'] != 'default' else None,
    rope_theta=settings['rope_theta'],
    tie_word_embeddings=config.tied,
    torch_dtype=dtype,
    use_cache=True,
    vocab_size=config.vocab,
  )


def rope_parameters(config: llama.Llama) -> dict:
  """`rope_parameters` of transformers 5."""
  settings, dim = config.rope, config.head_dim
  beta = settings.query_beta and settings.scaling != 'yarn'
  if settings.scaling == 'nope' or settings.xpos or beta:
    name = 'xpos' if settings.xpos else 'nope'
    name = 'query_beta without yarn' if beta else name
    raise errors.InputError(
      f"rope {name!r} has no equivalent in transformers' Llama; only longjax "
      'runs this model'
    )
  base, kind = settings.base, settings.scaling
  if kind == 'ntk':  # is a larger base
    base, kind = base * settings.factor ** (dim / (dim - 2)), 'none'
  if kind == 'none':
    return dict(rope_type='default', rope_theta=base)
  if kind in ROPES:
    numbers = {k: getattr(settings, ours) for k, ours in ROPES[kind].items()}
    more = {
      k: x for k, ours in OPTIONAL.items() if (x := getattr(settings, ours))
    }
    if not settings.truncate:
      more['truncate'] = False
    return dict(rope_type=kind, rope_theta=base, **numbers, **more)
  # Any other divides each frequency by a number, as LongRoPE does.
  plain, _ = rope.frequencies(rope.Rope(base=base), dim)
  scaled, temperature = rope.frequencies(settings, dim)
  divisors = (plain / scaled).tolist()
  return {
    'rope_type': 'longrope',
    'rope_theta': base,
    'factor': settings.factor,
    LENGTH: settings.original_length,
    'short_factor': divisors,
    'long_factor': divisors,
    'attention_factor': temperature,
  }
