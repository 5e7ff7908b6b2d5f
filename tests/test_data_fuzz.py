"""Random directories, cut and renamed: their documents exactly, or one line."""

import bz2
import gzip
import io
import json
import lzma
import random
import tarfile
import zipfile

import numpy as np
import pytest
from test_data_inputs import shard, table

from longjax import errors
from longjax.data import sources

pa = pytest.importorskip('pyarrow')
CSV = ('.csv', '.tsv')  # any beginning of these is one, too
ENDINGS = (
  '', '.txt', '.json', '.jsonl', '.csv', '.tsv', '.parquet', '.arrow', '.npy',
  '.bin', '.mds', '.gz', '.xz', '.zst', '.tar', '.zip',
)  # fmt: skip
WORDS = (
  'word', 'naïve', '三', '"quoted"', 'a,b', '\t', '\n', "it's", '{"text": 1}',
  '\\n', '[', '\u2028', '🙂', '  ',
)  # fmt: skip


def separated(rows, by):
  import csv

  out = io.StringIO()
  writer = csv.DictWriter(out, list(rows[0]), delimiter=by)
  writer.writeheader()
  writer.writerows(rows)
  return out.getvalue().encode()


def lines(rows):
  return ''.join(json.dumps(row) + '\n' for row in rows).encode()


RECORDS = {
  '.jsonl': lines,
  '.json': lambda rows: json.dumps(rows).encode(),
  '.pretty.json': lambda rows: json.dumps(rows, indent=2).encode(),
  '.lines.json': lines,
  '.parquet': table,
  '.arrow': lambda rows: table(rows, 'arrow'),
}
TEXTS = RECORDS | {
  '.csv': lambda rows: separated(rows, ','),
  '.tsv': lambda rows: separated(rows, '\t'),
  '.txt': lambda rows: rows[0]['text'].encode(),
}
COMPRESS = {
  '.gz': gzip.compress,
  '.bz2': bz2.compress,
  '.xz': lzma.compress,
  '.zst': lambda raw: pa.compress(raw, 'zstd', asbytes=True),
}


def noise(kind):
  out = io.BytesIO()
  if kind == 'a.tar':
    with tarfile.open(fileobj=out, mode='w') as tar:
      tar.addfile(tarfile.TarInfo('x'))
  elif kind == 'a.zip':
    with zipfile.ZipFile(out, 'w') as zipped:
      zipped.writestr('x', 'text')
  elif kind == 'a.npz':
    np.savez(out, x=np.arange(9))
  else:
    out.write(bytes(range(256)))
  return out.getvalue()


def texts_of(rng):
  """(ending, the documents, their file) of a file of text or records."""
  ending = rng.choice(list(TEXTS))
  count = 1 if ending == '.txt' else rng.randint(1, 6)
  rows = [
    dict(
      id=str(i),
      text=f'Document {i} '
      + ' '.join(rng.choices(WORDS, k=rng.randint(1, 40)))
      + ' end',
    )
    for i in range(count)
  ]
  raw = TEXTS[ending](rows)
  if ending not in ('.parquet', '.arrow') and rng.random() < 0.3:
    compression = rng.choice(list(COMPRESS))
    ending, raw = ending + compression, COMPRESS[compression](raw)
  return ending, [row['text'] for row in rows], raw


def ids_of(rng):
  """The same of a file of token ids."""
  ending = rng.choice([*RECORDS, '.npy', '.mds', '.bin'])
  rows = [rng.choices(range(1, 200), k=24) for _ in range(rng.randint(1, 4))]
  if ending == '.npy':
    out = io.BytesIO()
    np.save(out, np.array(rows, np.uint16))
    raw = out.getvalue()
  elif ending == '.bin':
    rows = rows[:1]
    raw = np.array(rows, '<u2').tobytes()
  elif ending == '.mds':
    raw = shard(
      [dict(input_ids=r, mask=[1] * 24, indices=[[0, 24]]) for r in rows]
    )
  else:
    raw = RECORDS[ending]([dict(input_ids=row) for row in rows])
  return ending, rows, raw


def directory(rng, root, make):
  """Writes files; returns what each holds: name -> (documents, may be cut)."""
  root.mkdir()
  held = {}
  for number in range(rng.randint(1, 4)):
    ending, documents, raw = make(rng)
    name, cut = f'part{number}{ending}', False
    plain = ending.endswith(('.txt', '.bin', *CSV))
    if rng.random() < 0.2:
      raw, cut = raw[: rng.randrange(len(raw))], True
    elif rng.random() < 0.2 and not any(
      e in ending for e in ('.txt', '.bin', *CSV)
    ):
      name = f'part{number}{rng.choice(ENDINGS)}'
    if rng.random() < 0.2:
      name = f'sub/{name}'
      (root / 'sub').mkdir(exist_ok=True)
    (root / name).write_bytes(raw)
    held[name] = documents, cut, plain
  return held


def found(root, **keys):
  """Documents by file, or the line that refuses them."""
  try:
    documents = list(
      sources.documents('s', dict(path=str(root), max_bad=0.0, **keys))
    )
  except errors.InputError as error:
    return str(error)
  by_file = {}
  for document in documents:
    value = (
      document.text
      if document.token_document is None
      else document.token_document.ids.tolist()
    )
    name = document.name.split(':')[0]
    by_file.setdefault(name, []).append(value)
  return by_file


def check(seed, root):
  """One case; whether it was read."""
  rng = random.Random(seed)
  tokens = rng.random() < 0.3
  held = directory(rng, root, ids_of if tokens else texts_of)
  stray = (
    rng.choice(['a.tar', 'a.zip', 'a.npz', 'a.png'])
    if (rng.random() < 0.1)
    else ''
  )
  if stray:
    (root / stray).write_bytes(noise(stray))
  keys = dict(kind='tokens', dtype='uint16') if tokens else {}
  got = found(root, **keys)
  if isinstance(got, str):
    assert '\n' not in got and "'s'" in got, (seed, got)
    return False
  assert not stray and set(got) <= set(held), (seed, set(got), set(held))
  for name, (wanted, cut, plain) in held.items():
    made = got.get(name, [])
    if not cut:
      assert made == wanted, (seed, name, made, wanted)
    elif plain and made:  # its end may be anywhere
      *most, last = made
      assert most == wanted[: len(most)], (seed, name)
      assert wanted[len(most)][: len(last)] == last, (seed, name)
    else:
      assert made == wanted[: len(made)], (seed, name)
  return True


def run(seeds, tmp_path):
  read = sum(check(s, tmp_path / str(s)) for s in seeds)
  assert len(seeds) // 4 < read < len(seeds)


def test_documents_are_exact_or_refused_in_one_line(tmp_path):
  run(range(200), tmp_path)
