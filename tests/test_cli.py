"""What a command says to a user who has mistyped."""

import errno
import os
import subprocess
import sys
import time

import commands
import pytest

from longjax import cli

TINY = '--config=configs/tiny.py'


@pytest.mark.parametrize('arguments, says', [
  ([TINY, '--config.optim.learning_rat=1'], "nearest is 'optim.learning_rate'"),
  ([TINY, '--config.model.rope.bas=1'], "nearest is 'model.rope.base'"),
  ([TINY, '--config.lr=1'], "nearest is 'optim.learning_rate'"),
  ([TINY, '--lr=1'], "nearest is '--config.optim.learning_rate'"),
  ([TINY, '--steps=5'], "nearest is '--config.train.steps'"),
  ([TINY, '--workdri=x'], "nearest is '--workdir'"),
  ([TINY, '--config.train.steps=abc'], 'abc'),
  ([TINY, '--config.train.steps=1.5'], "a whole number, not '1.5'"),
  ([TINY, 'stray'], "'stray' is not a flag"),
  (['--config=configs/tinny.py'], "nearest is 'configs/tiny.py'"),
  (['--config=configs/llama_pi.py:7b'], "'7b' is none of llama1"),
  ([], '--config=configs/NAME.py is needed'),
])  # fmt: skip
def test_a_mistyped_command_is_answered_in_one_line_at_once(arguments, says):
  began = time.monotonic()
  assert says in commands.refused('tpu.py', *arguments)
  assert time.monotonic() - began < 5


@pytest.mark.parametrize('body, says', [
  ('del config.train.steps', "lacks the key 'train.steps'"),
  ('config = ConfigDict(dict(name="x"))', 'lacks the key'),
])  # fmt: skip
def test_a_config_without_a_key_is_answered_with_the_key(body, says, tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text(
    'from ml_collections import ConfigDict\n'
    'from configs import common\n\n\n'
    'def get_config():\n'
    '  config = common.base()\n'
    f'  {body}\n'
    '  return config\n'
  )
  assert says in commands.refused('tpu.py', f'--config={path}')


@pytest.mark.parametrize('override, says', [
  ('weights=/etc/passwd', '/etc/passwd has no known format'),
  ('optim.learning_rate=nan', 'optim.learning_rate is nan; it must be finite'),
  ('optim.learning_rate=inf', 'optim.learning_rate is inf; it must be finite'),
  ('optim.b2=1.0', 'optim.b2 is 1.0; it must be at least 0 and below 1'),
  ('seed=99999999999999999999', 'below 2**63'),
  ('model.heads=7', 'heads 7 is not a multiple of kv_heads 4'),
  ('model.attention=rng', 'ring'),
  ('model.rope.scaling=yarm', 'yarn'),
  ('mesh.seq=3', '6 equal parts'),
  ('train.batch=3', 'train.batch is 3'),
  ('train.seq_len=260', '8 equal parts'),
  ('optim.schedule=cosin', 'cosine'),
  ('data.layout=zagzig', 'zigzag'),
  ('model.kv_heads=0', 'model.kv_heads is 0'),
  ('model.head_dim=15', 'head_dim must be even'),
  ('train.seq_len=0', 'train.seq_len is 0'),
  ('seed=-1', 'config.seed is -1'),
  ('eval.documents=100', '100 documents'),
  ('weights=', 'config.weights is empty'),
  ('weights=/no/such.gguf', '/no/such.gguf'),
])  # fmt: skip
def test_a_config_that_cannot_work_is_refused_before_any_compile(
  override, says, tmp_path
):
  workdir = tmp_path / 'run'
  line = commands.refused(
    'tpu.py', TINY, f'--config.{override}', f'--workdir={workdir}'
  )
  assert says in line
  assert not workdir.exists()


@pytest.mark.parametrize('number, says', [
  (errno.ENOSPC, 'free space and run the same command again: No space left'),
  (errno.EBADF, None),
])  # fmt: skip
def test_a_full_disk_is_said_in_a_line_and_an_error_of_ours_with_its_place(
  number, says, capsys
):
  def answer():
    raise OSError(number, os.strerror(number))

  if says is None:
    with pytest.raises(OSError):
      cli.guarded(answer)
    return
  assert cli.guarded(answer) == 2
  said = capsys.readouterr().err
  assert says in said and said.count('\n') == 1


def test_help_may_be_cut_short_by_its_reader():
  command = f'{sys.executable} launch/tpu.py --help | head -n 1'
  done = subprocess.run(
    ['bash', '-c', command], cwd=commands.ROOT, capture_output=True, text=True,
    check=True,
  )  # fmt: skip
  assert done.stderr == ''


@pytest.mark.parametrize('script', ['tpu.py', 'prepare.py', 'pod.py'])
def test_help_is_enough_to_use_a_command(script):
  done = commands.run(script, '--help')
  assert done.returncode == 0
  for word in ('--config', f'launch/{script}', 'train.seq_len', 'rope.base'):
    assert word in done.stdout
