"""Scores of an evaluation that was interrupted, so that it goes on.

They are lines of JSON in a file of the report's directory. A key is a hash of
the model, the prompts and the settings. The file is removed when the evaluation
ends.
"""

import contextlib
import hashlib
import json
import pathlib
from collections.abc import Callable

from longjax.parallel import processes


class ResultCache:
  """Remembers values by key; without a path it only computes them."""

  def __init__(self, path=None, model=''):
    """Reads what an interrupted evaluation left.

    Args:
      path: of the file, or None.
      model: identifies the weights.
    """
    self.path, self.model = path and pathlib.Path(path), model
    self.values: dict = {}
    if self.path and processes.is_primary() and self.path.exists():
      for line in self.path.read_text(errors='replace').splitlines():
        try:
          self.values |= json.loads(line)
        except ValueError:  # cut short when the process was killed
          continue

  def key(self, *parts) -> str:
    """Of what decides a value; arrays count with all of their elements."""
    digest = hashlib.sha256(self.model.encode())
    for part in parts:
      whole = tuple(x.tobytes() if hasattr(x, 'tobytes') else x for x in part) \
        if isinstance(part, tuple) else part  # fmt: skip
      digest.update(repr(whole).encode())
    return digest.hexdigest()[:32]

  def get(self, key: str, compute: Callable):
    """The value of a key: as it was kept, else computed and kept."""
    if not self.path:
      return compute()
    known = processes.broadcast_from_primary(self.values.get(key))
    if known is not None:
      return known
    value = compute()
    if processes.is_primary():
      # A full disk costs what is computed again after an interruption.
      with contextlib.suppress(OSError), self.path.open('a') as file:
        # A line of its own, also after one that was cut short.
        file.write('\n' + json.dumps({key: value}))
    return value

  def clear(self):
    """After the end of the evaluation."""
    if self.path and processes.is_primary():
      self.path.unlink(missing_ok=True)
