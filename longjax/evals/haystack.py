"""Prose for haystacks: the words and sentences of held-out documents.

The published haystacks are essays that no package ships; the documents of
`eval.sources` take their place, and every report names them.
"""

import functools
import re

import numpy as np


@functools.lru_cache(1)
def text(store, tokenizer, tokens: int) -> str:
  """The first documents of a store, at least so many tokens if it has them."""
  parts, have = [], 0
  for document, length in enumerate(np.asarray(store.lengths)):
    ids = store.tokens(document, 0, int(min(length, tokens - have)))
    special = (tokenizer.document_start, tokenizer.document_end)
    ids = ids[~np.isin(ids, [i for i in special if i is not None])]
    parts.append(tokenizer.decode(ids))
    have += len(ids)
    if have >= tokens:
      break
  return '\n'.join(parts)


@functools.lru_cache(8)
def sentences(text: str) -> tuple[str, ...]:
  """Split after . ! ? and before white space, which becomes a blank."""
  flat = ' '.join(text.split())
  return tuple(s for s in re.split(r'(?<=[.!?])\s+', flat) if s)


@functools.lru_cache(8)
def of_words(text: str, count: int) -> tuple[str, ...]:
  """The sentences of the first `count` words, from the start again where there
  are too few; the last may be cut short."""
  words = text.split()
  return sentences(' '.join(first(words, count)))


def first(parts, count: int) -> list[str]:
  """The first `count`, from the start again where there are too few."""
  return (list(parts) * -(-count // max(len(parts), 1)))[:count]
