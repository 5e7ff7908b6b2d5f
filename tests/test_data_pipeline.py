"""The pipeline: batch(step) is a pure function, whoever asks and when."""

import itertools

import numpy as np
import pytest

from configs import common
from longjax.data import pack, pipeline, store


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """30 documents, 900 tokens with ids of their own."""
  directory = tmp_path_factory.mktemp('pipeline') / 'data'
  parts = np.split(
    np.arange(900),
    np.sort(
      np.random.default_rng(1).choice(np.arange(1, 900), 29, replace=False)
    ),
  )
  entries = (store.Entry(str(i), 's', p, 0) for i, p in enumerate(parts))
  store.write(directory, entries, vocab=900, tokenizer='t', spec=[])
  return store.open_store(directory)


def pipe_of(
  data, seq_len, batch, seed, /, ring=1, layout='contiguous', **changes
):
  """A Pipeline; changes are sections of the config by name."""
  config = common.base('tiny')
  config.seed = seed
  config.train.update(seq_len=seq_len, batch=batch)
  config.model.block = 2
  config.mesh.seq = ring
  config.data.layout = layout
  for section, values in changes.items():
    config[section].update(values)
  return pipeline.Pipeline(data, config)


def equal(a, b):
  return all((x == y).all() for x, y in zip(a, b))


def row_names(batches):
  """What is in the rows, order apart: their smallest index's token."""
  return [
    int(t[np.argmin(i)]) for b in batches for t, i in zip(b.tokens, b.index)
  ]


def test_iterate_equals_batch_from_any_step(data):
  pipe = pipe_of(data, 16, 3, 7, layout='zigzag', ring=4)
  straight = [pipe.batch(step) for step in range(16)]
  for start in (0, 11):
    ahead = itertools.islice(pipe.iterate(start), 5)
    for number, (plan, (got,)) in enumerate(ahead, start):
      assert plan.step == number
      assert equal(got, straight[number])
      assert {x.shape for x in got} == {(3, 16)}
      kinds = [x.dtype.kind for x in got]
      assert ''.join(kinds) == 'iifiii' and {x.itemsize for x in got} == {4}


def test_each_epoch_reads_every_row_once_in_an_order_of_the_seed(data):
  pipe = pipe_of(data, 18, 4, 7)  # 50 rows: epochs of 12.5 batches
  names = row_names(pipe.batch(s) for s in range(25))
  first, second = names[:50], names[50:]
  assert len(set(first)) == 50 and sorted(first) == sorted(second)
  assert first != second
  (component,) = pipe.components
  assert (len(component.packs), component.packs.dropped) == (50, 0)
  again = pipe_of(store.open_store(data.directory), 18, 4, 7)
  assert all(equal(pipe.batch(s), again.batch(s)) for s in (0, 24))
  assert not equal(pipe.batch(0), pipe_of(data, 18, 4, 8).batch(0))


def test_the_batch_size_does_not_change_the_rows(data):
  small, large = (pipe_of(data, 16, b, 7) for b in (2, 4))
  rows = np.concatenate([small.batch(s).tokens for s in (0, 1)])
  assert (rows == large.batch(0).tokens).all()


@pytest.mark.parametrize('rule', pack.RULES)
def test_tokens_are_counted_without_padding(data, rule):
  rule = dict(all=dict(sources=('*',), pack=rule, length=24))
  curriculum = ((0.5, 12), (0.5, 48))
  pipe = pipe_of(data, 48, 4, 0, data=dict(mix=rule, curriculum=curriculum))
  for step in (0, 5, 19):
    batch = pipe.batch(step)
    assert pipe.plan(step).tokens == (batch.segments > 0).sum()


def test_a_layout_only_permutes(data):
  plain = pipe_of(data, 16, 3, 7).batch(3)
  for name in ('zigzag', 'striped', 'balanced'):
    pipe = pipe_of(data, 16, 3, 7, layout=name, ring=4)
    moved = pipe.batch(3)
    back = np.argsort(moved.index)
    assert not (back == np.arange(16)).all()
    for x, y in zip(plain, moved):
      assert (x == np.take_along_axis(y, back, axis=1)).all()
