"""The laboratory: a Llama of 0.1 M parameters from scratch, 64 bytes.

  python launch/lab.py

makes the documents, trains this config and its extensions (extend.py) with
three seeds, and compares them: docs/lab.md. Half of the rows are plays of
Shakespeare, half are random letters that repeat, from which even so small a
model learns to look back.
"""

from configs import common

WINDOW = 64
SIZE = dict(
  vocab=384, layers=2, embed=64, mlp=192, heads=2, kv_heads=2, head_dim=32,
  tied=True,
)  # fmt: skip


def get_config():
  config = common.base('tiny')
  config.name = 'lab_base'
  config.weights = 'random'
  config.model.update(
    **SIZE, dtype='float32', attention='reference', remat='none'
  )
  config.data.layout = 'contiguous'
  config.data.sources = dict(
    plays=dict(path='runs/lab/documents/plays'),
    again=dict(path='runs/lab/documents/again_64'),
  )
  config.data.mix = dict(plays=dict(weight=0.5), again=dict(weight=0.5))
  config.train.update(
    steps=600, batch=32, seq_len=WINDOW, loss_chunk=WINDOW
  )  # 2,048 bytes a step
  config.optim.update(
    learning_rate=5e-3, schedule='cosine', warmup_steps=50, min_ratio=0.1
  )
  config.checkpoint.update(every_steps=600, keep=1)
  return config
