"""Config values on the command line: 1e3, 512K, 4K,8K."""

import ast
import re
from collections.abc import Iterable
from typing import Any

from longjax.config import KEYS, Key, flat, nearest_key, takes
from longjax.errors import InputError

UNITS = dict(k=2**10, m=2**20)  # 4K tokens are 4,096
BOOL = {
  'true': True, 'yes': True, '1': True, 'false': False, 'no': False, '0': False,
}  # fmt: skip


def override(config, name: str, text: str):
  """Sets a key of a config to what was typed for it; or InputError."""
  values = flat(config)
  if any(value.startswith(f'{name}.') for value in values):
    raise InputError(f'config.{name} is a section; set a key of it')
  if name not in values:
    near = nearest_key(name, values)
    raise InputError(f'the config has no key {name!r}; nearest is {near!r}')
  value = parse(name, text, values[name])
  *sections, last = name.split('.')
  for section in sections:
    config = config[section]
  with config.ignore_type():
    config[last] = value


def parse(name: str, text: str, value: Any = None):
  """The value that a user typed for a key.

  Args:
    name: of a key, or of a value inside an open one (data.mix ...).
    text: 1e3, true, words, 512K (of tokens), 4K,8K, (4096, 8192) ...
    value: the present one, whose type a value inside an open key keeps.

  Raises:
    InputError: the key takes another type.
  """
  is_open, typed = name not in KEYS, text.strip()
  key = KEYS[name] if not is_open else Key(value, '', unit='tokens', each=str)
  if key.unit == 'tokens' and key.kind is not str:
    typed = re.sub(r'(?<![\w.])(\d*\.?\d+)([kKmM])\b', _times, typed)
  try:
    if key.kind is tuple:
      return _tuple(typed, key.each)
    if is_open and key.kind in (int, float):
      return _number(typed)
    return READ[key.kind](typed)
  except (ValueError, SyntaxError, KeyError):
    wrong = f'config.{name} takes {takes(key)}, not {text!r}'
    raise InputError(wrong) from None


def _times(found: re.Match) -> str:
  return f'{float(found[1]) * UNITS[found[2].lower()]:.0f}'


def _int(text: str) -> int:
  try:
    return int(text)
  except ValueError:
    if not float(text).is_integer():
      raise
    return int(float(text))


def _number(text: str) -> int | float:
  try:
    return _int(text)
  except ValueError:
    return float(text)


def _tuple(text: str, each: type | None) -> tuple:
  try:
    found = ast.literal_eval(text or '()')
  except (ValueError, SyntaxError):
    if each is not str:
      raise
    found = [word.strip('()[]\'" ') for word in text.split(',')]
  if not isinstance(found, tuple | list):
    found = (found,)
  return tuple(
    READ[each](str(x)) if each
    else tuple(x) if isinstance(x, list) else x for x in found
  )  # fmt: skip


READ = {
  int: _int, float: float, str: str, bool: lambda text: BOOL[text.lower()],
}  # fmt: skip


def describe(config) -> Iterable[tuple[str, str]]:
  """('key=value', meaning) of all keys in order; of the defaults for {}."""
  values = flat(config)
  for name, key in KEYS.items():
    choices = f' ({", ".join(key.choices)})' if key.choices else ''
    inside = [value for value in values if value.startswith(f'{name}.')]
    meaning = f'{key.help}{choices}'
    value = values.get(name, key.default)
    # A config has to give it, or (None) the weights.
    is_set = not (inside or value is None or isinstance(value, type))
    yield f'{name}={value!r}' if is_set else name, meaning
    yield from ((f'{name}={values[name]!r}', '') for name in inside)
