"""English words for keys and lists: those that RULER takes, from a package.

wonderwords (MIT) is what the benchmark's own generators draw from; it is
fetched by the machine's pip and compared with a digest (data/downloads.py).
"""

import functools
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


@functools.lru_cache
def load(log=print) -> Words:
  """The words of the package; the first time it is fetched."""
  archive = downloads.fetch(PACKAGE, SHA256, log)
  files = dict(downloads.members(archive, '*/assets/*list.txt'))
  return Words(*(
    sorted(set(files[f'wonderwords/assets/{name}list.txt'].decode().split()))
    for name in ('noun', 'adjective', 'verb')
  ))  # fmt: skip
