"""Run directories in a bucket; here a directory stands for the bucket.

Not tried against Google Cloud Storage.
"""

import contextlib
import shutil
import time

import jax
import pytest

from configs import tiny
from longjax import checkpoint, mirror, storage
from longjax.errors import InputError
from longjax.train import loop, metrics


def mirrored(tmp_path, name='local', **options):
  """A closing mirror of tmp_path/NAME in tmp_path/bucket."""
  return contextlib.closing(
    mirror.Mirror(tmp_path / 'bucket', tmp_path / name, **options)
  )


def test_what_is_written_here_is_there_and_comes_back_elsewhere(tmp_path):
  bucket = tmp_path / 'bucket'
  with mirrored(tmp_path) as first:
    (first.local / 'metrics.jsonl').write_text('one\n')
    (first.local / 'tb').mkdir()
    (first.local / 'tb/events').write_bytes(b'\0')
    first.push()
    assert (bucket / 'metrics.jsonl').read_text() == 'one\n'
    (first.local / 'metrics.jsonl').write_text('one\ntwo\n')
  assert mirror.files(bucket) == ['metrics.jsonl', 'tb/events']
  (bucket / 'checkpoints').mkdir()
  (bucket / 'checkpoints/large').write_text('')
  with mirrored(tmp_path, 'other') as second:
    assert mirror.files(second.local) == ['metrics.jsonl']
    assert (second.local / 'metrics.jsonl').read_text() == 'one\ntwo\n'


def test_only_what_changed_is_copied(tmp_path, monkeypatch):
  with mirrored(tmp_path) as one:
    (one.local / 'a').write_text('a')
    one.push()
    (tmp_path / 'bucket/a').unlink()
    one.push()
    assert not (tmp_path / 'bucket/a').exists()


def test_it_copies_by_itself(tmp_path):
  bucket = tmp_path / 'bucket'
  with mirrored(tmp_path, seconds=0.02) as one:
    (one.local / 'a').write_text('a')
    until = time.monotonic() + 10
    while not (bucket / 'a').exists():
      assert time.monotonic() < until
      time.sleep(0.02)


def test_a_bucket_that_fails_is_said_and_tried_again(tmp_path):
  said, bucket = [], tmp_path / 'bucket'
  with mirrored(tmp_path, log=said.append) as one:
    (one.local / 'a').write_text('a')
    bucket.write_text('a file where the directory should be')
    one.push()
    assert 'WARNING: a was not copied' in said[0]
    bucket.unlink()
  assert (bucket / 'a').read_text() == 'a'


def test_only_gs_is_remote(tmp_path, monkeypatch):
  assert mirror.local(tmp_path / 'x') == tmp_path / 'x'
  with pytest.raises(InputError, match='is a file'):
    storage.directory(__file__)
  with pytest.raises(InputError, match='neither local nor gs'):
    mirror.local('s3://bucket/run')
  for refuse in storage.directory, storage.content, checkpoint.find:
    with pytest.raises(InputError, match='neither local nor gs'):
      refuse('package:~hf://x')
  monkeypatch.setattr(storage.importlib.util, 'find_spec', lambda _: None)
  with pytest.raises(InputError, match='needs pip install gcsfs'):
    mirror.local('gs://bucket/run')


def test_a_bucket_out_of_reach_is_refused_in_one_line(tmp_path, monkeypatch):
  monkeypatch.setattr(storage, 'is_remote', lambda _: True)

  def denied(_):
    raise ConnectionError('Anonymous caller does not have access')

  monkeypatch.setattr(type(storage.epath.Path(tmp_path)), 'exists', denied)
  with pytest.raises(InputError, match='cannot be reached: Anonymous'):
    storage.directory(tmp_path)


@pytest.mark.slow
def test_a_run_goes_on_from_the_bucket_on_another_machine(
  tmp_path, monkeypatch
):
  bucket, cache = tmp_path / 'bucket', tmp_path / 'cache'
  monkeypatch.setenv('LONGJAX_CACHE', str(cache))
  is_bucket = lambda workdir: str(workdir).startswith(str(bucket))
  monkeypatch.setattr(storage, 'is_remote', is_bucket)
  config = tiny.get_config()
  config.mesh.update(data=1, seq=8)
  config.eval.update(length=0, passkey_lengths=())
  config.checkpoint.every_steps = 1
  assert len(jax.devices()) == 8
  for steps in (2, 3):
    config.train.steps = steps
    assert loop.main(config, bucket / 'run', lambda _: None) == 0
    shutil.rmtree(cache / 'runs')  # another machine, without what was here
  assert [x['step'] for x in metrics.read(bucket / 'run')] == [1, 2, 3]
  names = {path.name for path in (bucket / 'run').iterdir()}
  assert names >= {'REPORT.md', 'checkpoints', 'code.json', 'tb'}
  assert 'goodput.json' in names
