"""Preparing: kinds of sources, what is left out, processes, kill and resume."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import small_tokenizers

from configs import common
from launch import prepare as command
from longjax import errors
from longjax.data import chat, parts, prepare, row_plans, sources, store

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('LONGJAX_CACHE', str(tmp_path / 'cache'))


def quiet(_):
  pass


def made(tmp_path, name='out', log=quiet, **wanted):
  config = common.base('tiny')
  config.data.tokenizer = 'bytes'
  config.data.sources = wanted
  tokens = prepare.find_tokenizer(config)
  return prepare.prepare(config, tokens, log, directory=tmp_path / name)


def texts(data):
  tokens = prepare.tokenizers.load('bytes')
  return [
    tokens.decode(data.tokens(i)).removesuffix('<eos>')
    for i in range(len(data.lengths))
  ]


def tree(root, **files):
  for name, text in files.items():
    path = root / name.replace('__', '/')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
  return str(root)


def test_each_directory_may_be_a_repository(tmp_path):
  path = tree(tmp_path / 'r', b__x='1', b__deep__y='2', a__z='3')
  data = made(
    tmp_path, code=dict(path=path, kind='repositories', mark='file_sep')
  )
  assert data.names == ['a', 'b']
  assert texts(data)[1] == '<file_sep>b/deep/y\n2\n<file_sep>b/x\n1\n'


def test_files_of_a_directory_may_be_joined_in_random_order(tmp_path):
  files = {f'd__{i}': str(i) for i in range(9)}
  path = tree(tmp_path / 'r', **files, e__0='alone')
  data = made(tmp_path, code=dict(path=path, kind='directories'))
  assert data.names == ['d', 'e']
  joined = texts(data)[0].split()
  assert sorted(joined) == [str(i) for i in range(9)]
  assert joined != sorted(joined)
  again = made(tmp_path, 'o', code=dict(path=path, kind='directories'))
  assert texts(again) == texts(data)


def says(role, content):
  return dict(role=role, content=content)


def chats(tmp_path, lines, **more):
  """(store, tokenizer) of a file of conversations."""
  path = tmp_path / 'c.jsonl'
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  config = common.base('tiny')
  config.data.tokenizer = str(tmp_path / 'tokenizer.model')
  model = small_tokenizers.sentencepiece_model(['who are you?', 'it is me'] * 9)
  pathlib.Path(config.data.tokenizer).write_bytes(model)
  config.data.sources = dict(
    talk=dict(path=str(path), kind='chat', template='llama2', **more)
  )
  tokens = prepare.find_tokenizer(config)
  return prepare.prepare(config, tokens, lambda _: None), tokens


def test_a_conversation_keeps_its_mask_into_the_rows(tmp_path):
  talk = [says('user', 'who?'), says('assistant', 'me')]
  lines = [
    dict(messages=talk), dict(messages=[says('user', 'no answer')]),
    dict(text='no messages'),
  ]  # fmt: skip
  data, tokens = chats(tmp_path, lines, max_bad=0.7)
  chat_made = chat.encode(talk, tokens, 'llama2')
  assert data.tokens(0).tolist() == chat_made.tokens.tolist()
  assert data.mask(0).tolist() == chat_made.weights.tolist()
  (told,) = data.manifest['left_out']
  assert (told['read'], told['bad']) == (3, 2)
  assert any('without an answer' in what for what in told['named'])
  length = int(data.lengths[0])
  (plan,) = row_plans.one_document_rows(data, length, 1)
  row = row_plans.read_row(data, plan, length)
  assert row.weights[:-1].tolist() == data.mask(0)[1:].tolist()
  assert 'me' in tokens.decode(row.targets[row.weights > 0])


def test_near_conversations_are_told_by_what_is_said(tmp_path):
  pytest.importorskip('datasketch')
  talks = [
    [says('user', 'who?'), says('assistant', answer)]
    for answer in ('me', 'half a pair \ud800', 'me')
  ]
  lines = [dict(messages=talk) for talk in (talks[0][:1], *talks)]
  data, _ = chats(tmp_path, lines, duplicates='near', max_bad=0.3)
  assert data.names == ['c.jsonl:1', 'c.jsonl:2']


def test_a_store_is_not_made_in_a_bucket(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  path = tree(tmp_path / 'r', a='text')
  config = common.base('tiny')
  config.data.sources = dict(text=dict(path=path))
  tokens = prepare.tokenizers.load('bytes')
  with pytest.raises(errors.InputError, match='gs://b/o: a store lies on a'):
    prepare.prepare(config, tokens, directory='gs://b/o')
  config.data.directory = 'gs://b/o'
  with pytest.raises(errors.InputError, match='gs://b/o: a store lies on a'):
    prepare.prepare(config, tokens)
  assert [p.name for p in tmp_path.iterdir()] == ['r']


def test_a_document_without_tokens_is_counted_as_short(tmp_path):
  library = pytest.importorskip('tokenizers')
  letters = library.models.BPE({'a': 0}, [])
  library.Tokenizer(letters).save(str(tmp_path / 'tokenizer.json'))
  tokens = prepare.tokenizers.load(tmp_path / 'tokenizer.json')
  config = common.base('tiny')
  path = tree(tmp_path / 'r', a='a', b='b')
  config.data.sources = dict(text=dict(path=path))
  data = prepare.prepare(config, tokens, lambda _: None)
  assert data.names == ['a']
  assert data.manifest['left_out'][0]['short'] == 1


def test_what_is_left_out_is_counted_in_the_manifest(tmp_path):
  path = tree(tmp_path / 'r', a='long enough', b='short', c='', d='more text')
  (tmp_path / 'r' / os.fsdecode(b'e\xff')).write_bytes(b'\xff\xfe')
  said = []
  data = made(
    tmp_path, log=said.append,
    text=dict(path=path, min_chars=6, max_bad=0.5),
  )  # fmt: skip
  assert data.names == ['a', 'd']
  (told,) = data.manifest['left_out']
  assert (told['read'], told['bad'], told['short']) == (5, 1, 2)
  assert told['named'] == ['e? is not utf-8 (byte 0 of 2)']
  assert any('left out 1 of 5' in line and 'e? is not' in line for line in said)
  with pytest.raises(errors.InputError, match=r'1 of 5 .*: e\? is not utf-8'):
    made(tmp_path, 'other', text=dict(path=path))
  assert not store.exists(tmp_path / 'other')


def test_equal_documents_are_kept_once_and_counted(tmp_path):
  path = tree(tmp_path / 'r', a='one', b='two', c='one', d='one')
  data = made(tmp_path, text=dict(path=path, duplicates='exact'))
  assert texts(data) == ['one', 'two']
  assert data.names == ['a', 'b']
  (source,) = data.manifest['sources']
  assert (source['documents'], source['duplicates']) == (2, 2)
  assert source['tokens'] == data.lengths.sum() == 8
  assert len(texts(made(tmp_path, 'all', text=dict(path=path)))) == 4


def test_near_duplicates_are_kept_once(tmp_path):
  pytest.importorskip('datasketch')
  words, other = (' '.join(f'{c}{i}' for i in range(200)) for c in 'wv')
  path = tree(tmp_path / 'r', a=words, b=f'{words} end', c=other)
  data = made(tmp_path, text=dict(path=path, duplicates='near'))
  assert data.names == ['a', 'c']


def test_other_languages_are_left_out(tmp_path):
  pytest.importorskip('py3langid')
  path = tree(
    tmp_path / 'r', a='The garden behind the house was full of roses.',
    b='Der Garten hinter dem Haus war voller Rosen und Nelken.',
  )  # fmt: skip
  data = made(tmp_path, text=dict(path=path, languages=('en',)))
  assert data.names == ['a']
  assert data.manifest['left_out'][0]['language'] == 1


def test_a_missing_optional_package_is_one_line(tmp_path, monkeypatch):
  monkeypatch.setattr(sources.importlib.util, 'find_spec', lambda _: None)
  path = tree(tmp_path / 'r', a='text')
  for keys in (dict(languages=('en',)), dict(duplicates='near')):
    with pytest.raises(errors.InputError, match='pip install'):
      made(tmp_path, text=dict(path=path, **keys))


def test_a_document_longer_than_a_batch_is_one_document(tmp_path, monkeypatch):
  monkeypatch.setattr(prepare.entries, 'BATCH_CHARS', 1 << 12)
  text = 'abcdefghij' * 5_000
  data = made(tmp_path, text=dict(path=tree(tmp_path / 'r', a=text)))
  assert data.lengths.tolist() == [50_001]
  assert data.tokens(0, 49_998).tolist() == [*b'ij', 257]
  assert data.manifest['sources'][0]['histogram'] == {str(1 << 15): 1}


# A corpus of six units, as another process sees it.
MANY = """
import sys
sys.path[:0] = [{root!r}, {root!r} + '/tests']
import test_data_prepare as t
if __name__ == '__main__':
  t.many({place!r}, {name!r})
"""


def many(tmp_path, name):
  """Prepares six units in two processes."""
  sources.UNIT_BYTES, prepare.SMALL_BYTES = 1, 0
  tmp_path = pathlib.Path(tmp_path)
  return made(tmp_path, name, text=dict(path=str(tmp_path / 'r')))


@pytest.fixture
def corpus(tmp_path, monkeypatch, request):
  monkeypatch.setattr(sources, 'UNIT_BYTES', 1)
  slow = request.node.get_closest_marker('slow')  # time to be killed in
  shape = (6, 600_000 if slow else 6_000)
  letters = np.random.default_rng(0).integers(97, 123, shape, np.uint8)
  (tmp_path / 'r').mkdir()
  for i, row in enumerate(letters):
    (tmp_path / 'r' / f'{i}').write_bytes(row.tobytes())
  return tmp_path


def complete(tmp_path, name):
  return sorted((tmp_path / f'.{name}.partial').glob('part_?????'))


def test_a_failed_part_is_made_again_and_the_others_are_kept(
  corpus, monkeypatch
):
  straight = made(corpus, 'straight', text=dict(path=str(corpus / 'r')))
  write, calls = parts.write, []

  def broken(place, entries):
    calls.append(place.name)
    if len(calls) == 3:
      raise OSError(28, 'No space left on device')
    write(place, entries)

  monkeypatch.setattr(parts, 'write', broken)
  with pytest.raises(errors.InputError, match='No space left'):
    made(corpus, 'again', text=dict(path=str(corpus / 'r')))
  assert len(complete(corpus, 'again')) == 2 and not store.exists(
    corpus / 'again'
  )
  said = []
  again = made(corpus, 'again', said.append, text=dict(path=str(corpus / 'r')))
  assert calls[3:] == [f'part_{i:05}.tmp' for i in range(2, 6)]
  assert any('2 parts' in line for line in said)
  assert again.digest == straight.digest
  assert not (corpus / '.again.partial').exists()


@pytest.mark.slow
def test_a_killed_preparation_goes_on_and_processes_change_nothing(corpus):
  straight = made(corpus, 'straight', text=dict(path=str(corpus / 'r')))
  script = corpus / 'many.py'
  script.write_text(
    MANY.format(root=str(ROOT), place=str(corpus), name='killed')
  )
  child = subprocess.Popen([sys.executable, script], env=os.environ)
  while not complete(corpus, 'killed') and child.poll() is None:
    time.sleep(0.02)
  os.kill(child.pid, signal.SIGKILL)
  child.wait()
  assert not store.exists(corpus / 'killed')
  time.sleep(2)  # its workers see that it is gone, and end
  kept = {p.name: p.stat().st_mtime_ns for p in complete(corpus, 'killed')}
  assert 1 <= len(kept) < 6
  subprocess.run([sys.executable, script], check=True, env=os.environ)
  assert store.open_store(corpus / 'killed').digest == straight.digest


# By config


@pytest.fixture
def config(tmp_path):
  (tmp_path / 'text').mkdir()
  (tmp_path / 'text' / 'a.txt').write_text('first')
  (tmp_path / 'text' / 'b.txt').write_text('second')
  config = common.base('tiny')
  config.data.tokenizer = 'bytes'
  config.data.sources = dict(
    files=dict(path=str(tmp_path / 'text')),
    all=dict(path=str(tmp_path / 'text'), kind='repository', mark='file_sep'),
  )
  config.eval.sources = dict(last=dict(path=str(tmp_path / 'text' / 'b.txt')))
  return config


def test_documents_are_tokenized_with_their_end(config):
  tokens = prepare.find_tokenizer(config)
  made = prepare.prepare(config, tokens, quiet)
  texts = [tokens.decode(made.tokens(i)) for i in range(3)]
  assert texts == [
    '<file_sep>a.txt\nfirst\n<file_sep>b.txt\nsecond\n<eos>',
    'first<eos>',
    'second<eos>',
  ]
  assert [made.source(i) for i in range(3)] == ['all', 'files', 'files']


def test_what_is_there_is_opened_not_made_again(config):
  tokens = prepare.find_tokenizer(config)
  said = []
  first = prepare.prepare(config, tokens, said.append)
  assert said
  said.clear()
  assert prepare.prepare(config, tokens, said.append).digest == first.digest
  assert not said


def test_changed_text_is_another_place(config, tmp_path):
  tokens = prepare.find_tokenizer(config)
  first = prepare.prepare(config, tokens, quiet)
  (tmp_path / 'text' / 'a.txt').write_text('other')
  assert prepare.prepare(config, tokens, quiet).directory != first.directory


def test_held_out_documents_have_a_store_of_their_own(config):
  tokens = prepare.find_tokenizer(config)
  held = prepare.held_out(config, tokens, quiet)
  assert held.names == ['b.txt']
  assert held.tokens(0).tolist() == [*b'second', 257]


def test_a_directory_in_the_config_is_opened(config, tmp_path):
  tokens = prepare.find_tokenizer(config)
  out = tmp_path / 'out'
  made = prepare.prepare(config, tokens, quiet, directory=out)
  assert made.directory == out
  config.data.directory = str(out)
  said = []
  assert prepare.prepare(config, tokens, said.append).digest == made.digest
  assert not said
  config.data.sources.files.limit = 1
  prepare.prepare(config, tokens, said.append)
  assert 'other sources' in said[0]


def test_what_does_not_fit_the_config_is_refused(config, tmp_path):
  def refused(match, tokens=None, directory=''):
    tokens = tokens or prepare.find_tokenizer(config)
    with pytest.raises(errors.InputError, match=match):
      prepare.prepare(config, tokens, quiet, directory=directory)

  tokens = prepare.find_tokenizer(config)
  made = prepare.prepare(config, tokens, quiet, directory=tmp_path / 'out')
  config.data.sources.files.limit = 1
  refused('other sources', directory=tmp_path / 'out')
  tokens.save(tmp_path / 'tokenizer')
  path = tmp_path / 'tokenizer' / 'tokenizer_config.json'
  path.write_text(path.read_text().replace('<eos>', '<bos>'))
  config.data.directory = str(made.directory)
  refused('another tokenizer', prepare.tokenizers.load(tmp_path / 'tokenizer'))
  config.data.directory = str(tmp_path / 'nothing')
  refused(r'nothing/manifest\.json')
  config.data.directory, config.data.sources = '', dict()
  refused(r'data\.sources is empty')


def test_the_report_counts_by_source(config, tmp_path):
  (tmp_path / 'text' / 'c').write_bytes(b'\xff')
  config.data.sources.all.include = '*.txt'
  config.data.sources.files.update(duplicates='exact', max_bad=0.5)
  tokens = prepare.find_tokenizer(config)
  lines = prepare.report(prepare.prepare(config, tokens, quiet)).splitlines()
  assert [line.split() for line in lines] == [
    ['source', 'documents', 'tokens', 'longest', 'bytes'],
    ['all', '1', '46', '46', '45'],
    ['files', '2', '13', '7', '11'],
    ['all', '3', '59', '46', '56'],
    ['files:', 'left', 'out', '1', 'bad'],
    ['c', 'is', 'not', 'utf-8', '(byte', '0', 'of', '1)'],
  ]


def test_the_command_prints_where_the_data_is(config, tmp_path, capsys):
  command.main(config, out=str(tmp_path / 'out'))
  lines = capsys.readouterr().out.splitlines()
  assert lines[-1] == str(tmp_path / 'out')
  assert lines[-3].split() == ['all', '3', '59', '46', '56']
  assert store.exists(tmp_path / 'out')
