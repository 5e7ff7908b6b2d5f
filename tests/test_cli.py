"""What commands take, and how they refuse what a user has mistyped."""

import errno
import os
import re
import resource
import subprocess
import sys

import commands
import pytest

from longjax import cache, cli, config_values
from longjax import config as schema

TINY = '--config=configs/tiny.py'
SCRIPTS = dict(
  tpu=(), prepare=(), plan=('--topology=v5p:2x2x1',), pod=('status',),
  evaluate=('--checkpoint=x',), generate=('--checkpoint=x', '--prompt=x'),
)  # fmt: skip


def answer(monkeypatch, *arguments, **options):
  """A function that runs a command with these arguments, and what it got."""
  got = []
  monkeypatch.setattr(sys, 'argv', ['tpu.py', *map(str, arguments)])
  monkeypatch.chdir(commands.ROOT)

  def main(*verb_and_config, **flags):
    got.append((*verb_and_config, flags))
    return 0

  return lambda: cli.run(main, 'doc', **options), got


def refused(monkeypatch, capsys, *arguments):
  run, got = answer(monkeypatch, *arguments, workdir='')
  line = commands.one_line(run(), capsys.readouterr().err)
  assert not got
  return line


@pytest.mark.parametrize('arguments, says', [
  ([TINY, '--config.optim.learning_rat=1'], "nearest is 'optim.learning_rate'"),
  ([TINY, '--config.model.rope.bas=1'], "nearest is 'model.rope.base'"),
  ([TINY, '--config.lr=1'], "nearest is 'optim.learning_rate'"),
  ([TINY, '--config.optim.lr=1'], "nearest is 'optim.learning_rate'"),
  ([TINY, '--lr=1'], "nearest is '--config.optim.learning_rate'"),
  ([TINY, '--steps=5'], "nearest is '--config.train.steps'"),
  ([TINY, '--workdri=x'], "nearest is '--workdir'"),
  ([TINY, '--workdir'], '--workdir needs a value'),
  ([TINY, '--workdir', '--config.seed=1'], '--workdir needs a value'),
  ([TINY, 'stray'], "'stray' is not a flag"),
  ([TINY, '--config.train=5'], 'config.train is a section'),
  ([TINY, '--config.train.steps=abc'], "a whole number, not 'abc'"),
  ([TINY, '--config.train.steps=1.5'], "a whole number, not '1.5'"),
  ([TINY, '--config.train.steps=10K'], "a whole number, not '10K'"),
  ([TINY, '--config.optim.clip=x'], "optim.clip takes a number, not 'x'"),
  ([TINY, '--config.moments=maybe'], 'true or false'),
  ([TINY, '--config.eval.lengths=a,b'], 'config.eval.lengths takes whole num'),
  (['--config=configs/tinny.py'], "nearest is 'configs/tiny.py'"),
  (['--config=configs/llama_pi.py:7b'], "'7b' is not one of llama1"),
  ([], '--config=configs/NAME.py is needed'),
])  # fmt: skip
def test_a_mistyped_command_is_refused_in_one_line(
  arguments, says, monkeypatch, capsys
):
  assert says in refused(monkeypatch, capsys, *arguments)


@pytest.mark.parametrize('override, says', [
  ('optim.learning_rate=nan', 'optim.learning_rate is nan; it must be finite'),
  ('optim.learning_rate=inf', 'it must be finite'),
  ('optim.b2=1.0', 'optim.b2 is 1.0; it must be at least 0 and below 1'),
  ('eval.passkey_depths=0.5,2', 'at least 0 and at most 1'),
  ('seed=99999999999999999999', 'below 2**63'),
  ('seed=-1', 'config.seed is -1; it must be at least 0'),
  ('train.seq_len=0', 'train.seq_len is 0; it must be at least 1'),
  ('model.kv_heads=0', 'model.kv_heads is 0; it must be at least 1'),
  ('optim.schedule=cosin', 'cosine'),
  ('data.layout=zagzig', 'zigzag'),
  ('mesh.seq=3', '6 equal parts'),
  ('train.batch=3', 'train.batch is 3; it must be a multiple of'),
  ('train.seq_len=260', '8 equal parts'),
  ('model.heads=7', 'heads 7 is not a multiple of kv_heads 4'),
  ('model.attention=rng', 'ring'),
  ('model.rope.scaling=yarm', 'yarn'),
  ('model.head_dim=15', 'head_dim must be even'),
  ('model.group=96', 'multiple of config.model.group = 96'),
])  # fmt: skip
def test_a_config_that_cannot_work_is_refused(
  override, says, monkeypatch, capsys
):
  assert says in refused(monkeypatch, capsys, TINY, f'--config.{override}')


@pytest.mark.parametrize('body, says', [
  ('del config.train.steps', "lacks the key 'train.steps'"),
  ('config.train.stepz = 3', "stepz is not a key; nearest is 'train.steps'"),
  ('config = ConfigDict(dict(name="x"))', 'lacks the key'),
  ('config.train.steps = "many"', 'TypeError'),
  ('config.eval.lengths = ("4096",)', "whole numbers"),
])  # fmt: skip
def test_a_config_file_that_departs_from_the_schema_is_refused(
  body, says, tmp_path, monkeypatch, capsys
):
  path = tmp_path / 'mine.py'
  path.write_text(
    'from ml_collections import ConfigDict\n'
    'from configs import common\n\n\n'
    'def get_config():\n'
    '  config = common.base()\n'
    f'  {body}\n'
    '  return config\n'
  )
  assert says in refused(monkeypatch, capsys, f'--config={path}')


@pytest.mark.parametrize('text, key, value', [
  ('train.steps=1e3', 'train.steps', 1000),
  ('train.seq_len=512K', 'train.seq_len', 524_288),
  ('train.seq_len=1_024', 'train.seq_len', 1024),
  ('eval.lengths=4K,8K', 'eval.lengths', (4096, 8192)),
  ('eval.lengths=4096', 'eval.lengths', (4096,)),
  ('eval.lengths=(4096, 8192)', 'eval.lengths', (4096, 8192)),
  ('data.skip_steps=3,4', 'data.skip_steps', (3, 4)),
  ('data.skip_steps=', 'data.skip_steps', ()),
  ('eval.passkey_depths=0,.5', 'eval.passkey_depths', (0.0, 0.5)),
  ('eval.tasks=ruler/vt,needle', 'eval.tasks', ('ruler/vt', 'needle')),
  ("lora.weights=('q','v')", 'lora.weights', ('q', 'v')),
  ('data.curriculum=((0.4, 64), (0.6, .25K))', 'data.curriculum',
   ((0.4, 64), (0.6, 256))),
  ('optim.learning_rate=3e-4', 'optim.learning_rate', 3e-4),
  ('optim.clip=2', 'optim.clip', 2.0),
  ('model.tied=yes', 'model.tied', True),
  ('notes=a = b', 'notes', ('a = b',)),
  ('data.mix.all.weight=0.5', 'data.mix.all.weight', 0.5),
  ('data.mix.all.length=4K', 'data.mix.all.length', 4096),
  ('data.sources.longjax.path=docs', 'data.sources.longjax.path', 'docs'),
])  # fmt: skip
def test_values_are_read_as_people_type_them(text, key, value):
  config = cli.load(str(commands.ROOT / 'configs/tiny.py'))
  with config.unlocked():
    config.data.mix.all = dict(weight=1, length=256)
  config_values.override(config, *text.split('=', 1))
  read = schema.flat(config)[key]
  assert read == value and type(read) is type(value)


def test_flags_and_verbs_reach_the_command(monkeypatch):
  run, got = answer(
    monkeypatch, 'up', TINY, '--a-b', '-1', '--on', '--config.moments',
    '--config.weights', 'x=y', verbs=('up', 'down'), switches=('on', 'off'),
    a_b='', c='', on='', off='',
  )  # fmt: skip
  assert run() == 0
  ((verb, words, config, flags),) = got
  assert (verb, config.moments, config.weights) == ('up', True, 'x=y')
  assert words == [TINY, '--config.moments=true', '--config.weights=x=y']
  assert flags == dict(a_b='-1', c='', on=True, off=False)


@pytest.mark.parametrize('script', SCRIPTS)
def test_every_command_refuses_alike_at_once_and_without_jax(script, tmp_path):
  (tmp_path / 'jax.py').write_text('raise AssertionError("jax was imported")')
  before = resource.getrusage(resource.RUSAGE_CHILDREN)
  says = commands.refused(
    f'{script}.py', *SCRIPTS[script], TINY, '--config.train.batch=3',
    PYTHONPATH=str(tmp_path),
  )  # fmt: skip
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  assert 'train.batch is 3' in says and says.startswith(f'{script}.py: ')
  assert after.ru_utime - before.ru_utime < 1.5


ALL_HELP = """
import runpy, sys
for script in sys.argv[1:]:
  sys.argv = [f'launch/{script}.py', '--help']
  try:
    runpy.run_path(sys.argv[0], run_name='__main__')
  except SystemExit as ended:
    assert not ended.code, script
  print(chr(12))
"""


def test_help_is_enough_to_use_a_command_and_needs_no_jax(tmp_path):
  (tmp_path / 'jax.py').write_text('raise AssertionError("jax was imported")')
  scripts = [*SCRIPTS, 'convert', 'lab']
  done = subprocess.run(
    [sys.executable, '-c', ALL_HELP, *scripts], cwd=commands.ROOT, text=True,
    env=os.environ | dict(PYTHONPATH=f'{tmp_path}:.'), capture_output=True,
    check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  for script, text in zip(scripts, done.stdout.split(chr(12))):
    assert f'launch/{script}.py' in text
    for name, key in schema.KEYS.items() if script in SCRIPTS else ():
      assert re.search(rf'^  {name}\b', text, re.MULTILINE), name
      assert key.help.split()[0] in text


def test_help_of_a_config_shows_its_values(monkeypatch, capsys):
  run, _ = answer(monkeypatch, '--help', TINY)
  assert run() == 0
  shown = capsys.readouterr().out
  assert 'train.steps=40' in shown and "sources.longjax.path='long" in shown


@pytest.mark.parametrize('number, says', [
  (errno.ENOSPC, 'free space and run the same command again: No space left'),
  (errno.EBADF, None),
])  # fmt: skip
def test_a_full_disk_is_one_line_and_an_error_of_ours_a_traceback(
  number, says, capsys
):
  def fail():
    raise OSError(number, os.strerror(number))

  if says is None:
    with pytest.raises(OSError):
      cli.exit_code_of(fail)
  else:
    assert says in commands.refused_here(fail, capsys)


def test_help_may_be_cut_short_by_its_reader():
  command = f'{sys.executable} launch/tpu.py --help | head -n 1'
  done = subprocess.run(
    ['bash', '-c', command], cwd=commands.ROOT, capture_output=True, text=True,
    check=True,
  )  # fmt: skip
  assert done.stderr == ''


def test_programs_of_a_run_in_a_bucket_are_kept_in_the_bucket(monkeypatch):
  monkeypatch.setenv('LONGJAX_CACHE', '/cache')
  assert cache.compiled('gs://b/runs/x') == 'gs://b/longjax-compiled'
  assert cache.compiled('runs/x') == '/cache/compiled'
  assert cache.compiled() == '/cache/compiled'
