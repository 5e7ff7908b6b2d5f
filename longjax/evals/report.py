"""REPORT.md of a run: tables, the plot, and what they do not show."""

import hashlib
import itertools
import json
import pathlib
import re
import time

from longjax import metrics
from longjax.evals import position_loss


def _file(workdir, name: str) -> pathlib.Path:
  name = re.sub(r'\W+', '_', name)
  return pathlib.Path(workdir) / 'evals' / f'{name}.json'


def has(workdir, name: str, config) -> bool:
  """Whether this evaluation was done, with this very config."""
  path = _file(workdir, name)
  if not path.exists():
    return False
  return json.loads(path.read_text())['config'] == _digest(config)


def keep(workdir, name: str, config, results: dict):
  """Stores results of evals.evaluate, so that a resumed run has them."""
  path = _file(workdir, name)
  path.parent.mkdir(parents=True, exist_ok=True)
  content = dict(
    name=name, time=time.time(), config=_digest(config), results=results
  )
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
  found = [json.loads(path.read_text()) for path in files]
  mine = [x for x in found if x['config'] == _digest(config)]
  return {
    x['name']: x['results'] for x in sorted(mine, key=lambda x: x['time'])
  }


def write(workdir, config) -> pathlib.Path:
  """Writes REPORT.md and plots/ of a run from what lies in its directory."""
  workdir = pathlib.Path(workdir)
  results = stages(workdir, config)
  curves = {k: v['position_loss'] for k, v in results.items()
            if 'position_loss' in v}  # fmt: skip
  parts = [f'# {config.name}', _setting(config), _training(workdir)]
  if curves:
    _plot(workdir / 'plots' / 'loss_by_position.png', curves, config)
    parts += [_position_table(curves, config), _contributions(curves, config)]
  parts += [_passkey(results), _limits(config, curves), _reproduce(workdir)]
  path = workdir / 'REPORT.md'
  path.write_text('\n\n'.join(p for p in parts if p) + '\n')
  return path


def _setting(config) -> str:
  rope = config.model.rope
  scaling = '' if rope.scaling == 'none' else (
    f', {rope.scaling} scaling by {rope.factor:g}'
  )  # fmt: skip
  return table(
    ['setting', ''],
    [
      ['weights', config.weights.split('#')[0]],
      ['RoPE', f'base {rope.base:,.0f}{scaling}'],
      ['rows', f'{config.train.batch} x {config.train.seq_len:,} tokens'],
      ['documents', ', '.join(sorted(config.data.sources))],
      ['mesh', f'data {config.mesh.data} x seq {config.mesh.seq}, '
               f'{config.model.attention} attention, {config.data.layout}'],
      ['learning rate', f'{config.optim.learning_rate:g}, '
                        f'{config.optim.schedule}'],
    ],
  )  # fmt: skip


def _training(workdir) -> str:
  lines = metrics.read(workdir)
  if not lines:
    return '## Training\n\nNo steps were run.'
  seconds = sum(x['step_seconds'] for x in lines)
  rate = lines[-1]['tokens'] / seconds
  return '## Training\n\n' + table(
    ['steps', 'tokens', 'first loss', 'last loss', 'time', 'tokens/s',
     'skipped'],
    [[
      len(lines), f'{lines[-1]["tokens"]:,}', f'{lines[0]["loss"]:.3f}',
      f'{lines[-1]["loss"]:.3f}', metrics.duration(seconds), f'{rate:,.0f}',
      sum(int(x['skipped']) for x in lines),
    ]],
  )  # fmt: skip


def _position_table(curves, config) -> str:
  names = list(curves)
  ends = curves[names[0]]['end']
  window = config.eval.window
  rows = [
    [f'{start:,} - {end:,}' + (' *' if window and start >= window else '')]
    + [f'{curves[n]["loss"][i]:.3f}' for n in names]
    for i, (start, end) in enumerate(zip([0, *ends], ends))
  ]
  note = f'\\* past the trained window of {window:,} tokens.' if window else ''
  return (
    '## Loss by position\n\n'
    'Mean negative log-likelihood in nats on '
    f'{config.eval.documents} held-out document(s) of {ends[-1]:,} tokens '
    f'({", ".join(sorted(config.eval.sources))}).\n\n'
    + table(['position', *names], rows)
    + f'\n\n{note}\n\n![loss by position](plots/loss_by_position.png)'
  )


def _contributions(curves, config) -> str:
  """What each stage adds to the one before, inside and past the window."""
  names, window = list(curves), config.eval.window
  end = curves[names[0]]['end'][-1]
  spans = [(0, end)]
  if 0 < window < end:
    spans = [(0, window), (window, end), (end - end // 4, end)]
  rows = []
  for start, stop in spans:
    means = [position_loss.mean(curves[n], start, stop) for n in names]
    cells = [f'{means[0]:.3f}']
    cells += [f'{b:.3f} ({b - a:+.3f})' for a, b in itertools.pairwise(means)]
    rows.append([f'{start:,} - {stop:,}', *cells])
  summary = ', '.join(
    f'{b - a:+.3f} by {name}'
    for name, (a, b) in zip(names[1:], itertools.pairwise(means))
  )
  return (
    '### What each part contributes\n\n'
    'In brackets: the change against the column before.\n\n'
    + table(['position', *names], rows)
    + f'\n\nAt positions {rows[-1][0]}: {summary}.'
  )


def _passkey(stages) -> str:
  asked = {k: v['passkey'] for k, v in stages.items() if 'passkey' in v}
  if not asked:
    return ''
  first = next(iter(asked.values()))
  rows = [
    [f'{length:,}']
    + [f'{sum(r["found"][i])}/{len(r["found"][i])}' for r in asked.values()]
    for i, length in enumerate(first['length'])
  ]
  depths = ', '.join(f'{d:.0%}' for d in first['depths'])
  return (
    f'## Passkey\n\nKeys found, one try at each depth ({depths}).\n\n'
    + table(['tokens', *asked], rows)
  )


def _limits(config, curves) -> str:
  lines = list(config.notes)
  if curves:
    lines.insert(0, (
      f'{config.eval.documents} document(s) and one seed: small differences '
      'may be chance.'
    ))  # fmt: skip
  if not lines:
    return ''
  return '## What this does not show\n\n' + '\n'.join(f'- {x}' for x in lines)


def _reproduce(workdir) -> str:
  path = workdir / 'code.json'
  code = json.loads(path.read_text()) if path.exists() else {}
  versions = ', '.join(f'{k} {v}' for k, v in code.get('versions', {}).items())
  return (
    f'## Again\n\n```\n{code.get("command", "")}\n```\n\n'
    f'commit {code.get("commit", "unknown")}; {versions}'
  )


def table(head, rows) -> str:
  """A Markdown table."""
  lines = [head, ['---'] * len(head), *rows]
  return '\n'.join('| ' + ' | '.join(map(str, x)) + ' |' for x in lines)


def _plot(path, curves, config):
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot

  figure, axes = pyplot.subplots(figsize=(7, 4), layout='constrained')
  for name, curve in curves.items():
    starts = [0, *curve['end'][:-1]]
    middle = [(a + b) / 2 for a, b in zip(starts, curve['end'])]
    axes.plot(middle, curve['loss'], marker='o', markersize=3, label=name)
  if config.eval.window:
    axes.axvline(config.eval.window, color='grey', linestyle='--')
    axes.text(
      config.eval.window, axes.get_ylim()[1], ' trained window', va='top',
      color='grey',
    )  # fmt: skip
  axes.set_xlabel('position in the document (tokens)')
  axes.set_ylabel('loss (nats per token)')
  axes.legend()
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=120)
  pyplot.close(figure)
