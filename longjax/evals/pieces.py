"""Token ids of texts that share most of their sentences, each encoded once.

The prompts of a task repeat one haystack. A text is cut at places where no
token crosses: before a blank and a letter or digit. Whether that holds of a
tokenizer is tried, not assumed: the first text and each that is twice as long
are also encoded whole, and if the ids differ, all texts are.
"""

import itertools
import re
import weakref

import numpy as np

LINE = r'(?<=\S\n)(?=[A-Za-z0-9])'
LINES = re.compile(LINE).split
SENTENCES = re.compile(rf'(?<=[.!?])(?= [A-Za-z0-9])|{LINE}').split
WORDS = re.compile(
  rf'(?<=\S)(?= [A-Za-z0-9.])|(?<=[a-z])(?=-[a-z])|{LINE}'
).split
# For text that is all new: as much as is worth a thread of its own.
CHUNKS = re.compile(
  r'.{8000}.*?(?<=\S)(?= [A-Za-z0-9])|.+\Z', re.DOTALL
).findall
MOST, LONGEST = 1 << 18, 1000  # pieces that are remembered, and characters
_memory: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


class Encoder:
  """text -> int32 ids, as the tokenizer gives them."""

  def __init__(self, tokenizer, cut=SENTENCES):
    self.tokenizer, self.cut, self.tried = tokenizer, cut, 0
    # With the blank before a piece, or without: SentencePiece adds its own.
    self.ways = [lambda piece: piece, lambda piece: piece.removeprefix(' ')]
    if cut is None:
      self.ways = []

  def __call__(self, text: str) -> np.ndarray:
    if not self.ways:
      return self.tokenizer.encode(text)
    found = self._in_pieces(text)
    if len(text) > 2 * self.tried:
      whole = self.tokenizer.encode(text)
      while self.ways and not np.array_equal(found, whole):
        self.ways.pop(0)
        found = self._in_pieces(text) if self.ways else whole
      self.tried = len(text)
    return found

  def _in_pieces(self, text: str) -> np.ndarray:
    way, parts = self.ways[0], self.cut(text)
    known = _memory.setdefault(self.tokenizer, {})
    known = known.setdefault(len(self.ways), {})
    if len(known) > MOST:
      known.clear()
    new = [part for part in dict.fromkeys(parts) if part not in known]
    encoded = self.tokenizer.encode_batch(map(way, new))
    if parts and len(parts[0]) > LONGEST:
      return np.concatenate(encoded)
    known.update(zip(new, map(np.ndarray.tolist, encoded)))
    flat = itertools.chain.from_iterable(map(known.__getitem__, parts))
    return np.fromiter(flat, np.int32)
