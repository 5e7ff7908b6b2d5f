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
import functools
import gzip
import io
import json
import lzma
import os
import pathlib
import pickle
import random
import re
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
os.environ |= dict(JAX_PLATFORMS='cpu', HF_HUB_OFFLINE='1', PIP_NO_INDEX='1')
os.environ.pop('JAX_COMPILATION_CACHE_DIR', None)

import eval_cases  # noqa: E402
import test_data_chat_templates as chats  # noqa: E402
import test_data_fuzz  # noqa: E402
import test_tokenizer_fuzz  # noqa: E402
import test_weights_fuzz  # noqa: E402
import weight_files  # noqa: E402
from test_records import RECORDS  # noqa: E402

from configs import tiny  # noqa: E402
from longjax import config as schema  # noqa: E402
from longjax import config_values, errors, hub, weights  # noqa: E402
from longjax.data import chat, downloads, sources, tokenizer  # noqa: E402
from longjax.evals import graphwalks, longbench, markdown, mrcr, prompts  # noqa: E402
from longjax.evals import records as reading  # noqa: E402
from longjax.weights import convert, section  # noqa: E402

SECONDS, WAIT, MOST_MB, FAILURES = 5, 300, 1500, 20
LINES = 4  # of a failure's stack
SECRET = 'secret'  # lies beside the directories of the cases
quiet = lambda *_: None
VALUES = (
  None, True, 0, -1, 2**63, 10**30, 1e308, float('nan'), '', '../secret',
  '/etc/passwd', 'x' * 10_000, [], {}, [[]], {'': {}}, [None] * 1000, '\x00',
  '\ud800', '{{ x }}', 'a\nb|c', 'hf://../..',
)  # fmt: skip
NAMES = ('../secret', '/etc/passwd', 'a\x00b', '..', '', 'x' * 300, 'é\n', '~')


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


# Damage to the files of a directory.


def flip(rng, path):
  raw = bytearray(path.read_bytes())
  for _ in range(rng.randint(1, 8)):
    if raw:
      raw[rng.randrange(min(len(raw), 4000))] = rng.randrange(256)
  path.write_bytes(raw)


def splice(rng, path):
  raw = path.read_bytes()
  a, b = sorted(rng.choices(range(len(raw) + 1), k=2))
  path.write_bytes(
    raw[:a] + raw[b:] if rng.random() < 0.5 else raw[:b] + raw[a:]
  )


def nest(rng, path):
  path.write_bytes(rng.choice([b'[', b'{"a":', b'[{"x":[']) * 100_000)


@functools.cache
def bombs() -> list[bytes]:
  """300 MB of one letter, compressed."""
  return [
    gzip.compress(b'a' * 300_000_000, 1),
    lzma.compress(b'[' * 300_000_000, preset=0),
  ]


def replace(rng, path):
  """Something that is no regular file of its own, or another's content."""
  path.unlink()
  kind = rng.randrange(7)
  if kind == 0:
    os.mkfifo(path)
  elif kind == 1:
    path.symlink_to(rng.choice(['../secret', '/etc/passwd', '/dev/zero', path]))
  elif kind == 2:
    path.mkdir()
  elif kind == 3:
    path.write_bytes(rng.choice(bombs()))
  elif kind == 4:
    with open(path, 'wb') as file:
      file.truncate(1 << 40)
  elif kind == 5:
    path.write_bytes(pickle.dumps(Payload()))
  else:
    path.write_bytes(archive(rng))


class Payload:
  """A pickle that runs a program."""

  def __reduce__(self):
    return os.system, ('true',)


def archive(rng) -> bytes:
  """A tar or zip with members that lead out, or are bombs."""
  out, kind = io.BytesIO(), rng.random()
  names = [*rng.choices(NAMES, k=3), 'inside.txt']
  if kind < 0.5:
    with tarfile.open(fileobj=out, mode='w') as tar:
      for name in names:
        info = tarfile.TarInfo(name or 'x')
        info.type = rng.choice(
          [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE]
        )
        info.linkname = '../secret'
        tar.addfile(info)
  else:
    with zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED) as zipped:
      for name in names:
        zipped.writestr(name or 'x', b'0' * rng.choice([10, 10_000_000]))
  return out.getvalue()


def of_json(rng, path):
  """A value somewhere in a JSON file becomes a hostile one."""
  try:
    value = json.loads(path.read_text())
  except (ValueError, OSError, RecursionError):
    return flip(rng, path)
  path.write_text(json.dumps(mutated(rng, value)))


def mutated(rng, value):
  """A copy in which one value is another."""
  if not isinstance(value, dict | list) or not value or rng.random() < 0.15:
    return rng.choice(VALUES)
  copy = value.copy()
  keys = list(value) if isinstance(value, dict) else range(len(value))
  key = rng.choice(list(keys))
  copy[key] = mutated(rng, value[key])
  return copy


def damage(rng, root):
  """Damages one to three files."""
  for _ in range(rng.randint(1, 3)):
    files = sorted(
      p for p in root.rglob('*') if p.is_file() and not p.is_symlink()
    )
    files = [p for p in files if p.stat().st_size < 1 << 26]
    if files:
      path = rng.choice(files)
      is_json = path.suffix == '.json' or 'METADATA' in path.name
      change = of_json if is_json and rng.random() < 0.6 else rng.choices(
        [flip, splice, nest, replace], [5, 3, 1, 2])[0]  # fmt: skip
      change(rng, path)


# Kinds of input: each takes (rng, an empty directory, the seed).


@functools.cache
def valid(kind: str) -> pathlib.Path:
  """A valid directory, made once."""
  root = pathlib.Path(tempfile.mkdtemp(prefix=f'fuzz-{kind}-')) / kind
  fields = weight_files.MHA | dict(vocab=384, layers=1)
  if kind == 'checkpoint':
    hf = root.with_name('hf')
    weight_files.write_huggingface(hf, fields, weight_files.LLAMA31)
    tokenizer.load('bytes').save(hf)
    convert.to_checkpoint(hf, root, log=quiet)
  elif kind == 'huggingface':
    weight_files.write_huggingface(root, fields, weight_files.YARN, shards=2)
  elif kind == 'pytorch':
    tensors = weight_files.huggingface(weight_files.params(fields))
    weight_files.write_huggingface(
      root, fields, weight_files.LINEAR, tensors=tensors
    )
    (root / 'model.safetensors').unlink()
    weight_files.write_pytorch(root / 'pytorch_model.bin', tensors)
  elif kind == 'meta':
    weight_files.write_meta(root, fields)
  elif kind == 'gguf':
    from test_weights import stored_tensors, write

    root.mkdir(parents=True)
    write(root / 'model.gguf', stored_tensors())
  else:
    tokenizer.load('bytes').save(root)
  return root


def copied(rng, root, kind):
  shutil.copytree(valid(kind), root, dirs_exist_ok=True)
  damage(rng, root)


def damaged_weights(rng, root, seed):
  copied(rng, root, rng.choice(['huggingface', 'pytorch', 'meta', 'gguf']))
  weights.load(root)


def checkpoints(rng, root, seed):
  copied(rng, root, 'checkpoint')
  if rng.random() < 0.5:
    section.config_of(str(root))
  weights.load(root)


def damaged_tokenizers(rng, root, seed):
  copied(rng, root, 'tokenizer')
  made = tokenizer.load(root)
  made.decode(made.encode('some text <s> \ufdd0 \x00 é'))


def damaged_documents(rng, root, seed):
  make = (
    test_data_fuzz.ids_of if rng.random() < 0.3 else test_data_fuzz.texts_of
  )
  inner = root / 'd'
  test_data_fuzz.directory(rng, inner, make)
  damage(rng, inner)
  keys = rng.choice(
    [{}, {}, dict(kind='tokens', dtype='uint16'), dict(kind='chat')]
  )
  for _ in sources.documents('s', dict(path=str(inner), **keys)):
    pass


# Pieces of templates, one a line; the later ones harm.
FRAGMENTS = [*r"""
{% for m in messages %}
{% endfor %}
{{ m.content }}
{{ m["role"] }}
<|im_start|>
<|im_end|>
{% if m.role == "assistant" %}
{% endif %}
{% generation %}
{% endgeneration %}
{% for i in range(99999) %}
{{ "a" * 9999999999 }}
{{ [[]] * 999999999 }}
{{ 9 ** 9 ** 9 }}
{{ "%9999999999d" % 1 }}
{{ "x" | center(9999999999) }}
{{ "{:9999999999}".format(1) }}
{{ messages | tojson(indent=99999999) }}
{{ lipsum(n=99999999) }}
{{ range(99999) | list | length }}
{{ strftime_now("%Y" * 99999) }}
{{ "".__class__.__mro__[1].__subclasses__() }}
{{ cycler.__init__.__globals__.os.system("true") }}
{{ messages | map(attribute="__class__") | list }}
{{ messages.append(1) }}
{{ self.__init__ }}
{{ raise_exception("a\nb") }}
{% include "/etc/passwd" %}
{% from "x" import y %}
{% extends "x" %}
{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}
{% macro g(n) %}{% if n %}{{ g(n-1)~g(n) }}{% endif %}{% endmacro %}{{ g(60) }}
{% set s = namespace(t="ab") %}{% for i in range(99) %}{% set s.t = s.t ~ s.t %}
{% set s = namespace(n=3) %}{% for i in range(9999) %}{% set s.n = s.n * s.n %}
{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}
{% for a in range(9999) %}{{ range(99999) | list | sum }}{% endfor %}
{{
{% set x = 1
{% break %}
""".strip().splitlines(), '\ufdd0']  # fmt: skip


def templates(rng, root, seed):
  shutil.copytree(valid('tokenizer'), root, dirs_exist_ok=True)
  text = ''.join(rng.choices(FRAGMENTS, k=rng.randint(1, 8)))
  (root / 'chat_template.jinja').write_text(text)
  shape = rng.choice(chats.SHAPES)
  messages = chats.conversation(shape)
  if rng.random() < 0.3:
    messages = mutated(rng, messages)
  chat.encode(messages, tokenizer.load(root), chat.OWN)


def configs(rng, root, seed):
  config, names = tiny.get_config(), list(schema.flat(tiny.get_config()))
  for _ in range(rng.randint(1, 3)):
    name = rng.choice([*names, *NAMES, 'model', 'data.mix.x.weight'])
    config_values.override(config, name, str(rng.choice(VALUES)))
  schema.check(config)


def records(rng, root, seed):
  module = rng.choice([longbench, mrcr, graphwalks])
  name = module.DATA.name
  rows = [mutated(rng, r) if rng.random() < 0.7 else r for r in RECORDS[name]]
  path = root / f'{name}.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  if rng.random() < 0.3:
    damage(rng, root)
  spec = prompts.PromptSpec(
    eval_cases.SOURCE._replace(files={name: str(path)}),
    valid_tokens(),
    lambda text, prefix: [0] * len(str(text)),
    *(0, 10**6, 10, 0),
  )
  for _ in reading._stream(module.DATA, module.make, spec):
    pass


@functools.cache
def valid_tokens():
  return tokenizer.load('bytes')


def names(rng, root, seed):
  parts = ('hf://', 'datasets/', 'org', '/', 'name', '@', 'main', '..', '%2e',
           '\x00', '\n', 'package:', 'a==1/b#sha256=' + '0' * 64, 'gs:', '~',
           '-x', 'refs/pr/1', SECRET, '*', 'é')  # fmt: skip
  name = ''.join(rng.choices(parts, k=rng.randint(1, 7)))
  call = rng.choice([
    weights.config, hub.check_target, lambda n: downloads.locate(n, quiet),
    lambda n: tokenizer.load(downloads.locate(n, quiet)),
    lambda n: [*sources.documents('s', dict(path=n))],
  ])  # fmt: skip
  call(name if name.startswith(('hf:', 'pack')) else f'hf://{name}')


def archives(rng, root, seed):
  path = root / rng.choice(['a.tar', 'a.whl', 'a.tar.gz'])
  raw = archive(rng)
  path.write_bytes(gzip.compress(raw) if path.suffix == '.gz' else raw)
  if rng.random() < 0.4:
    flip(rng, path)
  if rng.random() < 0.5:
    downloads.members(path)
  else:
    downloads.extract(path, rng.choice(['*', '*x', *(n or 'x' for n in NAMES)]))


def reports(rng, root, seed):
  """What others wrote goes into a model card and tables as text."""
  run, out = root / 'run', root / 'out'
  shutil.copytree(valid('checkpoint'), run)
  out.mkdir()
  parts = ('---\n', '# x\n', '![a](../secret)\n', 'license: other\n', '\x00',
           '|', '\n', '<script>', '![' * 9999, '](' * 9999)  # fmt: skip
  text = ''.join(rng.choices(parts, k=9))
  (run / 'REPORT.md').write_text(text)
  if rng.random() < 0.3:
    damage(rng, run)
  convert.write_card(run, out)
  card = (out / 'README.md').read_text()
  assert card.startswith('---\nlibrary_name: transformers\n'), seed
  assert '![a](../secret)' not in card, seed
  markdown.table(['a'], [[str(rng.choice(VALUES))]])


def exact(check):
  """A fuzzer that also compares what was read with what was written."""

  def case(rng, root, seed):
    if check(seed, root / 'd') in (False, 'refused'):
      raise errors.InputError('refused')

  return case


KINDS = dict(
  documents=exact(test_data_fuzz.check),
  tokenizers=exact(test_tokenizer_fuzz.check),
  weights=exact(test_weights_fuzz.check),
  damaged_documents=damaged_documents,
  damaged_tokenizers=damaged_tokenizers,
  damaged_weights=damaged_weights,
  checkpoints=checkpoints,
  templates=templates,
  configs=configs,
  records=records,
  names=names,
  archives=archives,
  reports=reports,
)


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
  for kind in (
    'checkpoint',
    'huggingface',
    'pytorch',
    'meta',
    'gguf',
    'tokenizer',
  ):
    valid(kind)
  bombs()
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
