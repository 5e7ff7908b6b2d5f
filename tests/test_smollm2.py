"""Real weights: our SmolLM2-135M has the logits that transformers gives it.

golden/smollm2_logits.json holds numbers made once by transformers, with the
program that made them beside it: where torch is not installed they remain. The
model is LONGJAX_SMOLLM2, the path of its .gguf file, or what an earlier run of
configs/smollm2_135m_* has left in the cache; nothing is downloaded here. All is
slow: loading it takes 5 seconds, and what is small has the same code compared
with the oracle (test_llama.py) and with the formats (test_weights_formats.py).

"Most top-1 tokens agree" is no test: with q and k left interleaved 92 % still
do on a short prompt. Hence 1e-3 on logits whose standard deviation is 6.
"""

import hashlib
import json
import os
import pathlib

import jax
import numpy as np
import pytest
import reference

from longjax import batch, cache, llama, weights
from longjax.data import tokenizer
from longjax.weights import convert

pytestmark = pytest.mark.slow
GOLDEN = json.loads(
  (pathlib.Path(__file__).parent / 'golden/smollm2_logits.json').read_text()
)
SHORT = GOLDEN['short']
NAME = 'SmolLM2-135M-Instruct.Q4_1.gguf'


@pytest.fixture(scope='module')
def path():
  """The GGUF file that the golden numbers are of."""
  cached = cache.directory().glob(f'files/*/{NAME}')
  path = os.environ.get('LONGJAX_SMOLLM2') or next(cached, None)
  if path is None:
    pytest.skip(f'not in the cache; set LONGJAX_SMOLLM2 to {NAME}')
  with open(path, 'rb') as file:
    digest = hashlib.file_digest(file, 'sha256').hexdigest()
  assert digest == GOLDEN['gguf_sha256'], path
  return path


@pytest.fixture(scope='module')
def model(path):
  return weights.load(path)


def logits_of(model, tokens):
  """Our logits [seq, vocab] of one document."""
  return np.asarray(llama.forward(*model, batch.one_document(tokens)))[0]


def test_architecture_is_the_published_one(model):
  params, config = model
  count = sum(x.size for x in params['layers'].values())
  assert count + params['embedding'].size + params['norm'].size == 134_515_008
  assert 'head' not in params
  assert config == llama.Llama(
    vocab=49_152, layers=30, embed=576, mlp=1536, heads=9, kv_heads=3,
    head_dim=64, norm_eps=1e-5, tied=True, dtype='float32',
    rope=llama.rope.Rope(base=100_000.0),
  )  # fmt: skip


def test_logits_and_nll_are_those_of_transformers(model):
  tokens = np.array(GOLDEN['tokens'][:SHORT])
  logits = logits_of(model, tokens)
  positions, ids, wanted = np.array(GOLDEN['entries']).T
  found = logits[positions.astype(int), ids.astype(int)]
  np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-3)
  nll = reference.token_nll(logits[None, :-1], tokens[None, 1:]).sum()
  assert nll == pytest.approx(GOLDEN['short_nll'], abs=1e-4 * SHORT)


def test_2048_tokens_have_the_logits_of_transformers(path, model):
  torch = pytest.importorskip('torch')
  pytest.importorskip('accelerate')  # transformers reads GGUF with it
  transformers = pytest.importorskip('transformers')
  directory, name = os.path.split(path)
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    directory, gguf_file=name, dtype=torch.float32
  )
  tokens = np.array(GOLDEN['tokens'])
  with torch.no_grad():
    wanted = theirs(torch.tensor(tokens[None])).logits[0].numpy()
  found = logits_of(model, tokens)
  assert wanted.std() > 4
  np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-3)


def test_exported_it_is_the_same_model_in_transformers(path, model, tmp_path):
  """The released rope; past 8,192 the angles of transformers are float32's."""
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  convert.to_checkpoint(path, tmp_path / 'run')
  convert.to_huggingface(
    tmp_path / 'run', tmp_path / 'hf', shard_bytes=200_000_000
  )
  params, config = weights.load(tmp_path / 'hf')
  assert config == model[1]
  jax.tree.map(np.testing.assert_array_equal, params, model[0])
  theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'hf')
  tokens = np.array(GOLDEN['tokens'][:SHORT])
  positions = np.arange(SHORT) + np.where(np.arange(SHORT) < 64, 0, 12_000)
  here = batch.one_document(tokens)._replace(
    positions=positions[None].astype(np.int32)
  )
  with torch.no_grad():
    wanted = (
      theirs(
        torch.tensor(tokens[None]),
        position_ids=torch.tensor(positions[None]),
        attention_mask=torch.full((SHORT, SHORT), -torch.inf).triu(1)[
          None, None
        ],
      )
      .logits[0]
      .numpy()
    )
  found = np.asarray(llama.forward(params, config, here))[0]
  np.testing.assert_allclose(found, wanted, rtol=0, atol=0.05)
  nll = [
    reference.token_nll(x[None, :-1], tokens[None, 1:]).mean()
    for x in (found, wanted)
  ]
  assert np.exp(nll[0]) == pytest.approx(np.exp(nll[1]), rel=5e-4)
  text = "It's 2026:\n\tx = f(3.14) -- na\u00efve <|im_end|> \U0001f600"
  ids = transformers.AutoTokenizer.from_pretrained(tmp_path / 'hf')
  ours = tokenizer.load(tmp_path / 'run').encode(text, special=['<|im_end|>'])
  assert ids(text)['input_ids'] == ours.tolist()
