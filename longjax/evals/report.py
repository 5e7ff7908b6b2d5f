"""REPORT.md of a run: its setting, its results, what they do not show."""

import dataclasses
import hashlib
import json
import math
import pathlib
import re
import time

from longjax import progress
from longjax.evals import sections
from longjax.train import goodput, metrics, provenance

KEPT = ('name', 'time', 'config', 'results')  # of an evaluation, in a file


def _file(workdir, name: str) -> pathlib.Path:
  name = re.sub(r'\W+', '_', name)
  return pathlib.Path(workdir) / 'evals' / f'{name}.json'


def has(workdir, name: str, config) -> bool:
  """Whether this evaluation was done, with this very config."""
  kept = _read(_file(workdir, name))
  return kept is not None and kept['config'] == _digest(config)


def _read(path: pathlib.Path) -> dict | None:
  """What `keep` wrote; None if that is not there or damaged."""
  try:
    kept = json.loads(path.read_bytes())
  except (OSError, ValueError):
    return None
  whole = isinstance(kept, dict) and {*KEPT} <= {*kept}
  return kept if whole else None


def keep(workdir, name: str, config, results: dict):
  """Stores results of evals.evaluate, so that a resumed run has them."""
  path = _file(workdir, name)
  path.parent.mkdir(parents=True, exist_ok=True)
  values = name, time.time(), _digest(config), results
  content = dict(zip(KEPT, values, strict=True))
  temporary = path.with_suffix('.tmp')
  temporary.write_text(json.dumps(content, indent=1))
  temporary.replace(path)


def _digest(config) -> str:
  """Of what decides the result of an evaluation before training."""
  all_of_it = config.to_dict()
  decides = [all_of_it[k] for k in ('weights', 'model', 'seed', 'eval')]
  text = json.dumps(decides, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def stages(workdir, config) -> dict:
  """{name: results} of the evaluations of a run, in the order they ran."""
  files = (pathlib.Path(workdir) / 'evals').glob('*.json')
  found = filter(None, map(_read, files))
  mine = [x for x in found if x['config'] == _digest(config)]
  return {
    x['name']: x['results'] for x in sorted(mine, key=lambda x: x['time'])
  }


def write(workdir, config) -> pathlib.Path:
  """Writes REPORT.md and plots/ of a run from what lies in its directory."""
  workdir = pathlib.Path(workdir)
  found = stages(workdir, config)
  parts = [
    f'# {config.name}',
    _setting(config),
    _training(workdir),
    _time(workdir),
    *sections.write(found, config.eval, workdir),
    _limits(config, sections.of(found, 'position_loss')),
    _reproduce(workdir),
  ]
  path = workdir / 'REPORT.md'
  path.write_text('\n\n'.join(p for p in parts if p) + '\n')
  return path


def _setting(config) -> str:
  return sections.table(
    ['setting', ''],
    [
      ['weights', config.weights.split('#')[0]],
      ['RoPE', _rope(config.model.rope)],
      ['rows', f'{config.train.batch} x {config.train.seq_len:,} tokens'],
      ['documents', ', '.join(sorted(config.data.sources))],
      ['mesh', f'data {config.mesh.data} x seq {config.mesh.seq}, '
               f'{config.model.attention} attention, {config.data.layout}'],
      ['learning rate', f'{config.optim.learning_rate:g}, '
                        f'{config.optim.schedule}'],
    ],
  )  # fmt: skip


def _rope(rope) -> str:
  scaled = f', {rope.scaling} scaling by {rope.factor:g}'
  return f'base {rope.base:,.0f}' + scaled * (rope.scaling != 'none')


def _training(workdir) -> str:
  lines = metrics.read(workdir)
  if not lines:
    return '## Training\n\nNo steps were run.'
  losses = [x['loss'] for x in lines if x['loss'] is not None] or [math.nan]
  seconds = sum(x['step_seconds'] for x in lines)
  rate = lines[-1]['tokens'] / seconds
  return '## Training\n\n' + sections.table(
    ['steps', 'tokens', 'first loss', 'last loss', 'time', 'tokens/s',
     'skipped'],
    [[
      len(lines), f'{lines[-1]["tokens"]:,}', f'{losses[0]:.3f}',
      f'{losses[-1]:.3f}', progress.duration(seconds), f'{rate:,.0f}',
      sum(int(x['skipped']) for x in lines),
    ]],
  )  # fmt: skip


def _time(workdir) -> str:
  starts = goodput.read(workdir)
  if not starts:
    return ''
  spent = goodput.summary(starts)
  plural = 's' if len(starts) > 1 else ''
  kinds = [k for k in (*goodput.KINDS, 'starting', 'down') if spent[k] > 0]
  return (
    '## Where the time went\n\n'
    f'{len(starts)} start{plural}; goodput {spent["goodput"]:.1%}: the share '
    f'of {progress.duration(spent["seconds"])} in which steps were trained '
    'whose result was kept.\n\n'
    + sections.table(
      kinds, [[f'{spent[k] / spent["seconds"]:.1%}' for k in kinds]]
    )
  )


def _limits(config, curves) -> str:
  lines = list(config.notes)
  if curves:
    count = config.eval.documents
    documents = 'one document' if count == 1 else f'{count} documents'
    lines.insert(
      0, f'{documents} and one seed: small differences may be chance.'
    )
  if not lines:
    return ''
  return '## What this does not show\n\n' + '\n'.join(f'- {x}' for x in lines)


def _reproduce(workdir) -> str:
  path = workdir / 'code.json'
  return _again(json.loads(path.read_text()) if path.exists() else {})


def _again(code) -> str:
  versions = ', '.join(f'{k} {v}' for k, v in code.get('versions', {}).items())
  return (
    f'## Again\n\n```\n{code.get("command", "")}\n```\n\n'
    f'commit {code.get("commit", "unknown")}; {versions}'
  )


def compare(directory, config, about: dict, found: dict) -> pathlib.Path:
  """REPORT.md, plots/ and results.json of checkpoints side by side.

  Args:
    directory: where to.
    config: the whole config.
    about: {name: {'path', 'step', 'rope'}} of the checkpoints.
    found: {name: results of evals.evaluate}.
  """
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  code = provenance.code()
  checkpoints = {
    name: told | dict(rope=dataclasses.asdict(told['rope']))
    for name, told in about.items()
  }
  content = dict(
    config=config.to_dict(), code=code, checkpoints=checkpoints, results=found
  )
  temporary = directory / 'results.tmp'
  temporary.write_text(json.dumps(content, indent=1))
  temporary.replace(directory / 'results.json')
  rows = [
    [name, told['path'], '' if told['step'] is None else told['step'],
     _rope(told['rope'])]
    for name, told in about.items()
  ]  # fmt: skip
  parts = [
    f'# Evaluation: {" and ".join(about)}',
    sections.table(['name', 'checkpoint', 'step', 'RoPE'], rows),
    *sections.write(found, config.eval, directory),
    sections.not_measured(found),
    _limits(config, sections.of(found, 'position_loss')),
    _again(code),
  ]
  path = directory / 'REPORT.md'
  path.write_text('\n\n'.join(p for p in parts if p) + '\n')
  return path
