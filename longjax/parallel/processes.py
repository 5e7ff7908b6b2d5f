"""Exchanges of small values between the processes of one job.

With a single process each function returns its own value and touches no device.
"""

import functools
import json
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from longjax.errors import InputError

BYTES = 16_384  # of the text of a process; the rest is cut off


def is_primary() -> bool:
  """Whether this is the process that writes files and logs."""
  return jax.process_index() == 0


def allgather_text(text: str) -> list[str]:
  """The texts of all processes, in their order; all must call this."""
  if jax.process_count() == 1:
    return [text]
  padded = np.zeros(BYTES, np.uint8)
  data = np.frombuffer(text.encode()[:BYTES], np.uint8)
  padded[: len(data)] = data
  rows = multihost_utils.process_allgather(padded)
  return [bytes(x).rstrip(b'\0').decode(errors='replace') for x in rows]


def broadcast_from_primary(value):
  """The primary process's value, small JSON; all must call this."""
  return json.loads(
    allgather_text(json.dumps(value) if is_primary() else '')[0]
  )


def raise_on_all(action) -> Any:
  """Returns action(), or raises on every process if it failed on any.

  A process that failed alone would leave the others waiting for it.

  Raises:
    InputError: the first failure, with the numbers of the processes.
  """
  value, problem = None, ''
  try:
    value = action()
  except InputError as error:
    problem = str(error)
  except OSError as error:  # of a file: no space, no permission
    if error.filename and jax.process_count() == 1:
      raise
    problem = str(error)  # with the file, if it is known
  problems = allgather_text(problem)
  failed = [i for i, text in enumerate(problems) if text]
  if not failed:
    return value
  where = f' (processes {failed})' if len(problems) > 1 else ''
  raise InputError(problems[failed[0]] + where)


def any_process(flag: bool, mesh) -> bool:
  """Whether any process has its flag set; all must call this.

  One small all-reduce, queued behind the work that the devices have.
  """
  if jax.process_count() == 1:
    return bool(flag)
  sharding = NamedSharding(mesh, P(mesh.axis_names))
  flags = jax.make_array_from_callback(
    (mesh.size,), sharding, lambda _: np.full(1, flag, np.int32)
  )
  return bool(_largest(mesh)(flags))


@functools.cache
def _largest(mesh):
  replicated = NamedSharding(mesh, P())
  return jax.jit(lambda x: x.max(), out_shardings=replicated)
