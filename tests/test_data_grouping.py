"""Records chosen by a field, and joined by a key wherever they lie."""

import json

import pytest

from configs import common
from longjax import errors
from longjax.data import grouping, prepare, sources, tokenizer

RULE = '=' * 50


def stack(root, seed=1):
  """Files of three repositories scattered over three shards."""
  root.mkdir()
  rows = [
    dict(content=f'{repo} {i}\n', repo=f'o/{repo}', path=f'd/{9 - i}.py',
         meta=dict(lang='c' if i == 2 else 'py'))
    for i in range(4) for repo in 'abc'
  ]  # fmt: skip
  for number in range(3):
    lines = [json.dumps(row) for row in rows[number::3][::seed]]
    (root / f'{number}.jsonl').write_text('\n'.join(lines))
  return root


KEYS = dict(
  text='content', group='repo', file='path', where=(('meta.lang', 'py'),)
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('LONGJAX_CACHE', str(tmp_path / 'cache'))


def made(name='out', **source):
  config = common.base('tiny')
  config.data.tokenizer = 'bytes'
  config.data.sources = dict(code=source)
  tokens = tokenizer.load('bytes')
  data = prepare.prepare(config, tokens, lambda _: None)
  texts = [tokens.decode(data.tokens(i)) for i in range(len(data.lengths))]
  return data, dict(zip(data.names, texts))


def test_files_of_a_repository_are_joined_as_prolong_released_them(tmp_path):
  data, texts = made(path=str(stack(tmp_path / 'r')), **KEYS)
  files = ''.join(f'{RULE}\nFile: d/{9 - i}.py\na {i}\n' for i in (3, 1, 0))
  assert texts['o/a'] == f'Repo: o/a\n\n{files}<eos>'
  assert sorted(texts) == ['o/a', 'o/b', 'o/c']
  (count,) = {t.get('where') for t in data.manifest['left_out']} - {None}
  assert count == 3 and sum(t['read'] for t in data.manifest['left_out']) == 9
  # The same whatever the order of the records in a shard, and from the library.
  other = stack(tmp_path / 's', -1)
  source = dict(path=str(other), **KEYS)
  found = {d.name: f'{d.text}<eos>' for d in sources.documents('s', source)}
  assert found == texts


def test_buckets_and_processes_change_only_the_order(tmp_path, monkeypatch):
  source = dict(path=str(stack(tmp_path / 'r')), **KEYS, mark='none')
  _, one = made(**source)
  monkeypatch.setattr(grouping, 'BUCKET_BYTES', 100)
  monkeypatch.setattr(sources, 'UNIT_BYTES', 100)
  monkeypatch.setattr(prepare, 'SMALL_BYTES', 0)
  monkeypatch.setenv('LONGJAX_CACHE', str(tmp_path / 'other'))
  data, many = made(**source)
  assert many == one and len(data.manifest['left_out']) > 2
  assert one['o/b'] == 'b 3\nb 1\nb 0\n<eos>'


def test_groups_without_names_of_files_keep_the_order_of_the_source(tmp_path):
  keys = dict(text='content', group='repo')
  _, texts = made(path=str(stack(tmp_path / 'r')), **keys)
  assert texts['o/c'] == 'c 0\nc 1\nc 2\nc 3\n<eos>'


@pytest.mark.parametrize(
  'keys, fact',
  [
    (dict(where=(('meta.x', 'py'),)), "'meta.x'"),
    (dict(where=('meta', 'py')), "tuples, not 'meta'"),
    (dict(group='owner'), "'owner'.*'repo'"),
    (dict(group='repo', kind='chat'), "'files'"),
    (dict(file='path'), 'needs group'),
    (dict(where=(('meta.lang', 'rust'),)), 'no documents.*where'),
  ],
)
def test_fields_that_are_not_there_are_refused(keys, fact, tmp_path):
  source = dict(path=str(stack(tmp_path / 'r')), text='content') | keys
  with pytest.raises(errors.InputError, match=fact):
    made(**source)
