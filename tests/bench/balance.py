"""Blocks of attention that a ring executes for rows like ProLong's stage 2.

  python tests/bench/balance.py [seq_len block]

By tokens, 23 % of the rows are one document, 40 % are eight documents of equal
length and 37 % are short documents (arXiv:2410.02660, Table 9, at 524,288
tokens: 512K, 64K, and here lognormal with median 1,500 and sigma 1). The last
document of a row is cut. Columns, all over the mixture:

  triangle  blocks executed / those of rows that are one document each
  needed    blocks executed / the causal pairs that the documents have
  member    blocks of the busiest member of the ring / mean, and the worst row
  hop       the same if members wait for each other at each hop

Then, of a step of 16 such rows on several rings and in several micro-batches,
the busiest ring of each micro-batch / the mean, in squared lengths, the mean
of 200 steps: with rows in random order, and as layout.balance_rows orders them.
"""

import pathlib
import sys
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import numpy as np

from longjax.batch import one_document
from longjax.data import layout

SHARES = dict(one=0.23, eight=0.40, short=0.37)
MEDIAN, SIGMA = 1500 / 524_288, 1.0  # of short documents, in rows
DRAWS = 16  # rows of short documents


class Measures(NamedTuple):
  """What the docstring of this file says of its columns."""

  triangle: float
  needed: float
  member: float
  worst_member: float
  hop: float


def short_documents(seq, rng):
  """segments [seq] of documents one after another, the last one cut."""
  lengths = rng.lognormal(np.log(MEDIAN * seq), SIGMA, size=seq)
  ends = np.cumsum(np.maximum(1, lengths.astype(int)))
  return np.searchsorted(ends, np.arange(seq), 'right') + 1


def rows(seq, rng):
  """(share of the tokens, segments [1, seq]) of each row of the mixture."""
  yield SHARES['one'], np.ones((1, seq), int)
  yield SHARES['eight'], np.arange(seq)[None] // (seq // 8) + 1
  for _ in range(DRAWS):
    yield SHARES['short'] / DRAWS, short_documents(seq, rng)[None]


def counts(segments, name, n, block):
  """`layout.executed_blocks` [member, hop] of a row laid out as `name`."""
  row = one_document(np.zeros_like(segments))._replace(segments=segments)
  laid = layout.arrange(row, name, n, block)
  return layout.executed_blocks(laid.segments, laid.index, n, block)[0]


def needed_blocks(segments, block):
  """The fewest blocks there can be: length^2 / 2 of each document."""
  lengths = (np.bincount(row[row > 0]) for row in segments)
  squares = sum(float(np.square(x, dtype=np.float64).sum()) for x in lengths)
  return squares / 2 / block**2


def measure(mixture, name, n, block):
  """Measures of a list of `rows` on a ring of n members."""
  shares = np.array([share for share, _ in mixture])
  work = np.stack([counts(row, name, n, block) for _, row in mixture])
  total = work.sum((1, 2))  # [rows]
  busiest = work.sum(2).max(1) * n
  waiting = work.max(1).sum(1) * n
  blocks = mixture[0][1].shape[1] // block
  needed = np.array([needed_blocks(row, block) for _, row in mixture])
  over = lambda a, b: float((shares * a).sum() / (shares * b).sum())
  return Measures(
    over(total, blocks * (blocks + 1) / 2),
    over(total, needed),
    over(busiest, total),
    float((busiest / total).max()),
    over(waiting, total),
  )


def main(seq=524_288, block=1024):
  mixture = list(rows(seq, np.random.default_rng(0)))
  print(f'rows of {seq} tokens, blocks of {block}')
  print('ring  layout      triangle  needed  member  (worst)     hop')
  for n in (16, 32):
    for name in layout.LAYOUTS:
      m = measure(mixture, name, n, block)
      print(
        f'{n:4}  {name:10}  {m.triangle:8.3f}  {m.needed:6.2f}  '
        f'{m.member:6.3f}  {m.worst_member:7.3f}  {m.hop:6.3f}'
      )
  print('rings  micro-batches  random  dealt')
  costs = [float(np.square(np.bincount(row[0])).sum()) for _, row in mixture]
  shares = [share for share, _ in mixture]
  for rings, parts in ((2, 8), (4, 4), (8, 2)):
    random, dealt = waiting(costs, shares, rings, parts)
    print(f'{rings:5}  {parts:13}  {random:6.2f}  {dealt:5.2f}')


def waiting(costs, shares, rings, parts, steps=200, rows=16):
  """(random, dealt): cost of the busiest ring of each micro-batch / mean."""
  rng, ratios = np.random.default_rng(1), []
  for _ in range(steps):
    step = rng.choice(costs, rows, p=np.array(shares) / sum(shares))
    for order in (np.arange(rows), layout.balance_rows(step, rings, parts)):
      by_ring = step[order].reshape(rings, -1, parts).sum(1)
      ratios.append(by_ring.max(0).sum() / by_ring.mean(0).sum())
  return np.array(ratios).reshape(-1, 2).mean(0)


if __name__ == '__main__':
  main(*(int(x) for x in sys.argv[1:]))
