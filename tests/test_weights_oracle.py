"""Import and export against the code of others: Meta's, transformers, torch.

Random weights in float32. Positions run from 0 and again from
beyond 32,768 in one document, so that far distances count too. There both
oracles' own angles are off by 2e-3 rad, since they multiply in float32; each
is therefore given the frequencies in float64 as well, and then agrees to 2e-4.
"""

import os

import numpy as np
import pytest
import weight_files as files
from weight_files import EIGHT, GQA, LINEAR, LLAMA31, MHA, YARN

from longjax import batch, llama, rope, weights
from longjax.weights import config_json, convert, tensor_files

pytestmark = pytest.mark.slow
torch = pytest.importorskip('torch')

TOKENS = np.random.default_rng(5).integers(0, 96, 48)
NEAR = np.arange(48)
FAR = np.where(NEAR < 24, NEAR, NEAR + 40_000)
LLAMA32 = LLAMA31 | dict(factor=32.0)
FLOAT32 = np.dtype('float32')
SCALED = dict(use_scaled_rope=True, rope_scaling_factor=8)
# Logits of transformers beyond 32,768 as it stands: they differ by up to 0.008,
# by 7 and more where the scaling is left out.
AS_IT_STANDS = 0.02


def quiet(_):
  pass


def our_logits(path, positions):
  """[48, 96] of what is loaded from a path."""
  one = batch.one_document(TOKENS)._replace(
    positions=positions[None].astype(np.int32)
  )
  return np.asarray(llama.forward(*weights.load(path), one))[0]


def assert_close(found, wanted, atol=2e-4):
  assert wanted.std() > 0.5
  np.testing.assert_allclose(found, wanted, rtol=0, atol=atol)


# transformers, whose models test_weights_kin.py has


@pytest.mark.parametrize('settings', [
  YARN, LLAMA32, LINEAR, dict(scaling='ntk', factor=4.0),
  YARN | dict(scaling='ntk_by_parts'), YARN | dict(scaling='yarn_paper'),
  dict(scaling='longrope', factor=4.0, original_length=4096,
       divisors=tuple(np.linspace(1, 5, 8))),
])  # fmt: skip
def test_transformers_makes_our_frequencies_of_what_we_export(settings):
  transformers = pytest.importorskip('transformers')
  config = llama.Llama(**GQA, rope=rope.Rope(**settings))
  rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(
    transformers.LlamaConfig(
      **config_json.content(config, 16_384, 'float32', None)
    )
  )
  wanted, temperature = rope.frequencies(config.rope, config.head_dim)
  np.testing.assert_allclose(rotary.inv_freq.numpy(), wanted, rtol=1e-5)
  assert rotary.attention_scaling == pytest.approx(temperature, rel=1e-6)


# Meta's


@pytest.fixture(scope='module')
def meta_model():
  """make(fields, state_dict, scaled): Meta's Transformer, on one process."""
  model_parallel = pytest.importorskip('fairscale.nn.model_parallel')
  metas = pytest.importorskip('llama_models.llama3.model')
  from llama_models.llama3.args import ModelArgs

  os.environ |= dict(RANK='0', WORLD_SIZE='1', MASTER_ADDR='127.0.0.1',
                     MASTER_PORT='0')  # fmt: skip
  store = torch.distributed.HashStore()
  torch.distributed.init_process_group(
    'gloo', store=store, rank=0, world_size=1
  )
  model_parallel.initialize_model_parallel(1)

  def make(fields, state, scaled):
    arguments = ModelArgs(
      dim=fields['embed'], n_layers=fields['layers'], n_heads=fields['heads'],
      n_kv_heads=fields['kv_heads'], vocab_size=fields['vocab'],
      norm_eps=fields['norm_eps'], rope_theta=5e5, use_scaled_rope=scaled,
      max_batch_size=1, max_seq_len=64, multiple_of=1,
      ffn_dim_multiplier=fields['mlp'] / int(8 * fields['embed'] / 3) + 1e-9,
    )  # fmt: skip
    model = metas.Transformer(arguments).float().eval()
    model.load_state_dict(state)
    return model

  yield make
  model_parallel.destroy_model_parallel()
  torch.distributed.destroy_process_group()


def meta_logits(model, positions):
  """With the frequencies of Meta's own code, in float64."""
  from llama_models.llama3.model import apply_scaling

  args = model.params
  dim = args.dim // args.n_heads
  frequencies = 1 / args.rope_theta ** (torch.arange(0, dim, 2).double() / dim)
  if args.use_scaled_rope:
    frequencies = apply_scaling(frequencies)
  angles = torch.outer(torch.tensor(positions).double(), frequencies)
  model.freqs_cis = torch.polar(torch.ones_like(angles), angles).to(
    torch.complex64
  )
  return model(torch.tensor(TOKENS[None]), 0)[0].numpy()


@pytest.mark.parametrize(
  'fields, shards, dim, scaled',
  [(MHA, 1, 0, False), (GQA, 1, 0, True), (MHA, 2, 1, False),
   (GQA, 2, 0, True), (EIGHT, 8, 0, True), (EIGHT, 8, 1, False)],
)  # fmt: skip
def test_logits_are_those_of_meta_s_code(
  tmp_path, meta_model, fields, shards, dim, scaled
):
  tensors = files.meta(files.params(fields, dtype=FLOAT32), fields, FLOAT32)
  files.write_meta(
    tmp_path, fields, shards=shards, embedding_dim=dim, tensors=tensors,
    **(SCALED if scaled else {}),
  )  # fmt: skip
  paths = sorted(tmp_path.glob('*.pth'))
  if dim == 0 and shards > 1:  # merged by Meta's code; it cuts by vocabulary
    from llama_models.checkpoint import maybe_reshard_state_dict

    try:
      state = maybe_reshard_state_dict(paths, fields['kv_heads'], mmap=False)
    finally:
      torch.set_default_tensor_type(torch.FloatTensor)
  else:
    state = {name: torch.tensor(x) for name, x in tensors.items()}
  model = meta_model(fields, state, scaled)
  for positions in (NEAR, FAR):
    assert_close(our_logits(tmp_path, positions), meta_logits(model, positions))


@pytest.mark.parametrize('scaled', [False, True])
def test_from_meta_to_transformers_the_logits_stay(
  tmp_path, meta_model, scaled
):
  transformers = pytest.importorskip('transformers')
  tensors = files.meta(files.params(GQA, dtype=FLOAT32), GQA, FLOAT32)
  state = {name: torch.tensor(x) for name, x in tensors.items()}
  wanted = meta_logits(meta_model(GQA, state, scaled), NEAR)
  more = SCALED if scaled else {}
  files.write_meta(tmp_path / 'meta', GQA, tensors=tensors, shards=2, **more)
  convert.to_checkpoint(tmp_path / 'meta', tmp_path / 'run', log=quiet)
  convert.to_huggingface(tmp_path / 'run', tmp_path / 'out', log=quiet)
  model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'out')
  with torch.no_grad():
    assert_close(model(torch.tensor(TOKENS[None])).logits[0].numpy(), wanted)


# The files of the tests themselves


def test_files_of_the_tests_are_those_of_the_libraries(tmp_path):
  from safetensors import torch as safe

  tensors = files.huggingface(files.params(GQA))
  theirs = {
    n: torch.tensor(x.view(np.int16)).view(torch.bfloat16)
    for n, x in tensors.items()
  }
  files.write_safetensors(tmp_path / 'ours', tensors)
  safe.save_file(theirs, tmp_path / 'theirs', metadata=dict(format='pt'))
  assert (tmp_path / 'ours').read_bytes() == (tmp_path / 'theirs').read_bytes()
  files.write_pytorch(tmp_path / 'x.pth', tensors)
  found = torch.load(tmp_path / 'x.pth', weights_only=True)
  assert found.keys() == theirs.keys()
  assert all(torch.equal(found[name], x) for name, x in theirs.items())


@pytest.mark.parametrize('dtype', ['float32', 'float16', 'bfloat16'])
def test_what_torch_saves_is_read_exactly(tmp_path, dtype):
  """Views with strides and shared storage too."""
  base = torch.randn(40, 30).to(getattr(torch, dtype))
  tensors = dict(
    whole=base, rows=base[3:9], transposed=base.T, columns=base[:, 5:20],
    parameter=torch.nn.Parameter(base[1].float()),
  )  # fmt: skip
  torch.save(tensors, tmp_path / 'x.pth')
  found = tensor_files.pytorch(tmp_path / 'x.pth')
  for name, x in tensors.items():
    wide = found[name].read().astype('f4')
    np.testing.assert_array_equal(wide, x.detach().float().numpy())
