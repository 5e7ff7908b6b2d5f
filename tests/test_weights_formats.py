"""Hugging Face's and Meta's files: what `weights.load` makes of them."""

import json

import jax
import numpy as np
import pytest
import reference
import weight_files as files
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

from longjax import batch, errors, llama, rope, weights
from longjax.parallel import sharding
from longjax.weights import names
from longjax.weights import tensors as source


def edit(path, **changes):
  """Changes keys of a JSON file; None removes."""
  value = json.loads(path.read_text()) | changes
  value = {k: v for k, v in value.items() if v is not None}
  path.write_text(json.dumps(value))


# Hugging Face


@pytest.mark.parametrize(
  'fields, settings, shards',
  [(MHA, dict(base=1e4), 1), (GQA, LLAMA31, 3),
   (TIED, LLAMA31 | dict(factor=32.0), 1), (GQA, YARN, 3), (GQA, LINEAR, 1)],
  ids=['llama2', 'llama31', 'llama32', 'yarn', 'linear'],
)  # fmt: skip
def test_huggingface_is_read_exactly(tmp_path, fields, settings, shards):
  truth = files.write_huggingface(tmp_path, fields, settings, shards=shards)
  params, config = weights.load(tmp_path)
  assert config == llama.Llama(
    **fields, rope=rope.Rope(**settings), dtype='float32'
  )
  assert_same(params, truth)


OLD = {  # as transformers 4 wrote it
  'llama2': (dict(base=1e4), {}),
  'llama3': (dict(base=5e5), dict(rope_theta=500000.0, rope_scaling=None)),
  'llama31': (LLAMA31, dict(rope_theta=500000.0, rope_scaling=dict(
    factor=8.0, high_freq_factor=4.0, low_freq_factor=1.0,
    original_max_position_embeddings=8192, rope_type='llama3'))),
  'linear': (LINEAR, dict(rope_scaling=dict(type='linear', factor=4.0))),
  'yarn': (YARN, dict(rope_theta=10000.0, rope_scaling=dict(
    type='yarn', factor=4.0, original_max_position_embeddings=4096,
    finetuned=True))),
}  # fmt: skip


@pytest.mark.parametrize('name', OLD)
def test_the_old_form_of_the_rope_is_read(tmp_path, name):
  wanted, keys = OLD[name]
  files.write_huggingface(tmp_path, GQA, {}, rope_parameters=None)
  edit(tmp_path / 'config.json', rope_parameters=None, **keys)
  assert weights.load(tmp_path)[1].rope == rope.Rope(**wanted)


def test_forms_that_contradict_each_other_are_refused(tmp_path):
  files.write_huggingface(tmp_path, GQA, dict(base=5e5), rope_theta=1e4)
  with pytest.raises(errors.InputError, match='contradicts rope_theta'):
    weights.load(tmp_path)


def test_a_shape_that_needs_head_dim_is_read(tmp_path):
  fields = GQA | dict(head_dim=32)  # heads x head_dim is not embed
  truth = files.write_huggingface(tmp_path, fields, dict(base=1e4))
  assert_same(weights.load(tmp_path)[0], truth)


def test_old_frequencies_are_ignored(tmp_path):
  tensors = files.huggingface(files.params(GQA))
  inverse = 1e4 ** -(np.arange(0, 16, 2) / 16)
  name = 'model.layers.0.self_attn.rotary_emb.inv_freq'
  tensors[name] = inverse.astype(np.float32)
  truth = files.write_huggingface(
    tmp_path, GQA, dict(base=1e4), tensors=tensors
  )
  assert_same(weights.load(tmp_path)[0], truth)


def test_a_tied_head_that_is_stored_must_be_the_embedding(tmp_path):
  tensors = files.huggingface(files.params(TIED))
  tensors['lm_head.weight'] = tensors['model.embed_tokens.weight'].copy()
  files.write_huggingface(tmp_path, TIED, dict(base=1e4), tensors=tensors)
  assert 'head' not in weights.load(tmp_path)[0]
  tensors['lm_head.weight'][3, 5] += 1
  files.write_huggingface(tmp_path, TIED, dict(base=1e4), tensors=tensors)
  with pytest.raises(errors.InputError, match=r'lm_head\.weight'):
    weights.load(tmp_path)


def test_long_llama_and_files_of_pytorch_are_read(tmp_path):
  """OpenLLaMA and LongLLaMA come as pytorch_model.bin."""
  truth = files.write_huggingface(
    tmp_path, MHA, dict(base=1e4), architectures=['LongLlamaForCausalLM'],
    model_type='longllama', mem_layers=[1], mem_dtype='bfloat16',
  )  # fmt: skip
  (tmp_path / 'model.safetensors').unlink()
  files.write_pytorch(tmp_path / 'pytorch_model.bin', files.huggingface(truth))
  assert_same(weights.load(tmp_path)[0], truth)


# Meta


@pytest.mark.parametrize(
  'fields, shards, embedding_dim',
  [(GQA, 1, 0), (MHA, 2, 1), (GQA, 2, 0), (EIGHT, 8, 0), (EIGHT, 8, 1)],
)
def test_meta_is_read_exactly(tmp_path, fields, shards, embedding_dim):
  truth = files.write_meta(
    tmp_path, fields, shards=shards, embedding_dim=embedding_dim
  )
  params, config = weights.load(tmp_path)
  assert config == llama.Llama(
    **fields, rope=rope.Rope(base=5e5), dtype='float32'
  )
  assert_same(params, truth)


def test_llama2_does_not_say_vocabulary_kv_heads_and_base(tmp_path):
  truth = files.write_meta(
    tmp_path, MHA, shards=2, embedding_dim=1, vocab_size=-1
  )
  edit(tmp_path / 'params.json', n_kv_heads=None, rope_theta=None)
  params, config = weights.load(tmp_path)
  assert config.rope == rope.Rope(base=1e4)
  assert_same(params, truth)


def test_a_head_that_is_the_embedding_is_tied(tmp_path):
  truth = files.write_meta(tmp_path, TIED)
  params, config = weights.load(tmp_path)
  assert config.tied
  assert_same(params, truth)


@pytest.mark.parametrize('told, factor', [(8, 8.0), (32.0, 32.0)])
def test_the_factor_of_scaled_rope_is_what_params_json_says(
  tmp_path, told, factor
):
  files.write_meta(
    tmp_path, GQA, use_scaled_rope=True, rope_scaling_factor=told
  )
  assert weights.load(tmp_path)[1].rope == rope.Rope(
    **LLAMA31 | dict(factor=factor)
  )


def test_the_factor_of_scaled_rope_is_not_guessed(tmp_path):
  files.write_meta(tmp_path, GQA, use_scaled_rope=True)
  with pytest.raises(errors.InputError, match='rope_scaling_factor'):
    weights.load(tmp_path)


def test_released_shapes_have_the_factor_of_their_release():
  meta = weights.meta
  scaled = dict(rope_theta=5e5, use_scaled_rope=True)
  assert meta._rope(scaled, 4096, 32)['factor'] == 8  # Llama 3.1 8B
  assert meta._rope(scaled, 2048, 16)['factor'] == 32  # Llama 3.2 1B


def test_old_frequencies_of_meta_are_ignored(tmp_path):
  tensors = files.meta(files.params(MHA), MHA)
  tensors['rope.freqs'] = (5e5 ** -(np.arange(0, 16, 2) / 16)).astype('f4')
  truth = files.write_meta(tmp_path, MHA, tensors=tensors)
  assert_same(weights.load(tmp_path)[0], truth)


def test_files_of_several_formats_in_one_directory_are_refused(tmp_path):
  files.write_meta(tmp_path, GQA)
  files.write_huggingface(tmp_path, GQA, dict(base=5e5))
  with pytest.raises(errors.InputError, match='2 formats'):
    weights.load(tmp_path)


# What they are loaded into


@pytest.mark.parametrize('form', ['huggingface', 'meta'])
def test_logits_are_those_of_the_reference_near_and_far(tmp_path, form):
  """In float32 against float64; 2e-4 as for real models."""
  if form == 'meta':
    truth = files.write_meta(
      tmp_path, EIGHT, shards=8, use_scaled_rope=True, rope_scaling_factor=8
    )
    fields = EIGHT
  else:
    truth = files.write_huggingface(tmp_path, GQA, LLAMA31, shards=2)
    fields = GQA
  tokens = np.random.default_rng(3).integers(0, 96, 48)
  here = batch.one_document(tokens)
  positions = np.where(
    np.arange(48) < 24, np.arange(48), 40_000 + np.arange(48)
  )
  here = here._replace(positions=positions[None].astype(np.int32))
  found = llama.forward(*weights.load(tmp_path), here)
  wanted = reference.forward(
    truth, fields | dict(rope=LLAMA31), tokens[None],
    segments=here.segments, positions=here.positions, index=here.index,
  )  # fmt: skip
  assert wanted.std() > 0.5
  np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-4)


@pytest.mark.parametrize('form', ['huggingface', 'meta'])
def test_placed_on_a_mesh_each_device_holds_its_part(tmp_path, make_mesh, form):
  if form == 'meta':
    truth = files.write_meta(tmp_path, GQA, shards=2)
  else:
    truth = files.write_huggingface(tmp_path, GQA, dict(base=5e5))
  mesh = make_mesh(2, 4)
  place = lambda config: sharding.params(llama.abstract(config), mesh)
  params, config = weights.load(tmp_path, place=place)
  assert_same(jax.device_get(params), truth)
  jax.tree.map(
    lambda x, s: x.sharding.is_equivalent_to(s, x.ndim) or pytest.fail(),
    params,
    place(config),
  )


def test_a_host_reads_only_what_it_holds(tmp_path):
  """NaN in the other half of a matrix, or in another layer, is not met."""
  tensors = files.huggingface(files.params(GQA))
  tensors['model.layers.0.mlp.up_proj.weight'][:, 32:] = np.nan
  tensors['model.layers.1.mlp.up_proj.weight'][:] = np.nan
  files.write_huggingface(tmp_path, GQA, dict(base=1e4), tensors=tensors)
  found = weights.find(tmp_path)
  (row,) = (x for x in names.TABLE if x.path == 'layers/up')
  whole = slice(None)
  mine = source.parts(found, row, [(slice(0, 1), slice(0, 32), whole)])
  np.testing.assert_array_equal(
    mine[0], files.params(GQA)['layers']['up'][:1, :32]
  )
  with pytest.raises(errors.InputError, match=r'layers\.0\.mlp\.up_proj'):
    source.parts(found, row, [(slice(0, 1), slice(16, 64), whole)])


def test_yarn_mistrals_own_code_is_not_taken_for_that_of_transformers(tmp_path):
  """NousResearch/Yarn-Mistral-7b-128k, as its code writes it."""
  files.write_huggingface(tmp_path, GQA, {}, rope_parameters=None)
  edit(
    tmp_path / 'config.json', rope_parameters=None, model_type='mistral',
    architectures=['MistralForCausalLM'], rope_theta=10000.0,
    rope_scaling=dict(
      type='yarn', factor=16.0, original_max_position_embeddings=8192,
      finetuned=True)
  )  # fmt: skip
  with pytest.raises(errors.InputError, match=r'beta_fast 128, beta_slow 2'):
    weights.load(tmp_path)
