"""What transformers keeps beside a tokenizer: settings, and added tokens.

The rules are those of transformers. Settings that would give other ids than the
tokenizer's library gives are refused.
"""

import pathlib
from typing import NamedTuple

from longjax import errors, json_text, storage
from longjax.data import encoders

CONFIG, MAP = 'tokenizer_config.json', 'special_tokens_map.json'
ADDED = 'added_tokens.json'
# Written again as they were found: a tokenizer is more than the ids it gives.
FILES = (
  'tokenizer.json', 'tokenizer.model', 'spiece.model', CONFIG, MAP, ADDED,
  'chat_template.jinja',
)  # fmt: skip
# What these classes of transformers take where the files do not say.
LLAMA_CLASSES = ('LlamaTokenizer', 'LlamaTokenizerFast')
LLAMA_DEFAULTS = dict(bos_token='<s>', eos_token='</s>', add_bos_token=True)


class CompanionFiles(NamedTuple):
  """What was found.

  Attributes:
    settings: of special tokens.
    added: name of a token -> its id, or None if any will do.
    prefix_space: the setting add_prefix_space, or None.
    contents: {name: bytes} of those of FILES that there are.
  """

  settings: encoders.Settings
  added: dict[str, int | None]
  prefix_space: bool | None
  contents: dict[str, bytes]

  def check(self, tokens):
    """InputError if these files change the ids of a tokenizer.Tokenizer."""
    for name, i in self.added.items():
      own = tokens.token_to_id(name)
      if own is None or i not in (None, own):
        raise errors.InputError(
          f'the files beside it add {name!r}{"" if i is None else f" as {i}"}, '
          f'here it is {own}; one tokenizer.json that has all is written by '
          'AutoTokenizer.from_pretrained(...).save_pretrained(...)'
        )
    adds, said = tokens.encoder.prefix_space, self.prefix_space
    if None not in (adds, said) and adds != said:
      raise errors.InputError(
        f'it puts {"a" if adds else "no"} space before a text, but '
        f'add_prefix_space of {CONFIG} is not {str(adds).lower()}; set it to '
        f'{str(adds).lower()} if the model was trained so'
      )


def read(path: pathlib.Path) -> CompanionFiles:
  """The files beside a tokenizer's own.

  Raises:
    InputError: one is damaged.
  """
  beside = (path.with_name(name) for name in FILES)
  found = [
    file for file in beside if file == path or storage.is_safe_file(file)
  ]
  contents = {file.name: storage.content(file) for file in found}
  listed, name = {}, CONFIG
  try:
    for name in (CONFIG, MAP, ADDED):
      listed[name] = json_text.loads(contents.get(name, b'{}'))
      if not isinstance(listed[name], dict):
        raise ValueError('not an object')
    name = CONFIG
    config, map_ = listed[CONFIG], listed[MAP]
    # As in transformers: the map goes before a config that lists no tokens.
    ends = map_ | config if 'added_tokens_decoder' in config else config | map_
    if path.suffix == '.json' and ends.get('tokenizer_class') in LLAMA_CLASSES:
      ends = LLAMA_DEFAULTS | ends  # a SentencePiece model has its own
    settings = _settings(ends, contents.get('chat_template.jinja'))
    added = listed[ADDED] | _added(config)
  except (ValueError, TypeError, KeyError, AttributeError) as error:
    file = path.with_name(name)
    raise errors.InputError(f'{file}: not a {name} ({error})') from error
  prefix = config.get('add_prefix_space')
  if path.name == 'tokenizer.json' and CONFIG in contents:
    prefix = bool(prefix)
  return CompanionFiles(
    settings, added, prefix, contents if path.name in FILES else {}
  )


def _settings(found: dict, template: bytes | None) -> encoders.Settings:
  names = (found.get(f'{x}_token') or '' for x in ('bos', 'eos', 'pad'))
  bos, eos, pad = map(_name, names)
  add_bos, add_eos = (found.get(f'add_{x}_token') for x in ('bos', 'eos'))
  for value in (add_bos, add_eos):
    if value not in (None, True, False):
      raise ValueError(f'add_bos_token or add_eos_token is {value!r}')
  text = found.get('chat_template') or ''
  if isinstance(text, list):  # several by name
    text = {t['name']: t['template'] for t in text}.get('default', '')
  if template is not None:
    text = template.decode()
  return encoders.Settings(bos, eos, pad, text, add_bos, add_eos)


def _added(config: dict) -> dict[str, int | None]:
  """Tokens that a tokenizer_config.json lists, with their ids."""
  names: list = []
  for key in ('additional_special_tokens', 'extra_special_tokens'):
    more = config.get(key) or []
    names += more.values() if isinstance(more, dict) else more
  found: dict = {_name(token): None for token in names}
  listed = config.get('added_tokens_decoder') or {}
  return found | {_name(token): int(i) for i, token in listed.items()}


def _name(token) -> str:
  return token if isinstance(token, str) else token['content']
