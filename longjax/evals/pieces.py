"""Token ids of texts that share most of their sentences, each encoded once.

The prompts of a task repeat one haystack. A text is cut at places where no
token crosses: before a blank and a letter or digit. Whether that holds of a
tokenizer is tried, not assumed: the first text and each that is twice as long
are also encoded whole, and if the ids differ, all texts are.
"""

import itertools
import re
import weakref
from typing import Any

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
MAX_PIECES, MAX_CHARACTERS = (
  1 << 18,
  1000,
)  # pieces that are remembered, and characters
_memory: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


class Encoder:
  """text -> int32 ids, as the tokenizer gives them."""

  def __init__(self, tokenizer, cut=SENTENCES):
    """`cut` is one of the above; None encodes texts whole."""
    self.tokenizer, self.tried = tokenizer, 0
    self.cut: Any = cut

  def __call__(self, text: str) -> np.ndarray:
    if self.cut is None:
      return self.tokenizer.encode(text)
    found = self._in_pieces(text)
    if len(text) > 2 * self.tried:
      self.tried, whole = len(text), self.tokenizer.encode(text)
      if not np.array_equal(found, whole):
        self.cut, found = None, whole
    return found

  def _in_pieces(self, text: str) -> np.ndarray:
    parts = self.cut(text)
    if len(parts[0]) > MAX_CHARACTERS:
      return np.concatenate(self.tokenizer.encode_batch(parts))
    known = _memory.setdefault(self.tokenizer, {})
    if len(known) > MAX_PIECES:
      known.clear()
    new = [part for part in dict.fromkeys(parts) if part not in known]
    encoded = self.tokenizer.encode_batch(new)
    known.update(zip(new, map(np.ndarray.tolist, encoded)))
    flat = itertools.chain.from_iterable(map(known.__getitem__, parts))
    return np.fromiter(flat, np.int32)
