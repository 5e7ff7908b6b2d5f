"""What the commands in `launch/` share: flags, configs, exit codes.

A command is a function `main(config, flag=...)`; a flag `dry_run` is spelled
--dry-run. An error that a user can fix is one line on stderr and exit code 2;
one in a config is found before anything is compiled.
"""

import importlib.util
import inspect
import os
import pathlib
import sys
import textwrap
from typing import Any

from longjax import config as schema
from longjax import config_values, errors
from longjax.errors import InputError

MODEL = ('model', 'weights')  # a key and its value: the shape is the weights'
INSTEAD_OF_CONFIG = 'checkpoint'  # a flag that may stand in for --config
BOOLS = [name for name, key in schema.KEYS.items() if key.kind is bool]


def run(
  main, doc: str | None, switches=(), verbs=(), lists=(), **flags: str
) -> int:
  """Parses sys.argv, calls main(config, **flags), returns the exit code.

  Args:
    main: takes the config, and by name a string for each flag.
    doc: what --help prints first.
    switches: names of flags that take no value and give a bool.
    verbs: where there are any, the first argument is one of them, and main
      takes (verb, words, config, **flags); words are what was typed of the
      config, --config=FILE --config.KEY=VALUE ...
    lists: names of flags that may be repeated and give a tuple.
    **flags: name = help of the flags beside --config.
  """
  known = dict(config='configs/NAME.py or configs/NAME.py:VARIANT')
  known |= {dashed(name): text for name, text in flags.items()}

  def answer():
    arguments = sys.argv[1:]
    if asks_help(arguments):
      print(help_text(doc, known, config_file(arguments)))
      return 0
    from longjax import checks  # numpy takes a moment

    verb, rest = take_verb(arguments, verbs)
    found, overrides = read_flags(
      rest, known, [*map(dashed, switches)], [*map(dashed, lists)]
    )
    described = found.get(INSTEAD_OF_CONFIG, '')
    if 'config' not in found and not described:
      instead = f', or --{INSTEAD_OF_CONFIG}'
      more = instead if INSTEAD_OF_CONFIG in flags else ''
      raise InputError(f'--config=configs/NAME.py is needed; see --help{more}')
    config = load(found.get('config', ''), overrides, described)
    checks.check(config)
    values = {name: name not in switches and '' for name in flags}
    values |= dict.fromkeys(lists, ())
    values |= {k.replace('-', '_'): v for k, v in found.items()}
    words = [f'--config={values.pop("config", "")}']
    words += [f'--config.{key}={text}' for key, text in overrides]
    return main(*([verb, words] if verb else []), config, **values)

  return exit_code_of(answer)


def run_verb(doc: str | None, **verbs) -> int:
  """As `run`, for a command without a config: VERB --flag=value ...

  Args:
    doc: what --help prints first.
    **verbs: verb = (function, {flag: help}). The function takes a string for
      each flag as `flag_`; those without a default are needed.
  """

  def answer():
    if asks_help(sys.argv[1:]):
      lines = [(doc or '').strip()]
      for verb, (_, known) in verbs.items():
        lines += ['', f'flags of {verb}:', *flag_lines(known)]
      print('\n'.join(lines))
      return 0
    verb, rest = take_verb(sys.argv[1:], verbs)
    function, known = verbs[verb]
    values, _ = read_flags(rest, known)
    for name, parameter in inspect.signature(function).parameters.items():
      flag = dashed(name.rstrip('_'))
      if parameter.default is parameter.empty and not values.get(flag):
        raise InputError(f'--{flag} is needed: {known[flag]}')
    return function(**{f'{k.replace("-", "_")}_': v for k, v in values.items()})

  return exit_code_of(answer)


def exit_code_of(answer) -> int:
  """The exit code of answer(), which is 0 if it gives none."""
  command = pathlib.Path(sys.argv[0]).name
  sys.stdout.reconfigure(line_buffering=True)  # pyright: ignore
  try:
    return answer() or 0
  except InputError as error:
    print(f'{command}: {one_line(error)}', file=sys.stderr)
    return 2
  except BrokenPipeError:  # `| head` has read enough
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
  except OSError as error:  # of a file: no right, no space
    # A write to a full disk names no file.
    if not error.filename and error.errno not in errors.FULL:
      raise
    where = error.filename or 'free space and run the same command again'
    print(f'{command}: {where}: {error.strerror}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print(f'{command}: interrupted', file=sys.stderr)
    return 130


def asks_help(arguments) -> bool:
  return any(word in ('-h', '-help', '--help') for word in arguments)


def take_verb(arguments, verbs) -> tuple[str, list[str]]:
  """(the verb, '' where there are none; the arguments after it)."""
  if not verbs:
    return '', arguments
  first, *rest = arguments or ['']
  if first not in verbs:
    raise InputError(
      f'the first argument is one of {", ".join(verbs)}, not {first!r}'
      + (hint(first, verbs) if first.strip('-') else '')
    )
  return first, rest


def read_flags(arguments, known, switches=(), lists=()):
  """({flag: value}, [(key of the config, text), ...]) of the arguments.

  Args:
    arguments: --flag=value, --flag value, --switch, --config.KEY=value ...
    known: names of the flags; keys are taken where --config is one.
    switches: those that need no value.
    lists: those that may be repeated.
  """
  values: dict[str, Any] = {}
  overrides, rest = [], list(arguments)
  while rest:
    word = rest.pop(0)
    name, equals, value = word.lstrip('-').partition('=')
    flag, key = dashed(name), name.removeprefix('config.')
    if not word.startswith('-'):
      raise InputError(f'{word!r} is not a flag; flags are --name=value')
    is_key = key != name and 'config' in known
    if not is_key and flag not in known:
      raise InputError(f'unknown flag --{name}{flag_hint(name, known)}')
    switch = flag in switches or (
      is_key and key in schema.KEYS and schema.KEYS[key].kind is bool
    )
    if switch and not equals:
      value = 'true'
    elif not equals:
      if not rest or rest[0].startswith('--'):
        raise InputError(f'--{name} needs a value: --{name}=VALUE')
      value = rest.pop(0)
    if is_key:
      overrides.append((key, value))
    elif flag in lists:
      values[flag] = (*values.get(flag, ()), value)
    else:
      values[flag] = value.lower() in ('true', '1') if switch else value
  return values, overrides


def flag_hint(name: str, known) -> str:
  """'; nearest is X': a flag, or a key of the config."""
  flags = [f'--{flag}' for flag in known]
  if 'config' not in known:
    return hint(f'--{name}', flags)
  found = schema.nearest_key(name, known)
  dot = 'config.' if found in schema.KEYS else ''
  return f"; nearest is '--{dot}{found}'"


def hint(name: str, known) -> str:
  """'; nearest is X', or '' where nothing is known."""
  close = errors.nearest(name, known)
  return f'; nearest is {close!r}' if close else ''


def load(path: str, overrides=(), checkpoint='') -> Any:
  """The config of a file, with the overrides [(key, text), ...] applied.

  Its model may be 'weights', that of what config.weights names, but for what
  the file sets after that. Without a file all is that of a checkpoint.
  """
  if path:
    config = load_file(path)
  else:
    from longjax.weights import model_section

    config = model_section.config_of(checkpoint).lock()
  # Open keys are None. A config without the section is refused by checks.check.
  model = config.get('model')
  is_open = hasattr(model, 'items') and None in schema.flat(model).values()
  if MODEL in overrides or is_open:
    from longjax.weights import model_section  # jax takes a second or more

    spec = dict(overrides).get('weights', config.weights)
    with config.unlocked(), config.ignore_type():
      config.model = model_section.model_of(spec, config.model)
  for key, text in overrides:
    if (key, text) != MODEL:
      config_values.override(config, key, text)
  if config.get('name') == '':
    config.name = pathlib.Path(path.partition(':')[0]).stem
  return config


def load_file(path: str) -> Any:
  """What the get_config of a file returns."""
  name, _, variant = path.partition(':')
  file = pathlib.Path(name)
  if not file.is_file():
    beside = map(str, file.parent.glob('*.py'))
    raise InputError(f'there is no config {name}{hint(name, beside)}')
  try:
    spec: Any = importlib.util.spec_from_file_location('config_file', file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*filter(None, [variant])).lock()
  except InputError as error:
    raise InputError(f'{path}: {error}') from error
  except Exception as error:  # a config is a program: anything may be raised
    raise InputError(f'{path}: {type(error).__name__}: {error}') from error


def config_file(arguments) -> str:
  """The value of --config, '' where it is not given."""
  for word, following in zip(arguments, [*arguments[1:], '']):
    name, _, value = word.partition('=')
    if name in ('--config', '-config'):
      return value or following
  return ''


def help_text(doc, known, file: str) -> str:
  """The docstring, the flags, and all keys with their values and meanings."""
  config = load_file(file) if file else {}
  lines = [(doc or '').strip(), '', 'flags:', *flag_lines(known)]
  lines += ['', f'keys of {file or "a config"}, set by --config.KEY=VALUE:', '']
  for value, meaning in config_values.describe(config):
    first, *rest = textwrap.wrap(meaning, 42) or ['']
    if len(value) > 34:
      lines.append(f'  {value}')
      value = ''
    lines += [f'  {value:34}  {first}'.rstrip()]
    lines += [f'{"":38}{text}' for text in rest]
  return '\n'.join(lines)


def flag_lines(known) -> list[str]:
  return [f'  --{flag}: {text}' for flag, text in known.items()]


def number(flag: str, text: str, default, least, most=10**6):
  """The value of a flag in its default's type, or InputError out of bounds."""
  try:
    value = type(default)(text) if text else default
  except ValueError:
    value = None
  if value is None or not least <= value <= most:
    raise InputError(
      f'--{flag} {text!r} is not a number from {least} to {most}'
    )
  return value


def one_line(error) -> str:
  """A message without its line breaks."""
  return ' '.join(str(error).split())


def dashed(name: str) -> str:
  return name.replace('_', '-')
