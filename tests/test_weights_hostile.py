"""Damaged and hostile weights: refused in one line, nothing left half-written.

Each case makes a whole model and damages one thing of it.
"""

import functools
import json
import os
import struct
import sys
import zipfile

import numpy as np
import pytest
import weight_files as files
from weight_files import GQA, LLAMA31, MHA, TIED

from longjax import errors, weights
from longjax.data import tokenizer
from longjax.weights import convert

UP = 'model.layers.1.mlp.up_proj.weight'
UP_0 = UP.replace('1', '0')
HEAD = 'lm_head.weight'
ONE = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
TWO = 'model-00002-of-00003.safetensors'
PTH = 'consolidated.00.pth'
NORM = 'norm.weight'


def huggingface(path, change=None, fields=GQA, settings=LLAMA31, **more):
  """A model whose tensors `change` has changed."""
  tensors = files.huggingface(files.params(fields))
  if change:
    change(tensors)
  files.write_huggingface(path, fields, settings, tensors=tensors, **more)


def meta(path, change=None, fields=GQA, **more):
  tensors = files.meta(files.params(fields), fields)
  if change:
    change(tensors)
  files.write_meta(path, fields, tensors=tensors, **more)


def made(make, damage, **arguments):
  """A case: a model, then `damage(directory)`."""

  def case(path):
    make(path, **arguments)
    damage(path)

  return case


def of(make, *arguments, **more):
  """A case: a model made with these arguments."""
  return lambda path: make(path, *arguments, **more)


def cut(file, end):
  """Damage: a file ends early."""

  def damage(path):
    data = (path / file).read_bytes()
    (path / file).write_bytes(data[: int(end * len(data))])

  return damage


def head(change):
  """A case: a safetensors header that `change` has changed."""

  def damage(path):
    tensors = files.huggingface(files.params(GQA))
    header = files.header(tensors)
    change(header)
    files.write_safetensors(path / ONE, tensors, header)

  return made(huggingface, damage)


def text(header, data=b'', length=None):
  """A case: a safetensors file with this text as its header."""
  start = struct.pack('<Q', len(header) if length is None else length)
  return made(
    huggingface, lambda path: (path / ONE).write_bytes(start + header + data)
  )


def index(change):
  """A case: an index whose places `change` has changed."""

  def damage(path):
    value = json.loads((path / INDEX).read_text())
    change(value['weight_map'])
    (path / INDEX).write_text(json.dumps(value))

  return made(huggingface, damage, shards=3)


def overlap(header):
  name, after = sorted(
    header, key=lambda n: header[n].get('data_offsets', [-1])
  )[3:5]
  begin, end = header[after]['data_offsets']
  start = header[name]['data_offsets'][0]
  header[after]['data_offsets'] = [start, start + end - begin]


def beyond_the_end(header):
  header['model.norm.weight'].update(
    shape=[64], data_offsets=[10**12, 10**12 + 2 * 64]
  )


def leads_out(path):
  os.rename(path / TWO, path.parent / 'secret.safetensors')
  data = (path / INDEX).read_text()
  (path / INDEX).write_text(data.replace(TWO, '../secret.safetensors'))


def link_out(path):
  os.rename(path / ONE, path.parent / 'elsewhere')
  (path / ONE).symlink_to(path.parent / 'elsewhere')


def pickle(data, tensors=None):
  """A case: a PyTorch file with these tensors and this pickle."""
  tensors = tensors or files.meta(files.params(GQA), GQA)
  return made(meta, lambda path: files.write_pytorch(path / PTH, tensors, data))


def one_tensor(*arguments):
  """A case: a PyTorch file whose only tensor is described so."""
  item = files.pickled_tensor(*arguments)
  data = b'\x80\x02}(' + files.text(NORM) + item + b'u.'
  return pickle(data, {NORM: np.zeros(64, files.BFLOAT16)})


def compressed(path):
  tensors = files.meta(files.params(GQA), GQA)
  with zipfile.ZipFile(path / PTH, 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('archive/data.pkl', files.pickled(tensors))
    for key, x in enumerate(tensors.values()):
      archive.writestr(f'archive/data/{key}', x.tobytes())


def big_endian(path):
  tensors = files.meta(files.params(GQA), GQA)
  files.write_pytorch(path / PTH, tensors, byteorder='big')


def encrypted(path):
  """As the flag of the entry `byteorder` has it."""
  data = bytearray((path / PTH).read_bytes())
  name = data.rindex(b'archive/byteorder')  # in the directory, 46 bytes in
  data[name - 46 + 8] ^= 1
  (path / PTH).write_bytes(data)


def another_model(path):
  other = files.meta_shards(files.meta(files.params(MHA, seed=1), MHA), 2)
  files.write_pytorch(path / 'consolidated.01.pth', other[1])


def without_a_tensor(path):
  part = files.meta_shards(files.meta(files.params(GQA), GQA), 2)[1]
  del part['layers.1.feed_forward.w3.weight']
  files.write_pytorch(path / 'consolidated.01.pth', part)


def put(name, value):
  """Changes a tensor to `value(tensor)`."""
  return lambda tensors: tensors.update({name: value(tensors.get(name))})


def filled(where, value):
  def change(x):
    x[where] = value
    return x

  return change


def rope(**settings):
  return of(huggingface, rope_parameters=settings)


ENTRY = b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
YARN = files.rope_parameters(files.YARN)
longrope = functools.partial(
  rope, rope_type='longrope', factor=4.0,
  original_max_position_embeddings=4096,
)  # fmt: skip
ONES = dict(short_factor=[1.0] * 8, long_factor=[1.0] * 8)
FAR = dict(short_factor=[10**400] * 8, long_factor=[10**400] * 8)

# {what is wrong: (case, facts of the error)}
CASES = {
  # safetensors: the file
  'data cut': (made(huggingface, cut(ONE, 0.9)), (ONE, 'truncated')),
  'header cut': (made(huggingface, cut(ONE, 0.002)), (ONE, 'truncated')),
  'empty': (made(huggingface, cut(ONE, 0)), (ONE, 'too small')),
  'header of exabytes': (text(b'', length=2**63 - 1), (ONE, 'too large')),
  'header no JSON': (text(b'x'), (ONE, 'JSON')),
  'header nested': (text(b'{"a":' + b'[' * 200_000), (ONE, 'recursion')),
  'name twice': (
    text(b'{' + ENTRY + b',' + ENTRY + b'}', b'1234'), (ONE, 'duplicate')
  ),
  'wrong size': (head(lambda h: h[UP].update(shape=[112, 65])), (ONE, 'shape')),
  'wrong shape': (head(lambda h: h[UP].update(shape=[896, 8])), (UP, '896, 8')),
  'negative': (head(lambda h: h[UP].update(shape=[-112, -64])), (ONE, '-112')),
  'overlap': (head(overlap), (ONE, 'offset', 'layers.0.mlp.down_proj.weight')),
  'past the end': (head(beyond_the_end), (ONE, 'offset', 'model.norm.weight')),
  'integers': (
    of(huggingface, put(UP, lambda x: x.astype('i1'))), (ONE, UP, "'I8'")
  ),
  # Hugging Face: tensors and index
  'lacks a tensor': (of(huggingface, lambda x: x.pop(UP)), ('lacks', UP)),
  'layer too many': (
    of(huggingface, lambda x: x.update({UP.replace('1', '3'): x[UP]})),
    ('unknown', 'layers.3.mlp.up_proj'),
  ),
  'biases': (
    of(huggingface, put(UP_0.replace('weight', 'bias'),
                        lambda _: np.zeros(64, files.BFLOAT16))),
    ('unknown', 'up_proj.bias'),
  ),
  "Meta's names": (
    lambda path: files.write_huggingface(
      path, GQA, LLAMA31, tensors=files.meta(files.params(GQA), GQA)
    ),
    ('lacks', HEAD),
  ),
  'transposed': (
    of(huggingface, put(UP, lambda x: np.ascontiguousarray(x.T))),
    (UP, '(64, 112)', '(112, 64)'),
  ),
  'NaN': (of(huggingface, put(UP, filled((3, 4), np.nan))), (UP, 'NaN')),
  'infinity': (
    of(huggingface, put(HEAD, filled((95, 63), -np.inf))), (HEAD, 'infinity')
  ),
  'no head': (
    of(huggingface, fields=TIED, tie_word_embeddings=False), ('lacks', HEAD)
  ),
  'no shard': (
    made(huggingface, lambda p: (p / TWO).unlink(), shards=3), ('lacks', TWO)
  ),
  'tensor listed elsewhere': (
    index(lambda x: x.update({UP: TWO, UP_0: TWO})), ('index', UP_0)
  ),
  'tensor not listed': (index(lambda x: x.pop(UP)), ('index', UP)),
  'index leads out': (
    made(huggingface, leads_out, shards=3), ('../secret', 'out of')
  ),
  'absolute path': (
    index(lambda x: x.update({UP: '/etc/passwd'})), ('/etc/passwd', 'out of')
  ),
  'null byte': (index(lambda x: x.update({UP: 'model\0'})), ('null byte',)),
  'long name': (index(lambda x: x.update({UP: 'm' * 300})), ('too long',)),
  'link out': (made(huggingface, link_out), (ONE, 'out of')),
  # config.json
  'config no JSON': (
    made(huggingface, lambda p: (p / 'config.json').write_text('{"a": 64,')),
    ('config.json', 'JSON'),
  ),
  'no config': (
    made(huggingface, lambda p: (p / 'config.json').unlink()),
    (ONE, 'config.json', 'params.json'),
  ),
  'million layers': (
    of(huggingface, num_hidden_layers=10**7), ('10000000 layers',)
  ),
  'a size beyond all models': (
    of(huggingface, head_dim=10**12), ('head_dim', str(10**12))
  ),
  'string for a number': (
    of(huggingface, num_attention_heads='4'), ('num_attention_heads', "'4'")
  ),
  'string for a flag': (
    of(huggingface, tie_word_embeddings='no'), ('tie_word_embeddings', "'no'")
  ),
  'number for a list': (of(huggingface, architectures=5), ('= 5',)),
  'odd heads': (of(huggingface, num_key_value_heads=3), ('kv_heads',)),
  'number beyond floats': (
    of(huggingface, rms_norm_eps=10**400), ('config.json', 'rms_norm_eps')
  ),
  'model with biases': (
    of(huggingface, attention_bias=True), ('lacks', 'proj.bias')
  ),
  'model with a window': (
    of(huggingface, sliding_window=4096),
    ('sliding_window = 4096', 'LlamaForCausalLM'),
  ),
  'another model': (
    of(huggingface, architectures=['MistralForCausalLM']), ('Mistral',)
  ),
  # Rope
  'list for a type': (rope(rope_type=['yarn']), ("['yarn']",)),
  'dynamic': (rope(rope_type='dynamic', factor=2.0), ('dynamic',)),
  'two types': (
    of(huggingface, rope_parameters=None,
       rope_scaling=dict(rope_type='llama3', type='linear', factor=8.0)),
    ('config.json', "'linear and llama3'"),
  ),
  'temperature beyond floats': (
    rope(**YARN | dict(attention_factor=10**400)), ('attention_factor',)
  ),
  'factors of other lengths': (
    longrope(**ONES | dict(short_factor=[2.0] * 7)), ('short_divisors',)
  ),
  'no factors': (longrope(**ONES | dict(long_factor='all')), ('long_factor',)),
  'too few factors': (
    longrope(short_factor=[1.0] * 7, long_factor=[1.0] * 7), ('7 for 8',)
  ),
  'factors beyond floats': (longrope(**FAR), ('_factor',)),
  'large temperature': (
    longrope(**ONES, attention_factor=1e300), ('attention_factor',)
  ),
  'window of one token': (
    of(huggingface, rope_parameters=dict(
      ONES, rope_type='longrope', factor=4.0, attention_factor=1.5,
      original_max_position_embeddings=1)),
    ('original_length',),
  ),
  'window of half a token': (
    of(huggingface, rope_parameters=dict(
      ONES, rope_type='longrope', factor=4.0,
      original_max_position_embeddings=0.5)),
    ('original_length 0',),
  ),
  # The tokenizer
  'tokenizer too large': (
    made(huggingface, lambda p: tokenizer.load('bytes').save(p)),
    ('tokenizer', '384 ids', '96'),
  ),
  'damaged tokenizer': (
    made(huggingface, lambda p: (p / 'tokenizer.json').write_text('{"model')),
    ('tokenizer.json',),
  ),
  # Meta
  'pickle of a function': (
    made(meta, lambda p: files.bomb(p / PTH)), (PTH, 'print')
  ),
  'pickle of a command': (
    pickle(b'\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.'),
    (PTH, 'os.system'),
  ),
  'no record': (
    one_tensor(99, 'BFloat16Storage', 64, (64,), (1,)), ('data/99',)
  ),
  'large tensor': (
    one_tensor(0, 'BFloat16Storage', 10**6, (10**6,), (1,)), (PTH, 'damaged')
  ),
  'large strides': (
    one_tensor(0, 'BFloat16Storage', 64, (8, 8), (10**6, 1)), (PTH, 'damaged')
  ),
  'storage of integers': (
    of(meta, put(NORM, lambda _: np.zeros(64, 'i8'))), (PTH, NORM, 'int64')
  ),
  'archive cut': (made(meta, cut(PTH, 0.5)), (PTH, 'truncated')),
  'compressed': (made(meta, compressed), (PTH, 'compressed')),
  'big endian': (made(meta, big_endian), (PTH, 'byte order')),
  'encrypted': (made(meta, encrypted), (PTH, 'encrypted')),
  'file missing': (
    made(meta, lambda p: (p / 'consolidated.01.pth').unlink(),
         fields=files.EIGHT, shards=8),
    ('consolidated.01.pth',),
  ),
  'last file missing': (
    made(meta, lambda p: (p / 'consolidated.01.pth').unlink(),
         fields=MHA, shards=2),
    ('shape',),
  ),
  'files of two models': (
    made(meta, another_model, fields=MHA, shards=2),
    ('layers.0.attention_norm.weight', 'differs'),
  ),
  'tensor in one file only': (
    made(meta, without_a_tensor, shards=2), ('consolidated.01.pth', 'w3.weight')
  ),
  'params: string': (of(meta, vocab_size='many'), ('vocab_size', "'many'")),
  'params: flag': (
    of(meta, use_scaled_rope='false', rope_scaling_factor=8),
    ('params.json', 'use_scaled_rope', "'false'"),
  ),
  'params: number': (of(meta, rope_theta=10**400), ('rope_theta',)),
  'params: unknown': (of(meta, moe=dict(experts=8)), ('params.json', 'moe')),
}  # fmt: skip


@pytest.mark.parametrize('name', CASES)
def test_it_is_refused_by_name_and_leaves_nothing(tmp_path, name, capsys):
  damage, facts = CASES[name]
  damage(tmp_path / 'model')
  before = sorted(tmp_path.rglob('*'))
  with pytest.raises(errors.InputError) as caught:
    convert.to_checkpoint(tmp_path / 'model', tmp_path / 'run')
  message = str(caught.value)
  assert '\n' not in message
  for fact in facts:
    assert fact in message, message
  assert 'executed' not in capsys.readouterr().out
  assert sorted(tmp_path.rglob('*')) == before


def test_whole_models_are_not_refused(tmp_path):
  """The cases damage these."""
  huggingface(tmp_path / 'hf')
  huggingface(tmp_path / 'sharded', shards=3)
  meta(tmp_path / 'meta')
  for name in ('hf', 'sharded', 'meta'):
    weights.load(tmp_path / name)


def test_without_torch_its_files_are_refused_in_one_line(tmp_path, monkeypatch):
  meta(tmp_path)
  monkeypatch.setitem(sys.modules, 'torch', None)
  with pytest.raises(errors.InputError, match=f'{PTH}.*pip install torch'):
    weights.load(tmp_path)


@pytest.mark.parametrize('form', ['safetensors', 'pytorch'])
def test_no_flipped_byte_gives_anything_but_input_error(tmp_path, form, rng):
  """In the header or the pickle; what is not noticed there is no damage."""
  make, file = (huggingface, ONE) if form == 'safetensors' else (meta, PTH)
  make(tmp_path)
  whole = (tmp_path / file).read_bytes()
  for position in rng.integers(0, 3000, 60):
    damaged = bytearray(whole)
    damaged[position] ^= int(rng.integers(1, 256))
    (tmp_path / file).write_bytes(damaged)
    try:
      weights.load(tmp_path)
    except errors.InputError as error:
      assert '\n' not in str(error)


@pytest.mark.parametrize('name', ['model.gguf', 'config.json', 'params.json'])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, name):
  os.mkfifo(tmp_path / name)
  with pytest.raises(errors.InputError) as refusal:
    weights.load(tmp_path)
  assert str(tmp_path) in str(refusal.value)
