"""Mixtures: exact shares, over a store whose tokens name their document."""

import collections

import numpy as np
import pytest

from configs import common
from longjax import errors
from longjax.data import curriculum, layout, mixture, pipeline, store

SEQ = 64
LONG, MIDDLE = 64, 16
# tokens of documents by source
CORPUS = dict(
  code=[70, 64, 200, 20, 17, 16, 5, 40] * 3,
  books=[300, 64, 18, 33] * 2,
  web=[3, 9, 14, 7, 11, 2, 30, 8] * 6,
)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """Every token is 1000 x (document + 1) + its place."""
  lengths = [(s, n) for s, counts in CORPUS.items() for n in counts]
  entries = (
    store.Entry(str(i), s, 1000 * (i + 1) + np.arange(n), n)
    for i, (s, n) in enumerate(lengths)
  )
  directory = tmp_path_factory.mktemp('mixture') / 'data'
  store.write(directory, entries, vocab=1 << 20, tokenizer='t', spec=[])
  return store.open_store(directory)


def base(**data):
  config = common.base('tiny')
  config.train.update(seq_len=SEQ, batch=8, steps=100)
  config.model.block = 8
  config.data.layout = 'contiguous'
  config.data.update(data)
  return config


def prolong():
  """ProLong's second stage at 1/8192, with the shares of its script."""
  long = dict(pack='whole', length=LONG)
  middle = dict(pack='whole', length=MIDDLE, max_length=LONG)
  return dict(
    code=dict(weight=0.15, **long),
    code_16=dict(sources=('code',), weight=0.15, **middle),
    books=dict(weight=0.05, **long),
    books_16=dict(sources=('books',), weight=0.25, **middle),
    web=dict(weight=0.40, length=MIDDLE),
  )


@pytest.fixture(scope='module')
def prolong_pipe(data):
  return pipeline.Pipeline(data, base(mix=prolong()))


def document(token):
  return token // 1000 - 1


def names(pipe, steps):
  """The component of each row, in the order of the mixture."""
  return [
    pipe.components[number].name
    for step in range(steps)
    for number in pipe.plan(step).components
  ]


def rows(pipe, steps):
  """(name of the component, row) in the order of the mixture; one device."""
  batches = [pipe.batch(step) for step in range(steps)]
  for name, *row in zip(
    names(pipe, steps), *map(np.concatenate, zip(*batches))
  ):
    yield name, pipeline.Batch(*row)


def test_the_shares_are_exact_within_half_a_percent_of_1000_rows(prolong_pipe):
  # Grain draws slowly from few packs; their number does not matter here.
  many = [c._replace(packs=range(1 << 16)) for c in prolong_pipe.components]
  groups = mixture.row_groups(many, SEQ, 0)
  counts = collections.Counter(groups[i][0] for i in range(1000))
  for number, component in enumerate(many):
    assert abs(counts[number] / 1000 - component.weight) <= 0.005


def test_each_component_reads_its_own_sources_and_lengths(data, prolong_pipe):
  lengths = data.lengths
  read = set()
  for name, row in rows(prolong_pipe, 5):
    read.add(name)
    documents = document(row.tokens)
    source = {data.source(int(d)) for d in documents}
    assert source == {name.split('_')[0]}
    if name in ('code', 'books'):
      assert (lengths[documents] >= LONG).all()
      assert len(set(documents)) == 1 and set(row.segments) == {1}
    elif name != 'web':
      assert (lengths[documents] >= MIDDLE).all()
      assert (lengths[documents] < LONG).all()
      # Four documents of exactly the pack's length share the row.
      assert row.segments.tolist() == np.repeat([1, 2, 3, 4], 16).tolist()
    else:
      # Packs of 16 do not attend to each other.
      assert (np.diff(row.segments)[15::16] > 0).all()
  assert read == set(prolong())


def test_the_summary_has_what_is_repeated_and_what_is_left_out(
  data, prolong_pipe
):
  lines = dict(
    line.split(': ', maxsplit=1)
    for line in prolong_pipe.summary(125).splitlines()
  )
  assert set(lines) == set(prolong())
  # 3 x (70, 64, 200) give 1 + 1 + 3 packs each; left are 3 x (6 + 8) of
  # these, and the 3 x 98 tokens of documents that are too short.
  assert '150 rows of 64 (15.00%)' in lines['code']
  assert '15 packs of 64 from 24 documents, 336 tokens in none' in lines['code']
  assert lines['code'].endswith('10.00 epochs: the data is repeated')
  assert 'repeated' not in pipeline.Pipeline(data, base()).summary(1)


def test_long_documents_are_up_sampled_by_a_component_of_their_own(data):
  mix = dict(
    long=dict(sources=('code', 'books'), min_length=64, weight=3),
    short=dict(sources=('code', 'books'), max_length=64, weight=1),
  )
  pipe = pipeline.Pipeline(data, base(mix=mix))
  for name, row in rows(pipe, 4):
    lengths = data.lengths[document(row.tokens)]
    assert (lengths >= 64).all() == (name == 'long')
  assert collections.Counter(names(pipe, 4)) == dict(long=24, short=8)


def test_the_rows_of_a_long_pack_are_consecutive(data):
  mix = dict(books=dict(pack='whole', length=256))
  config = base(mix=mix)
  config.train.micro_batches = 2  # single rows would be sorted by cost
  made = pipeline.Pipeline(data, config).batch(0)
  for pack in made.tokens.reshape(2, 4 * SEQ):
    assert (np.diff(pack) == 1).all()
  # Targets continue across the rows of a pack; segments do not.
  assert (made.targets == made.tokens + 1).all()
  assert (made.segments == 1).all()


@pytest.mark.parametrize('shortest, group', [(0, 4), (0, 8), (3, 4)])
def test_a_step_has_its_shares_and_sorted_groups_in_random_order(
  data, shortest, group
):
  """LongAlign's groups; half and half inside each step, as Llama 2 Long SFT."""
  mix = dict(
    web=dict(pack='sorted', group=group, min_length=shortest), code=dict()
  )
  config = base(mix=mix)
  config.train.batch = 16
  pipe = pipeline.Pipeline(data, config)
  count = len([n for n in CORPUS['web'] if n >= shortest])
  lengths = sorted(CORPUS['web'])[-(count - count % group) :]
  groups = [lengths[i : i + group] for i in range(0, len(lengths), group)]
  found = []
  for step in range(6):
    plan, batch = pipe.plan(step), pipe.batch(step)
    web = [pipe.components[c].name == 'web' for c in plan.components]
    assert sum(web) == 8
    sizes = np.count_nonzero(batch.segments, axis=1)[web].tolist()
    found += [sizes[i : i + group] for i in range(0, 8, group)]
  assert all(sizes in groups for sizes in found)
  epoch = found[: len(groups)]
  assert sorted(epoch) == groups  # each is read once
  assert epoch != groups  # in random order


def test_the_rows_of_a_sorted_group_share_a_micro_batch(data):
  mix = dict(web=dict(pack='sorted', group=4))
  config = base(mix=mix)
  config.train.micro_batches = 2
  batch = pipeline.Pipeline(data, config).batch(0)
  sizes = np.count_nonzero(batch.segments, axis=1).reshape(-1, 2)
  assert sizes[:, 0].min() >= sizes[:, 1].max()


@pytest.mark.parametrize('rule', ['next_fit', 'best_fit', 'concatenate'])
def test_the_loss_of_documents_is_their_mean_however_packed(data, rule):
  """LongAlign: 1/M sum L_i / N_i, with the loss of a token its own number."""
  mix = dict(all=dict(sources=('web',), pack=rule, length=SEQ))
  made = pipeline.Pipeline(data, base(mix=mix, loss='documents')).batch(0)
  loss = (made.targets % 997).astype(float)
  got = (made.weights * loss).sum() / made.weights.sum()
  means = []
  for row in range(8):
    for segment in set(made.segments[row]) - {0}:
      here = (made.segments[row] == segment) & (made.weights[row] > 0)
      if here.any():
        means.append(loss[row][here].mean())
  assert got == pytest.approx(np.mean(means), rel=1e-6)


def test_the_loss_of_prolong_is_the_mean_of_the_means_of_chunks(
  data, monkeypatch
):
  """Its trainer: of the targets on each device, which has 65,536 tokens."""
  monkeypatch.setattr(pipeline, 'CHUNK', SEQ // 4)
  mix = dict(all=dict(sources=('web',), pack='next_fit', length=SEQ))
  config = base(mix=mix, loss='64k')
  config.data.layout = 'contiguous'
  made = pipeline.Pipeline(data, config).batch(0)
  loss = (made.targets % 997).astype(float)
  got = (made.weights * loss).sum() / made.weights.sum()
  chunks = zip(loss.reshape(-1, SEQ // 4), made.weights.reshape(-1, SEQ // 4))
  means = [a[w > 0].mean() for a, w in chunks if w.any()]
  assert got == pytest.approx(np.mean(means), rel=1e-6)


def test_a_curriculum_cuts_segments_by_step_and_keeps_tokens(
  data, prolong_pipe
):
  stages = ((0.2, 8), (0.3, 32), (0.5, 64))
  pipe = pipeline.Pipeline(data, base(mix=prolong(), curriculum=stages))
  for step, longest in ((19, 8), (20, 32), (50, 64)):
    cut, whole = pipe.batch(step), prolong_pipe.batch(step)
    for name in ('tokens', 'targets', 'weights'):
      assert (getattr(cut, name) == getattr(whole, name)).all(), name
    assert cut.positions.max() < longest
    sizes = max(np.bincount(row).max() for row in cut.segments)
    assert longest in (sizes, 64)


def test_stages_of_a_curriculum_end_where_their_shares_do():
  stages = ((0.4, 4096), (0.6, 32_768))
  lengths = [curriculum.segment_length(stages, s, 10) for s in range(12)]
  assert lengths == [4096] * 4 + [32_768] * 8
  assert curriculum.segment_length((), 3, 10) == 0
  nan = float('nan')
  for bad in (
    ((0.4, 8),), ((1, 5),), (8,), ((-1, 8), (2, 8)), ((nan, 8),), ((1, 32.5),),
    (('1', 32),),
  ):  # fmt: skip
    with pytest.raises(errors.InputError, match=r'data\.curriculum'):
      curriculum.check(bad, 64)


def test_the_rows_of_a_micro_batch_cost_alike():
  costs = np.array([1, 9, 2, 8, 3, 7, 4, 6])
  order = layout.balance_rows(costs, rings=2, micro_batches=2)
  assert sorted(order) == list(range(8))
  # As train.step.gradients splits them: [ring, row, micro-batch].
  balanced = costs[order].reshape(2, 2, 2)
  assert sorted(balanced[:, :, 0].ravel()) == [6, 7, 8, 9]
  assert balanced.sum(1).tolist() == [[15, 5], [15, 5]]
  assert layout.balance_rows([1, 3, 2], 1, 1).tolist() == [0, 1, 2]


@pytest.mark.parametrize('rings, micro_batches', [(1, 4), (4, 2)])
def test_rows_are_balanced_inside_a_step(
  data, prolong_pipe, rings, micro_batches
):
  config = base(mix=prolong())
  config.mesh.data, config.train.micro_batches = rings, micro_batches
  pipe = pipeline.Pipeline(data, config)
  order = pipe.plan(3).row_order
  for x, y in zip(prolong_pipe.batch(3), pipe.batch(3)):
    assert (x[order] == y).all()


@pytest.mark.parametrize('component, message', [
  (dict(wieght=1), 'wieght.*weight'),
  (dict(weight=0), 'weight is 0'),
  (dict(weight=1e308), 'weight is 1e.308'),
  (dict(sources=(1, 2)), 'sources takes names'),
  (dict(weight='much'), 'weight takes a number'),
  (dict(carry=1), 'carry takes true'),
  (dict(length=True), 'length takes a whole'),
  (dict(pack='hole'), "'hole'.*'whole'"),
  (dict(length=48), 'length 48'),
  (dict(length=192), 'batch 8 .* 3'),
  (dict(pack='interleave', documents=3), '3 documents x 2 chunks'),
  (dict(pack='whole', carry=False), "carry is False.*'concatenate'.*'whole'"),
  (dict(group=4), "group is 4.*'sorted' alone, not with 'concatenate'"),
  (dict(chunks=3, pack='jump'), "chunks is 3.*'interleave' alone"),
  (3, 'must be a dict'),
])  # fmt: skip
def test_an_impossible_mixture_is_refused_before_any_file(component, message):
  config = base()
  with config.unlocked():
    config.data.mix = dict(code=component)
  with pytest.raises(errors.InputError, match=message):
    mixture.parse(config)


@pytest.mark.parametrize('mix, message', [
  (dict(boks=dict()), "'boks'.*'books'"),
  (dict(web=dict(pack='whole')), 'one pack of 64'),
  (dict(web=dict(min_length=1000)), '0 tokens in 0 documents'),
])  # fmt: skip
def test_a_component_without_data_is_refused_by_name(data, mix, message):
  with pytest.raises(errors.InputError, match=message):
    pipeline.Pipeline(data, base(mix=mix))


def test_the_digest_depends_on_what_decides_the_batches(data):
  digest = lambda **keys: pipeline.Pipeline(data, base(**keys)).digest
  same = digest()
  assert digest(layout='zigzag', skip_steps=(3,)) == same
  other = [
    digest(mix=prolong()), digest(loss='documents'),
    digest(curriculum=((1.0, 32),)),
    digest(positions=dict(kind='pose', target=128)),
  ]  # fmt: skip
  assert len({same, *other}) == 5


def test_rows_that_memory_reads_must_be_packed_together():
  config = base()
  config.model.memory.update(layers=(1,), rows=((), (-1,)))
  with pytest.raises(errors.InputError, match=r'2 x train.seq_len = 128'):
    pipeline.check(config)
  with config.unlocked():
    config.data.mix = dict(code=dict(length=2 * SEQ))
  pipeline.check(config)
