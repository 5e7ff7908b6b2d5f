"""REPORT.md, plots/ and results.json of models side by side."""

import dataclasses
import itertools
import json
import pathlib

from longjax import evals, storage
from longjax.evals import figures, markdown, score, table
from longjax.evals.evaluation import invented, means

PAIRED = (
  'Differences of the same prompts or documents, where there are several with '
  'their paired 95 % interval.'
)


def write(directory, config, code: dict, about: dict, results: dict):
  """Writes REPORT.md, plots/ and results.json.

  Args:
    directory: where to.
    config: the whole config.
    code: {'command', 'commit', 'versions'} of train.provenance.
    about: {name: {'path', 'step', 'rope'}} of the checkpoints.
    results: {name: results of evals.evaluate}.
  """
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  checkpoints = {
    name: one | dict(rope=dataclasses.asdict(one['rope']))
    for name, one in about.items()
  }
  content = dict(
    config=config.to_dict(), code=code, checkpoints=checkpoints, results=results
  )
  text = json.dumps(content, indent=1)
  storage.write_text(directory / 'results.json', text)
  rows = [
    [name, one['path'], '' if one['step'] is None else one['step'],
     describe_rope(one['rope'])]
    for name, one in about.items()
  ]  # fmt: skip
  write_report(
    directory,
    f'# Evaluation: {" and ".join(about)}',
    markdown.table(['name', 'checkpoint', 'step', 'RoPE'], rows),
    *sections(results, config.eval, directory),
    not_measured(results),
    limits(config, results),
    reproduce(code),
  )


def write_report(directory, *parts: str):
  """REPORT.md of the parts that are not empty."""
  text = '\n\n'.join(filter(None, parts)) + '\n'
  (pathlib.Path(directory) / 'REPORT.md').write_text(text)


def sections(results: dict, options, directory) -> list[str]:
  """A section for each evaluation; figures go to `directory`/plots.

  Args:
    results: {name of a model or a stage of training: results}.
    options: the section `eval` of the config.
    directory: of the report.
  """
  by_name = {
    name: table.by_evaluation(found) for name, found in results.items()
  }
  have = lambda key: {n: x[key] for n, x in by_name.items() if key in x}
  return [
    section(evaluation, mine, options, pathlib.Path(directory))
    for key, evaluation in table.EVALUATIONS.items() if (mine := have(key))
  ]  # fmt: skip


def section(evaluation, results: dict, options, directory) -> str:
  """A table of the scores of models, their differences, and a figure."""
  points = {name: evaluation.scores(found) for name, found in results.items()}
  keys = dict.fromkeys(key for one in points.values() for key in one)
  pairs = list(itertools.pairwise(points))
  rows = [
    [*label(evaluation, key, options),
     *(cell(one.get(key), evaluation.percent) for one in points.values()),
     *(difference(points[a].get(key), points[b].get(key), evaluation.percent)
       for a, b in pairs)]
    for key in keys
  ]  # fmt: skip
  head = [*evaluation.columns, *points]
  head += [f'difference, {b} - {a}' for a, b in pairs]
  above, below = evaluation.text(results, options)
  stand_ins = [
    f'Stand-in {part}: {what}.' for part in evaluation.stand_ins
    if (what := invented(evaluation, part, options))
    and any(key.split('/')[0] == part for key in keys)
  ]  # fmt: skip
  return markdown.section(
    evaluation.title,
    *above,
    markdown.table(head, rows),
    PAIRED if any(' to ' in row[-1] for row in rows) else '',
    ' '.join(stand_ins),
    *below,
    draw(evaluation, results, points, options, directory),
  )


def label(evaluation, key: str, options) -> list[str]:
  """The first cells of a row: the parts of a score's name."""
  *names, last = key.rsplit('/', len(evaluation.columns) - 1)
  made = bool(names) and invented(evaluation, names[0], options)
  mark = ' (stand-in)' * bool(made)
  return [*(n + mark for n in names), f'{int(last):,}' if last.isdecimal()
          else last]  # fmt: skip


def cell(point, percent: bool) -> str:
  """A score, its interval and the number of its samples, if it has them."""
  if point is None or point.value is None:
    return '' if point is None else '-'
  if not percent:
    return markdown.number(point.value)
  count = f', {len(point.each)}' if point.each else ''
  if point.low is None:
    return f'{100 * point.value:.1f}' + f' ({count[2:]})' * bool(count)
  low, high = 100 * point.low, 100 * point.high
  return f'{100 * point.value:.1f} ({low:.0f}-{high:.0f}{count})'


def difference(before, after, percent: bool) -> str:
  """By how much a score differs, with the paired 95 % interval."""
  if not before or not after or None in (before.value, after.value):
    return ''
  scale, form = (100, '+.1f') if percent else (1, '+.3f')
  text = f'{scale * (after.value - before.value):{form}}'
  reach = score.paired_interval(before.each, after.each)
  if reach is None:
    return text
  low, high = (f'{scale * x:{form}}' for x in reach)
  return f'{text} ({low} to {high})'


def draw(evaluation, results, points, options, directory) -> str:
  """The figure of an evaluation, in Markdown; '' if it has none."""
  path = directory / 'plots' / f'{evaluation.name}.png'
  if evaluation.heat:
    maps = {
      name: (r['length'], r['depths'], r.get('score', r.get('found')))
      for name, r in results.items()
    }
    figures.heat_maps(path, maps)
  elif evaluation.axis:
    curves = {name: means(one) for name, one in points.items()}
    curves = {name: one for name, one in curves.items() if one}
    if not curves:
      return ''
    scale = 100 if evaluation.percent else 1
    figures.lines(path, curves, evaluation.axis, scale, options.window)
  else:
    return ''
  return f'![{evaluation.title}](plots/{path.name})'


def not_measured(results: dict) -> str:
  """The evaluations that were not run on all."""
  found = [table.by_evaluation(one) for one in results.values()]
  missing = [
    name for name in table.EVALUATIONS if not all(name in one for one in found)
  ]
  lines = [f'not run: {", ".join(missing)}'] if missing else []
  lines += [
    f'{name}: not all of its tasks'
    for name, evaluation in table.EVALUATIONS.items()
    if any(
      len(one[name]) < len(evaluation.parts) for one in found if name in one
    )
  ]
  if not lines:
    return ''
  return markdown.section('What was not measured', markdown.bullets(lines))


def limits(config, results: dict) -> str:
  """What the results do not show."""
  lines = list(config.notes)
  if any('position_loss' in found for found in results.values()):
    count = config.eval.documents
    documents = 'one document' if count == 1 else f'{count} documents'
    lines.insert(
      0, f'{documents} and one seed: small differences may be chance.'
    )
  if not lines:
    return ''
  return markdown.section('What this does not show', markdown.bullets(lines))


def reproduce(code: dict) -> str:
  """The command, the commit and the versions of packages."""
  versions = ', '.join(f'{k} {v}' for k, v in code.get('versions', {}).items())
  return markdown.section(
    'Reproduce',
    f'```\n{code.get("command", "")}\n```',
    f'commit {code.get("commit", "unknown")}; {versions}',
  )


def describe_rope(rope) -> str:
  scaled = f', {rope.scaling} scaling by {rope.factor:g}'
  return f'base {rope.base:,.0f}' + scaled * (rope.scaling != 'none')


def summary(results: dict, options) -> str:
  """All scores as a table for a terminal, a column for each model."""
  columns = {name: evals.scalars(found) for name, found in results.items()}
  tags = list(dict.fromkeys(tag for found in columns.values() for tag in found))
  rows = []
  for tag in tags:
    name, part, *_ = tag.split('/')
    stand_in = bool(invented(table.EVALUATIONS[name], part, options))
    cells = (found.get(tag) for found in columns.values())
    rows.append([tag + ' (stand-in)' * stand_in, *map(markdown.number, cells)])
  return markdown.aligned(['score', *columns], rows)
