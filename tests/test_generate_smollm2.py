"""Real weights: SmolLM2's text and losses are those of transformers.

Run by .ci/run; needs torch, transformers and the weights (test_smollm2.py says
where from).
"""

import os

import numpy as np
import pytest
from commands import ROOT, run
from test_smollm2 import path  # noqa: F401  (a fixture)

from longjax import weights
from longjax.batch import one_document
from longjax.data import tokenizer
from longjax.inference import generate, language_model

pytestmark = pytest.mark.slow
OPENINGS = (
  'The capital of France is', 'Once upon a time', 'Water boils at',
  'def fibonacci(n):', 'The three primary colors are', 'In 1969,',
  'To make bread you need', 'The opposite of hot is', 'Dear Sir,',
  'The largest planet is', 'A triangle has', 'import numpy as np\n',
  'The sun rises in the', 'My favorite book is', 'E = mc^2 means',
  'Photosynthesis is', 'The first president', '1, 2, 3, 4,',
  'Shakespeare wrote', 'When it rains,',
)  # fmt: skip


@pytest.fixture(scope='module')
def theirs(path):  # noqa: F811
  torch = pytest.importorskip('torch')
  pytest.importorskip('accelerate')
  transformers = pytest.importorskip('transformers')
  directory, name = os.path.split(path)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    directory, gguf_file=name, dtype=torch.float32
  )
  return torch, model


@pytest.fixture(scope='module')
def ours(path):  # noqa: F811
  params, config = weights.load(path)
  lm = language_model.with_cache(
    params, config, options=generate.Options(rows=20)
  )
  return lm, tokenizer.load(path)


def continued(theirs, ids, count):
  """transformers' greedy continuation."""
  torch, model = theirs
  with torch.no_grad():
    out = model.generate(
      torch.tensor(np.asarray(ids, np.int64)[None]), max_new_tokens=count,
      do_sample=False, eos_token_id=None,
    )  # fmt: skip
  return out[0, len(ids) :].numpy()


def test_twenty_greedy_texts_are_those_of_transformers(ours, theirs):
  lm, tokens = ours
  asked = [tokens.encode(text) for text in OPENINGS]
  found = lm.generate(asked, 16)
  for text, ids, answer in zip(OPENINGS, asked, found):
    np.testing.assert_array_equal(answer, continued(theirs, ids, 16), text)


def losses_of(theirs, ids):
  """transformers' losses of all tokens but the first."""
  torch, model = theirs
  ids = torch.tensor(np.asarray(ids, np.int64))
  with torch.no_grad():
    hidden = model.model(ids[None]).last_hidden_state[0]
    losses = [  # the logits of 8K tokens at once would take 1.6 GB
      torch.nn.functional.cross_entropy(
        model.lm_head(x[: len(y)]), y, reduction='none'
      )
      for x, y in zip(hidden.split(512), ids[1:].split(512))
    ]
  return torch.cat(losses).numpy()


def test_losses_by_position_are_those_of_transformers(ours, theirs):
  """To 1e-3 nats in each eighth of LONGJAX_LOSSES tokens, default 2,048."""
  lm, tokens = ours
  seq = int(os.environ.get('LONGJAX_LOSSES', '2048'))
  files = sorted((ROOT / 'longjax').rglob('*.py'))
  ids = tokens.encode('\n'.join(f.read_text() for f in files))[:seq]
  assert len(ids) == seq
  found = lm.nll(one_document(ids))[0, : seq - 1]
  parts = lambda x: [part.mean() for part in np.array_split(x, 8)]
  wanted = losses_of(theirs, ids)
  np.testing.assert_allclose(parts(found), parts(wanted), atol=1e-3)


def test_the_command_holds_a_conversation(path):  # noqa: F811
  done = run(
    'generate.py', '--config=configs/smollm2_135m_abf_16k.py',
    '--config.mesh.seq=1', f'--checkpoint={path}', '--chat=smollm2',
    '--prompt=What is the capital of France?', '--tokens=24',
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert done.stdout == 'The capital of France is Paris.\n'
