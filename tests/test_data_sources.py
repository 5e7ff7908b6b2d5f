"""Sources: which documents a config names."""

import gzip
import hashlib
import zipfile

import pytest

from longjax import errors
from longjax.data import sources


@pytest.fixture
def tree(tmp_path):
  root = tmp_path / 'tree'
  (root / 'sub').mkdir(parents=True)
  (root / '.git').mkdir()
  (root / '.git' / 'x.py').write_text('hidden')
  (root / 'b.py').write_bytes(b'two\r\nlines')
  (root / 'sub' / 'a.py').write_text('one\n')
  (root / 'note.txt').write_text('a note')
  (root / 'empty.py').write_text('')
  (root / 'link.py').symlink_to(root / 'b.py')
  return root


def listed(source):
  return [(d.name, d.text) for d in sources.documents('s', source)]


def test_files_are_documents_in_order_of_path(tree):
  assert listed(dict(path=str(tree), include='*.py')) == [
    ('b.py', 'two\nlines'),
    ('sub/a.py', 'one\n'),
  ]


def test_a_repository_is_one_document_with_marked_paths(tree):
  source = dict(
    path=str(tree),
    include=('*.py', '*.txt'),
    exclude='empty*',
    kind='repository',
    mark='file_sep',
  )
  (document,) = sources.documents('s', source)
  assert document.name == 'tree'
  assert document.special == ('<file_sep>',)
  assert document.text == (
    '<file_sep>b.py\ntwo\nlines\n'
    '<file_sep>note.txt\na note\n'
    '<file_sep>sub/a.py\none\n'
  )


def test_packages_are_one_repository_each(tmp_path, monkeypatch):
  monkeypatch.setenv('LONGJAX_CACHE', str(tmp_path))
  pinned = []
  for name in ('p', 'q'):
    path = tmp_path / f'{name}.whl'
    with zipfile.ZipFile(path, 'w') as z:
      z.writestr(f'{name}/m.py', name)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    place = tmp_path / 'packages' / digest[:16]
    place.mkdir(parents=True)
    path.rename(place / path.name)
    pinned.append((f'{name}==1', digest))
  assert listed(
    dict(packages=tuple(pinned), kind='repository', mark='file_sep')
  ) == [
    ('p==1', '<file_sep>p/m.py\np\n'),
    ('q==1', '<file_sep>q/m.py\nq\n'),
  ]
  assert listed(dict(package='p==1', sha256=pinned[0][1])) == [('p/m.py', 'p')]


def test_short_documents_are_left_out_and_the_limit_holds(tree):
  assert len(listed(dict(path=str(tree), min_chars=5))) == 2
  assert len(listed(dict(path=str(tree), limit=1))) == 1


def test_an_unknown_key_is_refused_with_the_nearest(tree):
  with pytest.raises(errors.InputError, match="did you mean 'include'"):
    listed(dict(path=str(tree), inclde='*'))


def test_a_source_comes_from_one_place(tree):
  with pytest.raises(errors.InputError, match="'package'"):
    listed(dict(include='*'))
  with pytest.raises(errors.InputError, match='kind'):
    listed(dict(path=str(tree), kind='repo'))


def test_text_in_another_encoding_is_refused_by_name(tree):
  (tree / 'latin.txt').write_bytes('é'.encode('latin-1'))
  source = dict(path=str(tree), include='latin*')
  with pytest.raises(errors.InputError, match=r'latin\.txt is not utf-8'):
    listed(source)
  assert listed(source | dict(encoding='latin-1')) == [('latin.txt', 'é')]
  with pytest.raises(errors.InputError, match='unknown encoding'):
    listed(source | dict(encoding='latin-one'))


def test_a_byte_order_mark_is_no_text(tree):
  (tree / 'mark.txt').write_text('one', 'utf-8-sig')
  assert listed(dict(path=str(tree), include='mark*')) == [('mark.txt', 'one')]


def test_files_of_a_repository_are_never_taken_apart(tree):
  (tree / 'd.json.gz').write_bytes(gzip.compress(b'{\n}'))
  source = dict(
    path=str(tree), include='d*', kind='repository', mark='file_sep'
  )
  assert listed(source) == [(tree.name, '<file_sep>d.json.gz\n{\n}\n')]


def test_a_source_without_documents_is_refused(tree):
  with pytest.raises(errors.InputError, match="'s' has no documents"):
    listed(dict(path=str(tree), include='*.rs'))
  (tree / 'e.rs').write_bytes(b'\xff')
  with pytest.raises(errors.InputError, match=r'1 of 1 .* e\.rs is not utf-8'):
    listed(dict(path=str(tree), include='*.rs', max_bad=1.0))
  with pytest.raises(errors.InputError, match='no such'):
    listed(dict(path=str(tree / 'absent')))


def test_the_fingerprint_changes_with_a_file_but_not_with_its_time(tree):
  source = dict(path=str(tree))
  before = sources.fingerprint('s', source)
  (tree / 'b.py').write_bytes(b'two\r\nlines')
  assert sources.fingerprint('s', source) == before
  (tree / 'b.py').write_text('three')
  assert sources.fingerprint('s', source) != before
