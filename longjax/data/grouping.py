"""Records of one key joined to a document, wherever they lie in their source.

The Stack has a record for each file, and those of a repository lie scattered
over its shards. Records are first written into buckets by a hash of their key,
so many that each fits in memory; then each bucket is sorted and joined.
"""

import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

BUCKET_BYTES = 1 << 26
TALLY = 'tally.json'


class Record(NamedTuple):
  """A text of a group."""

  key: str
  name: str  # of the file that it is, or ''
  text: str


def count(size: int) -> int:
  """The buckets for a source of so many bytes."""
  return 1 + size // BUCKET_BYTES


def spill(records: Iterable[Record], tally, place, buckets: int):
  """Writes records into bucket files in the directory `place`, in one piece.

  Args:
    records: an iterator that counts in `tally` what it leaves out.
    tally: has as_json, kept beside the buckets.
    place: must not exist.
    buckets: how many.
  """
  partial = place.with_suffix('.tmp')
  partial.mkdir()
  lines: dict[int, list] = {}
  for record in records:
    digest = hashlib.sha256(record.key.encode('utf-8', 'replace')).digest()
    bucket = int.from_bytes(digest[:8], 'little') % buckets
    lines.setdefault(bucket, []).append(json.dumps(record) + '\n')
  for bucket, texts in lines.items():
    _file(partial, bucket).write_text(''.join(texts))
  (partial / TALLY).write_text(json.dumps(tally.as_json()))
  os.rename(partial, place)


def files(places, bucket: int) -> list[pathlib.Path]:
  """The files of a bucket, in the order of the source."""
  found = (_file(place, bucket) for place in places)
  return [path for path in found if path.exists()]


def read(paths) -> Iterator[tuple[str, list[Record]]]:
  """The groups of a bucket in order of key.

  Args:
    paths: of its files.

  Yields:
    (key, its records in order of name; those without one as they came).
  """
  records = [
    Record(*json.loads(line))
    for path in paths
    for line in pathlib.Path(path).read_text().splitlines()
  ]
  records.sort(key=lambda record: record[:2])
  for key, group in itertools.groupby(records, lambda record: record.key):
    yield key, list(group)


def _file(place: pathlib.Path, bucket: int) -> pathlib.Path:
  return place / f'bucket_{bucket:05}.jsonl'
