"""One of several processes: prints a digest of each global batch.

  LONGJAX_COORDINATOR=... python tests/batches_of_hosts.py STORE DATA SEQ START

The digest is of the batch as it was before rows were dealt and columns laid
out, so it must be the same on any mesh, from any number of processes.
"""

import hashlib
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np

from configs import common
from longjax.batch import Batch

STEPS = 5
SEQ, ROWS = 64, 8


def config(data, seq):
  """ProLong's kinds of rows over the sources `code` and `web`."""
  made = common.base('tiny')
  made.train.update(seq_len=SEQ, batch=ROWS, micro_batches=2, steps=20)
  made.mesh.update(data=data, seq=seq)
  made.model.block = 4
  made.data.update(layout='balanced', curriculum=((0.2, 32), (0.8, 64)))
  made.data.positions.update(kind='pose', target=256)
  made.data.mix = dict(
    long=dict(sources=('code',), weight=0.3, pack='whole'),
    middle=dict(sources=('code',), weight=0.3, pack='whole', length=16,
                max_length=64),
    web=dict(weight=0.4, length=32),
  )  # fmt: skip
  if data * made.train.micro_batches > ROWS:
    made.train.micro_batches = 1
  return made


def digest(batch, places) -> str:
  """Of the six arrays in the order in which the mixture gave them."""
  columns = np.argsort(batch.index, axis=1)
  back = np.argsort(places)
  order = [np.take_along_axis(np.asarray(x), columns, 1)[back] for x in batch]
  return hashlib.sha256(b''.join(x.tobytes() for x in order)).hexdigest()


def main(directory, data, seq, start):
  from longjax.parallel import sharding

  data, seq, start = int(data), int(seq), int(start)
  sharding.start(data * seq)
  from jax.experimental import multihost_utils

  from longjax.data import pipeline, store

  mesh = sharding.make_mesh(data, seq)
  pipe = pipeline.Pipeline(store.open_store(directory), config(data, seq))
  held = sharding.local_slices((ROWS, SEQ), mesh)
  for plan, parts in pipe.iterate(start, held):
    whole = multihost_utils.process_allgather(
      sharding.make_global(parts, (ROWS, SEQ), mesh), tiled=True
    )
    found = digest(Batch(*whole), plan.row_order)
    print(f'step {plan.step} {found}', flush=True)
    if plan.step == STEPS - 1:
      break


if __name__ == '__main__':
  main(*sys.argv[1:])
