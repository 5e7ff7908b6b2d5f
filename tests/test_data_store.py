"""The store: whole or invisible, and every damage is named."""

import hashlib
import json

import numpy as np
import pytest

from configs import common
from longjax import errors
from longjax.data import pipeline, store

DOCUMENTS = [[1, 2, 3], [4], [5, 6, 7, 8], [9, 10]]


def entries(documents=tuple(DOCUMENTS)):
  for i, ids in enumerate(documents):
    yield store.Entry(f'd{i}', 'ab'[i % 2], np.array(ids, np.int32), len(ids))


@pytest.fixture
def made(tmp_path):
  directory = tmp_path / 'data'
  store.write(
    directory, entries(), vocab=11, tokenizer='t', spec=['s'], shard_tokens=4
  )
  return directory


def reseal(directory, change):
  """Changes the manifest and every digest in it, as an attacker would."""
  path = directory / store.MANIFEST
  manifest = json.loads(path.read_text())
  change(manifest)
  for file in (*manifest['shards'], *manifest['tables']):
    content = (directory / file['file']).read_bytes()
    file['bytes'] = len(content)
    file['sha256'] = hashlib.sha256(content).hexdigest()
  path.write_text(json.dumps(manifest))


def refused(directory, match):
  with pytest.raises(errors.InputError, match=match) as caught:
    store.open_store(directory)
  assert '\n' not in str(caught.value)


def test_documents_come_back_whole_from_several_shards(made):
  data = store.open_store(made)
  assert [len(tokens) for tokens, _ in data.shards] == [4, 4, 2]
  assert [data.tokens(i).tolist() for i in range(4)] == DOCUMENTS
  assert data.lengths.tolist() == [3, 1, 4, 2]
  assert list(data.names) == ['d0', 'd1', 'd2', 'd3']
  assert [data.source(i) for i in range(4)] == ['a', 'b', 'a', 'b']
  assert data.tokens(2, 1, 2).tolist() == [6, 7]
  assert data.tokens(2, 3, 9).tolist() == [8]


def test_the_manifest_counts_by_source(made):
  assert store.open_store(made).manifest['sources'] == [
    dict(
      name='a',
      documents=2,
      tokens=7,
      longest=4,
      text_bytes=7,
      histogram={'2': 1, '4': 1},
    ),
    dict(
      name='b',
      documents=2,
      tokens=3,
      longest=2,
      text_bytes=3,
      histogram={'1': 1, '2': 1},
    ),
  ]


def test_equal_data_has_an_equal_digest(made, tmp_path):
  store.write(
    tmp_path / 'again',
    entries(),
    vocab=11,
    tokenizer='t',
    spec=['s'],
    shard_tokens=4,
  )
  again = store.open_store(tmp_path / 'again')
  assert again.digest == store.open_store(made).digest


@pytest.mark.parametrize(
  'name', ['shard_00000.npy', 'shard_00002.npy', 'documents.npy', 'names.txt']
)
def test_a_flipped_bit_a_cut_and_a_loss_are_refused_by_name(made, name):
  path = made / name
  good = path.read_bytes()
  for at in (0, len(good) // 2, len(good) - 1):
    bad = bytearray(good)
    bad[at] ^= 1
    path.write_bytes(bad)
    refused(made, f'{name}.*damaged')
  path.write_bytes(good[:-1])
  refused(made, f'{name}.*bytes instead of')
  path.unlink()
  refused(made, f'{name}.*missing')


def test_ids_outside_the_vocabulary_are_counted(made):
  reseal(made, lambda m: m.update(vocab=7))
  refused(made, 'shard_00001.npy: 2 of 4 token ids.*of 7')


def test_files_outside_the_directory_are_refused(made, tmp_path):
  outside = tmp_path / 'secret.npy'
  np.save(outside, np.arange(4, dtype='<u4'))
  for name in ('../secret.npy', str(outside)):

    def move(manifest, name=name):
      manifest['shards'][0]['file'] = name

    reseal(made, move)
    refused(made, 'outside its directory')
  (made / 'link.npy').symlink_to(outside)
  reseal(made, lambda m: m['shards'][0].update(file='link.npy'))
  refused(made, 'outside its directory')


def test_pickles_and_wrong_tables_are_refused(made):
  table = np.load(made / 'documents.npy')
  table[0, 2] = 100
  np.save(made / 'documents.npy', table)
  reseal(made, lambda m: None)
  refused(made, 'documents.npy: a document lies outside')
  np.save(made / 'documents.npy', np.array([{}]), allow_pickle=True)
  reseal(made, lambda m: None)
  refused(made, 'documents.npy: not a .npy')


def test_broken_manifests_are_refused(made):
  path = made / store.MANIFEST
  good = json.loads(path.read_text())
  for bad in (
    '',
    '[]',
    '{"format": 2}',
    json.dumps(good | dict(shards=[{}])),
    json.dumps(good | dict(vocab='many')),
  ):
    path.write_text(bad)
    refused(made, 'manifest.json: not a manifest')
  path.write_text(json.dumps(good | dict(format=99)))
  refused(made, 'manifest.json: format 99')


def test_a_half_made_store_is_invisible(tmp_path):
  def broken():
    yield from entries()
    raise RuntimeError('power')

  with pytest.raises(RuntimeError):
    store.write(
      tmp_path / 'data',
      broken(),
      vocab=11,
      tokenizer='t',
      spec=[],
      shard_tokens=2,
    )
  assert list(tmp_path.iterdir()) == []
  assert not store.exists(tmp_path / 'data')


def test_the_first_of_two_writers_stands(made):
  before = store.open_store(made).digest
  store.write(made, entries([[1]]), vocab=11, tokenizer='t', spec=[])
  assert store.open_store(made).digest == before
  assert [p.name for p in made.parent.iterdir()] == ['data']


def test_a_directory_with_other_things_is_not_written_over(tmp_path):
  (tmp_path / 'data').mkdir()
  (tmp_path / 'data' / 'thesis.tex').write_text('')
  with pytest.raises(errors.InputError, match='cannot write'):
    store.write(tmp_path / 'data', entries(), vocab=11, tokenizer='t', spec=[])
  assert (tmp_path / 'data' / 'thesis.tex').exists()


def test_a_large_store_is_verified_when_a_shard_is_first_read(
  made, monkeypatch
):
  monkeypatch.setattr(store, 'VERIFY_BYTES', 0)
  path = made / 'shard_00001.npy'
  bad = bytearray(path.read_bytes())
  bad[-2] ^= 1
  path.write_bytes(bad)
  data = store.open_store(made)  # sizes and tables are right
  assert data.tokens(0).tolist() == DOCUMENTS[0]
  for read in (lambda: data.tokens(2), lambda: data.mask(2), data.verify):
    with pytest.raises(errors.InputError, match=r'shard_00001.npy: damaged'):
      read()
  path.write_bytes(path.read_bytes()[:-1])
  refused(made, 'bytes instead of')


def test_the_threads_that_read_ahead_pass_damage_on(made, monkeypatch):
  monkeypatch.setattr(store, 'VERIFY_BYTES', 0)
  config = common.base('tiny')
  config.train.update(seq_len=2, batch=4)
  config.data.layout = 'contiguous'
  pipe = pipeline.Pipeline(store.open_store(made), config)
  next(pipe.iterate(0))
  path = made / 'shard_00001.npy'
  bad = bytearray(path.read_bytes())
  bad[-2] ^= 1
  path.write_bytes(bad)
  pipe = pipeline.Pipeline(store.open_store(made), config)
  with pytest.raises(errors.InputError, match=r'shard_00001.npy: damaged'):
    for _ in zip(range(3), pipe.iterate(0)):
      pass


def test_masks_are_kept_only_where_there_are_some(tmp_path):
  ids = np.array([1, 2, 3])
  masked = store.Entry('m', 'chat', ids, 3, np.array([0, 1, 1], np.uint8))
  plain = store.Entry('p', 'chat', ids, 3)
  store.write(
    tmp_path / 'data', [plain, plain, masked, plain], vocab=4, tokenizer='t',
    spec=[], shard_tokens=6,
  )  # fmt: skip
  data = store.open_store(tmp_path / 'data')
  assert [data.mask(i).tolist() for i in range(4)] == [
    [1, 1, 1], [1, 1, 1], [0, 1, 1], [1, 1, 1],
  ]  # fmt: skip
  assert data.mask(2, 1, 5).tolist() == [1, 1]
  assert [p.name for p in (tmp_path / 'data').glob('mask*')] == [
    'mask_00001.npy'
  ]
  path = tmp_path / 'data' / 'mask_00001.npy'
  path.write_bytes(path.read_bytes()[:-1] + b'x')
  refused(tmp_path / 'data', r'mask_00001\.npy: damaged')


def test_a_document_has_a_digest_of_its_tokens(made):
  table = np.load(made / 'documents.npy')
  assert len(set(table[:, 4].tolist())) == 4
  first = hashlib.sha256(np.array(DOCUMENTS[0], '<u4').tobytes()).digest()
  assert table[0, 4] == int.from_bytes(first[:8], 'little', signed=True)


def test_a_file_in_the_place_of_a_store_is_refused_and_kept(tmp_path):
  place = tmp_path / 'notes.txt'
  place.write_text('mine')
  with pytest.raises(errors.InputError, match=r'notes\.txt'):
    store.refuse_other(place)
  assert place.read_text() == 'mine'
