"""English words for keys and lists: those that RULER takes, from a package.

wonderwords (MIT) is what the benchmark's own generators draw from; it is
fetched by the machine's pip and compared with a digest (data/downloads.py).
"""

import bisect
import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

from longjax.data import downloads

PACKAGE = 'wonderwords==3.0.1'
SHA256 = '4dd66deb6a76ca9e0b0422d1d3e111f9b910d7c16922d42de733ee8def98f8d0'


class Words(NamedTuple):
  """Sorted lists."""

  nouns: list[str]
  adjectives: list[str]
  verbs: list[str]

  @property
  def all(self) -> list[str]:
    return sorted({*self.nouns, *self.adjectives, *self.verbs})


class Pairs(Sequence):
  """All 'adjective-noun' in order, without six million strings in memory."""

  def __init__(self, words: Words):
    self.nouns = sorted(set(words.nouns))
    self.groups: list[list[str]] = []  # of heads that begin with the first
    for head in sorted({f'{word}-' for word in words.adjectives}):
      if not self.groups or not head.startswith(self.groups[-1][0]):
        self.groups.append([])
      self.groups[-1].append(head)
    self.mixed: dict = {}  # of groups with several heads, once asked for
    sizes = (len(group) * len(self.nouns) for group in self.groups)
    self.starts = [0, *itertools.accumulate(sizes)]

  def __len__(self) -> int:
    return self.starts[-1]

  def __getitem__(self, index):
    group = bisect.bisect_right(self.starts, index) - 1
    heads, index = self.groups[group], index - self.starts[group]
    if len(heads) == 1:
      return heads[0] + self.nouns[index]
    if group not in self.mixed:
      self.mixed[group] = sorted(h + noun for h in heads for noun in self.nouns)
    return self.mixed[group][index]


@functools.lru_cache
def load(log=print) -> Words:
  """The words of the package, one per line; the first time it is fetched."""
  archive = downloads.fetch(PACKAGE, SHA256, log)
  files = dict(downloads.members(archive, '*/assets/*list.txt'))
  texts = (files[f'wonderwords/assets/{name}list.txt'].decode()
           for name in ('noun', 'adjective', 'verb'))  # fmt: skip
  lists = (map(str.rstrip, text.splitlines()) for text in texts)
  return Words(*(sorted(set(words)) for words in lists))
