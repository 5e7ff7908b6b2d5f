"""Documents equal or near to an earlier one.

Near: MinHash over sequences of five words, about 80 % of them the same.
"""

import numpy as np

PERMUTATIONS = 128  # of MinHash
SIMILAR = 0.8  # share of common 5-word sequences
SIGNATURES = 'signatures.npy'  # of the documents of a part


def signature(text: str) -> np.ndarray:
  """MinHash of the sequences of five words, uint64 [PERMUTATIONS]."""
  import datasketch  # pyright: ignore

  words = text.split()
  minhash = datasketch.MinHash(num_perm=PERMUTATIONS)
  count = max(1, len(words) - 4)
  minhash.update_batch(
    ' '.join(words[i : i + 5]).encode('utf-8', 'replace') for i in range(count)
  )
  return minhash.hashvalues


def find(parts) -> np.ndarray | None:
  """bool [documents of all parts]: those to drop; None if all are kept.

  Args:
    parts: (directory of a part, its `duplicates`: keep, exact or near).
  """
  rules = {rule for _, rule in parts}
  if rules <= {'keep'}:
    return None
  seen, drop = set(), []
  near = _near() if 'near' in rules else None
  for place, rule in parts:
    table = np.load(place / 'documents.npy', allow_pickle=False)
    signatures = None
    if rule == 'near':
      signatures = np.load(place / SIGNATURES, allow_pickle=False)
    for i, digest in enumerate(table[:, 4].tolist()):
      duplicate = rule != 'keep' and digest in seen
      if near and signatures is not None and not duplicate:
        duplicate = near(signatures[i], len(drop))
      seen.add(digest)
      drop.append(duplicate)
  return np.array(drop)


def _near():
  """near(signature, number): whether an earlier one is near; then adds it."""
  import datasketch  # pyright: ignore

  index = datasketch.MinHashLSH(threshold=SIMILAR, num_perm=PERMUTATIONS)

  def near(signature, number) -> bool:
    minhash = datasketch.MinHash(num_perm=PERMUTATIONS)
    minhash.hashvalues = signature
    if index.query(minhash):
      return True
    index.insert(number, minhash)
    return False

  return near
