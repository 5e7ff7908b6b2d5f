"""Trains a small base model, extends it by each method, and compares them.

The recipes are configs/lab/; launch/lab.py brings them here. It is part of the
library, not of evals: its tasks make training documents as well, and no model
but its own can read their ids.
"""

import itertools
import json
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from longjax import storage, weights
from longjax.data import sources, store, tokenizer
from longjax.errors import InputError
from longjax.evals import position_loss
from longjax.evals.markdown import table
from longjax.inference import language_model
from longjax.lab import miniature
from longjax.parallel import sharding
from longjax.train import loop, resume

EDGES = (0, 64, 128, 256)  # of the buckets of loss by position
LENGTHS = (64, 128, 256, 512, 1024)  # tokens of prompts and answers
DOCUMENTS = 6000  # of each task and length
HELD_OUT = 4  # plays, the last of them in the order of their names
TITLES = dict(
  loss='Loss by position, nats a byte of held-out plays',
  look_up='Dictionary look-up, share found by tokens of the prompt',
  passkey='Passkey, share found by tokens of the prompt',
  first='First entry, share found by tokens of the prompt',
)
LEARNED = 0.95  # of the answers: what the base must find in its window


class Laboratory(NamedTuple):
  """What is compared."""

  base: Callable  # () -> config of the base model
  # {name: () -> config}, whose weights are '' to extend the base, the name of
  # an earlier method to extend that, or 'random' for a base of its own.
  methods: dict[str, Callable]
  plays: dict  # where the plays are, as in data.sources
  window: int  # tokens of the base's rows
  target: int  # tokens to which it is extended


def compare(lab: Laboratory, seeds, workdir: pathlib.Path) -> str:
  """Trains and measures what is missing; returns the tables.

  results.json, table.md and lab.png in the workdir are written after each seed.
  """
  held_out = write_documents(lab, workdir / 'documents')
  results: dict = {}
  for seed in seeds:
    place = workdir / f'seed_{seed}'
    start = train_unless_done(lab.base(), seed, workdir, place / 'base')
    results.setdefault('base', []).append(measurements(start, lab, held_out))
    for name, method in lab.methods.items():
      config = method()
      if config.weights != 'random':
        config.weights = str(place / (config.weights or 'base'))
      run = train_unless_done(config, seed, workdir, place / name)
      results.setdefault(name, []).append(measurements(run, lab, held_out))
    (workdir / 'results.json').write_text(json.dumps(results, indent=1))
    (workdir / 'table.md').write_text(report(results, lab.window))
    plot(results, lab.window, workdir / 'lab.png')
  return report(results, lab.window)


def write_documents(lab: Laboratory, place) -> np.ndarray:
  """A store of plays, and of tasks in prose from them, unless it is there.

  Returns:
    [tokens] of the plays that are held out.
  """
  reader = tokenizer.load('bytes')
  texts = [d.text for d in sources.documents('plays', lab.plays)]
  plays = reader.encode_batch(texts)
  lengths = [lab.window, lab.target]
  spec = dict(
    plays=lab.plays, held_out=HELD_OUT, documents=DOCUMENTS, lengths=lengths
  )
  if not store.exists(place):
    about: dict = dict(vocab=reader.vocab, tokenizer=reader.digest, spec=spec)
    store.write(place, documents(plays[:-HELD_OUT], lengths), **about)
  if store.open_store(place).manifest['spec'] != spec:
    raise InputError(f'{place} holds other documents: remove the directory')
  return np.concatenate(plays[-HELD_OUT:])


def documents(plays, lengths):
  """Yields the entries of the store."""
  for play in plays:
    yield store.Entry('', 'plays', play, len(play))
  rng, prose = np.random.default_rng(0), np.concatenate(plays)
  for length in lengths:
    for task in miniature.TASKS:
      for _ in range(DOCUMENTS):
        tokens, mask = miniature.document(rng, task, prose, length)
        yield store.Entry('', f'{task}_{length}', tokens, length, mask)


def train_unless_done(config, seed: int, workdir, place) -> pathlib.Path:
  """Trains a config in `place` unless that is done; returns the directory."""
  config.seed = seed
  config.data.directory = str(workdir / 'documents')
  if (place / 'REPORT.md').exists():
    refuse_other(config, place)
    return place
  print(f'{place} ...', flush=True)
  if loop.main(config, place, log=lambda _: None):
    raise InputError(f'{place} was stopped: run the same command again')
  return place


def refuse_other(config, place):
  """InputError if a finished run was trained with another config."""
  before = json.loads((place / 'config.json').read_text())
  now = json.loads(json.dumps(config.to_dict()))
  changed = [
    key for key in resume.differences(before, now)
    if not key.startswith('eval.')
  ]  # fmt: skip
  if changed:
    raise InputError(
      f'{place} was trained with another {", ".join(changed)}: remove it, or '
      'use another --workdir'
    )


def measurements(run, lab: Laboratory, held_out) -> dict:
  """{'loss': {positions: nats}, task: {length: share found}} of a run, from
  its directory or, the first time, by `measure`."""
  file = run / 'measured.json'
  if not file.exists():
    params, model = weights.load(run)
    lm = language_model.from_config(
      params,
      model.for_inference(),
      sharding.make_mesh(1, 1),
      lab.base(),
      ends=(),
    )
    storage.write_text(file, json.dumps(measure(lm.nll, held_out)))
  return json.loads(file.read_text())


def measure(nll, held_out) -> dict:
  """The measurements of a model, by its losses."""
  length, spans = EDGES[-1], itertools.pairwise(EDGES)
  batch = miniature.passages(held_out, length)
  curve = position_loss.curve(nll, [batch], length)
  found: dict = dict(
    loss={f'{a}-{b}': position_loss.mean(curve, a, b) for a, b in spans}
  )
  for task in miniature.TASKS:
    found[task] = {
      size: miniature.accuracy(nll, task, held_out, size) for size in LENGTHS
    }
  return found


def report(results: dict, window: int) -> str:
  """A table of each thing measured: the mean over the seeds; behind +-, where
  there are several, half of their range."""
  tables = [premise(results['base'], window)]
  for key, title in TITLES.items():
    rows = []
    for method, runs in results.items():
      cells = np.array([[*run[key].values()] for run in runs])
      middle, half = cells.mean(0), np.ptp(cells, axis=0) / 2
      spread = [f' +-{h:.2f}' if len(runs) > 1 else '' for h in half]
      rows.append([method, *(f'{m:.2f}{h}' for m, h in zip(middle, spread))])
    head = ['method', *results['base'][0][key]]
    tables.append(f'**{title}**\n\n{table(head, rows)}\n')
  return '\n'.join(tables)


def premise(bases, window: int) -> str:
  """Whether there is something to extend: the base retrieves in its window."""
  size = str(window)
  worst = {task: min(run[task][size] for run in bases)
           for task in miniature.TASKS}  # fmt: skip
  shares = ', '.join(f'{task} {share:.2f}' for task, share in worst.items())
  passed = 'passed' if min(worst.values()) >= LEARNED else 'FAILED'
  return (
    f'Check that every base model answers at least {LEARNED:.0%} within its '
    f'{size} tokens: {passed} (lowest: {shares}).\n'
  )


def plot(results: dict, window: int, file):
  """Loss by position and what is found by length, the mean of the seeds."""
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot

  figure, axes = pyplot.subplots(1, 4, figsize=(15, 4), layout='constrained')
  for axis, (key, title) in zip(axes, TITLES.items()):
    axis.set_prop_cycle(color=pyplot.get_cmap('tab20').colors)  # pyright: ignore
    x = EDGES[1:] if key == 'loss' else LENGTHS
    for method, runs in results.items():
      values = [[*run[key].values()] for run in runs]
      axis.plot(x, np.mean(values, 0), marker='.', label=method)
    axis.axvline(window, color='gray', linewidth=0.8, linestyle=':')
    axis.set_xscale('log', base=2)
    axis.set_xticks(x, [f'{n}' for n in x])
    axis.set_xlabel('tokens read')
    axis.set_title(title.partition(',')[0])
  lines = axes[0].get_legend_handles_labels()
  figure.legend(*lines, loc='outside right upper')
  figure.savefig(file, dpi=100)
  pyplot.close(figure)
