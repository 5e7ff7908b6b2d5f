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

SENTENCES = re.compile(r'(?<=[.!?])(?= [A-Za-z0-9])')
WORDS = re.compile(r'(?<=\S)(?= [A-Za-z0-9.])')
MOST = 1 << 20  # pieces that are remembered
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
    way, parts = self.ways[0], self.cut.split(text)
    known = _memory.setdefault(self.tokenizer, {})
    known = known.setdefault(len(self.ways), {})
    if len(known) > MOST:
      known.clear()
    new = [part for part in dict.fromkeys(parts) if part not in known]
    for part, ids in zip(new, self.tokenizer.encode_batch(map(way, new))):
      known[part] = ids.tolist()
    flat = itertools.chain.from_iterable(map(known.__getitem__, parts))
    return np.fromiter(flat, np.int32)
