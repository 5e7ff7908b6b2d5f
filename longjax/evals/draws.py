"""Seeded draws: in which order records are asked, which ones are examples."""

import hashlib
from collections.abc import Iterable

import numpy as np


def permuted(rows, seed: int) -> list:
  """The rows in a random order."""
  rows = list(rows)
  order = np.random.default_rng(seed).permutation(len(rows))
  return [rows[i] for i in order]


def seed_of(value, seed: int = 0) -> int:
  """A seed that depends on a value and, if wanted, another seed."""
  digest = hashlib.sha256(str(value).encode()).hexdigest()
  return (int(digest, 16) + seed) % 2**31


def shots(examples: Iterable, key: str, record) -> list:
  """Two examples with other values of a key, drawn by a hash of its own."""
  others = [x for x in examples if x[key] != record[key]]
  first: dict = {}
  for example in permuted(others, seed_of(record[key])):
    first.setdefault(example[key], example)
  return list(first.values())[:2]
