"""Mixtures: exact shares, over a store whose tokens tell their document."""

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


def document(token):
  return token // 1000 - 1


def rows(pipe, steps):
  """(name of the part, Row) of each row, in the order of the mixture."""
  for step in range(steps):
    plan, made = pipe.plan(step), pipe.batch(step)
    for r, place in enumerate(plan.row_order):
      name = pipe.components[plan.components[place]].name
      yield name, type(made)(*(x[r] for x in made))


def test_the_shares_are_exact_within_half_a_percent_of_1000_rows(data):
  pipe = pipeline.Pipeline(data, base(mix=prolong()))
  read = pipe.rows_read(125)
  assert sum(read.values()) == 1000
  for name, part in prolong().items():
    assert abs(read[name] / 1000 - part['weight']) <= 0.005, name
  counted = dict.fromkeys(read, 0)
  for name, _ in rows(pipe, 25):
    counted[name] += 1
  assert counted == pipe.rows_read(25)


def test_each_part_reads_its_own_sources_and_lengths(data):
  pipe = pipeline.Pipeline(data, base(mix=prolong()))
  lengths = data.lengths
  seen = set()
  for name, row in rows(pipe, 25):
    seen.add(name)
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
      # Packs of 16 do not see each other.
      assert (np.diff(row.segments)[15::16] > 0).all()
  assert seen == set(prolong())


def test_the_words_say_what_is_repeated_and_what_is_left_out(data):
  pipe = pipeline.Pipeline(data, base(mix=prolong()))
  lines = dict(
    line.split(': ', maxsplit=1) for line in pipe.summary(125).splitlines()
  )
  assert set(lines) == set(prolong())
  # 3 x (70, 64, 200) give 1 + 1 + 3 packs each; left are 3 x (6 + 8) of
  # these, and the 3 x 98 tokens of documents that are too short.
  assert '150 rows of 64 (15.00%, asked 15.00%)' in lines['code']
  assert '15 packs of 64 from 24 documents, 336 tokens in none' in lines['code']
  assert lines['code'].endswith('10.00 epochs: the data is repeated')
  assert 'repeated' not in pipeline.Pipeline(data, base()).summary(1)


def test_long_documents_are_up_sampled_by_a_part_of_their_own(data):
  mix = dict(
    long=dict(sources=('code', 'books'), min_length=64, weight=3),
    short=dict(sources=('code', 'books'), max_length=64, weight=1),
  )
  for name, row in rows(pipeline.Pipeline(data, base(mix=mix)), 4):
    lengths = data.lengths[document(row.tokens)]
    assert (lengths >= 64).all() == (name == 'long')
  read = pipeline.Pipeline(data, base(mix=mix)).rows_read(4)
  assert read == dict(long=24, short=8)


def test_the_rows_of_a_long_pack_lie_one_after_another(data):
  mix = dict(books=dict(pack='whole', length=256))
  config = base(mix=mix)
  config.train.micro_batches = 2  # costs would be sorted, were rows single
  made = pipeline.Pipeline(data, config).batch(0)
  for pack in made.tokens.reshape(2, 4 * SEQ):
    assert (np.diff(pack) == 1).all()
  # Across rows of a pack targets go on; the segments do not.
  assert (made.targets == made.tokens + 1).all()
  assert (made.segments == 1).all()


def test_sorted_rows_of_a_step_are_of_like_length(data):
  pipe = pipeline.Pipeline(
    data, base(mix=dict(all=dict(sources=('web',), pack='sorted')))
  )
  steps = [np.count_nonzero(pipe.batch(s).segments, axis=1) for s in range(6)]
  lengths = sorted(CORPUS['web'])
  got = sorted(sorted(step.tolist()) for step in steps)
  assert got == [lengths[i : i + 8] for i in range(0, 48, 8)]
  assert [s.tolist() for s in steps] != got  # steps are shuffled


@pytest.mark.parametrize('rule', ['next_fit', 'best_fit', 'concatenate'])
def test_the_loss_of_documents_is_their_mean_however_packed(data, rule):
  """LongAlign: 1/M sum L_i / N_i, with the loss of a token its own number."""
  mix = dict(all=dict(sources=('web',), pack=rule, length=SEQ))
  pipe = pipeline.Pipeline(data, base(mix=mix, loss='documents'))
  made = pipe.batch(0)
  loss = (made.targets % 997).astype(float)
  got = (made.weights * loss).sum() / made.weights.sum()
  means = []
  for row in range(8):
    for segment in set(made.segments[row]) - {0}:
      here = (made.segments[row] == segment) & (made.weights[row] > 0)
      if here.any():
        means.append(loss[row][here].mean())
  assert got == pytest.approx(np.mean(means), rel=1e-6)


def test_a_curriculum_cuts_segments_by_step_and_keeps_tokens(data):
  stages = ((0.2, 8), (0.3, 32), (0.5, 64))
  plain = pipeline.Pipeline(data, base(mix=prolong()))
  pipe = pipeline.Pipeline(data, base(mix=prolong(), curriculum=stages))
  for step, longest in ((0, 8), (19, 8), (20, 32), (49, 32), (50, 64)):
    cut, whole = pipe.batch(step), plain.batch(step)
    for name in ('tokens', 'targets', 'weights'):
      assert (getattr(cut, name) == getattr(whole, name)).all(), name
    assert cut.positions.max() < longest
    sizes = max(np.bincount(row).max() for row in cut.segments)
    assert longest in (sizes, 64)


def test_stages_of_a_curriculum_end_where_their_shares_say():
  stages = ((0.4, 4096), (0.6, 32_768))
  lengths = [curriculum.segment_length(stages, s, 10) for s in range(12)]
  assert lengths == [4096] * 4 + [32_768] * 8
  assert curriculum.segment_length((), 3, 10) == 0
  for bad in (((0.4, 8),), ((1, 5),), (8,), ((-1, 8), (2, 8))):
    with pytest.raises(errors.InputError, match=r'data\.curriculum'):
      curriculum.check(bad, 64)


def test_rows_are_dealt_so_that_those_of_a_micro_batch_cost_alike():
  costs = np.array([1, 9, 2, 8, 3, 7, 4, 6])
  places = layout.balance_rows(costs, rings=2, micro_batches=2)
  assert sorted(places) == list(range(8))
  # As program.gradients splits them: [ring, row, micro-batch].
  dealt = costs[places].reshape(2, 2, 2)
  assert sorted(dealt[:, :, 0].ravel()) == [6, 7, 8, 9]
  assert dealt.sum(1).tolist() == [[15, 5], [15, 5]]


def test_a_single_device_and_micro_batch_keeps_the_order():
  assert layout.balance_rows([1, 3, 2], 1, 1).tolist() == [0, 1, 2]


@pytest.mark.parametrize('rings, parts', [(1, 4), (2, 2), (4, 2), (8, 1)])
def test_dealing_moves_rows_inside_a_step_only(data, rings, parts):
  config = base(mix=prolong())
  plain = pipeline.Pipeline(data, config).batch(3)
  config.mesh.data, config.train.micro_batches = rings, parts
  pipe = pipeline.Pipeline(data, config)
  dealt, places = pipe.batch(3), pipe.plan(3).row_order
  for x, y in zip(plain, dealt):
    assert (x[places] == y).all()


@pytest.mark.parametrize('mix, message', [
  (dict(code=dict(wieght=1)), "unknown key 'wieght'; did you mean 'weight'"),
  (dict(code=dict(weight=0)), 'weight must be above 0'),
  (dict(code=dict(weight='much')), 'weight must be a float'),
  (dict(code=dict(pack='hole')), "'hole' is none of .*nearest is 'whole'"),
  (dict(code=dict(length=48)), 'length 48 neither divides'),
  (dict(code=dict(length=192)), 'batch 8 is not a multiple of 3'),
  (dict(code=dict(pack='interleave', documents=3)), '3 documents x 2 chunks'),
  (dict(code=3), 'must be a dict'),
])  # fmt: skip
def test_a_mixture_that_cannot_be_is_refused_before_any_file(mix, message):
  with pytest.raises(errors.InputError, match=message):
    config = base()
    with config.unlocked():
      config.data.mix = mix
    mixture.parse(config)


@pytest.mark.parametrize('mix, message', [
  (dict(boks=dict()), "reads 'boks', but .* nearest is 'books'"),
  (dict(web=dict(pack='whole')), 'do not fill one pack of 64'),
  (dict(web=dict(min_length=1000)), '0 tokens in 0 documents'),
])  # fmt: skip
def test_a_part_without_data_is_refused_by_name(data, mix, message):
  with pytest.raises(errors.InputError, match=message):
    pipeline.Pipeline(data, base(mix=mix))


def test_the_digest_knows_what_decides_the_batches(data):
  digest = lambda **keys: pipeline.Pipeline(data, base(**keys)).digest
  same = digest()
  assert digest(layout='zigzag', skip_steps=(3,)) == same
  other = [
    digest(mix=prolong()), digest(loss='documents'),
    digest(curriculum=((1.0, 32),)),
    digest(positions=dict(kind='pose', target=128)),
  ]  # fmt: skip
  assert len({same, *other}) == 5


def test_rows_that_memory_sees_must_be_packed_together():
  config = base()
  config.model.memory.update(layers=(1,), rows=((), (-1,)))
  with pytest.raises(errors.InputError, match=r'2 x train.seq_len = 128'):
    pipeline.check(config)
  with config.unlocked():
    config.data.mix = dict(code=dict(length=2 * SEQ))
  pipeline.check(config)
