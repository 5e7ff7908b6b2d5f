"""Hostile inputs of every kind, from a seed: read, or refused in one line.

  python tests/fuzz.py [--seed 0] [--count 20000] [--kinds weights,documents]

An input is a directory of its own: a valid one that was damaged, or one that
was made to harm. A case fails where anything but an InputError of one line
ends it, something is written outside of the directory or read from beside it,
a program, a connection or a pickle's import is started, it takes more than
SECONDS of CPU or WAIT seconds, or the process has grown by more than MOST_MB.
Prints a row a kind, and exits with 1 after the first cases that failed.
"""

import argparse
import collections
import os
import pathlib
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
os.environ |= dict(JAX_PLATFORMS='cpu', HF_HUB_OFFLINE='1', PIP_NO_INDEX='1')
os.environ.pop('JAX_COMPILATION_CACHE_DIR', None)

from fuzz_inputs import KINDS, SECRET, prepare  # noqa: E402

from longjax import errors, progress  # noqa: E402

SECONDS, WAIT, MOST_MB, FAILURES = 5, 300, 1500, 20


class Hang(BaseException):
  """A case takes too long."""


# What a case may not do: Python says of each such call before it is made.

WRITES = {
  'os.mkdir': (0,), 'os.remove': (0,), 'os.rmdir': (0,), 'os.truncate': (0,),
  'os.rename': (0, 1), 'os.link': (1,), 'os.symlink': (1,), 'os.chmod': (0,),
}  # fmt: skip
RUNS = (
  'os.system', 'os.exec', 'os.posix_spawn', 'os.spawn', 'os.startfile',
  'subprocess.Popen', 'socket.connect', 'pickle.find_class', 'pty.spawn',
)  # fmt: skip
watching: list = []  # the Watch of the case that is read


class Watch:
  """What was done that may not be, while a case is read in `root`."""

  def __init__(self, root):
    self.root, self.wrong = os.path.realpath(root), []

  def __call__(self, event, args):
    if event in RUNS:
      self.wrong.append(f'{event} {args!r:.200}')
    elif event == 'open':
      path, _, flags = args
      writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
      if isinstance(path, str | bytes) and (writes or self.is_secret(path)):
        self.need_inside(event, path)
    elif event in WRITES and args:
      for i in WRITES[event]:
        self.need_inside(event, args[i])

  def is_secret(self, path) -> bool:
    real = os.path.realpath(os.fsdecode(path))
    return os.path.basename(real) == SECRET or real == '/etc/passwd'

  def need_inside(self, event, path):
    try:
      real = os.path.realpath(os.fsdecode(path))
    except (TypeError, ValueError):  # a descriptor; no name of a file
      return
    if not real.startswith(self.root + os.sep) and real not in (
      self.root, os.devnull
    ):  # fmt: skip
      self.wrong.append(f'{event} {real}')


def hook(event, args):
  for watch in watching:
    watch(event, args)


# Running them.


def memory(name: str) -> float:
  """A size in MB of this process, from /proc/self/status."""
  status = pathlib.Path('/proc/self/status').read_text()
  return int(re.search(rf'{name}:\s+(\d+)', status)[1]) / 1024


START: list = []  # MB before the first case


def attempt(kind: str, seed: int, root: pathlib.Path) -> tuple:
  """('read' or 'refused', CPU seconds) of a case.

  Raises:
    AssertionError: it did what it may not.
  """
  root.mkdir()
  (root / 'tmp').mkdir()
  inner = root / 'case'
  inner.mkdir()
  tempfile.tempdir = str(root / 'tmp')
  os.environ |= dict(
    LONGJAX_CACHE=str(root / 'cache'), HF_HOME=str(root / 'hf')
  )
  os.chdir(root)
  began, result = time.process_time(), 'read'
  signal.alarm(WAIT)
  watch = Watch(root)
  watching.append(watch)
  try:
    KINDS[kind](random.Random(f'{kind} {seed}'), inner, seed)
  except errors.InputError as error:
    result = 'refused'
    assert '\n' not in str(error), error
    assert len(str(error)) < 3000, len(str(error))
  finally:
    watching.clear()
    signal.alarm(0)
    spent = time.process_time() - began
    more = memory('VmHWM') - START[0]
    os.chdir('/')
  assert not watch.wrong, watch.wrong
  assert spent < SECONDS, f'{spent:.1f} s of CPU'
  assert more < MOST_MB, f'{more:.0f} MB'
  return result, spent


def stop(*_):
  raise Hang


def run(seeds, kinds, place) -> int:
  """Runs so many cases, and prints what they did; how many failed."""
  totals = collections.defaultdict(list)
  failed = 0
  bar = progress.Progress(
    'fuzzing', len(seeds), text=lambda n: f'{n:,.0f} inputs', every_seconds=30
  )
  for seed in seeds:
    kind, root = kinds[seed % len(kinds)], place / str(seed)
    try:
      totals[kind].append(attempt(kind, seed, root))
    except (Exception, Hang, SystemExit):
      failed += 1
      print(
        f'{kind}, seed {seed}:\n{traceback.format_exc(limit=-6)}', flush=True
      )
      if failed == FAILURES:
        break
    shutil.rmtree(root, ignore_errors=True)
    bar.add(1)
  print('| kind | inputs | read | refused | longest, CPU s |')
  print('|---|---|---|---|---|')
  for kind in kinds:
    results, spent = zip(*(totals[kind] or [('', 0.0)]))
    print(
      f'| {kind.replace("_", " ")} | {len(totals[kind])} | '
      f'{results.count("read")} | {results.count("refused")} | '
      f'{max(spent):.1f} |'
    )
  print(f'memory grew by {memory("VmHWM") - START[0]:.0f} MB at most')
  return failed


def main(arguments=None) -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--count', type=int, default=20_000)
  parser.add_argument('--kinds', default=','.join(KINDS))
  flags = parser.parse_args(arguments)
  kinds = flags.kinds.split(',')
  place = pathlib.Path(tempfile.mkdtemp(prefix='fuzz-'))
  (place / SECRET).write_text('{"text": "secret"}\n')
  prepare()
  START.append(memory('VmHWM'))
  signal.signal(signal.SIGALRM, stop)
  sys.addaudithook(hook)
  try:
    return (
      1 if run(range(flags.seed, flags.seed + flags.count), kinds, place) else 0
    )
  finally:
    shutil.rmtree(place)


if __name__ == '__main__':
  sys.exit(main())
