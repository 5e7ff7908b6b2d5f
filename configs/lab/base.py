"""The laboratory: a Llama of 0.1 M parameters from scratch, 64 tokens.

  python launch/lab.py

makes the documents, trains this config and its extensions (extend.py) with
three seeds, and compares them: docs/lab.md. The documents are plays of
Shakespeare as bytes, and the tasks of longjax/lab/miniature.py, whose loss
counts the answers only. Two variants are bases with less RoPE.
"""

from configs import common

WINDOW = 64
SIZE = dict(
  vocab=384, layers=2, embed=64, mlp=128, heads=4, kv_heads=4, head_dim=16,
  tied=True,
)  # fmt: skip
# As many turns of RoPE in the window as base 10,000 makes in 4,096 tokens.
BASE = 10_000.0 * WINDOW / 4096
PLAYS = 0.15  # of the rows
VARIANTS = dict(
  base={},
  nope={'model.rope.scaling': 'nope'},  # arXiv:2305.19466
  rnope={'model.nope_layers': (1,)},  # SmolLM3: the last layer of each group
)
TASKS = ('look_up', 'passkey', 'first')  # of longjax/lab/miniature.py


def of_length(length):
  """The sources of task documents of so many tokens (longjax/lab)."""
  return tuple(f'{task}_{length}' for task in TASKS)


def get_config(name='base'):
  changes = common.variant(VARIANTS, name)
  config = common.base('tiny', base=BASE)
  config.name = f'lab_{name}'
  config.weights = 'random'
  config.model.update(
    **SIZE, dtype='float32', attention='reference', remat='none'
  )
  config.update_from_flattened_dict(changes)
  config.data.directory = 'runs/lab/documents'
  config.data.layout = 'contiguous'
  config.data.mix = dict(
    plays=dict(weight=PLAYS),
    short=dict(weight=1 - PLAYS, sources=of_length(WINDOW)),
  )
  config.train.update(
    steps=1000, batch=32, seq_len=WINDOW, loss_chunk=WINDOW
  )  # 2,048 tokens a step
  config.optim.update(
    learning_rate=5e-3, schedule='cosine', warmup_steps=50, min_ratio=0.1,
    spike_sigmas=0.0,  # its loss falls in a jump when it learns to look up
  )  # fmt: skip
  config.checkpoint.update(every_steps=1000, keep=1)
  config.eval.update(batch=8, window=WINDOW)
  return config
