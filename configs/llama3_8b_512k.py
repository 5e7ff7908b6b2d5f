"""ProLong stage 2: Llama 3 8B at 524,288 tokens (arXiv:2410.02660).

  python launch/tpu.py --config configs/llama3_8b_512k.py
      --config.weights=/data/runs/llama3_8b_64k
      --config.data.directory=/data/prolong

or with the data that its authors released, as llama3_8b_64k.py:

  python launch/tpu.py --config configs/llama3_8b_512k.py:released ...
      --config.data.root=/data/long-context-524288

For 64 chips of TPU v5p. Goes on from a run of llama3_8b_64k.py: its weights
and the moments of AdamW; step and schedule start anew. Rows hold a document of
512K tokens or eight packs of 64K that do not see each other. Another argument
is an ablation: a base, over 5B tokens (table 19), or which length 4B more
tokens have (table 7). Not run on a TPU; compiled for one ahead of time
(docs/plan.md).
"""

from configs import common, llama3_8b_64k

MIDDLE = 65_536  # tokens of a pack of anything but the longest documents
# Table 9 and train_512K.sh: of code half is 512K long, of books a sixth.
LONGEST = dict(code_512k=0.15, books_512k=0.05, textbooks=0.03)
LONG = dict(code=0.15, books=0.25)
BASES = dict(base_64m=6.4e7, base_128m=1.28e8, base_256m=2.56e8)  # table 19
LENGTHS = ('more_64k', 'more_512k')  # table 7
VARIANTS = ('', 'released', *BASES, *LENGTHS)
HUB = 'hf://datasets/princeton-nlp/prolong-data-512K@main'
RELEASED = llama3_8b_64k.RELEASED | dict(
  code_512k='thestackv1_concat_by_repo-524288', books_512k='book-524288'
)
NAMES = dict(code_512k=('code',), books_512k=('books',))


def mix():
  parts = llama3_8b_64k.mixed(LONG, llama3_8b_64k.SHORT, length=MIDDLE)
  for name in LONG:  # disjoint from the longest
    parts[name]['max_length'] = 524_288
  longest = llama3_8b_64k.mixed(LONGEST, {})
  for name, sources in NAMES.items():
    longest[name]['sources'] = sources
  return parts | longest


def ablation(config, name):
  config.model.rope.base = BASES.get(name, 1.28e8)
  config.train.steps = 625 if name in BASES else 500  # 5B tokens, or 4B
  if name == 'more_64k':  # as in stage 1
    before = llama3_8b_64k.get_config()
    config.model.rope.base = before.model.rope.base
    config.mesh.update(before.mesh)
    config.data.mix = before.data.mix
    config.train = before.train
    config.train.steps = 1000
  config.optim.warmup_steps = -(-config.train.steps // 10)  # 10 %


def get_config(name=''):
  common.variant(dict.fromkeys(VARIANTS), name)
  config = common.published('llama3_8b', base=128_000_000.0)  # table 9
  config.name = 'llama3_8b_512k' + (f'_{name}' if name else '')
  config.moments = True  # README and train_512K.sh
  config.model.block = 2048
  config.mesh.update(data=4, seq=16)
  config.data.layout = 'balanced'
  config.data.mix = mix()
  config.data.loss = '64k'  # as stage 1, of the 65,536 tokens of each device
  config.train.update(
    steps=2500,  # 20B tokens, table 9
    batch=16,  # 8M tokens, table 9
    micro_batches=4,
    seq_len=524_288,
    loss_chunk=2048,  # LOGIT_BLOCK_SIZE of its scripts
  )
  config.optim.update(
    learning_rate=1e-5,  # table 9; train_512K.sh has 5e-6
    schedule='cosine', min_ratio=0.1,
    warmup_steps=250,  # 10 %, table 9
    weight_decay=0.1, b1=0.9, b2=0.95, clip=1.0,
    decayed='with_norms',  # as stage 1
  )  # fmt: skip
  config.checkpoint.every_steps = 25
  if name == 'released':
    llama3_8b_64k.released(config, HUB, RELEASED)
  elif name:
    ablation(config, name)
  return config
