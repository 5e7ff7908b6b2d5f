"""Hostile inputs of thirteen kinds, from a seed; tests/fuzz.py runs them."""

import functools
import gzip
import io
import json
import lzma
import os
import pathlib
import pickle
import shutil
import tarfile
import tempfile
import zipfile

import eval_cases
import test_data_chat_templates as chats
import test_data_fuzz
import test_tokenizer_fuzz
import test_weights_fuzz
import weight_files
from test_records import RECORDS

from configs import tiny
from longjax import config as schema
from longjax import config_values, errors, hub, weights
from longjax.data import chat, downloads, sources, tokenizer
from longjax.evals import graphwalks, longbench, markdown, mrcr, prompts
from longjax.weights import convert, model_section

SECRET = 'secret'  # lies beside the directories of the cases
quiet = lambda *_: None
VALUES = (
  None, True, 0, -1, 2**63, 10**30, 1e308, float('nan'), '', '../secret',
  '/etc/passwd', 'x' * 10_000, [], {}, [[]], {'': {}}, [None] * 1000, '\x00',
  '\ud800', '{{ x }}', 'a\nb|c', 'hf://../..',
)  # fmt: skip
NAMES = ('../secret', '/etc/passwd', 'a\x00b', '..', '', 'x' * 300, 'é\n', '~')


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
    model_section.config_of(str(root))
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
{{ [1] | slice(99999999) | list | length }}
{{ [1] | batch(99999999, 0) | list | length }}
{{ ("ab " * 9999999) | wordwrap(1) | length }}
{{ ("http://a.b " * 999999) | urlize | length }}
{{ range(99999) | map("string") | join | length }}
{{ ("a" * 9999999) | list | sort | unique | list | length }}
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


CHATML = [
  '{% for m in messages %}', '<|im_start|>', '{{ m["role"] }}\n',
  '{{ m["content"] }}', '{{ eos_token }}\n', '{% endfor %}',
]  # fmt: skip


def templates(rng, root, seed):
  shutil.copytree(valid('tokenizer'), root, dirs_exist_ok=True)
  pieces = rng.choices(FRAGMENTS, k=rng.randint(1, 8))
  if rng.random() < 0.5:  # a template that works, and up to two of them
    pieces, added = [*CHATML], rng.randrange(3)
    for piece in rng.choices(FRAGMENTS, k=added):
      pieces.insert(rng.randint(0, len(pieces)), piece)
  text = ''.join(pieces)
  (root / 'chat_template.jinja').write_text(text)
  shape = rng.choice(chats.SHAPES)
  messages = chats.conversation(shape)
  if rng.random() < 0.3:
    messages = mutated(rng, messages)
  chat.encode(messages, tokenizer.load(root), chat.FROM_TOKENIZER)


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
  if path.is_symlink():
    return  # what a user names may be a link
  spec = prompts.PromptSpec(
    eval_cases.SOURCE._replace(files={name: str(path)}),
    valid_tokens(),
    lambda text, prefix: [0] * len(str(text)),
    *(0, 10**6, 10, 0),
  )
  (task,) = module.TASKS.values()
  for _ in task.stream(spec):
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


VALID = (
  'checkpoint', 'huggingface', 'pytorch', 'meta', 'gguf', 'tokenizer',
)  # fmt: skip


def prepare():
  """Makes what the cases copy and damage."""
  for kind in VALID:
    valid(kind)
  bombs()
