"""Evaluations of a training run, kept in its directory as evals/NAME.json."""

import hashlib
import json
import pathlib
import re
import time

from longjax import storage

KEYS = ('name', 'time', 'config', 'results')


def done(workdir, name: str, config) -> bool:
  """Whether this evaluation was done, with this very config."""
  kept = _read(_file(workdir, name))
  return kept is not None and kept['config'] == _digest(config)


def save(workdir, name: str, config, results: dict):
  """Stores results of evals.evaluate, so that a resumed run has them."""
  path = _file(workdir, name)
  path.parent.mkdir(parents=True, exist_ok=True)
  values = name, time.time(), _digest(config), results
  content = dict(zip(KEYS, values, strict=True))
  storage.write_text(path, json.dumps(content, indent=1))


def load(workdir, config) -> dict:
  """{name: results} of the evaluations of a run, in the order they ran."""
  files = (pathlib.Path(workdir) / 'evals').glob('*.json')
  kept = filter(None, map(_read, files))
  mine = [x for x in kept if x['config'] == _digest(config)]
  return {
    x['name']: x['results'] for x in sorted(mine, key=lambda x: x['time'])
  }


def _file(workdir, name: str) -> pathlib.Path:
  name = re.sub(r'\W+', '_', name)
  return pathlib.Path(workdir) / 'evals' / f'{name}.json'


def _read(path: pathlib.Path) -> dict | None:
  """What `save` wrote; None if that is not there or damaged."""
  try:
    kept = json.loads(path.read_bytes())
  except (OSError, ValueError):
    return None
  return kept if isinstance(kept, dict) and {*KEYS} <= {*kept} else None


def _digest(config) -> str:
  """Of what decides the result of an evaluation before training."""
  whole = config.to_dict()
  decides = [whole[k] for k in ('weights', 'model', 'seed', 'eval')]
  text = json.dumps(decides, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()
