"""Damaged and hostile weights: refused in one line, nothing left half-written.

Each case makes a whole model and damages one thing of it.
"""

import json
import os
import struct
import zipfile

import numpy as np
import pytest
import weight_files as files
from weight_files import GQA, LLAMA31, MHA, TIED

from longjax import errors, weights
from longjax.data import tokenizer
from longjax.weights import convert

UP = 'model.layers.1.mlp.up_proj.weight'
ONE = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
TWO = 'model-00002-of-00003.safetensors'
META_UP = 'layers.1.feed_forward.w3.weight'
CASES = {}


def case(*words):
  """Registers damage(directory); the error says all these words."""

  def register(damage):
    CASES[damage.__name__] = (damage, words)
    return damage

  return register


def huggingface(path, change=None, fields=GQA, settings=LLAMA31, **more):
  """A model whose tensors `change` has changed."""
  tensors = files.huggingface(files.params(fields))
  if change:
    change(tensors)
  files.write_huggingface(path, fields, settings, tensors=tensors, **more)


def with_header(path, change):
  """A model whose safetensors header `change` has changed."""
  huggingface(path)
  tensors = files.huggingface(files.params(GQA))
  head = files.header(tensors)
  change(head)
  files.write_safetensors(path / ONE, tensors, head)


def meta(path, change=None, fields=GQA, **more):
  tensors = files.meta(files.params(fields), fields)
  if change:
    change(tensors)
  files.write_meta(path, fields, tensors=tensors, **more)


def edit(path, change):
  value = json.loads(path.read_text())
  change(value)
  path.write_text(json.dumps(value))


# safetensors: the file


@case(ONE, 'truncated')
def truncated_data(path):
  huggingface(path)
  data = (path / ONE).read_bytes()
  (path / ONE).write_bytes(data[:-1000])


@case(ONE, 'truncated')
def truncated_header(path):
  huggingface(path)
  data = (path / ONE).read_bytes()
  (path / ONE).write_bytes(data[:400])


@case(ONE, 'header too small')
def empty_file(path):
  huggingface(path)
  (path / ONE).write_bytes(b'')


@case(ONE, 'header too large')
def header_of_exabytes(path):
  huggingface(path)
  data = (path / ONE).read_bytes()
  (path / ONE).write_bytes(struct.pack('<Q', 2**63 - 1) + data[8:])


@case(ONE, 'invalid JSON')
def header_that_is_not_json(path):
  huggingface(path)
  data = bytearray((path / ONE).read_bytes())
  data[8] = ord('x')
  (path / ONE).write_bytes(data)


@case(ONE, 'recursion limit')
def header_nested_without_end(path):
  text = b'{"a":' + b'[' * 200_000
  huggingface(path)
  (path / ONE).write_bytes(struct.pack('<Q', len(text)) + text)


@case(ONE, 'stands twice')
def header_with_a_name_twice(path):
  entry = b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
  text = b'{' + entry + b',' + entry + b'}'
  huggingface(path)
  (path / ONE).write_bytes(struct.pack('<Q', len(text)) + text + b'1234')


@case(ONE, 'invalid shape')
def header_that_lies_about_a_size(path):
  with_header(path, lambda head: head[UP].update(shape=[112, 65]))


@case(UP, 'shape (896, 8)')
def header_that_lies_about_a_shape(path):
  with_header(path, lambda head: head[UP].update(shape=[896, 8]))


@case(ONE, 'invalid offset', 'model.layers.0.mlp.down_proj.weight')
def tensors_that_overlap(path):
  def change(head):
    name, after = sorted(head, key=lambda n: head[n].get('data_offsets', [-1]))[
      3:5
    ]
    begin, end = head[after]['data_offsets']
    size = end - begin
    start = head[name]['data_offsets'][0]
    head[after]['data_offsets'] = [start, start + size]

  with_header(path, change)


@case(ONE, 'invalid offset', 'model.norm.weight')
def tensor_beyond_the_end(path):
  def change(head):
    last = max(head, key=lambda n: head[n].get('data_offsets', [-1])[-1])
    head[last]['data_offsets'] = [10**12, 10**12 + 2 * 64]
    head[last]['shape'] = [64]

  with_header(path, change)


@case(ONE, '-112')
def negative_sizes(path):
  with_header(path, lambda head: head[UP].update(shape=[-112, -64]))


@case(ONE, UP, "dtype 'I8'")
def tensor_of_integers(path):
  def change(tensors):
    tensors[UP] = np.zeros_like(tensors[UP], np.int8)

  huggingface(path, change)


# Hugging Face: tensors and index


@case('lacks tensor', UP)
def missing_tensor(path):
  huggingface(path, lambda tensors: tensors.pop(UP))


@case('unknown tensor', 'model.layers.3.mlp.up_proj.weight')
def layer_too_many(path):
  def change(tensors):
    tensors['model.layers.3.mlp.up_proj.weight'] = tensors[UP]

  huggingface(path, change)


@case('unknown tensor', 'q_proj.bias')
def biases(path):
  def change(tensors):
    name = 'model.layers.0.self_attn.q_proj.bias'
    tensors[name] = np.zeros(64, files.BFLOAT16)

  huggingface(path, change)


@case('lacks tensor', 'lm_head.weight')
def rope_permuted_as_meta_does_and_named_so(path):
  files.write_huggingface(
    path, GQA, LLAMA31, tensors=files.meta(files.params(GQA), GQA)
  )


@case(UP, '(64, 112)', '(112, 64)')
def transposed_tensor(path):
  def change(tensors):
    tensors[UP] = np.ascontiguousarray(tensors[UP].T)

  huggingface(path, change)


@case(UP, 'NaN')
def one_nan(path):
  def change(tensors):
    tensors[UP][3, 4] = np.nan

  huggingface(path, change)


@case('lm_head.weight', 'NaN or infinity')
def one_infinity(path):
  def change(tensors):
    tensors['lm_head.weight'][95, 63] = -np.inf

  huggingface(path, change)


@case('lacks tensor', 'lm_head.weight')
def untied_without_head(path):
  huggingface(path, fields=TIED, tie_word_embeddings=False)


@case('lacks the file', TWO)
def missing_shard(path):
  huggingface(path, shards=3)
  (path / TWO).unlink()


@case('index does not list', 'layers.0.mlp.up_proj')
def index_that_lists_a_tensor_elsewhere(path):
  huggingface(path, shards=3)
  edit(path / INDEX, lambda x: x['weight_map'].update({UP: TWO}))
  other = 'model.layers.0.mlp.up_proj.weight'
  edit(path / INDEX, lambda x: x['weight_map'].update({other: TWO}))


@case('index does not list')
def shard_with_a_tensor_that_is_not_listed(path):
  huggingface(path, shards=3)
  edit(path / INDEX, lambda x: x['weight_map'].pop(UP))


@case('../secret.safetensors', 'out of the directory')
def index_that_leads_out(path):
  huggingface(path, shards=3)
  os.rename(path / TWO, path.parent / 'secret.safetensors')

  def change(index):
    for name, file in index['weight_map'].items():
      if file == TWO:
        index['weight_map'][name] = '../secret.safetensors'

  edit(path / INDEX, change)


@case('/etc/passwd', 'out of the directory')
def index_with_an_absolute_path(path):
  huggingface(path, shards=3)
  edit(path / INDEX, lambda x: x['weight_map'].update({UP: '/etc/passwd'}))


@case('cannot be the name of a file', 'null byte')
def index_with_a_name_that_no_file_has(path):
  huggingface(path, shards=3)
  edit(path / INDEX, lambda x: x['weight_map'].update({UP: 'model\0'}))


@case('cannot be the name of a file', 'too long')
def index_with_a_name_that_is_too_long(path):
  huggingface(path, shards=3)
  edit(path / INDEX, lambda x: x['weight_map'].update({UP: 'm' * 300}))


@case(ONE, 'out of the directory')
def link_that_leads_out(path):
  huggingface(path)
  os.rename(path / ONE, path.parent / 'elsewhere')
  (path / ONE).symlink_to(path.parent / 'elsewhere')


@case('config.json', 'damaged JSON')
def config_that_is_not_json(path):
  huggingface(path)
  (path / 'config.json').write_text('{"hidden_size": 64,')


@case('lacks tensors')
def config_with_a_billion_layers(path):
  huggingface(path, num_hidden_layers=10**9)


@case('config.json', 'num_attention_heads', "'4'")
def config_with_a_string_for_a_number(path):
  huggingface(path, num_attention_heads='4')


@case('config.json', 'tie_word_embeddings', "'no'")
def config_with_a_string_for_a_flag(path):
  huggingface(path, tie_word_embeddings='no')


@case('config.json', 'architectures = 5')
def config_with_a_number_for_a_list(path):
  huggingface(path, architectures=5)


@case('config.json', "['yarn']")
def rope_with_a_list_for_a_name(path):
  huggingface(path, rope_parameters=dict(rope_type=['yarn']))


@case('params.json', 'vocab_size', "'many'")
def params_with_a_string_for_a_number(path):
  meta(path, vocab_size='many')


@case('kv_heads')
def config_whose_heads_do_not_divide(path):
  huggingface(path, num_key_value_heads=3)


@case('attention_bias')
def model_with_biases(path):
  huggingface(path, attention_bias=True)


@case('sliding_window = 4096')
def model_with_a_window(path):
  huggingface(path, sliding_window=4096)


@case('MistralForCausalLM')
def another_architecture(path):
  huggingface(path, architectures=['MistralForCausalLM'])


@case('dynamic')
def rope_that_depends_on_the_length(path):
  settings = dict(rope_theta=1e4, rope_type='dynamic', factor=2.0)
  huggingface(path, rope_parameters=settings)


@case('attention_factor')
def yarn_with_another_temperature(path):
  settings = files.rope_parameters(files.YARN) | dict(attention_factor=1.0)
  huggingface(path, rope_parameters=settings)


LONGROPE = dict(
  rope_type='longrope', factor=4.0, original_max_position_embeddings=4096,
  short_factor=[1.0] * 8, long_factor=[1.0] * 8,
)  # fmt: skip


@case('rope_parameters: short_factor and long_factor differ')
def longrope_with_factors_for_short_rows(path):
  huggingface(path, rope_parameters=LONGROPE | dict(short_factor=[2.0] * 8))


@case('long_factor is not a list')
def longrope_without_factors(path):
  huggingface(path, rope_parameters=LONGROPE | dict(long_factor='all'))


@case('divisors: 7 for 8 pairs')
def longrope_with_too_few_factors(path):
  few = dict(short_factor=[1.0] * 7, long_factor=[1.0] * 7)
  huggingface(path, rope_parameters=LONGROPE | few)


@case('attention_factor')
def longrope_with_a_temperature_beyond_all(path):
  huggingface(path, rope_parameters=LONGROPE | dict(attention_factor=1e300))


@case('original_length')
def longrope_of_one_token(path):
  one = dict(original_max_position_embeddings=1, attention_factor=1.5)
  huggingface(path, rope_parameters=LONGROPE | one)


@case('rope_parameters: ', 'original_length', 'got 0')
def longrope_of_half_a_token(path):
  half = dict(original_max_position_embeddings=0.5)
  huggingface(path, rope_parameters=LONGROPE | half)


@case('rope_parameters: long_factor is not a list of positive numbers')
def longrope_with_a_factor_beyond_floats(path):
  far = dict(short_factor=[10**400] * 8, long_factor=[10**400] * 8)
  huggingface(path, rope_parameters=LONGROPE | far | dict(attention_factor=1.5))


@case('rope_parameters: needs a positive number as attention_factor')
def yarn_with_a_temperature_beyond_floats(path):
  settings = files.rope_parameters(files.YARN) | dict(attention_factor=10**400)
  huggingface(path, rope_parameters=settings)


@case('tokenizer', '384 ids, the model only 96')
def tokenizer_of_another_size(path):
  huggingface(path)
  tokenizer.load('bytes').save(path)


@case('tokenizer.json')
def damaged_tokenizer(path):
  huggingface(path)
  (path / 'tokenizer.json').write_text('{"model": ')


# Meta


@case('consolidated.00.pth', 'pickle asks for print')
def pickle_that_runs_a_function(path):
  meta(path)
  files.bomb(path / 'consolidated.00.pth')


@case('consolidated.00.pth', 'os.system')
def pickle_that_runs_a_command(path):
  meta(path)
  attack = b'\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.'
  files.write_pytorch(path / 'consolidated.00.pth', {}, attack)


@case('consolidated.00.pth', 'data/99')
def pickle_that_names_a_record_that_is_not_there(path):
  def pickled(tensors):
    item = files.pickled_tensor(99, 'BFloat16Storage', 64, (64,), (1,))
    return b'\x80\x02}(' + files.text('norm.weight') + item + b'u.'

  meta(path)
  tensors = files.meta(files.params(GQA), GQA)
  files.write_pytorch(path / 'consolidated.00.pth', tensors, pickled(tensors))


@case('consolidated.00.pth', 'damaged')
def tensor_larger_than_its_record(path):
  tensors = {'norm.weight': np.zeros(64, files.BFLOAT16)}
  item = files.pickled_tensor(0, 'BFloat16Storage', 10**6, (10**6,), (1,))
  attack = b'\x80\x02}(' + files.text('norm.weight') + item + b'u.'
  meta(path)
  files.write_pytorch(path / 'consolidated.00.pth', tensors, attack)


@case('consolidated.00.pth', 'damaged')
def strides_that_lead_out(path):
  tensors = {'norm.weight': np.zeros(64, files.BFLOAT16)}
  item = files.pickled_tensor(0, 'BFloat16Storage', 64, (8, 8), (10**6, 1))
  attack = b'\x80\x02}(' + files.text('norm.weight') + item + b'u.'
  meta(path)
  files.write_pytorch(path / 'consolidated.00.pth', tensors, attack)


@case('consolidated.00.pth', 'norm.weight is torch.int64')
def storage_of_integers(path):
  def change(tensors):
    tensors['norm.weight'] = np.zeros(64, np.int64)

  meta(path, change)


@case('consolidated.00.pth', 'truncated')
def truncated_archive(path):
  meta(path)
  data = (path / 'consolidated.00.pth').read_bytes()
  (path / 'consolidated.00.pth').write_bytes(data[: len(data) // 2])


@case('consolidated.00.pth', 'compressed')
def compressed_record(path):
  meta(path)
  tensors = files.meta(files.params(GQA), GQA)
  with zipfile.ZipFile(
    path / 'consolidated.00.pth', 'w', zipfile.ZIP_DEFLATED
  ) as archive:
    archive.writestr('archive/data.pkl', files.pickled(tensors))
    for key, x in enumerate(tensors.values()):
      archive.writestr(f'archive/data/{key}', x.tobytes())


@case('consolidated.00.pth', 'byte order')
def bytes_the_other_way_round(path):
  meta(path)
  tensors = files.meta(files.params(GQA), GQA)
  files.write_pytorch(path / 'consolidated.00.pth', tensors, byteorder='big')


@case('lacks the file consolidated.01.pth')
def missing_file_between(path):
  files.write_meta(path, files.EIGHT, shards=8)
  (path / 'consolidated.01.pth').unlink()


@case('shape')
def missing_last_file(path):
  files.write_meta(path, MHA, shards=2)
  (path / 'consolidated.01.pth').unlink()


@case('layers.0.attention_norm.weight', 'differs from file to file')
def files_of_two_models(path):
  files.write_meta(path, MHA, shards=2)
  other = files.meta(files.params(MHA, seed=1), MHA)
  files.write_pytorch(
    path / 'consolidated.01.pth', files.meta_shards(other, 2)[1]
  )


@case('consolidated.01.pth', 'has the tensor', META_UP)
def file_without_a_tensor_that_the_others_have(path):
  meta(path, fields=GQA, shards=2)
  part = files.meta_shards(files.meta(files.params(GQA), GQA), 2)[1]
  del part[META_UP]
  files.write_pytorch(path / 'consolidated.01.pth', part)


@case('params.json', 'use_scaled_rope', "'false'")
def params_with_a_string_for_a_flag(path):
  meta(path, use_scaled_rope='false', rope_scaling_factor=8)


@case('params.json', 'rope_theta', 'positive number')
def params_with_a_number_beyond_floats(path):
  meta(path, rope_theta=10**400)


@case('config.json', 'rms_norm_eps', 'positive number')
def config_with_a_number_beyond_floats(path):
  huggingface(path, rms_norm_eps=10**400)


@case('config.json', "'linear and llama3'")
def rope_of_two_types(path):
  settings = dict(rope_type='llama3', type='linear', factor=8.0)
  huggingface(path, rope_parameters=None, rope_scaling=settings)


@case(ONE, 'config.json', 'params.json')
def tensors_without_a_config(path):
  huggingface(path)
  (path / 'config.json').unlink()


@case('params.json', 'moe')
def params_that_are_not_known(path):
  meta(path, moe=dict(num_experts=8))


@pytest.mark.parametrize('name', CASES)
def test_it_is_refused_by_name_and_leaves_nothing(tmp_path, name, capsys):
  damage, words = CASES[name]
  damage(tmp_path / 'model')
  before = sorted(tmp_path.rglob('*'))
  with pytest.raises(errors.InputError) as caught:
    convert.to_checkpoint(tmp_path / 'model', tmp_path / 'run')
  message = str(caught.value)
  assert '\n' not in message
  for word in words:
    assert word in message, message
  assert 'executed' not in capsys.readouterr().out
  assert sorted(tmp_path.rglob('*')) == before


def test_whole_models_are_not_refused(tmp_path):
  """The cases damage these."""
  huggingface(tmp_path / 'hf')
  huggingface(tmp_path / 'sharded', shards=3)
  meta(tmp_path / 'meta')
  for name in ('hf', 'sharded', 'meta'):
    weights.load(tmp_path / name)


@pytest.mark.parametrize('form', ['safetensors', 'pytorch'])
def test_no_flipped_byte_gives_anything_but_input_error(tmp_path, form, rng):
  """In the header or the pickle; what is not noticed there is no damage."""
  make, file = (
    (huggingface, ONE)
    if form == 'safetensors'
    else (meta, 'consolidated.00.pth')
  )
  make(tmp_path)
  whole = (tmp_path / file).read_bytes()
  for position in rng.integers(0, 3000, 120):
    damaged = bytearray(whole)
    damaged[position] ^= int(rng.integers(1, 256))
    (tmp_path / file).write_bytes(damaged)
    try:
      weights.load(tmp_path)
    except errors.InputError as error:
      assert '\n' not in str(error)
