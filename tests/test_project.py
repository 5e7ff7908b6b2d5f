"""Files that describe the project to other tools agree with each other."""

import functools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import pytest

import longjax

ROOT = pathlib.Path(__file__).resolve().parents[1]


def test_the_pre_commit_hooks_have_the_versions_of_ci():
  hooks = (ROOT / '.pre-commit-config.yaml').read_text()
  pinned = (ROOT / '.ci' / 'requirements.txt').read_text().splitlines()
  named = {*re.findall(r"'([\w-]+==[\d.]+)'", hooks)}
  assert {n.split('==')[0] for n in named} == {'ruff', 'pyright'}
  assert named <= {*pinned}


def test_the_citation_has_the_version_of_the_package():
  citation = (ROOT / 'CITATION.cff').read_text()
  assert f'version: {longjax.__version__}\n' in citation


def test_the_package_needs_what_requirements_txt_lists():
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
  needed = project['dependencies'] + project['optional-dependencies']['dev']
  lines = (ROOT / 'requirements.txt').read_text().splitlines()
  listed = [line.split('  #')[0] for line in lines if line[:1] not in ('#', '')]
  assert sorted(needed) == sorted(listed)


def test_extras_name_what_ci_installs_and_nothing_else():
  """An optional package that no test installs would be an untested promise."""
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
  optional = project['optional-dependencies']
  extras = {p for name, ps in optional.items() if name != 'dev' for p in ps}
  installed = (ROOT / '.ci' / 'requirements.txt').read_text()
  installed = {*re.findall(r'^[\w-]+', installed, re.MULTILINE)}
  assert extras - installed == {'jax[tpu]'}


@pytest.mark.slow
def test_the_cells_of_the_notebook_run_in_order(tmp_path):
  """In one process without jupyter, on eight simulated devices."""
  cells = json.loads((ROOT / 'docs/quickstart.ipynb').read_text())['cells']
  code = [''.join(c['source']) for c in cells if c['cell_type'] == 'code']
  assert all(not c.get('outputs') for c in cells)  # none is kept in git
  figures = 'import matplotlib; matplotlib.use("Agg")'
  file = tmp_path / 'cells.py'
  file.write_text('\n'.join([figures, *code]))
  done = subprocess.run(
    [sys.executable, str(file)], cwd=ROOT / 'docs', text=True,
    capture_output=True, check=False, timeout=600,
    env=os.environ | dict(XLA_FLAGS=''),  # it computes more than it compiles
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-2000:]
  for fact in ('8 x cpu', 'largest difference', 'RoPE base 100000'):
    assert fact in done.stdout


@pytest.mark.slow
def test_the_wheel_is_whole_outside_the_checkout(tmp_path):
  """Built and installed without the network; its files of data among it."""
  source, place = tmp_path / 'source', tmp_path / 'site'
  for name in ('longjax', 'pyproject.toml', 'README.md', 'LICENSE'):
    copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
    source.mkdir(exist_ok=True)
    copy(ROOT / name, source / name)
  pip = [sys.executable, '-m', 'pip', '-q']
  alone = ('--no-deps', '--no-build-isolation', '--no-index')
  run = functools.partial(subprocess.run, check=True, cwd=tmp_path)
  run([*pip, 'wheel', *alone, '--wheel-dir', '.', str(source)])
  (wheel,) = tmp_path.glob('longjax-*.whl')
  run([*pip, 'install', '--no-deps', '--target', str(place), str(wheel)])
  code = """if True:
    import pathlib, longjax
    from longjax import attention, llama, rope, weights
    from longjax.data import chat
    from longjax.pod import commands
    worker = pathlib.Path(commands.__file__).parent / 'worker.sh'
    print(longjax.__version__, longjax.__file__)
    print(worker.is_file() and (chat.HERE / 'llama2.jinja').is_file())
  """
  environment = os.environ | dict(PYTHONPATH=str(place))
  done = run([sys.executable, '-c', code], env=environment, text=True,
             capture_output=True)  # fmt: skip
  assert str(place) in done.stdout and 'True' in done.stdout
  assert done.stdout.startswith(longjax.__version__)
