"""launch/convert.py: in, out, and back again without a changed bit."""

import dataclasses
import importlib.util
import itertools
import json
import os
import resource
import shutil

import commands
import jax
import jobs
import numpy as np
import pytest
import small_tokenizers
import weight_files as files
from etils import epath
from weight_files import (
  EIGHT,
  GQA,
  LINEAR,
  LLAMA31,
  MHA,
  TIED,
  YARN,
  assert_same,
)

from configs import tiny
from launch import convert as convert_command
from launch import prepare as prepare_command
from longjax import (
  checkpoint,
  checks,
  cli,
  digest,
  errors,
  llama,
  rope,
  storage,
  weights,
)
from longjax.data import tokenizer
from longjax.parallel import sharding
from longjax.train import loop
from longjax.weights import checkpoint_arrays as stored
from longjax.weights import (
  config_json,
  convert,
  directories,
  families,
  names,
  released,
  tensor_files,
  tensors,
)


def quiet(_):
  pass


def assert_same_files(found, wanted, pattern='*.safetensors*'):
  names = sorted(path.name for path in wanted.glob(pattern))
  assert sorted(path.name for path in found.glob(pattern)) == names
  for name in names:
    one, other = (json_or_bytes(d / name) for d in (found, wanted))
    assert one == other, name


def json_or_bytes(path):
  if path.suffix == '.json':
    return json.loads(path.read_text())['weight_map']
  return path.read_bytes()


@pytest.fixture(scope='module')
def imported(tmp_path_factory):
  """A directory with hf/ and the run/ that was imported from it."""
  root = tmp_path_factory.mktemp('imported')
  files.write_huggingface(root / 'hf', GQA, LLAMA31)
  convert.to_checkpoint(root / 'hf', root / 'run', log=quiet)
  return root


# The digest of parts


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('order', [(0, 1, 2), (0, 2, 1)])
def test_digests_of_parts_add_up_to_that_of_the_whole(dtype, order, rng):
  whole = rng.normal(size=(3, 6, 70_001)).astype(dtype)
  strides = [6 * 70_001, 70_001, 1]
  total = np.zeros(2, np.uint32)
  for layer, row in itertools.product(range(3), (0, 4)):
    part = whole[layer : layer + 1, row : row + 4].transpose(order)
    total += digest.sums(
      part,
      layer * strides[0] + row * strides[1],
      [strides[dim] for dim in order],
    )
  wanted = digest.of_tree(dict(x=whole))
  assert dict(x=digest.text(total)) == wanted


# In


@pytest.mark.parametrize(
  'dtype, shape', [('float32', (2, 4)), ('bfloat16', (8, 1))]
)
def test_an_import_restores_on_any_mesh_and_verifies(
  tmp_path, make_mesh, monkeypatch, dtype, shape
):
  monkeypatch.setattr(stored, 'CHUNK_BYTES', 1000)  # many pieces to a layer
  monkeypatch.setattr(stored, 'MIN_CHUNK_COLUMNS', 1)
  truth = files.write_huggingface(tmp_path / 'hf', GQA, LLAMA31, shards=2)
  convert.to_checkpoint(tmp_path / 'hf', tmp_path / 'run', dtype, quiet)
  mesh = make_mesh(*shape)
  place = lambda c: sharding.params(llama.abstract(c), mesh)
  params, config = weights.load(tmp_path / 'run', place=place)
  assert config.rope == rope.Rope(**LLAMA31)
  assert_same(jax.device_get(params), truth)
  jax.tree.map(
    lambda x, s: x.sharding.is_equivalent_to(s, x.ndim) or pytest.fail(),
    params,
    place(config),
  )


def test_sizes_that_no_chunk_divides_go_in_and_out(tmp_path, monkeypatch):
  """Chunks of whole rows beyond the last, of columns beyond the last."""
  monkeypatch.setattr(stored, 'CHUNK_BYTES', 3000)
  monkeypatch.setattr(stored, 'MIN_CHUNK_COLUMNS', 1)
  monkeypatch.setattr(tensors, 'BLOCK', 500)  # several to a chunk
  fields = GQA | dict(vocab=97, mlp=113)
  truth = files.write_huggingface(tmp_path / 'hf', fields, LLAMA31)
  convert.to_checkpoint(tmp_path / 'hf', tmp_path / 'run', log=quiet)
  step = tmp_path / 'run' / 'checkpoints' / '0'
  chunks = {
    path: list(stored.open_array(step, path).chunk_layout.read_chunk.shape)
    for path in ('embedding', 'layers/down')
  }
  assert chunks == {'embedding': [11, 64], 'layers/down': [1, 11, 64]}
  assert_same(weights.load(tmp_path / 'run')[0], truth)
  convert.to_huggingface(tmp_path / 'run', tmp_path / 'out', log=quiet)
  assert_same_files(tmp_path / 'out', tmp_path / 'hf')


def test_any_letters_may_be_in_the_name_of_a_directory(tmp_path):
  odd = tmp_path / 'my models #1? 50%20 [a]'
  truth = files.write_huggingface(odd / 'hf', TIED, LLAMA31)
  convert.to_checkpoint(odd / 'hf', odd / 'run', log=quiet)
  assert_same(weights.load(odd / 'run')[0], truth)
  convert.to_huggingface(odd / 'run', odd / 'out', log=quiet)
  assert_same_files(odd / 'out', odd / 'hf')


def test_an_import_says_where_it_comes_from(tmp_path):
  files.write_meta(tmp_path / 'meta', MHA, shards=2)
  convert.to_checkpoint(tmp_path / 'meta', tmp_path / 'run', log=quiet)
  about = checkpoint.metadata(tmp_path / 'run')
  sums = about['source']['sha256']
  assert about['source']['format'] == 'meta'
  assert sorted(sums) == [
    'consolidated.00.pth', 'consolidated.01.pth', 'params.json'
  ]  # fmt: skip
  assert all(len(hexes) == 64 for hexes in sums.values())


def test_a_damaged_tensor_leaves_nothing_behind(tmp_path):
  tensors = files.huggingface(files.params(GQA))
  tensors['model.layers.1.mlp.up_proj.weight'][5, 7] = np.nan
  files.write_huggingface(tmp_path / 'hf', GQA, LLAMA31, tensors=tensors)
  with pytest.raises(errors.InputError, match=r'layers\.1\.mlp\.up_proj.*NaN'):
    convert.to_checkpoint(tmp_path / 'hf', tmp_path / 'run', log=quiet)
  assert [path.name for path in tmp_path.iterdir()] == ['hf']


def test_a_directory_that_exists_is_left_alone(tmp_path):
  files.write_huggingface(tmp_path / 'hf', GQA, LLAMA31)
  (tmp_path / 'run').mkdir()
  with pytest.raises(errors.InputError, match='exists'):
    convert.to_checkpoint(tmp_path / 'hf', tmp_path / 'run', log=quiet)
  (tmp_path / 'link').symlink_to(tmp_path / 'nowhere')
  with pytest.raises(errors.InputError, match='link exists'):
    convert.to_checkpoint(tmp_path / 'hf', tmp_path / 'link', log=quiet)
  with pytest.raises(errors.InputError, match='name another directory'):
    convert.to_checkpoint(tmp_path / 'hf', tmp_path / 'a\\b', log=quiet)
  assert sorted(p.name for p in tmp_path.iterdir()) == ['hf', 'link', 'run']


def test_a_disk_that_is_too_small_is_refused_at_once(tmp_path):
  with (
    pytest.raises(errors.InputError, match='are free'),
    directories.create(tmp_path / 'run', 10**18),
  ):
    pytest.fail('nothing may be written')
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('full', ['import', 'export'])
def test_a_disk_that_becomes_full_is_one_line_and_keeps_nothing(
  tmp_path, imported, full
):
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
  try:
    with pytest.raises(errors.InputError, match='new cannot be made: File too'):
      if full == 'import':
        convert.to_checkpoint(imported / 'hf', tmp_path / 'new', log=quiet)
      else:
        convert.to_huggingface(imported / 'run', tmp_path / 'new', log=quiet)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, 'posix_fallocate'), reason='a Mac')
def test_the_space_of_an_export_is_taken_before_it_is_filled(tmp_path):
  """Where a mapped file meets a full disk, the process is ended."""
  dtypes = dict.fromkeys(names.shapes(GQA), 'float32')
  tensor_files.Writer(tmp_path, GQA, dtypes, 1 << 30)
  about = (tmp_path / 'model.safetensors').stat()
  assert about.st_blocks * 512 >= about.st_size


def test_a_place_where_nothing_can_be_made_is_one_line(tmp_path):
  (tmp_path / 'file').touch()
  for place, words in (('file/run', 'cannot be made'), ('new/..', 'exists')):
    with (
      pytest.raises(errors.InputError, match=words),
      directories.create(tmp_path / place, 1),
    ):
      pytest.fail('nothing may be written')
  assert [path.name for path in tmp_path.iterdir()] == ['file']


def test_what_a_killed_import_left_is_removed(tmp_path):
  (tmp_path / 'run.partial' / 'checkpoints').mkdir(parents=True)
  (tmp_path / 'running.partial').mkdir()  # of another directory
  files.write_huggingface(tmp_path / 'hf', GQA, LLAMA31)
  convert.to_checkpoint(tmp_path / 'hf', tmp_path / 'run', log=quiet)
  left = sorted(path.name for path in tmp_path.iterdir())
  assert left == ['hf', 'run', 'running.partial']


def test_two_imports_into_one_directory_do_not_meet(tmp_path):
  with directories.create(tmp_path / 'run', 1) as made:
    (made / 'file').touch()
    with (
      pytest.raises(errors.InputError, match='another process is making it'),
      directories.create(tmp_path / 'run', 1),
    ):
      pytest.fail('it is being made')
  assert (tmp_path / 'run' / 'file').exists()
  assert [path.name for path in tmp_path.iterdir()] == ['run']


# And out


@pytest.mark.parametrize(
  'fields, dtype', [(GQA, 'float32'), (TIED, 'bfloat16'), (GQA, 'float16')]
)
def test_huggingface_and_back_is_the_same_file(tmp_path, fields, dtype):
  truth = files.params(fields, dtype=np.dtype(dtype))
  tensors = files.huggingface(truth, np.dtype(dtype))
  files.write_huggingface(tmp_path / 'hf', fields, LLAMA31, tensors=tensors)
  convert.to_checkpoint(tmp_path / 'hf', tmp_path / 'run', log=quiet)
  convert.to_huggingface(tmp_path / 'run', tmp_path / 'out', log=quiet)
  assert_same_files(tmp_path / 'out', tmp_path / 'hf')


@pytest.mark.parametrize(
  'kinds', [('bfloat16', 'float16'), ('float64', 'float32')]
)
def test_layers_of_several_dtypes_lose_nothing_on_their_way(tmp_path, kinds):
  """Neither of two halves holds the numbers of the other."""
  tensors = files.huggingface(files.params(GQA), np.float32)
  for i, (name, x) in enumerate(tensors.items()):
    tensors[name] = (1e-6 * x).astype(kinds[i % 2])
  files.write_huggingface(tmp_path / 'hf', GQA, LLAMA31, tensors=tensors)
  convert.to_checkpoint(tmp_path / 'hf', tmp_path / 'run', log=quiet)
  convert.to_huggingface(tmp_path / 'run', tmp_path / 'out', log=quiet)
  wanted, _ = weights.load(tmp_path / 'hf')
  found, _ = weights.load(tmp_path / 'out')
  jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_shards_and_back_are_the_same_files_for_the_same_size(tmp_path):
  """12,288 bytes are the embedding; the rest fill files of up to 60 kB."""
  files.write_huggingface(tmp_path / 'hf', GQA, LLAMA31)
  convert.to_checkpoint(tmp_path / 'hf', tmp_path / 'run', log=quiet)
  convert.to_huggingface(
    tmp_path / 'run', tmp_path / 'one', shard_bytes=60_000, log=quiet
  )
  convert.to_checkpoint(tmp_path / 'one', tmp_path / 'again', log=quiet)
  convert.to_huggingface(
    tmp_path / 'again', tmp_path / 'two', shard_bytes=60_000, log=quiet
  )
  shards = list((tmp_path / 'one').glob('*.safetensors'))
  assert len(shards) == 5
  assert all(path.stat().st_size < 63_000 for path in shards)
  assert_same_files(tmp_path / 'two', tmp_path / 'one')


@pytest.mark.parametrize('fields, shards, dim', [(MHA, 2, 1), (EIGHT, 8, 0)])
def test_meta_comes_out_in_the_layout_of_huggingface(
  tmp_path, fields, shards, dim
):
  """The rows of q and k are permuted as transformers' conversion does it."""
  truth = files.write_meta(
    tmp_path / 'meta', fields, shards=shards, embedding_dim=dim
  )
  convert.to_checkpoint(tmp_path / 'meta', tmp_path / 'run', log=quiet)
  convert.to_huggingface(tmp_path / 'run', tmp_path / 'out', log=quiet)
  files.write_safetensors(
    tmp_path / 'model.safetensors', files.huggingface(truth)
  )
  assert_same_files(tmp_path / 'out', tmp_path)


def trained(directory, fields, settings, mesh=None, **about):
  """A run directory as training leaves it; returns its parameters."""
  config = llama.Llama(**fields, rope=rope.Rope(**settings))
  params = files.params(fields, dtype=np.dtype('float32'))
  if mesh is not None:
    placed = jax.device_put(
      params, sharding.params(llama.abstract(config), mesh)
    )
  else:
    placed = jax.tree.map(jax.numpy.asarray, params)
  state = dict(params=placed, opt=jax.numpy.zeros(3), step=np.array(7))
  saved = checkpoint.Checkpoints(directory / 'checkpoints', keep=1)
  about = dict(model=dataclasses.asdict(config), **about)
  saved.save(state, about)
  saved.close()
  return params


def test_what_was_trained_on_a_mesh_is_exported_in_float32(tmp_path, make_mesh):
  truth = trained(tmp_path / 'run', GQA, LLAMA31, make_mesh(2, 4))
  convert.to_huggingface(tmp_path / 'run', tmp_path / 'out', log=quiet)
  params, config = weights.load(tmp_path / 'out')
  assert config.rope == rope.Rope(**LLAMA31)
  assert_same(params, truth)
  convert.to_huggingface(
    tmp_path / 'run', tmp_path / 'bf', 'bfloat16', log=quiet
  )
  wanted = jax.tree.map(
    lambda x: x.astype(files.BFLOAT16).astype(np.float32), truth
  )
  assert_same(weights.load(tmp_path / 'bf')[0], wanted)


def test_a_damaged_checkpoint_is_not_exported(tmp_path, monkeypatch):
  trained(tmp_path / 'run', GQA, LLAMA31)
  whole = checkpoint.metadata(tmp_path / 'run')
  whole['digests']['params/layers/up'] = '0' * 16
  monkeypatch.setattr(checkpoint, 'metadata', lambda path: whole)
  with pytest.raises(errors.InputError, match='layers/up differs'):
    convert.to_huggingface(tmp_path / 'run', tmp_path / 'out', log=quiet)
  assert [path.name for path in tmp_path.iterdir()] == ['run']


@pytest.mark.parametrize(
  'damage', ['flipped', 'truncated', 'lost', 'zarr.json']
)
def test_a_damaged_import_is_neither_loaded_nor_exported(
  tmp_path, imported, damage
):
  shutil.copytree(imported / 'run', tmp_path / 'run')
  state = tmp_path / 'run' / 'checkpoints' / '0' / 'state'
  file = state / 'params.layers.up' / 'c' / '1' / '0' / '0'
  whole = bytearray(file.read_bytes())
  file.unlink()
  if damage == 'zarr.json':
    (state / 'params.layers.up' / damage).write_text('{')
  elif damage != 'lost':
    whole[1000] ^= 0x10
    file.write_bytes(whole[: -5000 if damage == 'truncated' else None])
  with pytest.raises(errors.InputError, match='checkpoints/0 cannot be used'):
    weights.load(tmp_path / 'run')
  with pytest.raises(errors.InputError, match='layers/up'):
    convert.to_huggingface(tmp_path / 'run', tmp_path / 'out', log=quiet)
  assert [path.name for path in tmp_path.iterdir()] == ['run']


def test_numbers_too_large_for_float16_are_refused(tmp_path):
  truth = files.params(GQA, dtype=np.dtype('float32'))
  truth['norm'][3] = 1e6
  tensors = files.huggingface(truth, np.dtype('float32'))
  files.write_huggingface(tmp_path / 'hf', GQA, LLAMA31, tensors=tensors)
  convert.to_checkpoint(tmp_path / 'hf', tmp_path / 'run', log=quiet)
  with pytest.raises(errors.InputError, match='norm holds numbers too large'):
    convert.to_huggingface(
      tmp_path / 'run', tmp_path / 'o', 'float16', log=quiet
    )
  assert sorted(p.name for p in tmp_path.iterdir()) == ['hf', 'run']


# config.json


def told(settings, fields=GQA, window=16_384):
  config = llama.Llama(**fields, rope=rope.Rope(**settings))
  return config_json.content(config, window, 'bfloat16', None)


V4 = ('rope_theta', 'rope_scaling', 'torch_dtype')
V5 = ('rope_parameters', 'dtype')


@pytest.mark.parametrize('settings', [
  dict(base=5e5), LINEAR, YARN, YARN | dict(beta_fast=24.0, beta_slow=2.0),
  LLAMA31, LLAMA31 | dict(factor=32.0),
])  # fmt: skip
def test_either_form_of_config_json_has_the_whole_rope(settings):
  whole = told(settings)
  for without in (V4, V5):
    config = {k: v for k, v in whole.items() if k not in without}
    fields = config_json.fields(config)
    assert rope.Rope(**fields['rope']) == rope.Rope(**settings)
    assert fields | dict(rope=0) == GQA | dict(rope=0)


@pytest.mark.parametrize('settings', [
  YARN | dict(scaling='ntk_by_parts'), YARN | dict(scaling='yarn_paper'),
  YARN | dict(scaling='yarn_revised'),
  dict(scaling='longrope', factor=4.0, original_length=4096,
       divisors=tuple(np.linspace(1, 5, 8))),
  dict(scaling='longrope', factor=4.0, original_length=4096,
       divisors=tuple(np.linspace(1, 5, 8)), short_divisors=(1.5,) * 8),
])  # fmt: skip
def test_what_is_exported_as_longrope_rotates_alike_when_read(settings):
  whole = told(settings)
  for without in (V4, V5):
    config = {k: v for k, v in whole.items() if k not in without}
    found = rope.Rope(**config_json.fields(config)['rope'])
    assert found.scaling == 'longrope'
    assert found.short_divisors == settings.get('short_divisors', ())
    for x, y in zip(
      rope.frequencies(found, 16), rope.frequencies(rope.Rope(**settings), 16)
    ):
      np.testing.assert_allclose(x, y, rtol=1e-14)


@pytest.mark.parametrize('family, name, base, eps, tied', [
  ('llama', 'LlamaForCausalLM', 1e4, 1e-6, False),
  ('smollm3', 'SmolLM3ForCausalLM', 2e6, 1e-6, True),
  ('olmo3', 'Olmo3ForCausalLM', 5e5, 1e-5, False),
])  # fmt: skip
def test_what_a_file_leaves_out_is_the_default_of_its_class(
  family, name, base, eps, tied
):
  """As in transformers 5.23."""
  config = told(dict(base=1e4)) | dict(
    model_type=family, architectures=[name], rope_parameters=None
  )
  if family == 'smollm3':
    config['no_rope_layers'] = [1] * 3
  if family == 'olmo3':
    config['layer_types'] = ['full_attention'] * 3
  for key in ('rope_theta', 'rms_norm_eps', 'tie_word_embeddings',
              'rope_scaling'):  # fmt: skip
    config.pop(key, None)
  forms = [None] if family == 'olmo3' else [None, dict(rope_type='default')]
  for form in forms:
    found = config_json.fields(config | dict(rope_parameters=form))
    assert found['rope'] == dict(base=base)
    assert (found['norm_eps'], found['tied']) == (eps, tied)


YARN_OF_16 = dict(rope_type='yarn', rope_theta=1e4, factor=2.0,
                  original_max_position_embeddings=16)  # fmt: skip


@pytest.mark.parametrize('changes, says', [
  (dict(model_type='ministral3', architectures=['Ministral3ForCausalLM'],
        rope_parameters=None), 'rope_parameters is absent'),
  (dict(original_max_position_embeddings=8, rope_parameters=YARN_OF_16),
   'is 8, and 16 in'),
  (dict(original_max_position_embeddings=[8], rope_parameters=YARN_OF_16),
   r'is \[8\], and 16 in'),
  (dict(rope_parameters=YARN_OF_16 | dict(truncate=None)), 'true or false'),
  (dict(rope_parameters=YARN_OF_16 | dict(truncate=0)), 'true or false'),
])  # fmt: skip
def test_what_transformers_reads_otherwise_is_refused(changes, says):
  config = told(dict(base=1e4)) | changes
  config.pop('rope_theta', None)
  config['rope_scaling'] = None
  with pytest.raises(errors.InputError, match=says):
    config_json.fields(config)


def test_longrope_without_its_temperature_has_that_of_its_windows():
  settings = dict(
    rope_type='longrope', short_factor=[2.0] * 8, long_factor=[2.0] * 8
  )
  config = told(dict(base=1e4)) | dict(
    original_max_position_embeddings=2048, max_position_embeddings=16_384,
    rope_parameters=settings, rope_scaling=None,
  )  # fmt: skip
  found = rope.Rope(**config_json.fields(config)['rope'])
  assert rope.temperature(found) == pytest.approx((1 + 3 / 11) ** 0.5)


def test_ntk_is_exported_as_the_base_that_it_is():
  whole = told(dict(base=1e4, scaling='ntk', factor=4.0))
  found = rope.Rope(**config_json.fields(whole)['rope'])
  assert found.scaling == 'none'
  wanted, _ = rope.frequencies(
    rope.Rope(base=1e4, scaling='ntk', factor=4.0), 16
  )
  np.testing.assert_allclose(rope.frequencies(found, 16)[0], wanted, rtol=1e-12)


@pytest.mark.parametrize('settings', [dict(scaling='nope'), dict(xpos=512.0)])
def test_what_has_no_equivalent_is_refused(tmp_path, settings):
  trained(tmp_path / 'run', GQA, settings)
  with pytest.raises(errors.InputError, match=r'nope|xpos'):
    convert.to_huggingface(tmp_path / 'run', tmp_path / 'out', log=quiet)
  assert not (tmp_path / 'out').exists()


def exported(root, name='config.json', **options):
  """A file of the export of the run in `root`, as JSON."""
  convert.to_huggingface(root / 'run', root / 'out', log=quiet, **options)
  return json.loads((root / 'out' / name).read_text())


def test_the_window_is_what_was_trained_never_what_was_evaluated(tmp_path):
  config = dict(
    train=dict(seq_len=256), eval=dict(samples=4096, length=8192),
    data=dict(positions=dict(kind='plain', target=999)),
  )  # fmt: skip
  trained(tmp_path / 'run', GQA, dict(base=5e5), config=config)
  made = exported(tmp_path)
  assert made['max_position_embeddings'] == 256
  assert made['dtype'] == made['torch_dtype'] == 'float32'
  shutil.rmtree(tmp_path / 'out')
  made = exported(tmp_path, max_length=640)
  assert made['max_position_embeddings'] == 640


def test_the_window_of_yarn_is_what_transformers_4_divides(tmp_path):
  config = dict(train=dict(seq_len=512))
  trained(tmp_path / 'run', GQA, YARN, config=config)
  with pytest.raises(errors.InputError, match=r'is 512.*= 16384'):
    exported(tmp_path, max_length=512)
  assert exported(tmp_path)['max_position_embeddings'] == 4 * 4096


@pytest.mark.parametrize('config, rope, window', [
  (dict(train=dict(seq_len=64)), dict(base=1e4), 16_384),  # as released
  (dict(train=dict(seq_len=32_768)), dict(base=1e4), 32_768),
  (dict(train=dict(seq_len=64), data=dict(
    positions=dict(kind='pose', target=65_536))), LINEAR, 65_536),
  (dict(train=dict(seq_len=65_536), data=dict(
    curriculum=[[0.5, 1024], [0.5, 32_768]])), dict(base=1e4), 32_768),
  # Llama 3.2: 32 times 8,192, but a window of 131,072.
  (dict(train=dict(seq_len=64)), LLAMA31, 16_384),
])  # fmt: skip
def test_the_window_is_the_longest_trained_or_released(config, rope, window):
  metadata = dict(window=16_384, config=config, model=dict(rope=rope))
  assert released.window(metadata) == window


# The tokenizer


def with_tokenizer(directory):
  tokens = tokenizer.load('bytes')  # 384 ids
  tokens.save(directory)
  (directory / 'special_tokens_map.json').write_text('{"bos_token": "<bos>"}')
  files.write_json(
    directory / 'generation_config.json', dict(temperature=0.6, top_p=0.9)
  )
  return tokens


def test_tokenizer_and_generation_settings_go_in_and_out(tmp_path):
  fields = GQA | dict(vocab=384)
  files.write_huggingface(tmp_path / 'hf', fields, LLAMA31)
  tokens = with_tokenizer(tmp_path / 'hf')
  convert.to_checkpoint(tmp_path / 'hf', tmp_path / 'run', log=quiet)
  assert checkpoint.metadata(tmp_path / 'run')['tokenizer'] == tokens.digest
  convert.to_huggingface(tmp_path / 'run', tmp_path / 'out', log=quiet)
  for name in (
    'tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json'
  ):  # fmt: skip
    one, other = (tmp_path / d / name for d in ('hf', 'out'))
    assert one.read_bytes() == other.read_bytes(), name
  kept = json.loads((tmp_path / 'out' / 'generation_config.json').read_text())
  assert kept == dict(temperature=0.6, top_p=0.9)
  config = json.loads((tmp_path / 'out' / 'config.json').read_text())
  assert (config['bos_token_id'], config['eos_token_id']) == (256, 257)


def test_a_unigram_model_is_exported_as_the_file_it_is(tmp_path):
  model = small_tokenizers.sentencepiece_model(
    ['some words of text, others too'] * 9, vocab_size=40, model_type='unigram',
    byte_fallback=False,
  )  # fmt: skip
  files.write_huggingface(tmp_path / 'hf', GQA, dict(base=1e4))
  (tmp_path / 'hf' / 'tokenizer.model').write_bytes(model)
  files.write_json(
    tmp_path / 'hf' / 'tokenizer_config.json',
    dict(tokenizer_class='LlamaTokenizer', bos_token='<s>'),
  )
  lines = []
  convert.to_checkpoint(tmp_path / 'hf', tmp_path / 'run', log=quiet)
  convert.to_huggingface(tmp_path / 'run', tmp_path / 'out', log=lines.append)
  assert any('no <s> before a text' in line for line in lines)
  assert (tmp_path / 'out' / 'spiece.model').read_bytes() == model


CHATTY = GQA | dict(vocab=384, layers=1)
CHATML = ('<|im_start|>', '<|im_end|>')


def released_chat_model(directory):
  """Weights whose tokenizer has ChatML's marks, a pad token and a template."""
  files.write_huggingface(directory, CHATTY, dict(base=1e4))
  small_tokenizers.of_bytes(
    directory, *CHATML, pad_token='<unused_300>', chat_template='{{ messages }}'
  )
  files.write_json(
    directory / 'generation_config.json',
    dict(eos_token_id=[257, 301], temperature=0.6, do_sample=True),
  )


def test_what_was_released_survives_import_training_and_export(
  tmp_path, monkeypatch
):
  monkeypatch.setenv('LONGJAX_CACHE', str(tmp_path / 'cache'))
  released_chat_model(tmp_path / 'hf')
  convert.to_checkpoint(tmp_path / 'hf', tmp_path / 'imported', log=quiet)
  turns = [dict(role=role, content='a' * 99) for role in ('user', 'assistant')]
  chats = json.dumps(dict(messages=turns)) + '\n'
  (tmp_path / 'chats.jsonl').write_text(chats * 20)
  config = tiny.get_config()
  config.update_from_flattened_dict(
    jobs.SMALL
    | {f'model.{key}': value for key, value in CHATTY.items()}
    | {'model.rope.base': 1e4, 'mesh.seq': 1}
    | {'train.steps': 1, 'weights': str(tmp_path / 'imported')}
  )
  config.data.sources = dict(
    chats=dict(
      path=str(tmp_path / 'chats.jsonl'), kind='chat', template='chatml'
    )
  )
  mesh = sharding.make_mesh(1, 1, jax.devices()[:1])
  monkeypatch.setattr(loop.sharding, 'make_mesh', lambda *_: mesh)
  config.data.tokenizer = 'bytes'
  with pytest.raises(errors.InputError, match='tokenizer_may_differ'):
    loop.main(config, tmp_path / 'run', quiet)
  config.data.tokenizer = ''
  assert loop.main(config, tmp_path / 'run', quiet) == 0
  config_json = exported(tmp_path)
  assert config_json['max_position_embeddings'] == 16_384  # seq_len was 64
  assert config_json['pad_token_id'] == 300
  kept = json.loads((tmp_path / 'out' / 'generation_config.json').read_text())
  assert kept == dict(
    eos_token_id=[257, 301, 259], temperature=0.6, do_sample=True
  )
  for name in ('tokenizer.json', 'tokenizer_config.json'):
    one, other = (tmp_path / d / name for d in ('hf', 'out'))
    assert one.read_bytes() == other.read_bytes(), name
  transformers = pytest.importorskip('transformers')
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / 'out')
  assert theirs.pad_token_id == 300 and theirs.chat_template


@pytest.mark.parametrize('recorded', [False, True])
def test_another_tokenizer_than_that_of_the_weights_is_refused(
  tmp_path, recorded
):
  """Of the same size, so that the number of ids does not tell them apart."""
  path = tmp_path / 'hf'
  released_chat_model(path)
  theirs, other = tokenizer.load(path), tokenizer.load('bytes')
  assert theirs.vocab == other.vocab
  if recorded:  # by the run, whatever lies beside it now
    convert.to_checkpoint(path, tmp_path / 'run', log=quiet)
    path = tmp_path / 'run'
    other.save(path / 'tokenizer')
  config = tiny.get_config()
  released.check_tokenizer(path, theirs, config)
  words = rf'{other.digest[:12]}.*{theirs.digest[:12]}.*tokenizer_may_differ'
  with pytest.raises(errors.InputError, match=words):
    released.check_tokenizer(path, other, config)
  config.weights, config.data.tokenizer = str(path), 'bytes'
  with pytest.raises(errors.InputError, match=words):
    prepare_command.check_tokenizer(config, other)
  config.data.tokenizer_may_differ = True
  released.check_tokenizer(path, other, config)
  for file in tokenizer.FILES:
    (tmp_path / 'hf' / file).unlink(missing_ok=True)
  config.data.tokenizer_may_differ = False
  if not recorded:  # nothing is known
    released.check_tokenizer(path, other, config)


def test_a_model_stops_where_its_documents_and_answers_ended(tmp_path):
  tokens = small_tokenizers.of_bytes(tmp_path, *CHATML)
  chat, text = dict(kind='chat', template='chatml'), dict(path='x')
  for sources, found, ends in (
    (dict(a=text), None, 257),
    (dict(a=text, b=chat), None, [257, 259]),
    (dict(a=chat), dict(eos_token_id=300), [300, 259]),
    (dict(a=text), dict(eos_token_id=259, top_p=0.9), [259, 257]),
    ({}, dict(eos_token_id=300), 300),
  ):
    metadata = dict(config=dict(data=dict(sources=sources)), generation=found)
    made = released.generation(metadata, tokens)
    assert made['eos_token_id'] == ends
    assert made.get('top_p') == (found or {}).get('top_p')


def test_a_damaged_tokenizer_is_not_left_out_of_an_export(tmp_path):
  trained(tmp_path / 'run', GQA | dict(vocab=384), LLAMA31)
  tokens = tokenizer.load('bytes')
  tokens.save(tmp_path / 'run' / 'tokenizer')
  file = tmp_path / 'run' / 'tokenizer' / 'tokenizer.json'
  file.write_bytes(file.read_bytes()[:-9])
  with pytest.raises(errors.InputError, match=r'run/tokenizer.*move it away'):
    convert.to_huggingface(tmp_path / 'run', tmp_path / 'out', log=quiet)
  assert [path.name for path in tmp_path.iterdir()] == ['run']


def test_an_export_says_that_its_tokenizer_is_gone_or_another(tmp_path):
  trained(tmp_path / 'run', GQA | dict(vocab=384), LLAMA31, tokenizer='other')
  tokenizer.load('bytes').save(tmp_path / 'run' / 'tokenizer')
  said = []
  convert.to_huggingface(tmp_path / 'run', tmp_path / 'one', log=said.append)
  (tmp_path / 'run' / 'tokenizer').rename(tmp_path / 'away')
  convert.to_huggingface(tmp_path / 'run', tmp_path / 'two', log=said.append)
  assert 'is not the tokenizer that' in said[0]
  assert 'without a tokenizer' in said[1]


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path):
  files.write_huggingface(tmp_path / 'hf', GQA, LLAMA31)
  with_tokenizer(tmp_path / 'hf')
  with pytest.raises(errors.InputError, match='384 ids, the model only 96'):
    convert.to_checkpoint(tmp_path / 'hf', tmp_path / 'run', log=quiet)
  assert [path.name for path in tmp_path.iterdir()] == ['hf']


# Buckets


@pytest.fixture
def bucket(tmp_path, monkeypatch):
  """A directory that passes for gs://, as far as our code can tell."""
  root = epath.Path(tmp_path / 'bucket')
  root.mkdir()
  monkeypatch.setattr(
    storage, 'is_remote', lambda path: str(path).startswith(str(root))
  )
  return root


def test_a_bucket_is_read_and_written_by_way_of_the_disk(tmp_path, bucket):
  fields = GQA | dict(vocab=384)
  truth = files.write_huggingface(tmp_path / 'hf', fields, LLAMA31, shards=2)
  with_tokenizer(tmp_path / 'hf')
  directories.copy_tree(tmp_path / 'hf', bucket / 'hf')
  convert.to_checkpoint(bucket / 'hf', bucket / 'run', log=quiet)
  assert_same(weights.load(str(bucket / 'run'))[0], truth)
  convert.to_huggingface(bucket / 'run', bucket / 'out', log=quiet)
  assert_same(weights.load(str(bucket / 'out'))[0], truth)
  assert (bucket / 'out' / 'tokenizer.json').exists()
  with pytest.raises(errors.InputError, match='exists'):
    convert.to_huggingface(bucket / 'run', bucket / 'out', log=quiet)


def test_a_bucket_without_its_library_is_one_line(tmp_path):
  if importlib.util.find_spec('gcsfs'):
    pytest.skip('gcsfs is installed')
  with pytest.raises(errors.InputError, match='pip install gcsfs'):
    convert.to_checkpoint('gs://bucket/hf', tmp_path / 'run', log=quiet)
  with pytest.raises(errors.InputError, match='pip install gcsfs'):
    directories.create('gs://bucket/out', 1).__enter__()


# The command


def run_command(monkeypatch, *arguments):
  """The exit code of launch/convert.py, run in this process."""
  monkeypatch.setattr('sys.argv', ['convert.py', *map(str, arguments)])
  return cli.run_verb(convert_command.__doc__, **convert_command.VERBS)


def test_the_command_imports_shows_and_exports(tmp_path, monkeypatch, capsys):
  truth = files.write_huggingface(tmp_path / 'hf', GQA, LLAMA31)
  hf, run, out = (tmp_path / name for name in ('hf', 'run', 'out'))
  done = commands.run('convert.py', 'import', '--from', hf, '--to', run)
  assert done.returncode == 0, done.stderr
  export = ('export', f'--from={run}', f'--to={out}', '--shard-size=1GB')
  assert run_command(monkeypatch, *export) == 0
  assert_same(weights.load(out)[0], truth)
  assert run_command(monkeypatch, 'show', '--from', run) == 0
  shown = capsys.readouterr().out
  assert '114,112 parameters' in shown and '3x64x4x16' in shown
  assert checkpoint.metadata(run)['digests']['params/norm'] in shown
  assert run_command(monkeypatch, 'show', '--from', hf) == 0
  sums = checkpoint.metadata(run)['source']['sha256']
  assert sums['model.safetensors'] in capsys.readouterr().out


@pytest.mark.parametrize(
  'arguments, words',
  [
    ([], 'import, export, show'),
    (['imprt'], "nearest is 'import'"),
    (['import', '--form=x'], "nearest is '--from'"),
    (['import', '--from=x'], '--to is needed'),
    (['import', '--from'], '--from needs a value'),
    (['import', '--from=nowhere', '--to=x'], 'nowhere does not exist'),
    (['import', '--from=x', '--to=x', '--dtype=int8'], "'int8' is not one of"),
    (['export', '--from=x', '--to=x', '--shard-size=5'], 'a size like 5GB'),
    (['export', '--from=x', '--to=x', '--max-length=5.5'], "got '5.5'"),
    (['export', '--from=nowhere', '--to=x'], 'nowhere'),
  ],
)
def test_bad_arguments_are_one_line(arguments, words, capsys, monkeypatch):
  assert run_command(monkeypatch, *arguments) == 2
  error = capsys.readouterr().err
  assert words in error and error.count('\n') == 1


def test_a_config_may_have_the_model_of_its_weights(tmp_path):
  files.write_huggingface(
    tmp_path, TIED, LLAMA31, architectures=['MistralForCausalLM'],
    model_type='mistral', sliding_window=64,
  )  # fmt: skip
  wanted = weights.config(tmp_path)
  assert wanted.window == 64
  typed = [('weights', str(tmp_path)), ('model', 'weights')]
  mine = tmp_path / 'mine.py'
  readme = (commands.ROOT / 'README.md').read_text()
  section = readme.partition('## Your own model')[2]
  example = section.partition('```python\n')[2].partition('```')[0]
  mine.write_text(example.replace('/models/mine', str(tmp_path)))
  for config in (
    cli.load('configs/tiny.py', [*typed, ('model.rope.base', '5e5')]),
    cli.load(str(mine)),
    cli.load('', [('model.rope.base', '5e5')], str(tmp_path)),
  ):
    model = checks.llama_config(config)
    longer = dataclasses.replace(wanted.rope, base=5e5)
    assert dataclasses.replace(wanted, rope=longer, dtype=model.dtype,
                               block=model.block) == model  # fmt: skip
  model = checks.llama_config(cli.load(str(mine), [('model.window', '0')]))
  assert (model.rope.base, model.window) == (5e5, 0)
  with pytest.raises(errors.InputError, match=r"must name .* 'random'"):
    cli.load('configs/tiny.py', [('weights', 'random'), typed[1]])


def read_as(kind, **more):
  """Our fields of a config.json of another class; rope left out."""
  names = dict(architectures=[f'{kind}ForCausalLM'], model_type=kind.lower())
  found = config_json.fields(told(dict(base=1e4)) | names | more)
  return {k: v for k, v in found.items() if k not in {*GQA, 'rope'}}


FULL, SLIDING = 'full_attention', 'sliding_attention'
SLIDES = dict(sliding_window=64, use_sliding_window=True)


@pytest.mark.parametrize('kind, settings, wanted', [
  ('Llama', dict(attention_bias=True), dict(bias='qkvo')),
  ('Mistral', dict(sliding_window=64), dict(window=64)),
  ('Mistral', dict(sliding_window=None), {}),
  ('Qwen2', dict(sliding_window=64), dict(bias='qkv')),  # which it has not on
  ('Qwen2', SLIDES | dict(layer_types=[FULL, FULL, SLIDING]),
   dict(bias='qkv', window=64, full_layers=(0, 1))),
  ('Qwen3', SLIDES | dict(layer_types=[SLIDING, FULL, SLIDING]),
   dict(qk_norm='head', window=64, full_layers=(1,))),
  ('SmolLM3', dict(no_rope_layers=[0, 1, 1]), dict(nope_layers=(0,))),
])  # fmt: skip
def test_config_json_of_kin_has_what_differs(kind, settings, wanted):
  assert read_as(kind, **settings) == wanted


@pytest.mark.parametrize('kind, key, value', [
  ('Llama', 'mlp_bias', True),
  ('Mistral', 'vocab_size', 96),  # without sliding_window
  ('Qwen2', 'use_sliding_window', True),  # of layers that nothing names
  ('Qwen2', 'layer_types', [FULL, SLIDING, FULL]),  # use_sliding_window is off
  ('Llama', 'layer_types', [FULL, SLIDING, FULL]),
  ('Llama', 'use_sliding_window', True),
  ('Llama', 'partial_rotary_factor', 0.5),
  ('Llama', 'no_rope_layers', [1, 1, 0]),
  ('Mistral', 'hidden_act', 'gelu'),
  ('Mistral', 'attention_bias', True),
  ('Mistral', 'layer_types', [SLIDING] * 3),
  ('Qwen2', 'attention_bias', True),
  ('Qwen3', 'quantization_config', dict(quant_method='awq')),
  ('Qwen3', 'layer_types', [FULL, 'linear_attention', FULL]),
  ('Qwen3', 'layer_types', [FULL]),
  ('SmolLM3', 'no_rope_layers', [1, 1, 2]),
  ('Qwen3', 'model_type', 'qwen2'),
  ('Olmo3', 'rope_parameters', dict(full_attention=dict(rope_theta=1e4))),
  ('Llama', 'rope_parameters', dict(
    rope_type='yarn', rope_theta=1e4, factor=4.0, llama_4_scaling_beta=0.1,
    original_max_position_embeddings=64)),
])  # fmt: skip
def test_what_would_be_another_model_is_refused_by_name(kind, key, value):
  named = {
    ('Llama', 'rope_parameters'): 'llama_4_scaling_beta',
    ('Mistral', 'vocab_size'): 'sliding_window',
    ('Qwen2', 'use_sliding_window'): 'layer_types = None',
  }.get((kind, key), key)
  with pytest.raises(errors.InputError, match=named):
    read_as(
      kind, **SLIDES | {key: value} if kind == 'SmolLM3' else {key: value}
    )


@pytest.mark.parametrize('fields, kind', [
  (dict(bias='qkvo'), 'llama'),
  (dict(window=8), 'mistral'),
  (dict(bias='qkv', window=8, full_layers=(0,)), 'qwen2'),
  (dict(qk_norm='head', window=8), 'qwen3'),
  (dict(nope_layers=(0, 2)), 'smollm3'),
  (dict(qk_norm='all', post_norm=True, window=8, scale_windows=False), 'olmo3'),
])  # fmt: skip
def test_an_export_is_of_the_class_that_can_express_the_model(fields, kind):
  found = told(dict(base=1e4), GQA | fields)
  assert found['model_type'] == kind
  assert found['architectures'] == [families.FAMILIES[kind].architecture]
  with pytest.raises(errors.InputError, match=r'qkv.* nope_layers'):
    told(dict(base=1e4), GQA | dict(bias='qkv', nope_layers=(1,)))
