"""The classes of transformers that are our model, and the keys of config.json
by which they differ: read, written, and refused where a class has no such key.
"""

from collections.abc import Mapping
from typing import NamedTuple

from longjax import errors, llama
from longjax.weights.tensors import count, flag


class Family(NamedTuple):
  """A class of transformers."""

  architecture: str
  reads: tuple[str, ...]  # keys of NEUTRAL
  fields: Mapping = {}  # of ours, that all its models have
  # Where no file says it.
  base: float = 1e4  # of the rope
  norm_eps: float = 1e-6
  tied: bool = False


WINDOWS = ('layer_types', 'sliding_window', 'use_sliding_window')
FAMILIES = dict(  # by model_type; an export is of the first that is able to
  llama=Family('LlamaForCausalLM', ('attention_bias',)),
  mistral=Family('MistralForCausalLM', ('sliding_window',)),
  qwen2=Family('Qwen2ForCausalLM', WINDOWS, dict(bias='qkv')),
  qwen3=Family(
    'Qwen3ForCausalLM', ('attention_bias', *WINDOWS), dict(qk_norm='head')
  ),
  smollm3=Family(
    'SmolLM3ForCausalLM',
    ('attention_bias', 'no_rope_layers', *WINDOWS),
    base=2e6,
    tied=True,
  ),
  ministral3=Family(
    'Ministral3ForCausalLM', ('sliding_window',), norm_eps=1e-5
  ),
  olmo3=Family(
    'Olmo3ForCausalLM',
    ('attention_bias', 'layer_types', 'sliding_window'),
    dict(qk_norm='all', post_norm=True, scale_windows=False),
    base=5e5,
    norm_eps=1e-5,
  ),
)
BY_CLASS = {
  family.architecture: name for name, family in FAMILIES.items()
} | dict(LLaMAForCausalLM='llama', LongLlamaForCausalLM='llama')
FULL, SLIDING = 'full_attention', 'sliding_attention'
# What would change the maths, and the values with which it does not.
NEUTRAL = {
  'hidden_act': ('silu', 'swish'),
  'attention_bias': (False, None),
  'mlp_bias': (False, None),
  'sliding_window': (None,),
  'use_sliding_window': (False, None),
  'layer_types': (None,),  # or all are FULL
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


def family(config) -> str:
  """The key of FAMILIES of a config.json.

  Raises:
    InputError: another model, or a key that would change the maths.
  """
  names = config.get('architectures') or []
  kind = str(config.get('model_type'))
  if not isinstance(names, list):
    raise errors.InputError(f'architectures = {names!r} is not a list')
  found = {BY_CLASS.get(str(name)) for name in names} or {kind}
  found |= {kind} & FAMILIES.keys()
  (name,) = found if len(found) == 1 else (None,)
  name = 'llama' if name == 'longllama' else name
  if name not in FAMILIES:
    raise errors.InputError(
      f'architectures {names}, model_type {kind!r}; supported: '
      f'{", ".join(BY_CLASS)}'
    )
  for key in (k for k in NEUTRAL if k in config):
    value = config[key]
    full = (
      key == 'layer_types'
      and isinstance(value, list)
      and ({*map(str, value)} <= {FULL})
    )
    known = key in FAMILIES[name].reads or full
    if value not in NEUTRAL[key] and not known:
      raise errors.InputError(
        f'{key} = {str(value)[:80]} is a setting that longjax does not support '
        f'in a {FAMILIES[name].architecture}'
      )
  return name


def fields(config, name: str) -> dict:
  """The fields of a llama.Llama that only some families have.

  Args:
    config: of config.json.
    name: its family.
  """
  reads, found = FAMILIES[name].reads, dict(FAMILIES[name].fields)
  if 'attention_bias' in reads and flag(config, 'attention_bias'):
    found['bias'] = 'qkvo'
  if 'no_rope_layers' in reads:
    found['nope_layers'] = _where(config, 'no_rope_layers', (0, 1))
  used = 'use_sliding_window' not in reads or flag(config, 'use_sliding_window')
  full = None  # all of them
  if 'layer_types' in reads and (used or config.get('layer_types') is not None):
    full = _where(config, 'layer_types', (FULL, SLIDING))
    full = None if len(full) == len(config['layer_types']) else full
    if full is not None and not used:
      raise errors.InputError(
        'layer_types has sliding_attention, but use_sliding_window is false'
      )
  elif (
    'layer_types' not in reads and config.get('sliding_window', 0) is not None
  ):
    full = () if 'sliding_window' in reads else None
  if full is not None:
    found |= dict(window=count(config, 'sliding_window'), full_layers=full)
  return {k: v for k, v in found.items() if v != ()}


def _where(config, key, known) -> tuple[int, ...]:
  """The layers for which the list of a key has the first of two values."""
  layers, values = config['num_hidden_layers'], config.get(key)
  fits = isinstance(values, list) and len(values) == layers
  if not fits or any(x not in known for x in values):
    raise errors.InputError(
      f'{key} = {str(values)[:80]} is not one of {known} for each of the '
      f'{layers} layers'
    )
  return tuple(i for i, x in enumerate(values) if x == known[0])


def written(config: llama.Llama, name: str) -> dict:
  """The keys by which a family differs from others, for our model."""
  entry, layers = FAMILIES[name], range(config.layers)
  windows = [config.kind(layer).window for layer in layers]
  own = dict(
    attention_bias=config.bias == 'qkvo',
    sliding_window=config.window or None,
    use_sliding_window=any(windows),
    layer_types=[SLIDING if window else FULL for window in windows],
    no_rope_layers=[int(layer not in config.nope_layers) for layer in layers],
  )
  found = {key: own[key] for key in entry.reads}
  return dict(architectures=[entry.architecture], model_type=name) | found
