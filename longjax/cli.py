"""What the commands in `launch/` share: flags, configs, and how they fail.

A command is a function `main(config, flag=...)`, or one of (verb, config,
flag=...). A flag `dry_run` is spelled --dry-run. Whatever a user can mend is
answered with one line on stderr and exit code 2, before anything is compiled.
"""

import difflib
import inspect
import itertools
import os
import pathlib
import re
import sys

from absl import flags
from ml_collections import ConfigDict, config_flags

from longjax import errors
from longjax.errors import InputError


def run(main, doc: str | None, switches=(), verbs=(), **extra: str) -> int:
  """Parses sys.argv, calls main(config, **flags), returns the exit code.

  Args:
    main: takes the config and a string for each extra flag.
    doc: what --help prints first.
    switches: names of extra flags that take no value and give a bool.
    verbs: if any, the first argument is one, and the first of main's too.
    **extra: name = help of the flags beside --config.
  """

  def answer():
    argv, verb = take_verb(sys.argv, verbs)
    config, values = parse(argv, doc, extra, switches)
    return 0 if config is None else main(*verb, config, **values)

  return guarded(answer)


def guarded(answer) -> int:
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


def take_verb(argv, verbs) -> tuple[list[str], list[str]]:
  """(argv without its verb, [the verb]); or InputError."""
  rest, first = argv[1:], (argv[1:] or [''])[0]
  if not verbs or asks_help(argv):
    return [argv[0], *(x for x in rest if x not in verbs)], []
  if first not in verbs:
    near = nearest(first, verbs) if first.strip('-') else ''
    raise InputError(
      f'the first argument is one of {", ".join(verbs)}, not {first!r}{near}'
    )
  return [argv[0], *rest[1:]], [first]


def asks_help(argv) -> bool:
  """Whether a flag does."""
  return any(a in ('-h', '-help', '--help') for a in argv[1:])


def overrides(argv) -> list[str]:
  """The --config.KEY=VALUE among the arguments, each as one word."""
  found = []
  for argument, following in zip(argv, [*argv[1:], '--']):
    if re.match(r'--?config\.', argument):
      alone = '=' in argument or following.startswith('--')
      found.append(argument if alone else f'{argument}={following}')
  return found


def run_verb(doc: str | None, **verbs) -> int:
  """As `run`, for a command without config: VERB --flag=value ...

  Args:
    doc: what --help prints.
    **verbs: verb = (function, {flag: help}). The function takes a string for
      each flag as `flag_`; those without a default are needed.
  """

  def answer():
    if asks_help(sys.argv):
      print(verb_help(doc, verbs))
      return 0
    (_, *rest), (verb,) = take_verb(sys.argv, verbs)
    function, known = verbs[verb]
    return function(**_verb_flags(function, known, rest))

  return guarded(answer)


def verb_help(doc, verbs) -> str:
  lines = [(doc or '').strip()]
  for verb, (_, known) in verbs.items():
    lines += ['', f'flags of {verb}:']
    lines += [f'  --{flag}: {text}' for flag, text in known.items()]
  return '\n'.join(lines)


def _verb_flags(function, known, arguments) -> dict:
  """{'flag_': value} from --flag=value and --flag value."""
  values, rest = {}, list(arguments)
  while rest:
    argument = rest.pop(0)
    name, equals, value = argument.partition('=')
    flag = name.lstrip('-').replace('_', '-')
    if flag not in known or not name.startswith('-'):
      near = nearest(f'--{flag}', [f'--{one}' for one in known])
      raise InputError(f'unknown flag {name!r}{near}')
    if not equals and not rest:
      raise InputError(f'--{flag} needs a value: {known[flag]}')
    value = value if equals else rest.pop(0)
    values[flag.replace('-', '_') + '_'] = value
  needed = [
    name
    for name, parameter in inspect.signature(function).parameters.items()
    if parameter.default is parameter.empty and not values.get(name)
  ]
  if needed:
    flag = needed[0].rstrip('_').replace('_', '-')
    raise InputError(f'--{flag} is needed: {known[flag]}')
  return values


def parse(argv, doc, extra, switches=()):
  """(config, {flag: value}); (None, {}) after --help. Raises InputError."""
  extra = {name.replace('_', '-'): text for name, text in extra.items()}
  values = flags.FlagValues()
  config_flags.DEFINE_config_file(
    'config', lock_config=True, flag_values=values, sys_argv=argv
  )
  for name, text in extra.items():
    if name.replace('-', '_') in switches:
      flags.DEFINE_bool(name, False, text, flag_values=values)
    else:
      flags.DEFINE_string(name, '', text, flag_values=values)
  if asks_help(argv):
    print(help_text(argv, doc, extra))
    return None, {}
  _refuse_unknown(argv, extra, switches)
  try:
    stray = values(argv)[1:]
    config = _loaded(values.config)
  except Exception as error:  # a config is a program: anything may be raised
    raise InputError(_say(argv, error)) from error
  if stray:
    raise InputError(f'{stray[0]!r} is not a flag; flags are --name=value')
  if config is None:
    raise InputError('--config=configs/NAME.py is needed; see --help')
  _refuse_incomplete(argv, config)
  return config, {n.replace('-', '_'): values[n].value for n in extra}


def help_text(argv, doc, extra) -> str:
  """The docstring, the flags, and the keys of the config that was named."""
  lines = [(doc or '').strip(), '', 'flags:', '  --config: configs/NAME.py']
  lines += [f'  --{name}: {text}' for name, text in extra.items()]
  lines += ['  --config.KEY=VALUE: change a key of the config, one of', '']
  config = config_file(argv) or 'configs/common.py'
  lines += [f'    {k}={v!r}' for k, v in keys(_load(config)).items()]
  return '\n'.join(lines)


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


def keys(config, prefix='') -> dict:
  """Flat view of a config: {'model.rope.base': 5e5, ...}."""
  flat = {}
  for key, value in config.items():
    if isinstance(value, ConfigDict) and len(value):
      flat |= keys(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = value
  return flat


def one_line(error) -> str:
  """A message without its line breaks."""
  return ' '.join(str(error).split())


def nearest(name, known) -> str:
  """', nearest is X' or ''."""
  close = errors.nearest(name, known)
  return f'; nearest is {close!r}' if close else ''


def _refuse_unknown(argv, extra, switches):
  """Names each unknown flag or config key, with its nearest relative."""
  path = config_file(argv)
  known = keys(_load(path)) if path else {}
  for before, argument in itertools.pairwise(argv):
    name = re.match(r'--?([^=]*)', argument)
    alone = before.startswith('-') and '=' not in before
    asks = alone and before.strip('-').replace('-', '_') not in switches
    if not name or (asks and not argument.startswith('--')):
      continue  # no flag, or the value of one: --tokens -1
    name = name[1]
    if name.startswith('config.'):
      key = name.removeprefix('config.')
      if path and key not in known and not _is_part(key, known):
        raise InputError(f'{path} has no key {key!r}{_nearest_key(key, known)}')
    elif name not in ('config', *extra):
      raise InputError(
        f'unknown flag --{name}{_nearest_flag(name, extra, known)}'
      )


def _refuse_incomplete(argv, config):
  """Names the first key of configs/common.py that a config is without."""
  known = keys(config)
  for key in keys(_load('configs/common.py')):
    if not _is_part(key, known):
      raise InputError(
        f'{config_file(argv)} is without the key {key!r}; a config starts '
        'from common.base(), which has all'
      )


def _nearest_key(key, known):
  """By the whole path, or else by its last word."""
  by_last = {k.split('.')[-1]: k for k in known}
  last = difflib.get_close_matches(key.split('.')[-1], by_last, n=1)
  return nearest(key, [by_last[last[0]]] if last else known)


def _nearest_flag(name, extra, known):
  """A flag, or the key of the config that ends with this very word."""
  ends = [k for k in known if k.split('.')[-1] == name]
  return nearest(name, [f'config.{k}' for k in ends] or ['config', *extra])


def _is_part(key, known):
  """A whole section, or an element of a tuple: mesh[1]."""
  key = re.sub(r'\[\d+\]$', '', key)
  return key in known or any(k.startswith(key + '.') for k in known)


def config_file(argv) -> str | None:
  """The value of --config, or None."""
  for i, argument in enumerate(argv[1:], 1):
    if argument in ('--config', '-config') and i + 1 < len(argv):
      return argv[i + 1]
    if re.match(r'--?config=', argument):
      return argument.split('=', 1)[1]
  return None


def _load(path):
  """The config of a file, as --config=path would give it."""
  if path == 'configs/common.py':
    from configs import common

    return common.base()
  values = flags.FlagValues()
  argv = ['', f'--config={path}']
  config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=argv)
  try:
    values(argv)
    return _loaded(values.config)
  except Exception as error:
    raise InputError(_say(argv, error)) from error


def _loaded(config):
  """The config; a file that failed to load raises here, not at first use."""
  if config is not None:
    config.keys()
  return config


def _say(argv, error) -> str:
  path = config_file(argv)
  file = pathlib.Path(str(path).split(':', maxsplit=1)[0])
  if path and not file.is_file():
    beside = [str(p) for p in file.parent.glob('*.py')]
    return f'there is no config {path}{nearest(str(file), beside)}'
  if isinstance(error, flags.Error):
    if 'Traceback' in str(error):  # what get_config raised
      return f'{path}: {str(error).strip().splitlines()[-1]}'
    return one_line(error)
  return f'{path}: {type(error).__name__}: {one_line(error)}'
