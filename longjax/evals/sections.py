"""Results as the sections of a report: a table each, and its figure.

All take {name: results}, the names being stages of a run or checkpoints side
by side, and give Markdown, '' where nobody was asked.
"""

import functools
import itertools
import math

from longjax.evals import helmet, plots, position_loss, ruler, tasks


def write(stages: dict, ask, directory) -> list[str]:
  """All sections; their figures go to `directory`/plots.

  Args:
    stages: {name: results of evals.evaluate}.
    ask: the section `eval` of the config.
    directory: of the report.
  """
  figures = directory / 'plots'
  return [
    text
    for text in (
      _positions(stages, ask, figures),
      _contributions(stages, ask),
      _perplexity(stages, ask),
      _gain(stages, ask, figures),
      _longppl(stages),
      _passkey(stages),
      _needle(stages, ask, figures),
      _ruler(stages, figures),
      _helmet(stages),
      _scores(stages, 'passkey_original', 'The original passkey prompt'),
      _scores(stages, 'first_sentence', 'First-sentence retrieval, ROUGE-L'),
      _harness(stages),
    )
    if text
  ]


def not_measured(stages: dict) -> str:
  """The evaluations that were not run on all."""
  run = [{k.partition('/')[0] for k in found} for found in stages.values()]
  missing = [t for t in tasks.TASKS if not all(t in names for names in run)]
  whole = [
    head for head, parts in tasks.PARTS.items()
    if any(0 < len(_merged(r, head)) < len(parts) for r in stages.values())
  ]  # fmt: skip
  lines = [f'- not run: {", ".join(missing)}'] if missing else []
  lines += [f'- {head}: not all of its tasks' for head in whole]
  return '## What was not measured\n\n' + '\n'.join(lines) if lines else ''


def table(head, rows) -> str:
  """A Markdown table."""
  lines = [head, ['---'] * len(head), *rows]
  return '\n'.join('| ' + ' | '.join(map(str, x)) + ' |' for x in lines)


def of(stages: dict, key: str) -> dict:
  """{name: its results of one evaluation}, of those that have it."""
  return {name: found[key] for name, found in stages.items() if key in found}


def _positions(stages, ask, figures) -> str:
  curves = of(stages, 'position_loss')
  if not curves:
    return ''
  ends = next(iter(curves.values()))['end']
  window = ask.window if ask.window < ends[-1] else 0
  plots.loss_by_position(figures / 'loss_by_position.png', curves, window)
  rows = [
    [f'{start:,} - {end:,}' + (' *' if window and start >= window else '')]
    + [_number(curve['loss'][i]) for curve in curves.values()]
    for i, (start, end) in enumerate(zip([0, *ends], ends))
  ]
  note = f'\\* past the trained window of {window:,} tokens.' if window else ''
  return (
    '## Loss by position\n\n'
    'Mean negative log-likelihood in nats on '
    f'{_documents(ask)} of {ends[-1]:,} tokens.\n\n'
    + table(['position', *curves], rows)
    + f'\n\n{note}\n\n![loss by position](plots/loss_by_position.png)'
  )


def _contributions(stages, ask) -> str:
  """What each stage adds to the one before, inside and past the window."""
  curves, window = of(stages, 'position_loss'), ask.window
  if len(curves) < 2:
    return ''
  names, end = list(curves), next(iter(curves.values()))['end'][-1]
  spans = [(0, end)]
  if 0 < window < end:
    spans = [(0, window), (window, end), (end - end // 4, end)]
  rows = []
  for start, stop in spans:
    means = [position_loss.mean(c, start, stop) for c in curves.values()]
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


def _perplexity(stages, ask) -> str:
  found = of(stages, 'perplexity')
  if not found:
    return ''
  first = next(iter(found.values()))
  modes = [k for k in first if k not in ('length', 'stride')]
  rows = [
    [f'{length:,}', mode, *(_number(r[mode][i]) for r in found.values())]
    for i, length in enumerate(first['length'])
    for mode in modes
  ]
  return (
    f'## Perplexity over windows\n\nStride {first["stride"]} tokens, at most '
    f'all but one of the window; {_documents(ask)} of {ask.length:,} tokens. '
    'The modes are those of longjax/evals/perplexity.py: compare within one.'
    '\n\n' + table(['window', 'mode', *found], rows)
  )


def _gain(stages, ask, figures) -> str:
  gains = of(stages, 'context_gain')
  if not gains:
    return ''
  plots.power_law(figures / 'power_law.png', gains)
  first = next(iter(gains.values()))
  rows = [
    [f'{context:,}', *(_number(g['loss'][i]) for g in gains.values())]
    for i, context in enumerate(first['context'])
  ]
  fits = [
    [name, *(_triple(g['fit'][k]) for k in ('alpha', 'beta', 'gamma')),
     f'{g["fit"]["residual"]:.4f}']
    for name, g in gains.items() if g['fit']
  ]  # fmt: skip
  fitted = (
    'Fit of L(c) = (alpha / c)^beta + gamma with 95 % intervals:\n\n'
    + table(['', 'alpha', 'beta', 'gamma', 'residual (nats)'], fits)
    if fits else 'No power law fits these losses.'
  )  # fmt: skip
  return (
    '## What more context is worth\n\n'
    f'Loss in nats of the same last {first["scored"]} tokens of '
    f'{_documents(ask)}, given so many tokens before them.\n\n'
    + table(['context', *gains], rows)
    + f'\n\n{fitted}\n\n![power law](plots/power_law.png)'
  )


def _longppl(stages) -> str:
  found = of(stages, 'longppl')
  if not found:
    return ''
  rows = [
    [name, _number(r['longppl']), _number(r['perplexity']),
     f'{r["key_tokens"]:,} of {r["tokens"]:,}']
    for name, r in found.items()
  ]  # fmt: skip
  first = next(iter(found.values()))
  return (
    '## LongPPL\n\nEach model finds its own key tokens (the paper takes a '
    f'strong one), with a short context of {first["short"]:,} tokens and '
    f'steps of {first["stride"]:,}.\n\n'
    + table(['', 'LongPPL', 'perplexity', 'key tokens'], rows)
  )


def _passkey(stages) -> str:
  asked = of(stages, 'passkey')
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


def _needle(stages, ask, figures) -> str:
  maps = of(stages, 'needle')
  if not maps:
    return ''
  plots.heat_maps(figures / 'needle.png', maps)
  first = next(iter(maps.values()))
  rows = [
    [f'{length:,}', *(
      f'{100 * sum(r["score"][i]) / len(r["score"][i]):.0f}'
      for r in maps.values()
    )]
    for i, length in enumerate(first['length'])
  ]  # fmt: skip
  return (
    '## Needle in a haystack\n\nShare of the keywords in the answer in percent '
    f'(not the judge of the original), mean of {len(first["depths"])} depths, '
    f'one try each; the haystack is {_sources(ask)}.\n\n'
    + table(['tokens', *maps], rows)
    + '\n\n![needle](plots/needle.png)'
  )


def _ruler(stages, figures) -> str:
  text = _scores(stages, 'ruler', 'RULER')
  if not text:
    return ''
  lines = {name: _means(_merged(found, 'ruler'))
           for name, found in stages.items()}  # fmt: skip
  lines = {name: points for name, points in lines.items() if points}
  plots.scores_by_length(figures / 'ruler.png', lines)
  rows = []
  for name, points in lines.items():
    means = {length: 100 * score for length, (score, _, _) in points.items()}
    whole = _merged(stages[name], 'ruler').keys() == ruler.TASKS.keys()
    effective = [
      f'{ruler.effective_length(means, bar):,}' if whole else 'not all tasks'
      for bar in (ruler.BAR, ruler.BASE_BAR)
    ]
    rows.append([name, ', '.join(
      f'{length:,}: {mean:.1f}' for length, mean in sorted(means.items())
    ), *effective, *(f'{x:.1f}' for x in ruler.weighted(means))])  # fmt: skip
  head = ['', 'mean of the tasks', f'effective (bar {ruler.BAR})',
          f'effective (bar {ruler.BASE_BAR})', 'wAvg inc', 'dec']  # fmt: skip
  return (
    f'{text}\n\n{table(head, rows)}\n\nEssays are held-out documents, the '
    'documents of qa_1 and qa_2 invented: compare with each other, not with '
    'the published tables.\n\n![RULER by length](plots/ruler.png)'
  )


def _helmet(stages) -> str:
  text = _scores(stages, 'helmet', 'HELMET, the parts without outside data')
  recall = {}
  for name, found in stages.items():
    tasks_ = _merged(found, 'helmet')
    if all(t in tasks_ for t in helmet.RECALL):
      recall[name] = _means({t: tasks_[t] for t in helmet.RECALL})
  lines = [
    f'{name}: ' + ', '.join(
      f'{100 * mean:.1f} at {length:,}' for length, (mean, _, _) in r.items()
    )
    for name, r in recall.items()
  ]  # fmt: skip
  return text + (f'\n\nRecall: {"; ".join(lines)}.' if text and lines else '')


def _scores(stages, head: str, title: str) -> str:
  """Tasks by length: score in percent, 95 % interval, samples."""
  found = {name: _merged(r, head) for name, r in stages.items()}
  found = {name: tasks_ for name, tasks_ in found.items() if tasks_}
  if not found:
    return ''
  names = list(dict.fromkeys(t for r in found.values() for t in r))
  lengths = sorted(
    {x['length'] for r in found.values() for xs in r.values() for x in xs}
  )
  cell = functools.partial(_cell, found)
  rows = [
    [task, f'{length:,}', *(cell(name, task, length) for name in found)]
    for task in names
    for length in lengths
  ]
  return (
    f'## {title}\n\nIn percent, with the 95 % binomial interval and the number '
    'of samples.\n\n' + table(['task', 'tokens', *found], rows)
  )


def _cell(found, name, task, length) -> str:
  for x in found[name].get(task, ()):
    if x['length'] == length:
      low, high = 100 * x['low'], 100 * x['high']
      return f'{100 * x["score"]:.1f} ({low:.0f}-{high:.0f}, {x["samples"]})'
  return ''


def _harness(stages) -> str:
  rows = [
    [key.partition('/')[2], name, ', '.join(
      f'{metric.partition(",")[0]} {_number(value)}'
      for metric, value in found[key].items()
    )]
    for name, found in stages.items()
    for key in found if key.startswith('lm_eval/')
  ]  # fmt: skip
  if not rows:
    return ''
  return '## lm-eval\n\n' + table(['task', '', 'metrics'], rows)


def _merged(results: dict, head: str) -> dict:
  """{task: its scores} of all results of a kind, ruler and ruler/vt alike."""
  parts = [r for k, r in results.items() if k.partition('/')[0] == head]
  return {task: scores for part in parts for task, scores in part.items()}


def _means(tasks_: dict) -> dict:
  """{length: (mean of the tasks, mean low, mean high)}, of whole lengths."""
  at: dict = {}
  for scores in tasks_.values():
    for x in scores:
      triple = (x['score'], x['low'], x['high'])
      at.setdefault(x['length'], []).append(triple)
  return {
    length: tuple(math.fsum(column) / len(column) for column in zip(*triples))
    for length, triples in sorted(at.items())
    if len(triples) == len(tasks_)
  }


def _documents(ask) -> str:
  plural = 's' if ask.documents > 1 else ''
  return f'{ask.documents} held-out document{plural} ({_sources(ask)})'


def _sources(ask) -> str:
  return ', '.join(sorted(ask.sources))


def _number(value) -> str:
  return '-' if value is None else f'{value:.3f}'


def _triple(values) -> str:
  best, low, high = values
  if high is None or high > 1e6 or low is None:
    return f'{best:.3g} (not determined)'
  return f'{best:.3g} ({low:.3g} to {high:.3g})'
