"""Weights in: the table of names, the GGUF reader, and `weights.load`.

Small GGUF files are written with the gguf package's own writer; names and
layouts are those that weight_files.py has typed out, not our table.
"""

import contextlib
import dataclasses

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import weight_files as files

from longjax import checkpoint, errors, llama, rope, weights
from longjax.weights import gguf as reader
from longjax.weights import names
from longjax.weights import tensors as source

# V vocab, D embed, F mlp, N heads, K kv_heads, H head_dim, L layers
V, D, F, N, K, H, L = 96, 64, 128, 4, 2, 16, 3
FIELDS = files.GQA | dict(mlp=F)
METADATA = {
  'llama.block_count': L,
  'llama.embedding_length': D,
  'llama.feed_forward_length': F,
  'llama.attention.head_count': N,
  'llama.attention.head_count_kv': K,
  'llama.rope.dimension_count': H,
  'llama.rope.freq_base': 500_000.0,
  'llama.attention.layer_norm_rms_epsilon': 1e-5,
  'llama.context_length': 8192,
}
TRUTH = files.params(FIELDS, dtype=np.dtype('f4'))


def stored_tensors(tied=False):
  """Random tensors under GGUF's names and in its layout, [out, in]."""
  truth = {k: x for k, x in TRUTH.items() if not (tied and k == 'head')}
  return files.gguf(truth, FIELDS)


def write(
  path,
  tensors,
  metadata=METADATA,
  architecture='llama',
  types=None,
  order=gguf.GGUFEndian.LITTLE,
):
  """Writes a GGUF file; types gives the tensors that are to be quantized."""
  writer = gguf.GGUFWriter(path, architecture, endianess=order)
  for key, value in metadata.items():
    add = {int: writer.add_uint32, float: writer.add_float32,
           str: writer.add_string, list: writer.add_array}  # fmt: skip
    add[type(value)](key, value)
  for name, array in tensors.items():
    kind = (types or {}).get(name)
    if kind is not None:
      array = gguf.quantize(array, kind)
    writer.add_tensor(name, array, raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return str(path)


def read(path):
  """(params, fields) of a GGUF file."""
  found = reader.source(path)
  source.check(found)
  return source.arrays(found), found.fields


# The table.


def test_half_split_of_a_head_of_four_rows_by_hand():
  rows = np.array([[['a0'], ['b0'], ['a1'], ['b1']]])  # pairs a and b, 0 and 1
  split = names.half_split(rows)
  assert split.ravel().tolist() == ['a0', 'a1', 'b0', 'b1']


@pytest.mark.parametrize('source', ['gguf', 'huggingface', 'meta'])
@pytest.mark.parametrize('row', names.TABLE, ids=lambda row: row.path)
def test_order_turns_ours_round(row, source):
  shape = names.stored_shape(row, FIELDS)
  stored = np.arange(np.prod(shape)).reshape(shape)
  ours = names.to_ours(row, stored, FIELDS, source)
  assert ours.shape == names.sizes(row.dims, FIELDS)
  back = ours.transpose(names.order(row)).reshape(shape)
  theirs = names.to_huggingface(row, stored, FIELDS, source)
  np.testing.assert_array_equal(back, theirs)


# GGUF.


@pytest.mark.parametrize('tied', [False, True])
def test_gguf_in_float32_is_read_exactly(tmp_path, tied):
  tensors = stored_tensors(tied)
  path = write(tmp_path / 'x.gguf', tensors)
  params, fields = read(path)
  assert ('head' in params) != tied
  files.assert_same(params, {k: TRUTH[k] for k in params})
  assert {x.dtype.name for x in jax.tree.leaves(params)} == {'float32'}
  rope_fields = dict(base=500_000.0)
  assert fields == FIELDS | dict(tied=tied, rope=rope_fields)


@pytest.mark.parametrize('kind', ['Q8_0', 'Q4_1', 'F16', 'BF16'])
def test_quantized_gguf_is_what_dequantizing_gives(tmp_path, kind):
  kind = gguf.GGMLQuantizationType[kind]
  tensors = stored_tensors()
  types = {name: kind for name, x in tensors.items() if x.ndim == 2}
  params, _ = read(write(tmp_path / 'x.gguf', tensors, types=types))
  for name in types:
    tensors[name] = gguf.dequantize(gguf.quantize(tensors[name], kind), kind)
  files.assert_same(params, read(write(tmp_path / 'y.gguf', tensors))[0])


SCALED = {
  'linear': (
    {'type': 'linear', 'factor': 4.0},
    dict(scaling='linear', factor=4.0),
  ),
  'yarn': (
    {'type': 'yarn', 'factor': 16.0, 'original_context_length': 512},
    dict(scaling='yarn', factor=16.0, original_length=512, beta_fast=32.0,
         beta_slow=1.0),
  ),
  # llama.cpp's own type where the file has none.
  'untold': ({'factor': 4.0}, dict(scaling='linear', factor=4.0)),
}  # fmt: skip


@pytest.mark.parametrize('name', SCALED)
def test_rope_scaling_is_read_from_the_metadata(tmp_path, name):
  keys, wanted = SCALED[name]
  keys = {f'llama.rope.scaling.{key}': value for key, value in keys.items()}
  path = write(tmp_path / 'x.gguf', stored_tensors(), METADATA | keys)
  _, fields = read(path)
  assert fields['rope'] == dict(base=500_000.0, **wanted)


def llama31_divisors(factor):
  """As convert_hf_to_gguf.py writes them, for heads of 16 dims."""
  wavelengths = 2 * np.pi * 500_000.0 ** (np.arange(0, H, 2) / H)
  smooth = (8192 / wavelengths - 1) / 3
  mixed = 1 / ((1 - smooth) / factor + smooth)
  divisors = np.where(wavelengths > 8192, factor, mixed)
  return np.where(wavelengths < 2048, 1, divisors).astype(np.float32)


@pytest.mark.parametrize('factor', [8.0, 32.0])
def test_llama31_scaling_is_recognized_by_its_divisors(tmp_path, factor):
  tensors = stored_tensors()
  tensors['rope_freqs.weight'] = llama31_divisors(factor)
  params, config = weights.load(write(tmp_path / 'x.gguf', tensors))
  assert config.rope == rope.Rope(
    base=500_000.0, scaling='llama3', factor=factor, original_length=8192
  )
  assert 'rope_freqs' not in params


def test_divisors_that_are_not_llama31_are_refused(tmp_path):
  tensors = stored_tensors()
  tensors['rope_freqs.weight'] = llama31_divisors(8.0) + np.float32(0.01)
  path = write(tmp_path / 'x.gguf', tensors)
  with pytest.raises(errors.InputError, match=r'x\.gguf.*rope_freqs\.weight'):
    read(path)


# Damage.


def assert_refused(path, *words):
  """One line that names the file and says these words."""
  with pytest.raises(errors.InputError) as caught:
    read(path)
  message = str(caught.value)
  assert '\n' not in message
  for word in (path, *words):
    assert word in message, message


def test_a_file_that_is_not_gguf_is_refused(tmp_path):
  path = tmp_path / 'x.gguf'
  path.write_bytes(b'PK\x03\x04 a zip file')
  assert_refused(str(path), 'not a GGUF file')
  path.write_bytes(b'')
  assert_refused(str(path), 'not a GGUF file')
  assert_refused(str(tmp_path / 'absent.gguf'), 'No such file')


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path):
  whole = write(tmp_path / 'whole.gguf', stored_tensors())
  with open(whole, 'rb') as file:
    data = file.read()
  path = tmp_path / 'x.gguf'
  path.write_bytes(data[:-100])
  assert_refused(str(path), 'truncated', 'output.weight')
  path.write_bytes(data[: len(data) // 2])
  assert_refused(str(path), 'truncated', '.weight')
  for length in range(4, 3000, 197):  # in the header
    path.write_bytes(data[:length])
    assert_refused(str(path), 'truncated')


def test_no_damaged_byte_of_the_header_gives_anything_but_input_error(tmp_path):
  arrays = {'tokenizer.ggml.tokens': ['a', 'bb'], 'tokenizer.ggml.ids': [1, 2]}
  path = write(tmp_path / 'x.gguf', stored_tensors(), METADATA | arrays)
  with open(path, 'rb') as file:
    data = file.read()
  rng = np.random.default_rng(0)
  for position in rng.integers(4, 2300, 75):
    damaged = bytearray(data)
    damaged[position] ^= int(rng.integers(1, 256))
    with open(path, 'wb') as file:
      file.write(damaged)
    with contextlib.suppress(errors.InputError):
      read(path)


@pytest.mark.parametrize('key, value', [
  ('block_count', 3.0), ('attention.head_count', 4.0), ('block_count', 'x'),
  ('attention.head_count_kv', [2, 2, 2]), ('embedding_length', 0),
  ('attention.layer_norm_rms_epsilon', -1.0),
  ('block_count', None), ('embedding_length', None),  # absent
])  # fmt: skip
def test_metadata_that_is_no_such_number_is_named(tmp_path, key, value):
  metadata = METADATA | {f'llama.{key}': value}
  metadata = {k: v for k, v in metadata.items() if v is not None}
  path = write(tmp_path / 'x.gguf', stored_tensors(), metadata)
  assert_refused(path, f'llama.{key}, got {value!r}')


def test_an_epsilon_of_2_is_damage(tmp_path):
  metadata = METADATA | {'llama.attention.layer_norm_rms_epsilon': 2.0}
  path = write(tmp_path / 'x.gguf', stored_tensors(), metadata)
  with pytest.raises(errors.InputError, match=r'norm_eps is 2\.0.*below 1'):
    weights.load(path)


@pytest.mark.parametrize('key, value', [
  ('expert_count', 8),
  ('attention.sliding_window', 4096),
  ('rope.dimension_count', H // 2),
  ('rope.scaling.type', 'longrope'),
  ('attention.head_count_kv', [2, 2, 1]),
])  # fmt: skip
def test_metadata_that_longjax_has_no_model_for_is_refused(
  tmp_path, key, value
):
  metadata = METADATA | {f'llama.{key}': value}
  path = write(tmp_path / 'x.gguf', stored_tensors(), metadata)
  assert_refused(path, key)


@pytest.mark.parametrize('more, facts', [
  (dict(order=gguf.GGUFEndian.BIG), ['big endian']),
  (dict(architecture='qwen2'), ['qwen2', 'only llama']),
  (dict(metadata=METADATA | {'split.count': 3}), ['3 parts', '--merge']),
])  # fmt: skip
def test_files_of_other_kinds_are_refused_not_misread(tmp_path, more, facts):
  assert_refused(write(tmp_path / 'x.gguf', stored_tensors(), **more), *facts)


BAD_TENSORS = {  # name: (what it becomes, or None; facts of the error)
  'token_embd.weight': (None, ['lacks']),
  'output_norm.weight': (None, ['lacks']),
  'blk.1.attn_k.weight': (None, ['lacks']),
  'blk.3.attn_q.weight': (np.zeros(32, 'f4'), ['unknown']),
  'blk.0.attn_q.bias': (np.zeros(32, 'f4'), ['unknown']),
  'blk.2.ffn_up.weight': (
    np.zeros([D, F], 'f4'), [f'({D}, {F})', f'({F}, {D})']
  ),
  'blk.0.ffn_gate.weight': (np.zeros([F, D], np.int8), ['I8']),
  'blk.1.attn_v.weight': (np.full([K * H, D], np.nan, 'f4'), ['NaN']),
  'blk.2.attn_v.weight': (np.full([K * H, D], np.inf, 'f4'), ['infinity']),
}  # fmt: skip


@pytest.mark.parametrize('name', BAD_TENSORS)
def test_a_bad_tensor_is_named(tmp_path, name):
  array, facts = BAD_TENSORS[name]
  tensors = stored_tensors() | {name: array}
  tensors = {n: x for n, x in tensors.items() if x is not None}
  assert_refused(write(tmp_path / 'x.gguf', tensors), name, *facts)


def test_a_quantization_unknown_to_the_gguf_package_is_named(tmp_path):
  path = write(tmp_path / 'x.gguf', stored_tensors())
  with open(path, 'rb') as file:
    data = bytearray(file.read())
  name = b'blk.0.attn_output.weight'
  kind = data.index(name) + len(name) + 4 + 2 * 8  # after rank and two dims
  data[kind : kind + 4] = (999).to_bytes(4, 'little')
  with open(path, 'wb') as file:
    file.write(data)
  assert_refused(path, 'blk.0.attn_output.weight', 'type 999')


# load


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_load_takes_a_file_or_the_directory_that_holds_it(tmp_path, dtype):
  path = write(tmp_path / 'x.gguf', stored_tensors())
  wanted = llama.Llama(**FIELDS, rope=rope.Rope(base=5e5), dtype=dtype)
  for given in (path, tmp_path):
    params, config = weights.load(given, dtype=dtype)
    assert config == wanted
    files.assert_same(params, TRUTH)


def test_load_takes_a_checkpoint_or_the_run_that_holds_it(tmp_path):
  config = llama.Llama(**FIELDS, block=64, rope=rope.Rope(base=5e5))
  saved = checkpoint.Checkpoints(tmp_path / 'checkpoints', keep=1)
  state = dict(params=TRUTH, opt={}, step=np.array(7))
  saved.save(
    jax.tree.map(jnp.asarray, state), dict(model=dataclasses.asdict(config))
  )
  saved.close()
  for given in (tmp_path, tmp_path / 'checkpoints', tmp_path / 'checkpoints/7'):
    found, found_config = weights.load(given, dtype='bfloat16')
    assert found_config == config
    files.assert_same(found, TRUTH)


def test_load_of_nonsense_names_the_path_and_what_is_accepted(tmp_path):
  text = tmp_path / 'notes.txt'
  text.write_text('hello')
  for path in (text, tmp_path / 'absent'):
    with pytest.raises(
      errors.InputError, match=r'\.gguf file.*checkpoint'
    ) as e:
      weights.load(path)
    assert str(path) in str(e.value)


def test_load_of_a_directory_with_two_models_asks_which(tmp_path):
  for name in ('a.gguf', 'b.gguf'):
    (tmp_path / name).write_bytes(b'GGUF')
  with pytest.raises(errors.InputError, match=r'a\.gguf, b\.gguf'):
    weights.load(tmp_path)


def test_the_fingerprint_tells_weights_apart_and_copies_alike(tmp_path):
  fields = files.MHA | dict(vocab=384, layers=1)
  for name in ('a', 'b'):
    files.write_huggingface(tmp_path / name, fields, files.LINEAR)
  alike = weights.fingerprint(tmp_path / 'a')
  assert weights.fingerprint(tmp_path / 'b') == alike
  file = tmp_path / 'b' / 'model.safetensors'
  file.write_bytes(file.read_bytes()[:-1] + b'x')
  assert weights.fingerprint(tmp_path / 'b') != alike
  kept = []
  for seed in (0, 1):
    run = tmp_path / f'{seed}'
    saved = checkpoint.Checkpoints(run / 'checkpoints', 1, print)
    params = dict(w=jnp.full(4, float(seed)))
    state = dict(params=params, step=jnp.int32(1))
    saved.save_and_wait(state, dict(model=dict(vocab=1)))
    saved.close()
    kept.append(weights.fingerprint(run))
  assert kept[0] != kept[1]
