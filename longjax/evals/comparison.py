"""REPORT.md, plots/ and results.json of models side by side."""

import dataclasses
import pathlib

from longjax import evals
from longjax.evals import markdown, stages, table


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
  stages.write_json(directory / 'results.json', content)
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
  written = []
  for key, evaluation in table.EVALUATIONS.items():
    have = {name: found[key] for name, found in by_name.items() if key in found}
    if have:
      plots = pathlib.Path(directory) / 'plots'
      written.append(evaluation.render(have, options, plots))
  return written


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


def summary(results: dict) -> str:
  """All scores as a table for a terminal, a column for each model."""
  columns = {name: evals.scalars(found) for name, found in results.items()}
  tags = list(dict.fromkeys(tag for found in columns.values() for tag in found))
  rows = []
  for tag in tags:
    name, part, *_ = tag.split('/')
    stand_in = part in table.EVALUATIONS[name].stand_ins
    cells = (found.get(tag) for found in columns.values())
    rows.append([tag + ' (stand-in)' * stand_in, *map(markdown.number, cells)])
  return markdown.aligned(['score', *columns], rows)
