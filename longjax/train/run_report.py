"""REPORT.md of a training run, from what lies in its directory."""

import json
import math
import pathlib

from longjax.evals import comparison, saved_results
from longjax.evals.markdown import section, table
from longjax.progress import duration
from longjax.train import goodput, metrics


def write(workdir, config):
  """Writes REPORT.md and plots/ of a run.

  Args:
    workdir: the run directory.
    config: the whole config.
  """
  workdir = pathlib.Path(workdir)
  results = saved_results.load(workdir, config)
  code = workdir / 'code.json'
  comparison.write_report(
    workdir,
    f'# {config.name}',
    settings_table(config),
    training(workdir),
    time_spent(workdir),
    *comparison.sections(results, config.eval, workdir),
    comparison.limits(config, results),
    comparison.reproduce(json.loads(code.read_text()) if code.exists() else {}),
  )


def settings_table(config) -> str:
  """What distinguishes the run, as a table."""
  train, model, mesh = config.train, config.model, config.mesh
  return table(
    ['setting', ''],
    [
      ['weights', config.weights.split('#')[0]],
      ['RoPE', comparison.describe_rope(model.rope)],
      ['rows', f'{train.batch} x {train.seq_len:,} tokens'],
      ['documents', ', '.join(sorted(config.data.sources))],
      ['mesh', f'data {mesh.data} x seq {mesh.seq}, {model.attention} '
               f'attention, {config.data.layout}'],
      ['learning rate', f'{config.optim.learning_rate:g}, '
                        f'{config.optim.schedule}'],
    ],
  )  # fmt: skip


def training(workdir) -> str:
  """Steps, tokens, losses and time."""
  lines = metrics.read(workdir)
  if not lines:
    return section('Training', 'No steps were run.')
  losses = [x['loss'] for x in lines if x['loss'] is not None] or [math.nan]
  seconds = sum(x['step_seconds'] for x in lines)
  rate = lines[-1]['tokens'] / seconds
  head = ['steps', 'tokens', 'first loss', 'last loss', 'time', 'tokens/s',
          'skipped', 'skipped without targets']  # fmt: skip
  row = [
    len(lines), f'{lines[-1]["tokens"]:,}', f'{losses[0]:.3f}',
    f'{losses[-1]:.3f}', duration(seconds), f'{rate:,.0f}',
    sum(int(x['skipped']) for x in lines),
    sum(int(x.get('empty', 0)) for x in lines),
  ]  # fmt: skip
  return section('Training', table(head, [row]))


def time_spent(workdir) -> str:
  """Shares of the time of all starts."""
  starts = goodput.read(workdir)
  if not starts:
    return ''
  spent = goodput.summary(starts)
  plural = 's' if len(starts) > 1 else ''
  kinds = [k for k in (*goodput.KINDS, 'starting', 'down') if spent[k] > 0]
  shares = [f'{spent[k] / spent["seconds"]:.1%}' for k in kinds]
  return section(
    'Where the time went',
    f'{len(starts)} start{plural}; goodput {spent["goodput"]:.1%}: the share '
    f'of {duration(spent["seconds"])} spent on training steps that were kept.',
    table(kinds, [shares]),
  )
