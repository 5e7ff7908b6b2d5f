"""Global batches are the same bytes on any mesh, from any number of hosts."""

import os
import pathlib
import re
import socket
import subprocess
import sys

import batches_of_hosts as hosts
import jax
import numpy as np
import pytest
import test_data_released as released

from longjax.data import pipeline, store
from longjax.parallel import sharding

MESHES = [(1, 8), (2, 4), (8, 1)]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  rng = np.random.default_rng(3)
  entries = (
    store.Entry(str(i), source, rng.integers(0, 384, n), 0)
    for source, sizes in dict(code=(10, 200), web=(1, 40)).items()
    for i, n in enumerate(rng.integers(*sizes, 50))
  )
  directory = tmp_path_factory.mktemp('hosts') / 'data'
  store.write(directory, entries, vocab=384, tokenizer='t', spec=[])
  return directory


@pytest.fixture(scope='module')
def straight(data):
  """{step: digest} of a run that nothing interrupts, on one device."""
  pipe = pipeline.Pipeline(store.open_store(data), hosts.config(1, 1))
  return {
    str(step): hosts.digest(pipe.batch(step), pipe.plan(step).row_order)
    for step in range(hosts.STEPS)
  }


@pytest.mark.parametrize('rings, seq', MESHES)
def test_a_mesh_changes_no_byte_of_a_batch(data, straight, rings, seq):
  mesh = sharding.make_mesh(rings, seq, jax.devices()[: rings * seq])
  pipe = pipeline.Pipeline(store.open_store(data), hosts.config(rings, seq))
  shape = (hosts.ROWS, hosts.SEQ)
  for step, parts in pipe.iterate(0, sharding.local_slices(shape, mesh)):
    placed = sharding.make_global(parts, shape, mesh)
    whole = pipe.batch(step.step)
    for x, y in zip(placed, whole):
      assert (np.asarray(x) == y).all()
      assert x.sharding.spec == sharding.batch_spec(mesh, shape[0])
    assert hosts.digest(placed, step.row_order) == straight[str(step.step)]
    if step.step == hosts.STEPS - 1:
      break


def test_a_host_reads_only_the_rows_and_keeps_only_the_columns_it_holds(data):
  pipe = pipeline.Pipeline(store.open_store(data), hosts.config(2, 4))
  step, read = pipe.plan(0), []
  inner = pipe._row
  pipe._row = lambda step, row: read.append(row) or inner(step, row)
  left, right = pipe.read(step, slice(4, 8), [slice(0, 16), slice(32, 48)])
  assert sorted(read) == sorted(step.row_order[4:8].tolist())
  pipe._row = inner
  whole = pipe.batch(0)
  for x, y, z in zip(left, right, whole):
    assert (x == z[4:8, :16]).all() and (y == z[4:8, 32:48]).all()
    assert x.base is None and x.nbytes == 4 * 16 * 4


def run(data, processes, rings, seq, start):
  """[{step: digest} of each process]."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    address = f'localhost:{free.getsockname()[1]}'
  program = pathlib.Path(hosts.__file__)
  started = [
    subprocess.Popen(
      [sys.executable, program, data, str(rings), str(seq), str(start)],
      env=os.environ | dict(
        LONGJAX_COORDINATOR=address if processes > 1 else '',
        LONGJAX_PROCESSES=str(processes), LONGJAX_PROCESS=str(number),
      ),
      stdout=subprocess.PIPE, text=True,
    )
    for number in range(processes)
  ]  # fmt: skip
  outputs = [p.communicate(timeout=240)[0] for p in started]
  assert [p.returncode for p in started] == [0] * processes
  # Gloo writes lines of its own, in parts that may come before or after ours.
  told = re.compile(r'step (\d+) ([0-9a-f]{64})')
  return [dict(told.findall(output)) for output in outputs]


@pytest.mark.slow
@pytest.mark.parametrize('processes, rings, seq, start', [
  (1, 2, 2, 0),
  (2, 2, 2, 0),
  (2, 1, 4, 2),  # resumed at step 2 by two processes that share every row
  (4, 2, 2, 3),  # and at step 3 by four
])  # fmt: skip
def test_any_number_of_processes_gives_the_same_batches_from_any_step(
  data, straight, processes, rings, seq, start
):
  left = {step: d for step, d in straight.items() if int(step) >= start}
  assert run(data, processes, rings, seq, start) == [left] * processes


@pytest.mark.slow
def test_two_processes_read_released_shards_as_one_reads_their_copy(tmp_path):
  rng, lengths = np.random.default_rng(3), dict(code=(16, 112), web=(24, 40))
  for name, cut in lengths.items():
    packs = [[rng.integers(0, 256, n) for n in cut] for _ in range(40)]
    masks = [rng.integers(0, 2, sum(cut)) for _ in packs]
    released.release(tmp_path, name, packs, masks=masks)
  config = released.config_of(
    root=str(tmp_path),
    sources={name: dict(path=name, kind='tokens') for name in lengths},
  )
  indexed = released.made(config, tmp_path / 'indexed')
  copies = (
    store.Entry(
      indexed.name(i), indexed.source(i), indexed.tokens(i), 0, indexed.mask(i)
    )
    for i in range(len(indexed.lengths))
  )
  store.write(tmp_path / 'copy', copies, vocab=384, tokenizer='', spec=[])
  pipe = pipeline.Pipeline(
    store.open_store(tmp_path / 'copy'), hosts.config(1, 1)
  )
  straight = {
    str(step): hosts.digest(pipe.batch(step), pipe.plan(step).row_order)
    for step in range(hosts.STEPS)
  }
  assert run(tmp_path / 'indexed', 2, 2, 2, 0) == [straight] * 2
