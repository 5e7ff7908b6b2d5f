"""The schema of a config: every key, its default, bounds and help.

A new key is an entry of KEYS and the line that reads its value. From KEYS come
the defaults of configs/common.py, --help, how a typed value is read, what is
refused, and what may change when a run resumes.
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict, config_dict

from longjax.errors import InputError, check_choice

LIMIT = 2**63  # every number is below


class Key(NamedTuple):
  """A key of a config."""

  default: Any  # a type where each config gives its own value
  help: str
  # Of a number, or of each number of a tuple; a blank follows the comma.
  bounds: str = '(-inf, inf)'
  unit: str = ''
  choices: tuple[str, ...] = ()
  each: type | None = None  # elements of a tuple; None: tuples in turn
  may_change: bool = False  # when a run resumes
  aliases: tuple[str, ...] = ()  # its names in other programs

  @property
  def kind(self) -> type:
    given = self.default
    return given if isinstance(given, type) else type(given)


def mutable(*args, **kwargs) -> Key:
  """A key that may change when a run resumes."""
  return Key(*args, may_change=True, **kwargs)


TURNS = 'turns in the trained window'
KEYS = {
  'name': mutable(
    '', 'name of the run directory, shown in the report; default: that of the '
    'config file'),
  'notes': mutable((), 'what a reader of the report must know', each=str),
  'seed': Key(0, 'random seed of weights, batches and evaluations', '[0, inf)'),
  'weights': Key(
    '', "initial weights: a path, 'package:NAME==VERSION/FILE' or 'random'"),
  'moments': Key(
    False, "load AdamW's moments, too, if weights is a longjax run"),
  # Sizes of the models are in configs/common.py.
  'model.vocab': Key(int, 'tokens of the vocabulary', '[1, inf)'),
  'model.layers': Key(int, 'number of layers', '[1, inf)'),
  'model.embed': Key(int, 'width of the hidden states', '[1, inf)'),
  'model.mlp': Key(int, 'width inside the feed-forward', '[1, inf)'),
  'model.heads': Key(int, 'query heads', '[1, inf)'),
  'model.kv_heads': Key(int, 'key and value heads', '[1, inf)'),
  'model.head_dim': Key(int, 'dimension of a head, even', '[2, inf)'),
  'model.norm_eps': Key(float, 'epsilon of RMSNorm', '(0, 1)'),
  'model.tied': Key(bool, 'the output head shares the embedding'),
  'model.bias': Key(
    'none', 'attention projections with a bias: qkv (Qwen2), or qkvo',
    choices=('none', 'qkv', 'qkvo')),
  'model.qk_norm': Key(
    'none', 'RMSNorm of queries and keys: per head (Qwen3), or over all (OLMo)',
    choices=('none', 'head', 'all')),
  'model.post_norm': Key(
    False, 'norms follow attention and feed-forward (OLMo)'),
  'model.nope_layers': Key(
    (), 'layers without RoPE, counted from 0 (SmolLM3)', '[0, inf)', each=int),
  'model.window': Key(
    0, 'sliding window: tokens that a token attends to, itself included; '
    '0: all', '[0, inf)',
    'tokens'),
  'model.full_layers': Key(
    (), 'layers that ignore the window, counted from 0', '[0, inf)', each=int),
  'model.scale_windows': Key(
    True, 'rope.scaling also applies to layers with a window (OLMo 3: false)'),
  'model.rope.base': Key(
    1e4, 'base of the frequencies; raised in RoPE ABF', '(1, inf)',
    aliases=('theta', 'rope_theta')),
  'model.rope.scaling': Key(
    'none', 'none, linear (PI), ntk, yarn, llama3, longrope, nope, ...: '
    'longjax/rope.py'),
  'model.rope.factor': Key(1.0, 'new window / trained window', '[1, inf)'),
  'model.rope.original_length': Key(
    0, 'trained window in tokens; for ntk_by_parts, the yarns, longrope, '
    'llama3 and query_beta',
    '[0, inf)', 'tokens'),
  'model.rope.low_freq_factor': Key(
    1.0, 'llama3: below this many turns in the trained window, frequencies are '
    'divided by the factor', unit=TURNS),
  'model.rope.high_freq_factor': Key(
    4.0, 'llama3: above this many turns in the trained window, frequencies are '
    'kept', unit=TURNS),
  'model.rope.beta_fast': Key(
    32.0, 'yarn: above this many turns in the trained window, frequencies are '
    'kept', unit=TURNS),
  'model.rope.beta_slow': Key(
    1.0, 'yarn: below this many turns in the trained window, frequencies are '
    'divided by the factor', unit=TURNS),
  'model.rope.attention_factor': Key(
    0.0, "yarn: cos and sin are multiplied by this; 0: the paper's "
    'temperature', '[0, inf)'),
  'model.rope.mscale': Key(
    0.0, 'yarn: with mscale_all_dim, gives the attention_factor', '[0, inf)'),
  'model.rope.mscale_all_dim': Key(
    0.0, 'yarn: with mscale, gives the attention_factor', '[0, inf)'),
  'model.rope.truncate': Key(
    True, 'yarn: the ends of the ramp are rounded to whole pairs'),
  'model.rope.query_beta': Key(
    0.0, 'queries are multiplied by 1 + this * log(1 + position // '
    'original_length)',
    '[0, inf)'),
  'model.rope.divisors': Key(
    (), 'longrope: what the frequency of each pair is divided by', '(0, inf)',
    each=float),
  'model.rope.short_divisors': Key(
    (), 'longrope: the same within original_length; (): divisors', '(0, inf)',
    each=float),
  'model.rope.unscaled': Key(
    0, 'longrope: this many first positions are not scaled', '[0, inf)',
    'tokens'),
  'model.rope.xpos': Key(
    0.0, 'xPos: tokens over which attention decays by its scale; 0: no decay',
    '[0, inf)', 'tokens'),
  'model.dtype': mutable(
    'bfloat16', 'dtype of matmuls; master weights are always float32',
    choices=('bfloat16', 'float32')),
  'model.attention': mutable(
    'ring', 'attention strategy: ring, gather, ulysses, hybrid, ...: '
    'longjax/attention'),
  'model.block': mutable(
    512, 'tokens of a block of keys in attention; 2048 is best on TPU',
    '[1, inf)', 'tokens'),
  'model.ulysses': mutable(
    0, 'hybrid: devices that exchange heads; 0: as many as possible without '
    'repeating kv heads',
    '[0, inf)', 'devices'),
  'model.remat': mutable(
    'attention', 'what the forward pass saves for the backward pass: none '
    '(recompute nothing, save all), attention (outputs of attention and '
    'inputs of layers), offload (the same, on the host), full (inputs of '
    'layers only)'),
  'model.mlp_chunk': mutable(
    0, 'tokens of a row that go through the feed-forward at once; 0: all',
    '[0, inf)', 'tokens'),
  'model.memory.layers': Key(
    (), 'Focused Transformer: layers with a memory, from 0', '[0, inf)',
    each=int),
  'model.memory.rows': Key(
    (), 'Focused Transformer: offsets of the rows that each row of a pack '
    'attends to in these layers'),
  'model.memory.wrap': Key(False, 'these offsets wrap around the batch'),
  'model.group': Key(
    0, 'LongLoRA: tokens of a group that attend to each other in training; '
    '0: all', '[0, inf)',
    'tokens'),
  'mesh.data': mutable(
    1, 'number of devices that the rows of a batch are divided over',
    '[1, inf)', 'devices'),
  'mesh.seq': mutable(
    1, 'number of devices that each row is divided over', '[1, inf)',
    'devices'),
  'lora.rank': Key(0, 'rank of the factors; 0: no LoRA', '[0, inf)'),
  'lora.alpha': Key(16.0, 'the factors are scaled by alpha / rank', '(0, inf)'),
  'lora.weights': Key(
    ('q', 'k', 'v', 'o'), 'weights that get factors; also gate, up, down',
    each=str),
  'lora.whole': Key(
    ('embedding', 'norm'), 'parameters trained without factors, by a part of '
    'their name', each=str),
  'data.sources': Key({}, 'what to train on, by name: longjax/data/sources.py'),
  'data.root': mutable(
    '', "where relative paths of data.sources begin; '': this repository"),
  'data.tokenizer': Key(
    '', "a path or 'bytes'; '': the tokenizer of the weights"),
  'data.tokenizer_may_differ': mutable(
    False, 'accept a tokenizer other than that of the weights'),
  'data.directory': mutable(
    '', "directory of prepared shards; '': a place in the cache"),
  'data.mix': Key(
    {}, 'shares of the rows: longjax/data/mixture.py; {}: all documents'),
  'data.positions.kind': Key(
    'plain', 'how the positions for RoPE are drawn: longjax/data/positions.py; '
    "skipalign: between the turns of chats with loss='answers', not in text",
    choices=('plain', 'pose', 'skipalign', 'e2llm')),
  'data.positions.target': Key(
    0, 'tokens of the window that positions are drawn from; for all kinds '
    'but plain', '[0, 2147483647]', 'tokens'),
  'data.positions.chunks': Key(
    2, 'pose: number of chunks of a segment'),
  'data.positions.window': Key(
    0, "e2llm: the released model's window in tokens", '[0, inf)', 'tokens'),
  'data.curriculum': Key(
    (), 'longest segment of each stage: ((share of the steps, tokens), ...)',
    unit='tokens'),
  'data.loss': Key(
    'tokens', 'the loss is a mean over tokens, over documents (LongAlign), or '
    'the mean of the means of each 65,536 tokens (64k: ProLong)',
    choices=('tokens', 'documents', '64k')),
  'data.layout': mutable(
    'zigzag', 'how each row is divided over mesh.seq: longjax/data/layout.py',
    choices=('contiguous', 'zigzag', 'striped', 'balanced')),
  'data.skip_steps': mutable(
    (), 'steps whose batches are skipped', '[0, inf)', each=int),
  'train.steps': mutable(
    100, 'optimizer steps of the run', '[1, inf)',
    aliases=('max_steps', 'num_steps')),
  'train.batch': Key(8, 'rows of a step', '[1, inf)', 'rows'),
  'train.micro_batches': mutable(
    1, 'number of parts in which a step is computed', '[1, inf)',
    aliases=('gradient_accumulation_steps',)),
  'train.seq_len': Key(
    2048, 'tokens of a row', '[1, inf)', 'tokens',
    aliases=('context_length', 'max_length')),
  'train.lengths': mutable(
    (), 'shorter rows, in tokens, that the step is compiled for, too: each '
    'micro-batch uses the shortest that fits', '[1, inf)', 'tokens', each=int),
  'train.loss_chunk': mutable(
    1024, 'tokens per device whose logits exist at once', '[1, inf)', 'tokens'),
  'train.sparse_core': mutable(
    False, 'gather weights and scatter gradients on the SparseCores of TPU v5p '
    'and v6e during computation: docs/plan.md'),
  'train.longce.gamma': Key(
    0.0, 'LongCE: largest loss weight, longjax/longce.py; 0: off',
    '[0, inf)'),
  'train.longce.short': Key(
    4096, 'LongCE: tokens of the short context', '[1, inf)', 'tokens'),
  'train.longce.stride': Key(
    1024, 'LongCE: tokens from one short context to the next', '[1, inf)',
    'tokens'),
  'train.profile_steps': mutable(
    (), 'trace from the first to the last of these steps into profile/; or '
    'send SIGUSR1', '[1, inf)', each=int),
  'train.hang_seconds': mutable(
    1800, 'the run exits with code 75 after this long without a step, or after '
    'ten times the longest step if that is more; 0: never',
    '[0, inf)', 'seconds'),
  'optim.learning_rate': mutable(
    2e-5, 'peak learning rate', '[0, inf)',
    aliases=('lr', 'max_lr', 'peak_lr')),
  'optim.schedule': mutable(
    'cosine', 'learning rate after the warm-up; wsd: constant, then linear',
    choices=('cosine', 'linear', 'constant', 'wsd')),
  'optim.decay_steps': mutable(
    0, 'wsd: steps of the decay at the end', '[0, inf)', 'steps'),
  'optim.warmup_steps': mutable(
    0, 'steps of linear warm-up; with train.steps or more, the peak is not '
    'reached', '[0, inf)', 'steps'),
  'optim.warmup_from': mutable(
    0.0, 'learning rate at step 0, as a share of the peak', '[0, 1]'),
  'optim.min_ratio': mutable(
    0.1, 'learning rate one step after the last, as a share of the peak',
    '[0, 1]'),
  'optim.b1': mutable(0.9, 'AdamW: decay of the first moment', '[0, 1)'),
  'optim.b2': mutable(0.95, 'AdamW: decay of the second moment', '[0, 1)'),
  'optim.eps': mutable(1e-8, 'AdamW: epsilon', '[0, inf)'),
  'optim.weight_decay': mutable(
    0.1, 'weight decay of the parameters of optim.decayed', '[0, inf)',
    aliases=('wd',)),
  'optim.decayed': mutable(
    'matrices', 'which parameters get weight decay',
    choices=('matrices', 'not_embedding', 'with_norms')),
  'optim.clip': mutable(
    1.0, 'gradients are clipped to this global norm', '(0, inf)'),
  'optim.spike_sigmas': mutable(
    6.0, 'skip a step whose loss or gradient norm is more than this many '
    'standard deviations above the recent mean; 0: never', '[0, inf)'),
  'optim.spike_window': Key(
    128, 'recent steps for that mean and standard deviation', '[2, inf)',
    'steps'),
  'optim.max_skipped': mutable(
    5, 'the run ends after more than this many skipped steps in a row',
    '[0, inf)', 'steps'),
  'checkpoint.every_steps': mutable(
    100, 'steps between saves', '[1, inf)', 'steps'),
  'checkpoint.keep': mutable(
    2, 'number of newest checkpoints to keep', '[1, inf)'),
  'checkpoint.keep_every_steps': mutable(
    0, 'also keep every checkpoint at a multiple of this many steps; 0: none',
    '[0, inf)', 'steps'),
  'checkpoint.max_failed': mutable(
    5, 'the run ends after this many failed saves in a row', '[1, inf)'),
  'metrics.wandb': mutable('', 'project of Weights & Biases; needs wandb'),
  'eval.sources': mutable({}, 'held-out documents, as data.sources'),
  'eval.documents': mutable(1, 'number of held-out documents', '[1, inf)'),
  'eval.length': mutable(
    0, 'tokens of each held-out document that are evaluated; 0: no evaluation',
    '[0, inf)', 'tokens'),
  'eval.window': mutable(
    0, 'trained window in tokens, marked in table and plot', '[0, inf)',
    'tokens'),
  'eval.passkey_lengths': mutable(
    (), 'tokens of the passkey prompts; (): none', '[1, inf)', 'tokens',
    each=int),
  'eval.passkey_depths': mutable(
    (0.1, 0.5, 0.9), 'depths of the passkey, as shares of the prompt', '[0, 1]',
    each=float),
  'eval.tasks': mutable(
    (), 'more evaluations: names in longjax/evals/table.py', each=str),
  'eval.lengths': mutable(
    (4096,), 'tokens of the prompts and windows of eval.tasks', '[1, inf)',
    'tokens', each=int),
  'eval.samples': mutable(
    20, 'number of prompts of each task and length', '[1, inf)'),
  'eval.limit': mutable(
    0, 'at most this many prompts of a task and length, also of tasks that '
    'ask all, but a prompt for each depth of passkey and needle; 0: no limit',
    '[0, inf)'),
  'eval.files.squad': mutable(
    '', "path of SQuAD's dev-v2.0.json, for ruler/qa_1"),
  'eval.files.hotpotqa': mutable(
    '', "path of HotpotQA's hotpot_dev_distractor_v1.json, for ruler/qa_2"),
  'eval.files.scrolls': mutable(
    '', 'directory of tau/scrolls, for llama2_long, or '
    'hf://datasets/tau/scrolls'),
  'eval.files.helmet_recall': mutable(
    '', "path of the directory data/ in HELMET's data.tar.gz"),
  'eval.files.trec': mutable('', 'path of CogComp/trec, with train and test'),
  'eval.files.banking77': mutable('', 'path of PolyAI/banking77'),
  'eval.files.clinic150': mutable(
    '', 'path of the directory plus/ in clinc/clinc_oos'),
  'eval.files.nlu': mutable('', 'path of nlu_evaluation_data'),
  'eval.files.narrativeqa': mutable(
    '', 'path of the directory data/ in deepmind/narrativeqa'),
  'eval.files.infbench': mutable(
    '', 'path of xinrongzhang2022/InfiniteBench'),
  'eval.files.multi_lexsum': mutable(
    '', 'path of the directory releases/v20230518/ in allenai/multi_lexsum'),
  'eval.files.longbench_v2': mutable('', 'path of data.json of LongBench-v2'),
  'eval.files.mrcr': mutable('', 'path of a .parquet file of openai/mrcr'),
  'eval.files.graphwalks': mutable(
    '', 'path of a .parquet file of openai/graphwalks'),
  'eval.files.nolima': mutable('', "path of NoLiMa's needle_set.json"),
  'eval.files.nolima_books': mutable('', "directory of NoLiMa's books"),
  'eval.files.helmet_rag': mutable('', "path of a file of HELMET's data/kilt"),
  'eval.files.helmet_rerank': mutable(
    '', "path of a file of HELMET's data/msmarco"),
  'eval.chat': mutable(
    False, "put prompts into the tokenizer's chat template; not those of "
    'needle and passkey'),
  'eval.batch': mutable(1, 'number of prompts answered at once', '[1, inf)'),
  'eval.every_steps': mutable(
    0, 'steps between evaluations; 0: only before and after training',
    '[0, inf)', 'steps'),
}  # fmt: skip


class Config(ConfigDict):
  """A config; after `config.model = 'weights'` the keys of `model` are open.

  cli.load fills in those that are not set by then, from config.weights.
  """

  def __setattr__(self, attribute, value):
    if attribute == 'model' and isinstance(value, str) and value == 'weights':
      value = nest({
        name.removeprefix('model.'): config_dict.placeholder(key.kind)
        for name, key in KEYS.items() if name.startswith('model.')
      })  # fmt: skip
    super().__setattr__(attribute, value)


def build(values: Mapping[str, Any]) -> Any:
  """A config of the defaults and of `values`, which are by key.

  Raises:
    InputError: there is no such key.
  """
  for name in values:
    if name not in KEYS:
      raise InputError(f'no key {name!r}; nearest is {nearest_key(name)!r}')
  return Config(
    nest({k: values.get(k, key.default) for k, key in KEYS.items()})
  )


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
  """Nested dicts of values by key: what `flat` takes apart."""
  nested: dict[str, Any] = {}
  for name, value in values.items():
    *sections, last = name.split('.')
    node = nested
    for section in sections:
      node = node.setdefault(section, {})
    node[last] = value
  return nested


def flat(config, prefix='') -> dict[str, Any]:
  """{'model.rope.base': 5e5, ...} of a config or of nested dicts."""
  found = {}
  for name, value in config.items():
    if isinstance(value, Mapping | ConfigDict) and len(value):
      found |= flat(value, f'{prefix}{name}.')
    else:
      found[prefix + name] = value
  return found


def find(name: str) -> Key | None:
  """The key of this name, or the open one (data.mix ...) that it lies in."""
  around = [key for key in KEYS if name.startswith(f'{key}.')]
  inside = around and KEYS[around[0]].kind is dict
  return KEYS.get(around[0] if inside else name)


def nearest_key(name: str, more: Iterable[str] = ()) -> str:
  """Which key, or which of `more` names, was probably meant."""
  last = name.rpartition('.')[2]
  ratio = lambda a, b: difflib.SequenceMatcher(None, a, b).ratio()

  def likeness(other):
    aliases = KEYS[other].aliases if other in KEYS else ()
    words = [other.split('.')[-1], *aliases]
    whole = ratio(name, other) if '.' in name else 0
    return max(ratio(last, word) for word in words), whole

  return max([*more, *KEYS], key=likeness)


def check(config):
  """InputError where a key is missing or unknown, or has a wrong value."""
  values = flat(config)
  for name, key in KEYS.items():
    inside = key.kind is dict and any(v.startswith(f'{name}.') for v in values)
    if name not in values and not inside:
      raise InputError(
        f'the config lacks the key {name!r}; it must start from '
        'configs/common.py base(), which has all'
      )
  for name, value in values.items():
    if find(name) is None:
      raise InputError(
        f'config.{name} is not a key; nearest is {nearest_key(name)!r}'
      )
    if name in KEYS:
      check_value(f'config.{name}', value, KEYS[name])


def check_value(name: str, value, key: Key):
  """InputError, which begins with the name, unless the key takes the value."""
  many = key.kind is tuple and isinstance(value, tuple)
  elements, kind = (value, key.each) if many else ([value], key.kind)
  if not all(kind is None or _is(x, kind) for x in elements):
    raise InputError(f'{name} takes {takes(key)}, not {value!r}')
  if key.choices:
    check_choice(name, value, key.choices)
  for x in elements:
    if isinstance(x, int | float) and not _within(x, key.bounds):
      must = _must(key.bounds) if abs(x) < LIMIT else 'finite and below 2**63'
      raise InputError(f'{name} is {x}; it must be {must}')


def _is(value, kind: type) -> bool:
  if isinstance(value, bool):
    return kind is bool
  kinds = {float: (int, float), dict: (Mapping, ConfigDict)}
  return isinstance(value, kinds.get(kind, kind))


def _within(x: float, bounds: str) -> bool:
  low, high = map(float, bounds[1:-1].split(','))
  above = x > low if bounds[0] == '(' else x >= low
  below = x < high if bounds[-1] == ')' else x <= high
  return above and below and abs(x) < LIMIT


def _must(bounds: str) -> str:
  """[0, 1) in words."""
  low, high = bounds[1:-1].split(', ')
  least = f'above {low}' if bounds[0] == '(' else f'at least {low}'
  most = f'below {high}' if bounds[-1] == ')' else f'at most {high}'
  return ' and '.join([least] * (low != '-inf') + [most] * (high != 'inf'))


def takes(key: Key) -> str:
  """What a key takes, in words."""
  if key.kind is tuple:
    words = f'{_MANY[key.each]} with commas between them'
  else:
    words = _ONE[key.kind]
  return words + (' (4K is 4096)' if key.unit == 'tokens' else '')


_ONE = {
  int: 'a whole number', float: 'a number', bool: 'true or false',
  str: 'text', dict: 'a mapping',
}  # fmt: skip
_MANY = {int: 'whole numbers', float: 'numbers', str: 'names', None: 'tuples'}
