"""The store: whole or invisible, and every damage is named."""

import hashlib
import json

import numpy as np
import pytest

from configs import common
from longjax import errors
from longjax.data import parts, pipeline, store

DOCUMENTS = [[1, 2, 3], [4], [5, 6, 7, 8], [9, 10]]
METADATA = dict(vocab=11, tokenizer='t', spec=['s'])


def entries(documents=tuple(DOCUMENTS)):
  for i, ids in enumerate(documents):
    yield store.Entry(f'd{i}', 'ab'[i % 2], np.array(ids, np.int32), len(ids))


@pytest.fixture
def made(tmp_path):
  store.write(tmp_path / 'data', entries(), **METADATA, shard_tokens=4)
  return tmp_path / 'data'


def reseal(directory, change):
  """Changes the manifest and every digest in it, as an attacker would."""
  path = directory / parts.MANIFEST
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


def flip_bit(path, at):
  raw = bytearray(path.read_bytes())
  raw[at] ^= 1
  path.write_bytes(raw)


def test_documents_come_back_whole_from_several_shards(made):
  data = store.open_store(made)
  assert [len(tokens) for tokens, _ in data.shards] == [4, 4, 2]
  assert [data.tokens(i).tolist() for i in range(4)] == DOCUMENTS
  assert data.lengths.tolist() == [3, 1, 4, 2]
  assert data.names == ['d0', 'd1', 'd2', 'd3']
  assert [data.source(i) for i in range(4)] == ['a', 'b', 'a', 'b']
  assert data.tokens(2, 1, 2).tolist() == [6, 7]
  assert data.tokens(2, 3, 9).tolist() == [8]


def test_the_manifest_counts_by_source(made):
  keys = ('name', 'documents', 'tokens', 'longest', 'text_bytes', 'histogram')
  sources = store.open_store(made).manifest['sources']
  assert [tuple(source[key] for key in keys) for source in sources] == [
    ('a', 2, 7, 4, 7, {'2': 1, '4': 1}),
    ('b', 2, 3, 2, 3, {'1': 1, '2': 1}),
  ]


def test_equal_data_has_an_equal_digest(made, tmp_path):
  store.write(tmp_path / 'again', entries(), **METADATA, shard_tokens=4)
  again = store.open_store(tmp_path / 'again')
  assert again.digest == store.open_store(made).digest


@pytest.mark.parametrize(
  'name', ['shard_00000.npy', 'shard_00002.npy', 'documents.npy', 'names.txt']
)
def test_a_flipped_bit_a_cut_and_a_loss_are_refused_by_name(made, name):
  path = made / name
  good = path.read_bytes()
  for at in (0, len(good) // 2, len(good) - 1):
    flip_bit(path, at)
    refused(made, f'{name}.*damaged')
    path.write_bytes(good)
  path.write_bytes(good[:-1])
  refused(made, f'{name}.*{len(good) - 1} bytes .*{len(good)}')
  path.unlink()
  refused(made, f'{name}.*missing')


def test_ids_outside_the_vocabulary_are_counted(made):
  reseal(made, lambda m: m.update(vocab=7))
  refused(made, 'shard_00001.npy: 2 of 4 token ids.*of 7')


def test_files_outside_the_directory_are_refused(made, tmp_path):
  outside = tmp_path / 'secret.npy'
  np.save(outside, np.arange(4, dtype='<u4'))
  (made / 'link.npy').symlink_to(outside)
  for name in ('../secret.npy', str(outside), 'link.npy'):
    reseal(made, lambda m, name=name: m['shards'][0].update(file=name))
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
  path = made / parts.MANIFEST
  good = json.loads(path.read_text())
  for bad in (
    '', '[]', '{"format": 2}', json.dumps(good | dict(shards=[{}])),
    json.dumps(good | dict(vocab='many')),
  ):  # fmt: skip
    path.write_text(bad)
    refused(made, 'manifest.json: not a manifest')
  path.write_text(json.dumps(good | dict(format=99)))
  refused(made, 'manifest.json: format 99')


def test_a_half_made_store_is_invisible(tmp_path):
  def broken():
    yield from entries()
    raise RuntimeError('power')

  with pytest.raises(RuntimeError):
    store.write(tmp_path / 'data', broken(), **METADATA, shard_tokens=2)
  assert list(tmp_path.iterdir()) == []


def test_the_first_of_two_writers_stands(made):
  before = store.open_store(made).digest
  store.write(made, entries([[1]]), **METADATA)
  assert store.open_store(made).digest == before
  assert [p.name for p in made.parent.iterdir()] == ['data']


def test_other_files_are_not_written_over(tmp_path):
  (tmp_path / 'data').mkdir()
  for file in (tmp_path / 'data' / 'thesis.tex', tmp_path / 'notes'):
    file.write_text('mine')
  for place in (tmp_path / 'data', tmp_path / 'notes'):
    with pytest.raises(errors.InputError, match=f'{place.name}: cannot write'):
      store.write(place, entries(), **METADATA)
  assert (tmp_path / 'data' / 'thesis.tex').read_text() == 'mine'
  assert (tmp_path / 'notes').read_text() == 'mine'


def test_a_large_store_is_verified_when_a_shard_is_first_read(
  made, monkeypatch
):
  monkeypatch.setattr(store, 'VERIFY_BYTES', 0)
  path = made / 'shard_00001.npy'
  flip_bit(path, -2)
  data = store.open_store(made)  # sizes and tables are right
  assert data.tokens(0).tolist() == DOCUMENTS[0]
  for read in (lambda: data.tokens(2), lambda: data.mask(2), data.verify):
    with pytest.raises(errors.InputError, match=r'shard_00001.npy: damaged'):
      read()
  config = common.base('tiny')
  config.train.update(seq_len=2, batch=4)
  config.data.layout = 'contiguous'
  pipe = pipeline.Pipeline(store.open_store(made), config)
  with pytest.raises(errors.InputError, match=r'shard_00001.npy: damaged'):
    for _ in zip(range(3), pipe.iterate(0)):  # threads that read ahead
      pass
  path.write_bytes(path.read_bytes()[:-1])
  refused(made, 'shard_00001.npy.* bytes ')


def test_masks_are_kept_only_where_there_are_some(tmp_path):
  ids = np.array([1, 2, 3])
  masked = store.Entry('m', 'chat', ids, 3, np.array([0, 1, 1], np.uint8))
  plain = store.Entry('p', 'chat', ids, 3)
  place = tmp_path / 'data'
  store.write(place, [plain, plain, masked, plain], **METADATA, shard_tokens=6)
  data = store.open_store(place)
  assert [data.mask(i).tolist() for i in range(4)] == [
    [1, 1, 1], [1, 1, 1], [0, 1, 1], [1, 1, 1],
  ]  # fmt: skip
  assert data.mask(2, 1, 5).tolist() == [1, 1]
  assert [p.name for p in place.glob('mask*')] == ['mask_00001.npy']
  flip_bit(place / 'mask_00001.npy', -1)
  refused(place, r'mask_00001\.npy: damaged')


def test_a_document_has_a_digest_of_its_tokens(made):
  table = np.load(made / 'documents.npy')
  assert len(set(table[:, 4].tolist())) == 4
  first = hashlib.sha256(np.array(DOCUMENTS[0], '<u4').tobytes()).digest()
  assert table[0, 4] == int.from_bytes(first[:8], 'little', signed=True)
