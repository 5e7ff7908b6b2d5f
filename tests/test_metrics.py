"""metrics.jsonl is the truth; TensorBoard and the line come from it."""

import os
import pathlib
import subprocess
import sys
import types

import pytest
from tensorboard.backend.event_processing.event_accumulator import (
  EventAccumulator,
)

from configs import tiny
from longjax.errors import InputError
from longjax.evals import saved_results
from longjax.train import goodput, metrics


def values(loss, tokens=10):
  return dict(
    loss=loss, grad_norm=1.5, lr=2e-5, skipped=0.0, mfu=None, tokens=tokens
  )  # fmt: skip


def test_a_line_a_step_survives_a_resume(tmp_path):
  lines = []
  first = metrics.Metrics(tmp_path, 0, 4, lines.append)
  for step in (1, 2, 3):
    first.step(step, 100, 0.5, values(4.0 - step, 100 * step))
  first.close()
  again = metrics.Metrics(tmp_path, 2, 4, lines.append)  # 3 was not saved
  for step in (3, 4):
    again.step(step, 100, 0.5, values(3.0 - step / 8, 100 * step))
  again.close()
  read = metrics.read(tmp_path)
  assert [x['step'] for x in read] == [1, 2, 3, 4]
  assert [x['tokens'] for x in read] == [100, 200, 300, 400]
  assert read[2]['loss_hex'] == (3.0 - 3 / 8).hex()
  assert read[0]['tokens_per_second'] == 200
  assert lines[0].startswith('step 1/4  loss 3.0000  grad 1.50  lr 2.00e-05')
  assert lines[-1].endswith('eta 0s')


def test_tensorboard_holds_the_same_numbers_without_tensorflow(tmp_path):
  writer = metrics.Metrics(tmp_path, 0, 2, lambda _: None)
  writer.step(1, 10, 0.5, values(3.0) | dict(memory=2**30))
  writer.step(2, 10, 0.5, values(2.0))
  writer.text('config', '{\n "seed": 0\n}', 1)
  writer.close()
  board = EventAccumulator(str(tmp_path / 'tb'))
  board.Reload()
  losses = [(e.step, e.value) for e in board.Scalars('train/loss')]
  assert losses == [(1, 3.0), (2, 2.0)]
  assert board.Scalars('perf/memory_bytes')[0].value == 2**30
  assert 'config' in board.PluginTagToContent('text')
  (text,) = board.Tensors('config')
  assert b'"seed": 0' in text.tensor_proto.string_val[0]
  assert 'tensorflow' not in sys.modules


def test_damaged_files_of_a_run_are_passed_over(tmp_path):
  (tmp_path / 'metrics.jsonl').write_bytes(
    b'\xff\xfe\n[1]\n{"loss": 1}\n{"step": 2}\n{"step"'  # cut by a crash
  )
  assert metrics.read(tmp_path) == [{'step': 2}]
  for torn in ('[{"began": 1}]', '[{"began": "1 h", "seconds": 1}]', '[[1]]'):
    (tmp_path / 'goodput.json').write_text(torn)
    assert goodput.read(tmp_path) == []
  (tmp_path / 'evals').mkdir()
  for name, content in dict(a=b'{}', b=b'\xff', c=b'[]').items():
    (tmp_path / 'evals' / f'{name}.json').write_bytes(content)
  config = tiny.get_config()
  assert not saved_results.done(tmp_path, 'a', config)
  saved_results.save(tmp_path, 'a', config, dict(x=1))
  assert saved_results.done(tmp_path, 'a', config)
  assert saved_results.load(tmp_path, config) == dict(a=dict(x=1))


def test_a_log_that_is_moved_away_begins_anew(tmp_path):
  writer = metrics.Metrics(tmp_path, 0, 3, lambda _: None)
  writer.step(1, 10, 0.5, values(3.0))
  (tmp_path / 'metrics.jsonl').rename(tmp_path / 'metrics.jsonl.1')
  writer.step(2, 10, 0.5, values(2.0))
  writer.step(3, 10, 0.5, values(1.0))
  writer.close()
  read = metrics.read(tmp_path)
  assert [x['step'] for x in read] == [2, 3]


def test_nothing_that_happens_to_its_files_ends_training(tmp_path, monkeypatch):
  lines = []
  (tmp_path / 'tb').write_text('in the way')
  writer = metrics.Metrics(tmp_path, 0, 3, lines.append)
  assert 'nothing for TensorBoard is written' in lines[0]
  monkeypatch.setattr(metrics.time, 'time', lambda: -1e9)  # the clock jumps
  writer.path = pathlib.Path('/dev/full')
  writer.step(1, 10, 0.5, values(3.0))
  assert 'No space left on device; training continues' in lines[1]
  assert lines[2].startswith('step 1/3')
  writer.step(2, 10, 0.5, values(2.0))
  assert lines[3].startswith('step 2/3')  # said once
  writer.path = tmp_path / 'metrics.jsonl'  # there is space again
  writer.step(3, 10, 0.5, values(1.0))
  writer.close()
  assert [x['step'] for x in metrics.read(tmp_path)] == [1, 2, 3]


def test_a_disk_that_is_full_at_the_end_ends_nothing(tmp_path, monkeypatch):
  writer = metrics.Metrics(tmp_path, 0, 1, lambda _: None)

  def full(*_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(writer.board, 'close', full)
  writer.close()


def test_a_loss_that_is_not_finite_is_null_in_json(tmp_path):
  lines = []
  writer = metrics.Metrics(tmp_path, 0, 2, lines.append)
  writer.step(1, 10, 0.5, values(float('nan')) | dict(skipped=1.0))
  writer.step(2, 10, 0.5, values(9.0) | dict(skipped=1.0))
  empty = values(float('nan')) | dict(skipped=1.0, empty=1.0)
  writer.step(2, 10, 0.5, empty)
  writer.close()
  assert 'NaN' not in (tmp_path / 'metrics.jsonl').read_text()
  first = metrics.read(tmp_path)[0]
  assert first['loss'] is None and first['loss_hex'] == 'nan'
  assert 'SKIPPED: loss or gradient not finite' in lines[0]
  assert 'SKIPPED: a spike' in lines[1]
  assert 'SKIPPED: its loss weights sum to 0' in lines[2]


def fake_wandb(monkeypatch, init):
  """A wandb whose `init` is given; the names of what was called besides."""
  called = []
  board = types.SimpleNamespace(unpatch=lambda: called.append('unpatch'))
  module = types.SimpleNamespace(init=init, tensorboard=board)
  monkeypatch.setitem(sys.modules, 'wandb', module)
  return called


def test_weights_and_biases_follows_tensorboard_and_resumes(
  monkeypatch, tmp_path
):
  given = []
  run = types.SimpleNamespace(finish=lambda: called.append('finish'))
  called = fake_wandb(monkeypatch, lambda **k: given.append(k) or run)
  for workdir in ('gs://b/run', 'gs://b/run', 'gs://b/other'):
    with metrics.weights_and_biases('p', tiny.get_config(), workdir, tmp_path):
      called.append('train')
  first, again, other = given
  assert first['id'] == again['id'] != other['id']
  assert (first['project'], first['resume']) == ('p', 'allow')
  assert first['sync_tensorboard'] and first['dir'] == str(tmp_path)
  assert first['config']['train']['steps'] == tiny.get_config().train.steps
  assert called == ['train', 'finish', 'unpatch'] * 3


def test_weights_and_biases_never_ends_training(monkeypatch, tmp_path):
  def init(**_):
    raise RuntimeError('no key,\nno network')

  lines, config = [], tiny.get_config()
  fake_wandb(monkeypatch, init)
  with metrics.weights_and_biases('p', config, 'w', tmp_path, lines.append):
    pass
  assert len(lines) == 1 and lines[0].endswith('no key, no network')
  monkeypatch.setattr(metrics.importlib.util, 'find_spec', lambda _: None)
  metrics.check(config)
  config.metrics.wandb = 'p'
  with pytest.raises(InputError, match='pip install wandb'):
    metrics.check(config)


OFFLINE = """
import sys
from configs import tiny
from longjax.train import metrics
with metrics.weights_and_biases('p', tiny.get_config(), 'w', sys.argv[1]):
  writer = metrics.Metrics(sys.argv[1], 0, 2, lambda _: None)
  for step in (1, 2):
    writer.step(step, 10, 0.5, dict(
      loss=3.25 / step, grad_norm=1.5, lr=2e-5, skipped=0.0, tokens=10))
  writer.close()
  metrics.write_evaluation(sys.argv[1], 2, dict(passkey=0.5))
"""


@pytest.mark.slow
def test_an_offline_run_of_weights_and_biases_has_the_losses(tmp_path):
  pytest.importorskip('wandb')
  done = subprocess.run(
    [sys.executable, '-c', OFFLINE, str(tmp_path)], check=False, text=True,
    cwd=pathlib.Path(__file__).parents[1], capture_output=True, timeout=120,
    env=os.environ | dict(WANDB_MODE='offline'),
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  (file,) = tmp_path.glob('wandb/offline-run-*/*.wandb')
  stored = file.read_bytes()
  for part in (b'train/loss', b'3.25', b'1.625', b'eval/passkey'):
    assert part in stored
