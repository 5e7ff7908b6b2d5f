"""Refuses to resume a run with a config that would make it another run.

Each key of longjax/config.py has `may_change`: those that say how training
proceeds may, those that say which model learns what in which order may not.
"""

import json

from longjax import config as schema
from longjax.errors import InputError

ABSENT = 'nothing'


def check(before: dict, now: dict, workdir, log):
  """Logs what differs; InputError for what would make it another run.

  Args:
    before: config of the checkpoint, as nested dicts out of JSON.
    now: config of this start, likewise.
    workdir: for the message.
    log: called with a line for each key that differs.
  """
  refused = []
  for name, (old, new) in differences(before, now).items():
    key, why = schema.find(name), ''
    if name == 'train.steps' and now['data']['curriculum']:
      why = ', of which the stages of config.data.curriculum are shares'
    if key and key.may_change and not why:
      log(f'config.{name} was {old!r}, is now {new!r}')
    else:
      log(f'REFUSED: config.{name} was {old!r}, is now {new!r}')
      refused.append(f'config.{name} {old!r} (now {new!r}{why})')
  if refused:
    raise InputError(
      f'{workdir} was trained with {", ".join(refused)}; use another --workdir'
    )


def differences(before: dict, now: dict) -> dict:
  """{key: (before, now)} where they differ.

  A key of the schema that a checkpoint lacks is newer than the checkpoint: its
  value was the default. Other keys that only one of them has came or went with
  the code and are left out, but not inside sources and mixtures, where users
  name the keys.
  """
  old, new = schema.flat(before), schema.flat(now)
  for name, key in schema.KEYS.items():
    if name in new and not isinstance(key.default, type | dict):
      old.setdefault(name, json.loads(json.dumps(key.default)))
  return {
    name: (old.get(name, ABSENT), new.get(name, ABSENT))
    for name in sorted(old | new)
    if old.get(name, ABSENT) != new.get(name, ABSENT)
    and ((name in old and name in new) or _is_named_by_users(name))
  }


def _is_named_by_users(name: str) -> bool:
  key = schema.find(name)
  return key is not None and key.kind is dict
