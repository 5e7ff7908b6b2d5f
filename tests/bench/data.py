"""How fast training rows come from prepared shards, beside what a step needs.

  python tests/bench/data.py [tokens of the store, default 200 million]
  python tests/bench/data.py mds [tokens of the shards]

Documents are lognormal (median 2,000 tokens, sigma 1.5), half of them for a
ProLong mix of 64K packs; rows of 65,536 and of 524,288 tokens. All figures are
of this machine and process; the page cache is warm, as in a second epoch.

  rows       tokens/s of Pipeline.read: six arrays, laid out
  planned    the same without reading: which document lies where
  a host     tokens/s that a host of 4 v5p chips trains (400 tokens/s a chip at
             512K, 4,000 at 32K, docs/plan.md), and how often rows give that
  grain      tokens/s of grain's own ConcatThenSplitIterDataset, same documents
             and rows, tokens only, no mixture, no targets
  open       seconds to open the store: all verified (below 1 GiB), and lazily

mds: the same rows from packs of 65,536 in MDS shards as ProLong released them,
indexed where they lie: tokens/s of one process, by its CPU time and by the
clock, and its peak memory.
"""

import pathlib
import re
import resource
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]

import numpy as np  # noqa: E402

from configs import common  # noqa: E402
from longjax.data import pipeline, prepare, store, tokenizer  # noqa: E402

CHIPS = 4  # of a v5p host
NEED = {65_536: 4000 * CHIPS, 524_288: 400 * CHIPS}  # tokens/s


def make(directory, total):
  rng = np.random.default_rng(0)

  def entries():
    made = 0
    while made < total:
      length = int(np.clip(rng.lognormal(np.log(2000), 1.5), 10, 2_000_000))
      ids = rng.integers(0, 128_000, length, dtype=np.uint32)
      yield store.Entry(str(made), 'all', ids, length * 4)
      made += length

  store.write(directory, entries(), vocab=128_256, tokenizer='t', spec=[])


def config(seq_len, layout):
  made = common.base('tiny')
  made.train.update(seq_len=seq_len, batch=8, micro_batches=2)
  made.model.block = 1024
  made.mesh.seq = 8
  made.data.layout = layout
  made.data.mix = dict(
    long=dict(sources=('all',), weight=0.6, pack='whole', length=65_536),
    short=dict(sources=('all',), weight=0.4, length=65_536),
  )
  return made


def rate(seconds, call, tokens):
  """tokens/s of calls with 0, 1, ... for about so many CPU seconds."""
  call(0)
  began, count = time.process_time(), 0
  while time.process_time() - began < seconds:
    count += 1
    call(count)
  return count * tokens / (time.process_time() - began)


def grain_rate(data, seq_len, seconds=3):
  """Of grain's packing of the same documents, in one thread."""
  import grain

  source = grain.MapDataset.range(len(data.lengths)).map(
    lambda i: dict(tokens=np.asarray(data.tokens(i)))
  )
  packed = grain.experimental.ConcatThenSplitIterDataset(
    source.repeat(100).to_iter_dataset(grain.ReadOptions(num_threads=0)),
    length_struct=dict(tokens=seq_len),
  )
  rows = iter(packed)
  return rate(seconds, lambda _: next(rows), seq_len)


def from_mds(total=200_000_000):
  """Prints how fast rows come from MDS shards."""
  import test_data_released as released

  pack, rng = 65_536, np.random.default_rng(0)
  with tempfile.TemporaryDirectory() as directory:
    place = pathlib.Path(directory)

    def packs(count, documents):
      for _ in range(count):
        ids = rng.integers(0, 256, pack, dtype=np.uint32)
        yield np.split(ids, np.sort(rng.integers(1, pack, documents - 1)))

    half = total // pack // 2
    for domain, documents in (('books', 1), ('web', 40)):
      released.release(place / 'mds', domain, packs(half, documents))
    made = common.base('tiny')
    made.train.update(seq_len=8 * pack, batch=8)
    made.model.block = 1024
    made.mesh.seq = 8
    made.data.root, names = str(place / 'mds'), ('books', 'web')
    made.data.sources = {n: dict(path=n, kind='tokens') for n in names}
    made.data.mix = {
      n: dict(weight=0.5, pack='in_order', length=pack) for n in names
    }
    made.data.tokenizer = 'bytes'
    tokens = tokenizer.load('bytes')
    began = time.monotonic()
    data = prepare.prepare(made, tokens, print, directory=place / 'out')
    print(f'indexed in {time.monotonic() - began:.2f} s')
    for layout in ('contiguous', 'balanced'):
      made.data.layout = layout
      pipe = pipeline.Pipeline(data, made)
      clock, cpu = time.monotonic(), time.process_time()
      rows = rate(5, pipe.batch, 8 * made.train.seq_len) / 1e6
      cpu, clock = time.process_time() - cpu, time.monotonic() - clock
      print(f'{layout:10} {rows:6.1f} M tokens a second of CPU, '
            f'{rows * cpu / clock:.1f} M by the clock')  # fmt: skip
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
  status = pathlib.Path('/proc/self/status').read_text()
  own = int(re.search(r'RssAnon:\s+(\d+)', status)[1]) / 2**20
  print(f'peak memory {peak:.2f} GiB with the mapped shards, which the system '
        f'can take back; {own:.2f} GiB without')  # fmt: skip


def main(total=200_000_000):
  with tempfile.TemporaryDirectory() as directory:
    place = pathlib.Path(directory) / 'data'
    make(place, total)
    began = time.monotonic()
    data = store.open_store(place)
    whole = time.monotonic() - began
    store.VERIFY_BYTES = 0
    began = time.monotonic()
    store.open_store(place)
    lazy = time.monotonic() - began
    print(
      f'open: {whole:.2f} s verified, {lazy:.3f} s lazily; '
      f'{len(data.lengths)} documents, {len(data.shards)} shards'
    )
    print('rows of      layout      rows/s   tokens/s    planned  x a host')
    for seq_len, need in NEED.items():
      for layout in ('contiguous', 'zigzag', 'balanced'):
        pipe = pipeline.Pipeline(data, config(seq_len, layout))
        tokens = 8 * seq_len
        plan = rate(1, pipe.plan, tokens)
        rows = rate(3, pipe.batch, tokens)
        print(f'{seq_len:9}  {layout:10}  {rows / seq_len:8.1f}  '
              f'{rows / 1e6:6.1f} M  {plan / 1e6:7.0f} M  '
              f'{rows / need:8.0f}')  # fmt: skip
      print(f'{seq_len:9}  grain       {"":8}  '
            f'{grain_rate(data, seq_len) / 1e6:6.1f} M')  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f'peak memory {peak:.2f} GiB, the mapped store among it')


if __name__ == '__main__':
  run, given = main, sys.argv[1:]
  if given[:1] == ['mds']:
    run, given = from_mds, given[1:]
  run(*map(int, given))
