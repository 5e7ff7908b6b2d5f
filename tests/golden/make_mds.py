"""The sha256 of MDS shards that mosaicml-streaming writes, for
test_data_released.py: its own writer must give the same bytes.

  pip install mosaicml-streaming==0.13.0 && python tests/golden/make_mds.py
"""

import hashlib
import pathlib
import tempfile

import numpy as np

COLUMNS = dict(
  domain='str', indices='ndarray:uint32', input_ids='ndarray:uint32'
)
# As ProLong released them: `length` in two encodings, masks in one set.
KINDS = dict(
  stage=COLUMNS | dict(length='uint64'),
  chat=COLUMNS | dict(length='int', mask='ndarray:uint8'),
)
TOKENS = 40, 300, 70_000  # one, two and four bytes for a shape


def rows(columns) -> list[dict]:
  """A pack of each of TOKENS, in three documents."""
  made = []
  for tokens in TOKENS:
    ids = np.arange(tokens, dtype=np.uint32)
    ends = np.array([0, tokens // 4, tokens // 2, tokens], np.uint32)
    row = dict(
      domain='bücher', indices=np.stack([ends[:-1], ends[1:]], 1),
      input_ids=ids * 7919 % 128_256, length=np.uint64(tokens),
      mask=(ids % 3).astype(np.uint8) // 2,
    )  # fmt: skip
    if columns['length'] == 'int':
      row['length'] = tokens
    made.append({name: row[name] for name in columns})
  return made


def main():
  from streaming import MDSWriter

  for name, columns in KINDS.items():
    with tempfile.TemporaryDirectory() as place:
      with MDSWriter(out=place, columns=columns, compression=None) as writer:
        for row in rows(columns):
          writer.write(row)
      (file,) = pathlib.Path(place).glob('*.mds')
      print(name, hashlib.sha256(file.read_bytes()).hexdigest())


if __name__ == '__main__':
  main()
