"""Positions, against rows worked out by hand and the bounds of each paper."""

import json
import pathlib

import numpy as np
import pytest
from test_data_pack import Memory

from configs import common
from longjax import errors
from longjax.batch import Batch, one_document
from longjax.data import mixture, pack, pipeline, positions, row_plans, store

GOLDEN = json.loads(
  (pathlib.Path(__file__).parent / 'golden' / 'recipes.json').read_text()
)
SEGMENTS = np.array([1, 1, 1, 1, 2, 2, 0])


class Draws:
  """Stands for a Generator: gives what it was told, and checks the range."""

  def __init__(self, seams=(), integers=()):
    self.seams, self.numbers, self.ranges = list(seams), list(integers), []

  def choice(self, size, count, replace):
    seams = np.array(self.seams.pop(0))
    assert len(seams) == count and (seams < size).all() and not replace
    return seams

  def integers(self, low, high, size=None):
    self.ranges.append((low, high))
    if size is None:
      return self.numbers.pop(0)
    return np.array([self.numbers.pop(0) for _ in range(size)])


def test_positions_restart_in_each_segment():
  segments = [[1, 1, 2, 2, 2, 0], [1, 2, 3, 3, 0, 0]]
  assert positions.plain(segments).tolist() == [
    [0, 1, 0, 1, 2, 0],
    [0, 0, 0, 1, 0, 0],
  ]
  assert positions.plain(np.array([5, 5, 6])).tolist() == [0, 1, 0]


def test_pose_by_hand():
  # Segment 1: chunks of 2 and 2 tokens, the second moved by 5 of at most 6;
  # segment 2: chunks of 1 and 1, moved by 8 of 8; padding: one token.
  rng = Draws(seams=[[1], [0], []], integers=[5, 8])
  got = positions.pose(SEGMENTS, 10, rng, 2)
  assert got.tolist() == [0, 1, 7, 8, 0, 9, 0]
  assert rng.ranges == [(0, 7), (0, 9)]


def test_pose_with_three_chunks_by_hand():
  rng = Draws(seams=[[0, 2]], integers=[2, 4])
  got = positions.pose(np.ones(4, int), 8, rng, 3)
  assert got.tolist() == [0, 3, 4, 7]
  assert rng.ranges == [(0, 5), (2, 5)]  # u_2 is not below u_1


def test_pose_skips_where_the_text_jumps():
  rng = Draws(seams=[[0], []], integers=[4, 6, 8])
  got = positions.pose(SEGMENTS, 10, rng, 2, jumps=[1, 3])
  assert got.tolist() == [0, 5, 6, 9, 0, 9, 0]
  assert rng.ranges == [(0, 7), (4, 7), (0, 9)]


@pytest.mark.parametrize('case', GOLDEN['pose']['cases'])
def test_rows_of_pose_are_those_of_its_code(case):
  """Which tokens, and at which positions, given the numbers that it drew."""
  row, (first, end, skip) = GOLDEN['pose']['row'], case['draws']

  class Draws:
    """Gives what the code drew; its bounds are inclusive."""

    def __init__(self, *numbers):
      self.numbers = list(numbers)

    def integers(self, low, high, size=None):
      least, most, drawn = self.numbers.pop(0)
      assert (low, high) == (least, most + 1)
      return drawn if size is None and np.ndim(high) == 0 else np.array([drawn])

  component = mixture.ComponentConfig(pack='jump', length=row)
  lengths = np.array([case['length']])
  packs = pack.packs(component, lengths, np.arange(1), Draws(first, end))
  (plan,) = row_plans.of_packs([packs[0]], row, row, joined=True)
  document = Memory(np.arange(case['length']))
  made = row_plans.read_row(document, plan, row)
  assert made.tokens.tolist() == case['tokens']
  assert set(made.segments) == {1}
  assert made.weights[:-1].min() == 1
  assert made.targets[:-1].tolist() == case['tokens'][1:]
  got = positions.pose(
    made.segments, GOLDEN['pose']['target'], Draws(skip), 2, plan.jumps()
  )
  assert got.tolist() == case['positions']


def test_skipalign_by_hand():
  # Tokens 0-2 are a question, 3-4 an answer, 5-6 a question, 7 an answer;
  # weights belong to the token before the one that is predicted.
  weights = np.array([0, 0, 1, 1, 0, 0, 1, 0])
  rng = Draws(integers=[7, 2, 4])  # sorted: 2, 4, 7
  got = positions.skipalign(np.ones(8, int), weights, 20, rng)
  assert got.tolist() == [0, 1, 2, 3 + 2, 4 + 2, 5 + 4, 6 + 4, 7 + 7]
  assert rng.ranges == [(0, 13)]


def test_skipalign_of_a_text_without_turns_is_plain():
  weights = np.array([1, 1, 1, 0, 1, 0, 0])
  rng = np.random.default_rng(0)
  got = positions.skipalign(SEGMENTS, weights, 100, rng)
  assert (got == positions.plain(SEGMENTS)).all()


@pytest.mark.parametrize('kind, mask', [
  ('files', None), ('tokens', [1, 0, 0, 0]), ('chat', [0, 1, 1, 1]),
])  # fmt: skip
def test_what_has_no_turns_to_skip_between_is_refused(kind, mask, tmp_path):
  """Text, ids of which none is predicted, a chat with loss='all'."""
  chats = [
    store.Entry('a', 'chat', np.arange(4), 0, np.array(x, np.uint8))
    for x in ([0, 1, 1, 1], [0, 0, 1, 1])
  ]
  mask = mask and np.array(mask, np.uint8)
  other = store.Entry('b', 'other', np.arange(4), 0, mask)
  spec = [['chat', dict(kind='chat'), []], ['other', dict(kind=kind), []]]
  made = tmp_path / 'data'
  store.write(made, [*chats, other], vocab=9, tokenizer='t', spec=spec)
  made = store.open_store(made)
  config = common.base('tiny')
  config.train.update(seq_len=4, batch=1)
  config.data.positions.update(kind='skipalign', target=16)

  def pipe(*sources):
    with config.unlocked():
      config.data.mix = dict(x=dict(sources=sources))
    return pipeline.Pipeline(made, config)

  assert pipe('chat')
  with pytest.raises(errors.InputError, match=r"in other, .*loss='answers'"):
    pipe('other')
  if kind == 'chat':
    with pytest.raises(errors.InputError, match='in other'):
      pipe('chat', 'other')
  else:  # text beside chats
    assert pipe('chat', 'other')


def test_e2llm_by_hand():
  # A window of 8 in a target of 24, g = 3, t = 10: (m + t) / 3 at scale 3 is
  # m + 10, but for the first four tokens.
  got = positions.e2llm(np.ones(6, int), 24, 8, factor=3, offset=10)
  assert got.tolist() == [0, 1, 2, 3, 14, 15]
  # g = 1, t = 0: plain positions at the scale of the target.
  got = positions.e2llm(np.ones(6, int), 24, 8, factor=1, offset=0)
  assert got.tolist() == [0, 3, 6, 9, 12, 15]
  # g = 2: m x 3 / 2 to the nearest.
  got = positions.e2llm(np.ones(6, int), 24, 8, factor=2, offset=1)
  assert got.tolist() == [0, 2, 3, 5, 8, 9]


def draw(asked, segments, weights, step, row):
  """positions.draw for a row of these two arrays."""
  batch = one_document(segments[None])
  batch = Batch(*(x[0] for x in batch))
  batch = batch._replace(segments=segments, weights=weights)
  return positions.draw(asked, batch, (), (7, step, row))


def settings(**changes):
  config = common.base('tiny').data.positions
  config.update(changes)
  return config


@pytest.mark.parametrize('kind, target, window', [
  ('pose', 100, 0), ('pose', 64, 0), ('skipalign', 300, 0),
  ('e2llm', 640, 64), ('e2llm', 64, 64),
])  # fmt: skip
def test_skipped_positions_rise_and_stay_below_the_target(kind, target, window):
  rng = np.random.default_rng(0)
  asked = settings(kind=kind, target=target, window=window, chunks=3)
  for step in range(60):
    cuts = np.sort(rng.choice(64, 4))
    segments = np.searchsorted(cuts, np.arange(64), 'right') + 1
    weights = rng.integers(0, 2, 64)
    got = draw(asked, segments, weights, step, 1)
    assert got.dtype == np.int32
    assert got.min() >= 0 and got.max() < target
    same = segments[1:] == segments[:-1]
    assert (np.diff(got)[same] > 0).all()
    again = draw(asked, segments, weights, step, 1)
    assert (got == again).all()


def test_pose_reaches_the_whole_window_and_rows_differ():
  asked = settings(kind='pose', target=128)
  ones = np.ones(16, int)
  rows = [draw(asked, ones, ones, s, 0) for s in range(200)]
  assert max(row.max() for row in rows) > 120
  # 15 seams x 113 skips: 200 draws meet about 12 times.
  assert len({row.tobytes() for row in rows}) > 170


def test_e2llm_draws_one_scale_and_offset_for_a_step():
  asked = settings(kind='e2llm', target=80, window=8)
  ones = np.ones(8, int)
  of = lambda step, row: draw(asked, ones, ones, step, row)
  assert (of(3, 0) == of(3, 5)).all()
  assert len({of(step, 0).tobytes() for step in range(20)}) > 10


@pytest.mark.parametrize('changes, message', [
  (dict(kind='pose', target=63), 'below train.seq_len 64'),
  (dict(kind='pose', target=128, chunks=0), 'chunks 0'),
  (dict(kind='e2llm', target=128, window=48), 'a multiple'),
  (dict(target=128), 'not read by plain'),
  (dict(kind='skipalign', target=128, chunks=3), 'chunks 3 .* pose alone'),
  (dict(kind='pose', target=128, window=64), 'window 64 .* e2llm alone'),
])  # fmt: skip
def test_positions_that_cannot_be_are_refused(changes, message):
  with pytest.raises(errors.InputError, match=message):
    positions.check(settings(**changes), 64)
