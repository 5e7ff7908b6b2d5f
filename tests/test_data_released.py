"""Released MDS shards: indexed where they lie, and packed as they were."""

import hashlib
import json
import re

import jobs
import numpy as np
import pytest
from golden import make_mds

from configs import common, llama3_8b_64k, llama3_8b_512k, llama3_8b_512k_sft
from longjax import errors
from longjax.data import pipeline, prepare, row_plans, store, tokenizer

PACK = 64
EOS = 257  # bytes have no begin of a document


def shard(rows, columns) -> bytes:
  """An MDS shard: `columns` are their encodings, rows have their values."""

  def value(name, x):
    kind, *rest = columns[name].split(':')
    if kind == 'str':
      return x.encode()
    if kind in ('int', 'uint64'):
      return np.array(x, '<i8' if kind == 'int' else '<u8').tobytes()
    x = np.asarray(x, np.dtype(rest[0]).newbyteorder('<'))
    log_bytes = sum(max(x.shape) >= 1 << bits for bits in (8, 16))
    shape = np.array(x.shape, f'<u{1 << log_bytes}').tobytes()
    return bytes([4 * x.ndim + log_bytes]) + shape + x.tobytes()

  fixed = {'int': 8, 'uint64': 8}
  samples = []
  for row in rows:
    values = {name: value(name, row[name]) for name in columns}
    free = [len(v) for n, v in values.items() if columns[n] not in fixed]
    samples.append(np.array(free, '<u4').tobytes() + b''.join(values.values()))
  about = dict(
    version=2, format='mds', compression=None, hashes=[],
    column_names=list(columns), column_encodings=list(columns.values()),
    column_sizes=[fixed.get(kind) for kind in columns.values()],
    size_limit=1 << 26,
  )  # fmt: skip
  head = json.dumps(about, sort_keys=True).encode()
  ends = np.cumsum([0] + [len(s) for s in samples])
  ends = ends + 4 + 4 * len(ends) + len(head)
  count = np.array([len(samples)], '<u4').tobytes()
  return count + ends.astype('<u4').tobytes() + head + b''.join(samples)


@pytest.mark.parametrize('kind, want', [
  ('stage', '5f99e0610412e0d4e761dffd63bfe5737ea1873187fce0f504b4bcb2f6a8052e'),
  ('chat', 'a5a8ff4a7c7effb73c9d8ad2742e65e6ef9d6ecaa5489d158e4dd47d474522e9'),
])  # fmt: skip
def test_these_shards_are_those_of_mosaicml_streaming(kind, want):
  """To the byte: tests/golden/make_mds.py."""
  columns = make_mds.KINDS[kind]
  raw = shard(make_mds.rows(columns), columns)
  assert hashlib.sha256(raw).hexdigest() == want


def release(root, domain, packs, length='uint64', masks=None):
  """Writes packs as ProLong has them: two directories under a merged index."""
  columns = dict(
    domain='str', indices='ndarray:uint32', input_ids='ndarray:uint32',
    length=length,
  )  # fmt: skip
  if masks:
    columns['mask'] = 'ndarray:uint8'
  rows = []
  for number, documents in enumerate(packs):
    ends = np.cumsum([0] + [len(d) for d in documents])
    row = dict(domain=domain, length=int(ends[-1]))
    row['indices'] = np.stack([ends[:-1], ends[1:]], 1)
    row['input_ids'] = np.concatenate(documents)
    if masks:
      row['mask'] = masks[number]
    rows.append(row)
  shards = []
  for number in range(2):
    place = root / domain / f'proc{number:02}-64'
    place.mkdir(parents=True)
    raw = shard(rows[number::2], columns)
    (place / 'shard.00000.mds').write_bytes(raw)
    about = dict(basename='shard.00000.mds', bytes=len(raw), hashes={})
    one = dict(raw_data=about, zip_data=None)
    (place / 'index.json').write_text(json.dumps(dict(shards=[one], version=2)))
    merged = about | dict(basename=f'{place.name}/shard.00000.mds')
    shards.append(dict(raw_data=merged, zip_data=None))
  (root / domain / 'index.json').write_text(json.dumps(dict(shards=shards)))
  return rows[::2] + rows[1::2]  # in the order of their files


def texts(rng, lengths) -> list[str]:
  """Of so many tokens, with the end."""
  return [''.join(map(chr, rng.integers(97, 123, n - 1))) for n in lengths]


def ids_of(text: str) -> list[int]:
  return [*text.encode(), EOS]


@pytest.fixture
def released(tmp_path):
  """(root of the release, its texts by domain, masks of tulu)."""
  rng = np.random.default_rng(0)
  lengths = dict(code=[PACK], web=[30, 34], tulu=[20, 10, 34])
  made, masks = {}, []
  for domain, cut in lengths.items():
    packs = [texts(rng, cut) for _ in range(4)]
    ids = [[ids_of(text) for text in p] for p in packs]
    if domain == 'tulu':
      masks = [rng.integers(0, 2, PACK) for _ in packs]
    of_domain = masks if domain == 'tulu' else None
    kind = 'int' if domain == 'web' else 'uint64'
    release(tmp_path / 'mds', domain, ids, kind, of_domain)
    made[domain] = packs[::2] + packs[1::2]
  return tmp_path / 'mds', made, masks[::2] + masks[1::2]


def config_of(**changes):
  config = common.base('tiny')
  config.data.tokenizer = 'bytes'
  config.train.update(seq_len=2 * PACK, batch=4)
  config.data.layout = 'contiguous'
  config.data.update(changes)
  return config


def made(config, out):
  tokens = tokenizer.load('bytes')
  return prepare.prepare(config, tokens, lambda _: None, directory=out)


def test_batches_are_those_of_the_same_documents_tokenized(released, tmp_path):
  root, packs, _ = released
  config = config_of(
    root=str(root),
    sources={
      name: dict(path=name, kind='tokens', loss='all') for name in packs
    },
    mix={name: dict(pack='in_order', length=PACK) for name in packs},
  )
  indexed = made(config, tmp_path / 'indexed')
  for name, of_domain in packs.items():
    lines = [json.dumps(dict(text=t)) for p in of_domain for t in p]
    (tmp_path / f'{name}.jsonl').write_text('\n'.join(lines))
  config.data.root = str(tmp_path)
  config.data.sources = {name: dict(path=f'{name}.jsonl') for name in packs}
  tokenized = made(config, tmp_path / 'tokenized')
  assert indexed.lengths.tolist() == tokenized.lengths.tolist()
  assert (indexed.table[:, 4] == tokenized.table[:, 4]).all()
  pipes = [pipeline.Pipeline(s, config) for s in (indexed, tokenized)]
  for step in range(4):
    for one, other in zip(*(pipe.batch(step) for pipe in pipes)):
      assert one.tobytes() == other.tobytes()
  # The packs are those that were released, in some order.
  whole = {
    tuple(i for text in p for i in ids_of(text))
    for of_domain in packs.values()
    for p in of_domain
  }
  rows = pipes[0].batch(0).tokens.reshape(-1, PACK)
  assert {tuple(row.tolist()) for row in rows} <= whole


STAGE = """
from configs import tiny

def get_config():
  config = tiny.get_config()
  config.data.root, config.data.layout = {root!r}, 'contiguous'
  config.data.sources, config.data.mix = {sources!r}, {mix!r}
  return config
"""


@pytest.mark.slow
def test_two_processes_train_every_stage_as_on_the_text(released, tmp_path):
  """Rows of one pack, of two, and of the answers alone."""
  root, packs, _ = released
  for name, of_domain in packs.items():
    lines = [json.dumps(dict(text=t)) for p in of_domain for t in p]
    (tmp_path / f'{name}.jsonl').write_text('\n'.join(lines))
  ids = lambda loss: {n: dict(path=n, kind='tokens', loss=loss) for n in packs}
  text = {n: dict(path=f'{n}.jsonl') for n in packs}
  mix = {n: dict(pack='in_order', length=PACK) for n in packs}

  def losses(name, root, sources, length, mix):
    file = tmp_path / f'{name}.py'
    file.write_text(STAGE.format(root=str(root), sources=sources, mix=mix))
    workdir = tmp_path / name
    jobs.finish(
      workdir, tmp_path / f'{name}-data', 2, config=file, train__steps=3,
      train__seq_len=length, data__directory='',
    )  # fmt: skip
    return jobs.hexes(workdir)

  for length in (PACK, 2 * PACK):
    got, wanted = (
      losses(f'{kind}{length}', place, sources, length, mix)
      for kind, place, sources in (
        ('ids', root, ids('all')), ('text', tmp_path, text),
      )
    )  # fmt: skip
    assert got == wanted and len(got) == 3
  answers = dict(tulu=ids('answers')['tulu'])
  got = losses('sft', root, answers, PACK, dict(tulu=mix['tulu']))
  assert (
    len(got) == 3
    and np.isfinite([float.fromhex(x) for x in got.values()]).all()
  )


def test_nothing_is_copied_and_masks_are_read_where_they_lie(
  released, tmp_path
):
  root, packs, masks = released
  source = dict(path='tulu', kind='tokens')
  config = config_of(root=str(root), sources=dict(tulu=source))
  data = made(config, tmp_path / 'out')
  assert not list((tmp_path / 'out').glob('shard*'))
  flat = [text for p in packs['tulu'] for text in p]
  want, at = np.concatenate(masks), 0
  for number, text in enumerate(flat):
    ids = ids_of(text)
    assert data.tokens(number).tolist() == ids
    assert data.tokens(number, 3, 4).tolist() == ids[3:7]
    here = want[at : at + len(ids)].tolist()
    assert data.mask(number).tolist() == here
    assert data.mask(number, 3, 4).tolist() == here[3:7]
    at += len(ids)
  row = row_plans.read_row(
    data, row_plans.one_document_rows(data, 10, 1)[0], 10
  )
  assert row.weights.tolist() == want[1:11].tolist()
  config.data.sources.tulu.loss = 'all'
  data = made(config, tmp_path / 'all')
  assert all(data.mask(i).all() for i in range(len(flat)))


def test_a_shard_that_changed_or_went_is_named(released, tmp_path):
  root, _, _ = released
  source = dict(path='web', kind='tokens')
  config = config_of(root=str(root), sources=dict(web=source))
  made(config, tmp_path / 'out')
  path = root / 'web' / 'proc01-64' / 'shard.00000.mds'
  raw = path.read_bytes()
  for wrong, fact in (
    (raw[:-1] + bytes([raw[-1] ^ 1]), 'sha256'), (raw[:-4], 'instead of'),
    (None, 'missing'),
  ):  # fmt: skip
    path.unlink() if wrong is None else path.write_bytes(wrong)
    with pytest.raises(errors.InputError, match=rf'proc01.*{fact}'):
      store.open_store(tmp_path / 'out')


def test_what_cannot_be_indexed_is_copied(tmp_path):
  rng, root = np.random.default_rng(1), tmp_path / 'r'
  root.mkdir()
  ids = rng.integers(0, 256, 50)
  columns = dict(input_ids='ndarray:uint16', labels='ndarray:int64')
  raw = shard([dict(input_ids=ids, labels=ids)], columns)
  (root / 'a.mds').write_bytes(raw)
  (root / 'b.mds').write_bytes(
    shard([dict(input_ids=ids[:9])], dict(input_ids='ndarray:int32'))
  )
  config = config_of(sources=dict(a=dict(path=str(root), kind='tokens')))
  data = made(config, tmp_path / 'out')
  assert [data.tokens(i).tolist() for i in (0, 1)] == [
    ids.tolist(), ids[:9].tolist(),
  ]  # fmt: skip
  assert len(list((tmp_path / 'out').glob('shard*'))) == 1


@pytest.mark.parametrize(
  'module, tokens',
  [
    (llama3_8b_64k, 2**16),
    (llama3_8b_512k, 2**19),
    (llama3_8b_512k_sft, 2**16),
  ],
)
def test_recipes_name_a_directory_for_every_share_of_their_mix(module, tokens):
  released, ours = module.get_config('released'), module.get_config()
  pipeline.check(released)
  assert set(released.data.mix) == set(released.data.sources)
  for name, component in released.data.mix.items():
    assert component.pack == 'in_order'
    of = ours.data.mix[name]
    assert component.get('weight') == of.get('weight')
    length = component.get('length') or tokens
    named = re.search(r'-(\d{5,})$', released.data.sources[name].path)
    assert not named or int(named[1]) == length
  train = lambda c: c.train.to_dict() | c.optim.to_dict()
  assert train(released) == train(ours)


def test_a_sample_that_is_wrong_is_named_and_one_without_documents_is_not(
  tmp_path,
):
  columns = dict(indices='ndarray:uint32', input_ids='ndarray:uint32')
  rows = [
    dict(indices=spans, input_ids=np.arange(9))
    for spans in (np.zeros((0, 2)), [[0, 9]], [[0, 10]])
  ]
  path = tmp_path / 'a.mds'
  config = config_of(sources=dict(a=dict(path=str(path), kind='tokens')))
  path.write_bytes(shard(rows[:2], columns))
  data = made(config, tmp_path / 'out')
  assert data.lengths.tolist() == [9] and data.name(0) == 'a.mds:1'
  path.write_bytes(shard(rows, columns))
  with pytest.raises(errors.InputError, match=r'a\.mds:2 .*leave the 9 ids'):
    made(config, tmp_path / 'other')
  raw = bytearray(shard(rows[:2], columns))
  begin = int(np.frombuffer(raw, '<u4', 3)[2])  # of the second sample
  raw[begin + 2] = 9  # its first size is far beyond it
  path.write_bytes(raw)
  with pytest.raises(errors.InputError, match=r'a\.mds:1 .*damaged.*columns'):
    made(config, tmp_path / 'third')
