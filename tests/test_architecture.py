"""The shape of the project: which package may import which, and what lies at
the top."""

import ast
import functools
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
TOP = {
  'README.md', 'LICENSE', 'CITATION.cff', 'requirements.txt', 'pyproject.toml',
  'longjax', 'configs', 'launch', 'tests', 'docs',
}  # fmt: skip
# A package, and those of the packages above it that it may not import.
FORBIDDEN = dict(
  attention=('data', 'evals', 'inference', 'llama', 'plan', 'train', 'weights'),
  parallel=('attention', 'data', 'evals', 'llama', 'plan', 'train', 'weights'),
  data=('attention', 'evals', 'inference', 'llama', 'parallel', 'plan', 'pod',
        'train', 'weights'),
  weights=('evals', 'inference', 'mirror', 'plan', 'pod', 'train'),
  inference=('evals', 'plan', 'pod', 'train'),
  evals=('plan', 'pod', 'train'),
  train=('plan', 'pod'),
  plan=('evals', 'inference', 'pod', 'weights'),
  pod=('attention', 'data', 'evals', 'inference', 'llama', 'parallel', 'plan',
       'train', 'weights'),
)  # fmt: skip


@functools.cache
def imports(file, at_top=False) -> frozenset:
  """Modules that a file imports: anywhere in it, or as it is loaded."""
  tree = ast.parse(file.read_text())
  found = set()
  for node in tree.body if at_top else ast.walk(tree):
    if isinstance(node, ast.Import):
      found |= {a.name for a in node.names}
    elif isinstance(node, ast.ImportFrom):
      found |= {node.module, *(f'{node.module}.{a.name}' for a in node.names)}
  return frozenset(found)


def files(pattern):
  return sorted((ROOT / 'longjax').glob(pattern))


def module_name(file) -> str:
  parts = file.relative_to(ROOT).with_suffix('').parts
  return '.'.join(p for p in parts if p != '__init__')


@pytest.mark.parametrize('package', FORBIDDEN)
def test_imports_between_packages_go_one_way(package):
  for file in files(f'{package}/**/*.py'):
    packages = {
      i.split('.')[1] for i in imports(file) if i.startswith('longjax.')
    }
    wrong = packages & {*FORBIDDEN[package]}
    assert not wrong, f'{module_name(file)} imports {wrong}'


def test_the_library_imports_neither_configs_nor_launch():
  for file in files('**/*.py'):
    roots = {i.split('.')[0] for i in imports(file)}
    assert not roots & {'configs', 'launch'}, file


@pytest.mark.parametrize(
  'name', ['batch', 'config', 'errors', 'mask', 'progress', 'rope', 'slices']
)
def test_a_module_of_the_ground_floor_imports_only_errors_of_ours(name):
  ours = {i for i in imports(ROOT / f'longjax/{name}.py') if 'longjax' in i}
  assert all(
    f'{imported}.'.startswith('longjax.errors.')
    for imported in ours - {'longjax'}
  )


def test_data_never_imports_jax():
  for file in files('data/*.py'):
    assert 'jax' not in {i.split('.')[0] for i in imports(file)}, file


def test_modules_do_not_import_each_other_in_a_circle():
  graph = {module_name(file): imports(file, at_top=True)
           for file in files('**/*.py')}  # fmt: skip
  done = set()

  def visit(name, path):
    assert name not in path, ' -> '.join([*path, name])
    if name in done:
      return
    for other in graph[name] & graph.keys():
      if not name.startswith(other):  # the package that a module lies in
        visit(other, [*path, name])
    done.add(name)

  for name in graph:
    visit(name, [])


def test_nothing_new_lies_at_the_top():
  listed = subprocess.run(
    ['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True, check=False
  )
  if listed.returncode:
    pytest.skip('not a git checkout')
  top = {p.split('/')[0] for p in listed.stdout.splitlines()}
  assert {t for t in top if not t.startswith('.')} <= TOP


@pytest.mark.parametrize(
  'module', ['longjax.cli', 'longjax.data.prepare', 'longjax.pod.verbs']
)
def test_what_answers_first_starts_without_jax(module):
  code = f'import sys, {module}; assert "jax" not in sys.modules'
  subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)
