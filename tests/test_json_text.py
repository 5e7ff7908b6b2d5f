"""JSON of others that is nested without end is refused, wherever it is read."""

import json

import numpy as np
import pytest

from longjax import errors, json_text
from longjax.data import conversations, formats, store, tokenizer
from longjax.evals import ruler_data

DEEP = '{"a":' + '[' * 10**5 + ']' * 10**5 + '}'


def test_what_it_reads_is_that_of_the_library():
  text = '{"a": [1, 2.5, null, "\\u00e9"]}'
  assert json_text.loads(text) == json_text.loads(text.encode())
  assert json_text.loads(text) == json.loads(text)
  for wrong in DEEP, '{', '':
    with pytest.raises(ValueError):
      json_text.loads(wrong)


def test_each_reader_says_which_file(tmp_path):
  tokenizer.load('bytes').save(tmp_path)
  for name in 'tokenizer_config.json', 'manifest.json', 'squad.json':
    (tmp_path / name).write_text(DEEP)
  for read, name in (
    (tokenizer.load, 'tokenizer_config.json'),
    (store.open_store, 'manifest.json'),
    (lambda path: ruler_data.read('squad', f'{path}/squad.json'), 'squad'),
  ):
    with pytest.raises(errors.InputError, match=name):
      read(tmp_path)


def test_a_tool_call_whose_arguments_are_no_json_stays_text():
  call = dict(name='f', arguments=DEEP)
  talk = [dict(role='assistant', content='', tool_calls=[call])]
  (message,) = conversations.plain(talk)
  assert message['tool_calls'][0]['function']['arguments'] == DEEP


def test_a_column_of_a_shard(tmp_path):
  value = DEEP.encode()
  about = dict(column_names=['a'], column_encodings=['json'],
               column_sizes=[len(value)], format='mds')  # fmt: skip
  head = json.dumps(about).encode()
  begin = 4 + 8 + len(head)
  numbers = np.array([1, begin, begin + len(value)], '<u4').tobytes()
  (tmp_path / 'shard.mds').write_bytes(numbers + head + value)
  with (tmp_path / 'shard.mds').open('rb') as file:
    (found,) = formats.read('shard.mds', file)
  assert isinstance(found, formats.Unreadable)
