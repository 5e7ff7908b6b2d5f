"""From documents to a store, by config."""

import importlib.util
import pathlib
import subprocess
import sys

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
    all=dict(path=str(tmp_path / 'text'), kind='repository'),
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
  assert [list(held.names), held.tokens(0).tolist()] == [
    ['b.txt'],
    [*b'second', 257],
  ]


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


def test_a_directory_without_data_is_refused(config, tmp_path):
  config.data.directory = str(tmp_path / 'nothing')
  with pytest.raises(errors.InputError, match=r'nothing/manifest\.json'):
    prepare.prepare(config, prepare.find_tokenizer(config), quiet)


def test_a_store_of_other_sources_is_not_taken_for_these(config, tmp_path):
  tokens = prepare.find_tokenizer(config)
  prepare.prepare(config, tokens, quiet, directory=tmp_path / 'out')
  config.data.sources.files.limit = 1
  with pytest.raises(errors.InputError, match='other sources'):
    prepare.prepare(config, tokens, quiet, directory=tmp_path / 'out')


def test_a_store_of_another_tokenizer_is_refused(config, tmp_path):
  tokens = prepare.find_tokenizer(config)
  made = prepare.prepare(config, tokens, quiet)
  tokens.save(tmp_path / 'tokenizer')
  path = tmp_path / 'tokenizer' / 'tokenizer_config.json'
  path.write_text(path.read_text().replace('<eos>', '<bos>'))
  config.data.directory = str(made.directory)
  with pytest.raises(errors.InputError, match='another tokenizer'):
    prepare.prepare(config, tokenizer.load(tmp_path / 'tokenizer'), quiet)


def test_no_sources_is_one_line(config):
  config.data.sources = dict()
  with pytest.raises(errors.InputError, match=r'data\.sources is empty'):
    prepare.prepare(config, prepare.find_tokenizer(config), quiet)


def test_the_command_prints_a_table_and_the_place(config, tmp_path, capsys):
  if not (ROOT / 'longjax' / 'cli.py').exists():
    pytest.skip('longjax/cli.py is not there yet')
  spec = importlib.util.spec_from_file_location(
    'launch_prepare', ROOT / 'launch' / 'prepare.py'
  )
  command = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(command)
  command.main(config, out=str(tmp_path / 'out'))
  printed = capsys.readouterr().out
  assert str(tmp_path / 'out') in printed
  assert store.exists(tmp_path / 'out')
  rows = [line.split() for line in printed.splitlines()]
  assert ['files', '2', '13', '7', '11'] in rows


def test_the_data_package_is_light_and_never_imports_jax():
  code = (
    'import sys, longjax.data.prepare, longjax.data.pipeline; '
    'print([m for m in ("jax", "grain", "gguf") '
    'if m in sys.modules])'
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout.strip() == '[]'
