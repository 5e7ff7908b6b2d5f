"""Files out of packages: digests, safety and clear failures."""

import hashlib
import io
import subprocess
import sys
import tarfile
import zipfile

import pytest

from longjax import errors
from longjax.data import downloads


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('LONGJAX_CACHE', str(tmp_path / 'cache'))
  return tmp_path / 'cache'


@pytest.fixture
def no_pip(monkeypatch):
  """pip that finds nothing, without the seconds that it takes."""
  done = subprocess.CompletedProcess((), 1, 'ERROR: No matching distribution')
  monkeypatch.setattr(downloads.subprocess, 'run', lambda *_, **__: done)


@pytest.fixture
def offline(monkeypatch):
  monkeypatch.setenv('PIP_NO_INDEX', '1')
  monkeypatch.setenv('PIP_FIND_LINKS', '')
  monkeypatch.setenv('PIP_CONFIG_FILE', '/dev/null')


def wheel(directory, **files):
  """A tiny valid wheel `thing==1.0`; returns (path, sha256)."""
  directory.mkdir(parents=True, exist_ok=True)
  path = directory / 'thing-1.0-py3-none-any.whl'
  info = 'thing-1.0.dist-info'
  with zipfile.ZipFile(path, 'w') as z:
    for name, content in files.items():
      z.writestr(f'thing/{name}.txt', content)
    z.writestr(
      f'{info}/METADATA', 'Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n'
    )
    z.writestr(
      f'{info}/WHEEL',
      'Wheel-Version: 1.0\nGenerator: x\n'
      'Root-Is-Purelib: true\nTag: py3-none-any\n',
    )
    z.writestr(f'{info}/RECORD', '')
  return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_pip_brings_a_pinned_wheel_into_the_cache_once(
  tmp_path, monkeypatch, offline
):
  _, digest = wheel(tmp_path / 'served', a='text')
  monkeypatch.setenv('PIP_FIND_LINKS', str(tmp_path / 'served'))
  said = []
  path = downloads.fetch('thing==1.0', digest, said.append)
  assert downloads.sha256_of(path) == digest
  assert len(said) == 2
  monkeypatch.setenv('PIP_FIND_LINKS', '')
  assert downloads.fetch('thing==1.0', digest, said.append) == path
  assert len(said) == 2


def test_another_digest_is_refused_and_leaves_nothing(
  tmp_path, monkeypatch, offline, cache
):
  wheel(tmp_path / 'served', a='text')
  monkeypatch.setenv('PIP_FIND_LINKS', str(tmp_path / 'served'))
  with pytest.raises(errors.InputError, match=r'thing==1\.0.*sha256') as caught:
    downloads.fetch('thing==1.0', '0' * 64, lambda _: None)
  assert '\n' not in str(caught.value)
  assert not [p for p in cache.rglob('*') if p.is_file()]


def test_offline_without_a_copy_is_one_line_that_says_where_to_put_one(
  no_pip, cache
):
  with pytest.raises(errors.InputError, match='No matching') as caught:
    downloads.fetch('no-such-thing==1.0', 'a' * 64, lambda _: None)
  message = str(caught.value)
  assert '\n' not in message
  assert 'no-such-thing==1.0' in message
  assert str(cache / 'packages' / ('a' * 16)) in message


def test_no_pip_anywhere_is_one_line(monkeypatch):
  monkeypatch.setattr(downloads.importlib.util, 'find_spec', lambda _: None)
  monkeypatch.setenv('PATH', '')
  with pytest.raises(errors.InputError, match='install pip'):
    downloads.fetch('thing==1.0', 'a' * 64, lambda _: None)


def test_a_pip_on_the_path_serves_an_interpreter_without_one(
  tmp_path, monkeypatch
):
  (tmp_path / 'pip').write_text('#!/bin/sh\n')
  (tmp_path / 'pip').chmod(0o755)
  monkeypatch.setattr(downloads.importlib.util, 'find_spec', lambda _: None)
  monkeypatch.setenv('PATH', str(tmp_path))
  assert downloads._pip('thing==1.0', tmp_path) == ['pip']
  monkeypatch.undo()
  assert downloads._pip('thing==1.0', tmp_path)[0] == sys.executable


def test_a_copy_put_by_hand_is_used_and_a_damaged_one_is_not(cache, no_pip):
  path, digest = wheel(cache / 'packages' / 'x', a='text')
  place = cache / 'packages' / digest[:16]
  path.parent.rename(place)
  assert downloads.fetch('thing==1.0', digest).parent == place
  with open(place / path.name, 'ab') as f:
    f.write(b'!')
  with pytest.raises(errors.InputError, match='cannot fetch'):
    downloads.fetch('thing==1.0', digest, lambda _: None)


def test_a_requirement_must_be_pinned_with_a_digest():
  with pytest.raises(errors.InputError, match='name==version'):
    downloads.fetch('thing>=1', 'a' * 64)
  with pytest.raises(errors.InputError, match='sha256'):
    downloads.fetch('thing==1', '')


def test_a_location_gives_one_member_of_a_package(cache):
  path, digest = wheel(cache / 'x', a='first', b='second')
  path.parent.rename(cache / 'y')
  (cache / 'packages').mkdir()
  (cache / 'y').rename(cache / 'packages' / digest[:16])
  spec = f'package:thing==1.0/thing/b.*#sha256={digest}'
  found = downloads.locate(spec)
  assert (found.name, found.read_text()) == ('b.txt', 'second')
  found.write_text('spoilt')
  assert downloads.locate(spec).read_text() == 'second'
  with pytest.raises(errors.InputError, match='matches 2'):
    downloads.locate(spec.replace('b.*', '?.txt'))
  assert downloads.locate(spec.replace('b.*', 'a.*')).read_text() == 'first'


def test_a_location_that_is_neither_path_nor_package_is_refused(tmp_path):
  with pytest.raises(errors.InputError, match='no such file'):
    downloads.locate(str(tmp_path / 'absent'))
  with pytest.raises(errors.InputError, match='64 hex digits'):
    downloads.locate('package:thing==1.0/a#sha256=12')


def test_members_are_sorted_filtered_and_never_links(tmp_path):
  path = tmp_path / 'a.tar.gz'
  with tarfile.open(path, 'w:gz') as t:
    for name in ('d/b.txt', 'd/a.txt', 'd/c.py', '../up.txt'):
      info = tarfile.TarInfo(name)
      info.size = 1
      t.addfile(info, io.BytesIO(b'x'))
    link = tarfile.TarInfo('d/passwd.txt')
    link.type, link.linkname = tarfile.SYMTYPE, '/etc/passwd'
    t.addfile(link)
  found = downloads.members(path, ('d/*', '*.py'), exclude='*c.py')
  assert found == [('d/a.txt', b'x'), ('d/b.txt', b'x')]


def test_a_damaged_archive_is_an_input_error_that_names_it(tmp_path):
  path, _ = wheel(tmp_path, a='text' * 1000)
  path.write_bytes(path.read_bytes()[:500])
  with pytest.raises(errors.InputError, match='thing-1'):
    downloads.members(path)
  path, _ = wheel(tmp_path, a='text' * 1000)
  raw = bytearray(path.read_bytes())
  raw[200] ^= 1
  path.write_bytes(raw)
  with pytest.raises(errors.InputError, match='thing-1'):
    downloads.members(path)
  with pytest.raises(errors.InputError, match='thing-1'):
    downloads.extract(path, 'thing/a.txt')
  path, _ = wheel(tmp_path, **{'ä': 'text'})
  path.write_bytes(path.read_bytes().replace('ä'.encode(), b'\xbbx'))
  with pytest.raises(errors.InputError, match='thing-1'):
    downloads.members(path)


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
  (tmp_path / 'file').write_text('')
  monkeypatch.setenv('LONGJAX_CACHE', str(tmp_path / 'file'))
  with pytest.raises(errors.InputError, match='LONGJAX_CACHE'):
    downloads.fetch('thing==1.0', 'a' * 64, lambda _: None)


@pytest.mark.parametrize('at, bits', [
  (8, 0x20),  # a flag: patched data
  (8, 0x01),  # encrypted
  (10, 0x55),  # another compression
  (16, 0x55),  # the check sum
  (42, 0x55),  # where it begins
])  # fmt: skip
@pytest.mark.parametrize('read', [
  downloads.members, lambda path: downloads.extract(path, 'thing/a.txt'),
])  # fmt: skip
def test_a_damaged_entry_of_a_zip_names_the_archive(
  read, at, bits, tmp_path, cache
):
  path, _ = wheel(tmp_path, a='text')
  content = bytearray(path.read_bytes())
  content[content.index(b'PK\1\2') + at] ^= bits  # the first in the directory
  path.write_bytes(content)
  with pytest.raises(errors.InputError, match=r'thing-1\.0.*not a whole zip'):
    read(path)


def test_a_damaged_tar_gz_names_the_archive(tmp_path):
  path = tmp_path / 'a.tar.gz'
  with tarfile.open(path, 'w:gz') as tar:
    tar.add(__file__, 'a.py')
  content = bytearray(path.read_bytes())
  content[40] ^= 0x55
  path.write_bytes(content)
  with pytest.raises(errors.InputError, match=r'a\.tar\.gz: not a whole'):
    downloads.members(path)
