"""config.json of Hugging Face, read and written.

The rope is read in either form, `rope_theta` with `rope_scaling` or
`rope_parameters` of transformers 5, and written in both: transformers 4 would
otherwise take base 10,000.
"""

import dataclasses
import math
import sys

from longjax import errors, llama, rope
from longjax.weights import families
from longjax.weights.tensors import count, flag, positive

NAME = 'config.json'
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
FAMILY_FIELDS = (
  'bias', 'qk_norm', 'post_norm', 'nope_layers', 'window', 'full_layers',
  'scale_windows',
)  # fmt: skip
DEFAULTS = {
  field.name: field.default
  for field in dataclasses.fields(llama.Llama)
  if field.name in FAMILY_FIELDS
}
MOST_TEMPERATURE = 4  # of LongRoPE; published ones are below 1.5


# Read


def fields(config) -> dict:
  """The fields of a llama.Llama.

  Raises:
    InputError: names the key that is wrong or would be another model.
  """
  name = families.family(config)
  family, form = families.FAMILIES[name], config.get('rope_parameters')
  if name == 'ministral3' and not (form or config.get('rope_scaling')):
    raise errors.InputError(
      "rope_parameters is absent, and this class's own are a YaRN: write them "
      'into the file as transformers saves them'
    )
  if name == 'olmo3' and form is not None:
    form = _of_full_layers(config)
    config = config | dict(rope_parameters=form)
  if not (isinstance(form, dict) and 'rope_theta' in form):
    config = dict(rope_theta=family.base) | config
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
    norm_eps=positive(config, 'rms_norm_eps', family.norm_eps),
    tied=flag(
      dict(tie_word_embeddings=family.tied) | config, 'tie_word_embeddings'
    ),
    rope=_rope(config),
    **families.fields(config, name),
  )


def _of_full_layers(config) -> dict:
  """The rope_parameters of full layers; those of the others must be plain."""
  both = config['rope_parameters']
  try:
    full, sliding = both[families.FULL], both[families.SLIDING]
    plain = dict(rope_type='default', rope_theta=full['rope_theta'])
  except (KeyError, TypeError):
    full = sliding = plain = None
  if full is None or sliding != plain:
    raise errors.InputError(
      f'rope_parameters = {both!s:.300} must be of {families.FULL}, and of '
      f'{families.SLIDING} with the same rope_theta and without scaling'
    )
  return full


def window(config) -> int:
  """Tokens that the model was trained for; 0 if the config does not say."""
  tokens = config.get('max_position_embeddings')
  return tokens if type(tokens) is int and tokens > 0 else 0


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
  _check_readings(config, settings, where)
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


def _check_readings(config, settings, where):
  """Refuses what transformers reads in another way than it seems."""
  outer, inner = config.get(LENGTH), settings.get(LENGTH)
  if None not in (outer, inner) and outer != inner:
    raise errors.InputError(
      f'{LENGTH} is {outer}, and {inner} in {where}: remove the one with which '
      'the model was not trained'
    )
  own_code = config.get('model_type') == 'mistral' and 'finetuned' in settings
  if own_code and 'beta_fast' not in settings:
    raise errors.InputError(
      f'{where} has no beta_fast: the code of Yarn-Mistral, which writes '
      "'finetuned', computes with beta_fast 128, beta_slow 2 and "
      'attention_factor 0.07 ln(factor) + 1, transformers with 32, 1 and 0.1: '
      'write those that are meant into the file'
    )
  if not isinstance(settings.get('truncate', True), bool):
    raise errors.InputError(
      f'{where}.truncate = {settings["truncate"]!r}: write true or false'
    )


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
  """Optional YaRN fields whose values differ from the defaults."""
  given = {k: positive(settings, k) for k in OPTIONAL if settings.get(k)}
  if (
    'llama_4_scaling_beta' in given and families.family(config) != 'ministral3'
  ):
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
  for key in ('short_factor', 'long_factor'):
    if not isinstance(settings.get(key), list) or not all(
      type(x) in (int, float) and 0 < x <= sys.float_info.max
      for x in settings[key]
    ):
      raise errors.InputError(f'{key} is not a list of positive numbers')
  short, divisors = settings['short_factor'], settings['long_factor']
  length = int(positive(settings, LENGTH, config.get(LENGTH, window(config))))
  default = max(window(config) / max(length, 1), 1.0)
  found: dict = dict(
    scaling='longrope',
    factor=max(positive(settings, 'factor', default), 1.0),
    original_length=length,
    divisors=tuple(divisors),
    short_divisors=() if short == divisors else tuple(short),
  )
  if 'attention_factor' in settings:
    given = positive(settings, 'attention_factor')
    if not 1 <= given < MOST_TEMPERATURE:
      raise errors.InputError(
        f'attention_factor = {given}; it must be at least 1 and below '
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
    window: tokens that it was trained for.
    dtype: of the tensors.
    tokens: the data.tokenizer.Tokenizer, or None.
    kind: of families.FAMILIES, taken if it can still express the model.

  Raises:
    InputError: transformers has no such model.
  """
  general = _general(config, window, dtype, tokens)
  ours = dataclasses.asdict(config)
  # The family of query_beta, and of no other rope.
  names = dict.fromkeys([kind, *families.FAMILIES])
  is_able = lambda name: bool(config.rope.query_beta) == (name == 'ministral3')
  for name in filter(is_able, names):
    found = general | families.written(config, name)
    if name == 'olmo3':
      full = found['rope_parameters']
      # Not that of `full`, which scaling='ntk' has enlarged.
      plain = dict(rope_type='default', rope_theta=config.rope.base)
      both = {families.FULL: full, families.SLIDING: plain}
      found['rope_parameters'] = both
    read = fields(found)
    if all(ours[k] == v for k, v in (DEFAULTS | read).items() if k != 'rope'):
      return found
  own = ', '.join(
    f'{k} {ours[k]!r}' for k in DEFAULTS if ours[k] != DEFAULTS[k]
  )
  raise errors.InputError(
    f'no model of transformers has all of {own}; only longjax runs this one'
  )


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
  scaling = settings.scaling
  names = {
    'query_beta without yarn': settings.query_beta and scaling != 'yarn',
    'xpos': settings.xpos,
    'unscaled': settings.unscaled,
    'nope': scaling == 'nope',
  }
  for name in filter(names.get, names):
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
    'short_factor': list(settings.short_divisors) or divisors,
    'long_factor': divisors,
    'attention_factor': temperature,
  }
