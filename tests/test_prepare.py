"""From documents to a store, by config."""

import importlib.util
import pathlib

import pytest

from configs import common
from longjax import errors
from longjax.data import prepare, store, tokenizer

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture
def config(tmp_path, monkeypatch):
  monkeypatch.setenv('LONGJAX_CACHE', str(tmp_path / 'cache'))
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


def quiet(_):
  pass


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
  refused('another tokenizer', tokenizer.load(tmp_path / 'tokenizer'))
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
  spec = importlib.util.spec_from_file_location(
    'launch_prepare', ROOT / 'launch' / 'prepare.py'
  )
  command = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(command)
  command.main(config, out=str(tmp_path / 'out'))
  lines = capsys.readouterr().out.splitlines()
  assert lines[-1] == str(tmp_path / 'out')
  assert lines[-3].split() == ['all', '3', '59', '46', '56']
  assert store.exists(tmp_path / 'out')
