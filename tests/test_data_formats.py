"""Files of records: each format gives its records, each damage is named."""

import bz2
import gzip
import io
import json
import lzma

import numpy as np
import pytest
from test_data_inputs import table

from longjax import errors
from longjax.data import compression, formats, sources

TEXTS = ['one', 'zwei', '三 three', 'four\r\nlines']
ROWS = [dict(text=text, number=i) for i, text in enumerate(TEXTS)]
JSONL = ''.join(json.dumps(row) + '\n' for row in ROWS).encode()


def write_parquet(path):
  pa = pytest.importorskip('pyarrow')
  pq = pytest.importorskip('pyarrow.parquet')
  pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=3)


def write_feather(path):
  pa = pytest.importorskip('pyarrow')
  made = pa.Table.from_pylist(ROWS)
  with pa.ipc.new_file(str(path), made.schema) as writer:
    writer.write_table(made)


def write_array_record(path):
  from array_record.python import array_record_module

  writer = array_record_module.ArrayRecordWriter(str(path), 'group_size:1')
  for row in ROWS[:2]:
    writer.write(json.dumps(row).encode())
  for text in TEXTS[2:]:
    writer.write(text.encode())
  writer.close()


def write_zst(path, content=JSONL):
  pa = pytest.importorskip('pyarrow')
  half = len(content) // 2  # two frames, as parallel compressors write
  with open(path, 'wb') as file:
    for frame in (content[:half], content[half:]):
      file.write(pa.compress(frame, 'zstd', asbytes=True))


WRITERS = {
  'a.jsonl': lambda path: path.write_bytes(JSONL),
  'a.jsonl.gz': lambda path: path.write_bytes(gzip.compress(JSONL)),
  'a.jsonl.zst': write_zst,
  'C4.json.gz': lambda path: path.write_bytes(gzip.compress(JSONL)),
  'A.JSONL': lambda path: path.write_bytes(JSONL),
  'a.parquet': write_parquet,
  'data-00000-of-00001.arrow': lambda path: path.write_bytes(
    table(ROWS, 'arrow')
  ),
  'a.arrow': write_feather,
  'a.array_record': write_array_record,
}


def listed(path, **keys):
  source = dict(path=str(path), max_bad=0.5, **keys)
  return [(d.name, d.text) for d in sources.documents('s', source)]


@pytest.mark.parametrize('name', WRITERS)
def test_each_format_gives_its_records_in_order(name, tmp_path):
  WRITERS[name](tmp_path / name)
  assert listed(tmp_path) == [
    (f'{name}:{i}', text.replace('\r\n', '\n')) for i, text in enumerate(TEXTS)
  ]


def test_an_arrow_file_whose_offsets_leave_it_is_refused(tmp_path):
  """Pyarrow would read memory that is not its own."""
  pa = pytest.importorskip('pyarrow')
  path, texts = tmp_path / 'a.arrow', pa.table(dict(text=['four'] * 3))
  with pa.ipc.new_stream(str(path), texts.schema) as writer:
    writer.write_table(texts)
  right = np.arange(0, 16, 4, dtype='<i4')
  raw = path.read_bytes()
  assert raw.count(right.tobytes()) == 1
  wrong = np.where(right == 8, 1 << 30, right).astype('<i4')
  path.write_bytes(raw.replace(right.tobytes(), wrong.tobytes()))
  with pytest.raises(errors.InputError, match=r'a\.arrow'):
    listed(tmp_path)


def test_a_compressed_text_is_one_document(tmp_path):
  (tmp_path / 'book.txt.gz').write_bytes(gzip.compress(b'a book'))
  assert listed(tmp_path) == [('book.txt.gz', 'a book')]


def bad(content, name='a.jsonl'):
  found = list(formats.read(name, io.BytesIO(content)))
  return (
    [x for x in found if not isinstance(x, formats.Unreadable)],
    [x for x in found if isinstance(x, formats.Unreadable)],
  )


def test_bad_lines_are_named_and_the_others_read():
  good, wrong = bad(b'{"text": "a"}\nnot json\n{"text": "\xff"}\n\n"b"\n{"te')
  assert [name for name, _ in good] == ['a.jsonl:0', 'a.jsonl:4']
  assert [w.name for w in wrong] == ['a.jsonl:1', 'a.jsonl:2', 'a.jsonl:5']
  assert 'not utf-8 (byte 10' in wrong[1].reason


@pytest.mark.parametrize(
  'name', [n for n in WRITERS if not n.lower().endswith('.jsonl')]
)
def test_a_file_that_was_cut_says_so(name, tmp_path):
  path = tmp_path / name
  WRITERS[name](path)
  whole = path.read_bytes()
  for length in (len(whole) - 9, len(whole) // 2, 3):
    path.write_bytes(whole[:length])
    with open(path, 'rb') as handle:
      found = list(formats.read(name, handle))
    assert isinstance(found[-1], formats.Unreadable), (length, found)
    assert path.name in found[-1].name


@pytest.mark.parametrize('ending, compress', [
  ('gz', gzip.compress), ('bz2', bz2.compress), ('xz', lzma.compress),
])  # fmt: skip
def test_a_small_file_does_not_fill_the_memory(ending, compress, monkeypatch):
  """1,000 bytes of text that repeats are 100 or fewer when compressed."""
  monkeypatch.setattr(compression, 'EXPANDED_BYTES', 1000)
  for name, content in (('a.jsonl', JSONL), ('a.txt', b'{"no": json' * 90)):
    good, wrong = bad(compress(content), f'{name}.{ending}')
    assert good and not wrong
  for content in b'a' * 10**5, b'\n' * 10**5:
    compressed = compress(content)
    for name in 'a.jsonl', 'a.csv', 'a.txt':
      good, wrong = bad(compressed, f'{name}.{ending}')
      assert not good and 'more than' in wrong[-1].reason


def test_too_many_bad_records_stop_and_fewer_are_counted(tmp_path):
  lines = ['{"text": "a"}'] * 98 + ['{', '{']
  (tmp_path / 'a.jsonl').write_text('\n'.join(lines))
  source = dict(path=str(tmp_path), max_bad=0.02)
  assert len(list(sources.documents('s', source))) == 98
  source['max_bad'] = 0.01
  with pytest.raises(
    errors.InputError, match=r'2 of 100 .* first: a.jsonl:98'
  ):  # fmt: skip
    list(sources.documents('s', source))


def test_a_format_whose_package_is_missing_is_one_line(tmp_path, monkeypatch):
  find = formats.importlib.util.find_spec
  monkeypatch.setattr(
    formats.importlib.util, 'find_spec',
    lambda name: None if name == 'pyarrow' else find(name),
  )  # fmt: skip
  (tmp_path / 'a.parquet').write_bytes(b'PAR1')
  with pytest.raises(errors.InputError, match=r'a.parquet needs .* pyarrow'):
    listed(tmp_path)
