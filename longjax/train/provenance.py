"""What ran: config.json, code.json and tokenizer/ of a run directory."""

import contextlib
import json
import pathlib
import shlex
import subprocess
import sys
from importlib import metadata

from longjax import hub, storage

PACKAGES = (
  'jax', 'jaxlib', 'libtpu', 'flax', 'optax', 'orbax-checkpoint', 'grain',
)  # fmt: skip


def write(workdir, config, tokenizer):
  """Writes them to the run directory, which is made if it does not exist."""
  workdir.mkdir(parents=True, exist_ok=True)
  tokenizer.save(workdir / 'tokenizer')
  for name, content in (('config', config.to_dict()), ('code', code())):
    text = json.dumps(content, indent=1)
    storage.write_text(workdir / f'{name}.json', text + '\n')


def code() -> dict:
  """The command of this process, its commit and the versions of packages."""
  return dict(
    command=shlex.join(['python', *sys.argv]),
    commit=commit(),
    versions=versions(),
    **(dict(hub=hub.RESOLVED) if hub.RESOLVED else {}),
  )


def versions() -> dict[str, str]:
  """{package: version} of those of PACKAGES that are installed."""
  found = {}
  for package in PACKAGES:
    with contextlib.suppress(metadata.PackageNotFoundError):
      found[package] = metadata.version(package)
  return found


def commit() -> str:
  """The commit of this checkout, with '+' if files differ from it.

  launch/pod.py pushes files without a checkout; it writes .pushed instead.
  """
  root = pathlib.Path(__file__).parent
  pushed = root.parent / '.pushed'
  if pushed.is_file():
    return json.loads(pushed.read_text())['commit']

  def git(*arguments):
    command = ['git', '-C', str(root), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()

  try:
    dirty = git('status', '--porcelain', '--untracked-files=no')
    return git('rev-parse', 'HEAD') + ('+' if dirty else '')
  except (OSError, subprocess.CalledProcessError):
    return 'unknown'
