"""The shape of the project, as a test: who may import whom, what lies where."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
TOP = {
  'README.md', 'LICENSE', 'requirements.txt', 'pyproject.toml',
  'longjax', 'configs', 'launch', 'tests', 'docs',
}  # fmt: skip


def imports(file) -> set:
  """Modules that a file imports, anywhere in it."""
  found = set()
  for node in ast.walk(ast.parse(file.read_text())):
    if isinstance(node, ast.Import):
      found |= {a.name for a in node.names}
    elif isinstance(node, ast.ImportFrom):
      found.add(node.module)
      found |= {f'{node.module}.{a.name}' for a in node.names}
  return found


def files(pattern):
  return sorted((ROOT / 'longjax').glob(pattern))


def test_batch_rope_and_flops_import_nothing_of_ours():
  for name in ('batch', 'mask', 'rope', 'flops', 'errors'):
    (file,) = files(f'{name}.py')
    assert not any(i.startswith('longjax') for i in imports(file)), name


def test_data_never_imports_jax():
  for file in files('data/*.py'):
    assert not any(i.split('.')[0] == 'jax' for i in imports(file)), file


def test_attention_knows_nothing_of_the_model():
  for file in files('attention/*.py'):
    ours = {i for i in imports(file) if i.startswith('longjax')}
    assert all(
      i.startswith(('longjax.attention', 'longjax.mask')) for i in ours
    )


def test_only_train_plan_and_launch_see_everything():
  """Nothing below imports them."""
  for file in files('**/*.py'):
    if file.parent.name not in ('train', 'plan'):
      assert not imports(file) & {'longjax.train.loop', 'launch'}, file


def test_no_module_of_ours_is_part_of_an_import_cycle():
  graph = {}
  for file in files('**/*.py'):
    parts = file.relative_to(ROOT).with_suffix('').parts
    name = '.'.join(p for p in parts if p != '__init__')
    tree = ast.parse(file.read_text())
    top = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
    graph[name] = set()
    for node in top:
      if isinstance(node, ast.ImportFrom):
        graph[name] |= {node.module, *(
          f'{node.module}.{a.name}' for a in node.names
        )}  # fmt: skip
  graph = {k: {v for v in vs if v in graph and not k.startswith(v)}
           for k, vs in graph.items()}  # fmt: skip
  done = set()

  def visit(name, path):
    assert name not in path, ' -> '.join([*path, name])
    if name not in done:
      for other in graph[name]:
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


@pytest.mark.parametrize('module', ['longjax.cli', 'longjax.data.prepare'])
def test_the_parts_that_answer_first_start_without_jax(module):
  code = f'import sys, {module}; assert "jax" not in sys.modules'
  subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)
