"""Inputs as people bring them: the documents in them, or one line."""

import io
import json
import tarfile

import numpy as np
import pytest
import test_data_released

from configs import common
from longjax import errors
from longjax.data import (
  conversations,
  formats,
  mds,
  prepare,
  sources,
  synthetic,
)

ROWS = [dict(text=f'Document {i}\n' + 'word ' * i, id=i) for i in range(5)]
TEXTS = [row['text'] for row in ROWS]
LINES = ''.join(json.dumps(row) + '\n' for row in ROWS)
IDS = np.random.default_rng(0).integers(1, 120, 300)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('LONGJAX_CACHE', str(tmp_path / '.cache'))


def write(root, **files):
  """Text or bytes by name, in which `__` is `/` and the last `_` a dot."""
  for name, content in files.items():
    path = root / '.'.join(name.replace('__', '/').rsplit('_', 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = content.encode() if isinstance(content, str) else content
    path.write_bytes(raw)
  return root


def table(rows, name='parquet'):
  pa, out = pytest.importorskip('pyarrow'), io.BytesIO()
  made = pa.Table.from_pylist(rows)
  if name == 'parquet':
    pytest.importorskip('pyarrow.parquet').write_table(made, out)
  else:
    with pa.ipc.new_stream(out, made.schema) as writer:
      writer.write_table(made)
  return out.getvalue()


def listed(path, **keys):
  return list(sources.documents('s', dict(path=str(path), **keys)))


def texts(path, **keys):
  return [document.text for document in listed(path, **keys)]


def refused(path, *facts, **keys):
  with pytest.raises(errors.InputError) as caught:
    listed(path, **keys)
  line = str(caught.value)
  assert '\n' not in line and all(fact in line for fact in facts), line


def prepared(root, **keys):
  """(store, lines that were logged) of a source, in bytes."""
  said, config = [], common.base('tiny')
  config.data.tokenizer = 'bytes'
  config.data.sources = dict(s=dict(path=str(root), **keys))
  tokens = prepare.find_tokenizer(config)
  return prepare.prepare(config, tokens, said.append), said


CSV = 'id,text\r\n' + ''.join(
  f'{i},"{text}"\r\n' for i, text in enumerate(TEXTS)
)


@pytest.mark.parametrize(
  'name, content',
  [
    ('list_json', json.dumps(ROWS)),
    ('list_json', json.dumps(ROWS, indent=1)),
    ('list_txt', json.dumps(ROWS)),
    ('lines_json', LINES),
    ('lines_json', '\ufeff\n' + LINES),
    ('lines_txt', LINES),
    ('list_jsonl', json.dumps(ROWS)),
    ('table_csv', CSV),
    ('table_csv', '\ufeff' + CSV),
    ('table_tsv', CSV.replace(',', '\t')),
  ],
)
def test_records_are_found_by_name_and_content(name, content, tmp_path):
  assert texts(write(tmp_path, **{name: content})) == TEXTS


def test_a_table_of_any_name_is_read(tmp_path):
  assert texts(write(tmp_path, blob_x=table(ROWS))) == TEXTS


def test_csv_in_another_encoding(tmp_path):
  path = write(tmp_path, a_csv='text\né\n'.encode('latin-1'))
  refused(path, 'a.csv', 'utf-8')
  assert texts(path, encoding='latin-1') == ['é']


def archive():
  out = io.BytesIO()
  with tarfile.open(fileobj=out, mode='w') as tar:
    tar.addfile(tarfile.TarInfo('a.txt'))
  return out.getvalue()


@pytest.mark.parametrize(
  'name, content, fact',
  [
    ('tree_tar', archive(), 'archive'),
    ('tree_txt', archive(), 'archive'),
    ('tree_txt', b'PK\x03\x04' + b'x' * 40, 'zip'),
    ('ids_bin', IDS.astype('<u2').tobytes(), "kind='tokens'"),
    ('ids_dat', IDS.astype('<u2').tobytes(), 'NUL'),
    ('data_pkl', b'\x80', 'unpickling'),
    ('one_json', '{"data": [1]}', "'data'"),
    ('cut_json', json.dumps(ROWS)[:-9], 'JSON'),
    ('cut_csv', CSV[:-9], 'end of data'),
    ('odd_csv', 'text,id\na\n', '1 fields for 2 columns'),
    ('two_csv', 'text,text\na,b\n', 'two columns'),
    ('semi_csv', 'id;text\n1;a\n', "separated by ';'"),
    ('squad_json', '{"v": "1", "data": [{"a": 1}]}', "'data'; exclude"),
  ],
)
def test_what_is_no_document_is_refused_by_name(name, content, fact, tmp_path):
  path = write(tmp_path, **{name: content})
  refused(path, '.'.join(name.rsplit('_', 1)), fact, encoding='latin-1')


def test_a_saved_data_set_gives_the_split_that_is_named(tmp_path):
  about = json.dumps(dict(_data_files=[dict(filename='d.arrow')]))
  root = write(
    tmp_path / 'saved', dataset_dict_json='{"splits": ["a", "b"]}',
    a__d_arrow=table(ROWS, 'arrow'), a__state_json=about,
    a__dataset_info_json='{}', b__d_arrow=table(ROWS[:2], 'arrow'),
    b__state_json=about, b__stale_arrow=table(ROWS, 'arrow'),
  )  # fmt: skip
  refused(root, 'a, b', "split='a'")
  refused(root, "'train'", 'a, b', split='train')
  assert texts(root, split='a') == TEXTS
  assert texts(root, split='b') == TEXTS[:2]
  assert texts(root, split='*') == TEXTS + TEXTS[:2]
  assert texts(root / 'a') == TEXTS


def test_a_folder_of_the_hub_gives_its_records(tmp_path):
  root = write(
    tmp_path / 'hub', README_md='# Data', dataset_infos_json='{}',
    data__train_parquet=table(ROWS),
  )  # fmt: skip
  assert texts(root) == TEXTS
  write(root, data__test_parquet=table(ROWS[:1]))
  refused(root, 'test, train')
  assert texts(root, split='test') == TEXTS[:1]
  data, said = prepared(root, split='train')
  (told,) = data.manifest['left_out']
  assert told['no_documents'] == 2
  assert [line.split(':')[0] for line in told['also_named']] == [
    'README.md', 'dataset_infos.json',
  ]  # fmt: skip
  assert any('README.md' in line and '2 files' in line for line in said)
  assert 'README.md' in prepare.report(data)


def test_readmes_of_text_are_documents(tmp_path):
  root = write(tmp_path, README_md='one', b_txt='two')
  assert texts(root) == ['one', 'two']
  refused(root, "split='train'", split='train')


def test_a_cache_of_the_hub_is_read_through_its_links(tmp_path):
  root = tmp_path / 'cache'
  blob, snap = root / 'blobs' / 'abc', root / 'snapshots' / 'REV'
  for path in (blob, snap):
    path.parent.mkdir(parents=True, exist_ok=True)
  snap.mkdir()
  blob.write_text(LINES)
  (root / 'refs').mkdir()
  (root / 'refs' / 'main').write_text('REV')
  (snap / 'a.jsonl').symlink_to('../../blobs/abc')
  assert texts(snap) == TEXTS
  assert texts(root) == texts(tmp_path / 'cache' / 'snapshots') == TEXTS
  (root / 'snapshots' / 'OLD').mkdir()
  (root / 'snapshots' / 'OLD' / 'a.jsonl').symlink_to('../../blobs/abc')
  refused(root, 'OLD, REV', 'include')
  assert texts(root, include='snapshots/REV/*') == TEXTS


def test_links_that_leave_are_named_and_others_followed_once(tmp_path):
  root = write(tmp_path / 'r', a_txt='one')
  (tmp_path / 'secret').write_text('out')
  (root / 'same.txt').symlink_to('a.txt')
  (root / 'out.txt').symlink_to('../secret')
  (root / 'none.txt').symlink_to('absent')
  (root / 'turns.txt').symlink_to('turns.txt')
  data, said = prepared(root)
  assert data.names == ['a.txt']
  (told,) = data.manifest['left_out']
  assert told['no_documents'] == 4
  assert any('out.txt: a link that leaves' in line for line in said)
  refused(root, 'out.txt', 'leaves', include='out*')
  (root / '.hidden').mkdir()
  (root / 'a.txt').rename(root / '.hidden' / 'a.txt')
  (root / 'same.txt').unlink()
  (root / 'same.txt').symlink_to('.hidden/a.txt')
  assert texts(root) == ['one']
  data, said = prepared(root)
  assert data.manifest['left_out'][0]['no_documents'] == 4
  assert any('.hidden: its name starts' in line for line in said)


@pytest.mark.parametrize('name, content, fact', [
  ('a.parquet', b'version https://git-lfs.github.com/spec/v1\n', 'lfs pull'),
  ('a.jsonl', b'version https://git-lfs.github.com/spec/v1\n', 'lfs pull'),
  ('a.jsonl', b'\x1f\x8b' + bytes(30), 'compressed by gzip'),
])  # fmt: skip
def test_what_a_name_hides_is_refused(name, content, fact, tmp_path):
  if name.endswith('.parquet'):
    pytest.importorskip('pyarrow')
  (tmp_path / name).write_bytes(content)
  refused(tmp_path, name, fact)


def test_an_array_with_a_damaged_header_is_refused(tmp_path):
  header = b"\x93NUMPY\x01\x00\x1e\x00{'descr': '<u2', 'shape': j4)}\n"
  (tmp_path / 'a.npy').write_bytes(header)
  refused(tmp_path, 'a.npy', 'not a whole .npy', kind='tokens')


def test_a_wrong_field_names_those_there_and_the_key(tmp_path):
  content = ''.join(f'{{"content": "{i}", "repo": 1}}\n' for i in range(10))
  root = write(tmp_path, c_jsonl=content)
  refused(root, '10 of 10', "'content', 'repo'", "text='content'", '0.001')
  refused(root, 'max_bad is 1', max_bad=1.0)
  refused(root, "'repo' is int", text='repo')
  assert texts(root, text='content') == [str(i) for i in range(10)]


def test_a_bucket_without_its_client_is_one_line(monkeypatch):
  pytest.importorskip('etils')
  import etils.epath

  def absent(self):
    raise ImportError('Please install gcsfs to access Google Storage')

  monkeypatch.setattr(etils.epath.Path('gs://b').__class__, 'is_file', absent)
  refused('gs://b/data', 'gs://b/data', 'gcsfs')


def test_a_directory_in_a_bucket_is_read(tmp_path, monkeypatch):
  """As far as our code can tell."""
  root = write(tmp_path / 'b', a__x_jsonl=LINES, README_md='about')
  monkeypatch.setattr(
    sources.listing.storage, 'is_remote', lambda path: str(root) in str(path)
  )
  assert texts(root) == TEXTS


def shard(rows) -> bytes:
  """An MDS shard of ids as ProLong's packs."""
  ids, mask = 'ndarray:uint32', 'ndarray:uint8'
  columns = dict(input_ids=ids, indices='ndarray:int64', mask=mask)
  return test_data_released.shard(rows, columns)


PACKS = [
  dict(
    input_ids=IDS[i * 100 : (i + 1) * 100], mask=np.arange(100) > 60,
    indices=[[0, 40], [40, 41], [50, 100]],
  )
  for i in range(3)
]  # fmt: skip


def test_packs_of_prolong_are_cut_at_their_indices(tmp_path):
  raw = shard(PACKS)
  place = dict(raw_data=dict(basename='p/shard.00000.mds', bytes=len(raw)))
  root = write(
    tmp_path / 'mds', index_json=json.dumps(dict(shards=[place], version=2))
  )
  refused(root, 'p/shard.00000.mds', 'missing', kind='tokens')
  (root / 'p').mkdir()
  (root / 'p' / 'shard.00000.mds').write_bytes(raw)
  data, _ = prepared(root, kind='tokens')
  assert data.lengths.tolist() == [40, 50] * 3
  assert data.tokens(3).tolist() == IDS[150:200].tolist()
  assert data.mask(2).tolist() == [0] * 40
  assert data.mask(3).tolist() == [0] * 11 + [1] * 39
  assert data.manifest['left_out'][0]['short'] == 3
  (root / 'p' / 'shard.00000.mds').write_bytes(raw[:-1])
  refused(root, f'{len(raw) - 1} bytes', f'{len(raw)}', kind='tokens')


def test_a_shard_that_was_cut_is_an_error(tmp_path):
  raw = shard(PACKS)
  for length in range(0, len(raw), 7):
    with pytest.raises(ValueError):
      list(mds.read(io.BytesIO(raw[:length])))


def token_rows():
  mask = [0] * 40 + [1] * 60
  rows = [
    dict(input_ids=IDS[i * 100 : (i + 1) * 100].tolist()) for i in range(3)
  ]
  labels = [[-100] * 40 + row['input_ids'][40:] for row in rows]
  return (
    [row | dict(mask=mask) for row in rows],
    [row | dict(labels=x) for row, x in zip(rows, labels)],
  )


@pytest.mark.parametrize('form', ['jsonl', 'parquet', 'arrow'])
@pytest.mark.parametrize('loss', [0, 1])
def test_ids_come_out_as_they_went_in(form, loss, tmp_path):
  rows = token_rows()[loss]
  content = ''.join(json.dumps(row) + '\n' for row in rows)
  if form != 'jsonl':
    content = table(rows, form)
  data, _ = prepared(write(tmp_path, **{f'a_{form}': content}), kind='tokens')
  assert [data.tokens(i).tolist() for i in range(3)] == [
    row['input_ids'] for row in rows
  ]
  assert data.mask(1).tolist() == [0] * 40 + [1] * 60
  assert data.manifest['sources'][0]['tokenizer'] == 'unknown'


def test_ids_of_arrays_need_a_width(tmp_path):
  root = write(tmp_path / 'bin', a_bin=IDS.astype('<u2').tobytes())
  refused(root, 'a.bin', "dtype='uint16'", kind='tokens')
  (document,) = listed(root, kind='tokens', dtype='uint16')
  assert document.token_document.ids.tolist() == IDS.tolist() and (
    document.token_document.mask is None
  )
  write(root, b_bin=b'abc')
  refused(root, 'b.bin', '3 bytes', kind='tokens', dtype='uint16')
  root = tmp_path / 'npy'
  root.mkdir()
  np.save(root / 'a.npy', IDS.reshape(3, 100).astype(np.uint16))
  assert [
    d.token_document.ids.tolist() for d in listed(root, kind='tokens')
  ] == (IDS.reshape(3, 100).tolist())
  np.save(root / 'a.npy', np.ones(3))
  refused(root, 'a.npy', 'float64', kind='tokens')


@pytest.mark.parametrize(
  'row, fact',
  [
    (dict(ids=[1, 2]), "text='ids'"),
    (dict(input_ids=[1, 2.0]), 'input_ids'),
    (dict(input_ids=[[1, 2]]), 'input_ids'),
    (dict(input_ids=[1, 2], mask=[1]), '1 whole numbers for 2 ids'),
    (dict(input_ids=[1, 2], mask=[1, 2]), 'other than 0 and 1'),
    (dict(input_ids=[1, 2], labels=[2, 3]), 'label 2 of token 0'),
    (dict(input_ids=[1, 2], indices=[[0, 3]]), 'leave the 2 ids'),
    (dict(input_ids=[1, 2], indices=[[0, 2], [1, 2]]), 'overlap'),
    (dict(text='words'), "'text'"),
  ],
)
def test_ids_that_do_not_fit_are_refused(row, fact, tmp_path):
  refused(write(tmp_path, a_jsonl=json.dumps(row)), fact, kind='tokens')


def test_padding_is_no_token(tmp_path):
  row = dict(
    input_ids=[5, 6, 7, 0, 0], attention_mask=[1, 1, 1, 0, 0],
    labels=[-100, 6, 7, -100, -100],
  )  # fmt: skip
  (document,) = listed(write(tmp_path, a_jsonl=json.dumps(row)), kind='tokens')
  assert document.token_document.ids.tolist() == [5, 6, 7]
  assert document.token_document.mask.tolist() == [0, 1, 1]


def test_an_id_outside_the_vocabulary_is_named(tmp_path):
  rows = [dict(input_ids=[1, 2]), dict(input_ids=[1, 999])]
  content = ''.join(json.dumps(row) + '\n' for row in rows)
  with pytest.raises(errors.InputError, match=r'a\.jsonl:1 .* 999 .* 0 to 383'):
    prepared(write(tmp_path / 'r', a_jsonl=content), kind='tokens')


def test_the_tokenizer_of_ids_is_compared_if_it_is_given(tmp_path):
  root = write(tmp_path / 'r', a_jsonl='{"input_ids": [1, 2]}')
  digest = prepare.tokenizers.load('bytes').digest
  data, _ = prepared(root, kind='tokens', tokenizer=digest[:12])
  assert data.manifest['sources'][0]['tokenizer'] == digest[:12]
  with pytest.raises(errors.InputError, match=digest[:12]):
    prepared(root, kind='tokens', tokenizer='0' * 64)
  for keys in (dict(tokenizer=digest), dict(kind='tokens', min_chars=1)):
    with pytest.raises(errors.InputError, match="kind 'tokens'"):
      listed(root, **keys)


def test_sharegpt_is_read_as_chats():
  turns = [
    {'from': 'system', 'value': 'Be brief.'},
    {'from': 'human', 'value': 'Which?'},
    {'from': 'gpt', 'value': 'ok'},
    {'from': 'tool', 'value': '{"a": 1}'},
    {'role': 'assistant', 'content': [dict(type='text', text='do'), dict(
      type='text', text='ne')]},
  ]  # fmt: skip
  roles = ('system', 'user', 'assistant', 'tool', 'assistant')
  contents = ('Be brief.', 'Which?', 'ok', '{"a": 1}', 'done')
  made = conversations.plain(turns)
  assert [(m['role'], m['content']) for m in made] == list(zip(roles, contents))
  call = {'from': 'function_call', 'value': '{"name": "f", "arguments": "{}"}'}
  (made,) = conversations.plain([call])
  function = dict(name='f', arguments={})
  assert made == dict(
    role='assistant', content='',
    tool_calls=[dict(type='function', function=function)],
  )  # fmt: skip
  openai = dict(
    role='assistant', content=None, name=None,
    tool_calls=[dict(id='1', function=dict(name='f', arguments='{}'))],
  )  # fmt: skip
  (made,) = conversations.plain([openai])
  assert made['content'] == '' and 'name' not in made
  assert made['tool_calls'] == [dict(id='1', function=function)]


def test_alpacas_columns_and_what_stands_beside_messages_are_read():
  row = dict(instruction='Add.', input='1 1', output='2', system='Be brief.')
  (system, user, answer), tools = conversations.read(row, 'messages')
  assert system['content'] == 'Be brief.' and tools is None
  assert user == dict(role='user', content='Add.\n\n1 1')
  assert answer == dict(role='assistant', content='2')
  row = dict(conversations=[user, answer], tools='[{"name": "f"}]')
  messages, tools = conversations.read(row, 'messages')
  assert messages == [user, answer] and tools == [dict(name='f')]
  assert conversations.read(dict(instruction='x'), 'messages') is None
  assert conversations.read(dict(messages=[user]), 'chat') is None
  for wrong in ([dict(role='robot', content='')], [call_of('x')]):
    with pytest.raises(ValueError):
      conversations.read(dict(messages=wrong), 'messages')


def call_of(value):
  return {'from': 'function_call', 'value': value}


def test_sharegpt_is_the_default_field_of_chats(tmp_path):
  turns = [{'from': 'human', 'value': 'a'}, {'from': 'gpt', 'value': 'b'}]
  root = write(tmp_path, a_json=json.dumps([dict(conversations=turns)]))
  (document,) = listed(root, kind='chat', template='chatml')
  assert [m['content'] for m in document.chat.messages] == ['a', 'b']
  other = write(tmp_path / 'b', a_json=json.dumps([dict(chat=turns)]))
  refused(other, "text='chat'", kind='chat', template='chatml')


@pytest.mark.parametrize('keys', [
  dict(kind='tokens'), dict(kind='chat', template='chatml'),
])  # fmt: skip
def test_questions_are_asked_about_text_only(keys, tmp_path):
  config = common.base('tiny')
  config.data.sources = dict(
    s=dict(path=str(write(tmp_path, a_jsonl='{}')), **keys)
  )
  with pytest.raises(errors.InputError, match=f"'s'.*'{keys['kind']}'"):
    list(synthetic._documents(config, 0))


def test_code_with_a_file_of_records_among_it_is_no_data_set(
  tmp_path, monkeypatch
):
  code = dict(README_md='# Code', train_py='a = 1', tests__test_py='b = 2')
  root = write(tmp_path, **code, package_json='[{"text": "x"}]')
  names = ['README.md', 'package.json:0', 'tests/test.py', 'train.py']
  assert [d.name for d in listed(root)] == names
  # Nor does a format of files that lie among code make it one.
  monkeypatch.setitem(formats.FORMATS, '.md', formats.FORMATS['.json'])
  assert formats.are_data_set(['a.py', 'b.py', 'README.md']) is False
  assert formats.are_data_set(['a.py', 'b.py', 'c.parquet'])
  assert formats.are_data_set(['eval.py', 'train.json', 'dev.json'])
