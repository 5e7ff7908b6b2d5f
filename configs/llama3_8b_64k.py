"""ProLong stage 1: Llama 3 8B Instruct at 65,536 tokens (arXiv:2410.02660).

  python launch/tpu.py --config configs/llama3_8b_64k.py
      --config.weights=/data/llama3_8b_instruct
      --config.data.directory=/data/prolong

Or on the data that its authors released, whose packs are read as they are:

  python launch/tpu.py --config configs/llama3_8b_64k.py:released
      --config.weights=/data/llama3_8b_instruct
      --config.data.root=/data/long-context-65536

For 64 chips of TPU v5p. The loss is the mean of those of the rows, as in its
trainer. Another argument is an ablation of section 3 or 4: 5B tokens, Llama 3
8B base, books and code repositories 1:1 with the older short mix, e.g.
configs/llama3_8b_64k.py:base_4m. Not run on a TPU.
"""

from typing import Any

from configs import common

# Table 9: shares of all tokens. Long documents are cut to the row exactly.
SHORT = dict(
  fineweb_edu=0.10, fineweb=0.10, stackexchange=0.04, wikipedia=0.04,
  tulu=0.03, arxiv=0.03, openwebmath=0.03,
)  # fmt: skip
LONG = dict(code=0.30, books=0.30, textbooks=0.03)
# Table 5: the short mix of the ablations.
OLD_SHORT = dict(
  fineweb=25, fineweb_edu=25, wikipedia=10, tulu=10, stackexchange=10,
  arxiv=10, openwebmath=10,
)  # fmt: skip
BASES = dict(base_05m=5e5, base_4m=4e6, base_8m=8e6)  # table 18
RATIOS = {f'long_{p}': p / 100 for p in (0, 20, 40, 60, 80, 100)}  # figure 3
VARIANTS = ('', 'released', *BASES, *RATIOS, 'no_masks')  # no_masks: table 20
HUB = (
  'hf://datasets/princeton-nlp/prolong-data-64K'
  '@1447128c751f0fbc7d2082b2a113a938426a9bba'
)
RELEASED = dict(  # directories of HUB
  code='thestackv1_concat_by_repo-65536', books='book-65536',
  textbooks='textbooks', fineweb_edu='fineweb-edu', fineweb='fineweb-2023-50',
  stackexchange='stackexchange', wikipedia='dolmawiki', tulu='tuluv2',
  arxiv='arxiv', openwebmath='openwebmath',
)  # fmt: skip


def mixed(long, short, **how) -> dict[str, dict[str, Any]]:
  """data.mix of shares by source: long ones whole, short ones joined."""
  parts = {k: dict(weight=w, pack='whole', **how) for k, w in long.items()}
  return parts | {k: dict(weight=w, **how) for k, w in short.items()}


def released(config, hub, directories, loss='all'):
  """Reads released MDS shards: their ids, packed as they were.

  Args:
    config: its mix has packs of the lengths that were released.
    hub: where the directories are, unless data.root is set.
    directories: by source, of those in the mix.
    loss: 'all' ignores the mask that tulu has (train_64K.sh).
  """
  config.data.root = hub
  config.data.sources = {
    name: dict(path=path, kind='tokens', loss=loss)
    for name, path in directories.items()
  }
  for component in config.data.mix.values():
    component.update(pack='in_order', sources=(), max_length=0)


def ablation(config, name):
  config.train.steps = 1250  # appendix A.4: 5B tokens
  config.optim.warmup_steps = 125
  config.model.rope.base = BASES.get(name, 8e6)
  share = RATIOS.get(name, 0.6)  # appendix A.4: 60 % long
  long = dict(code=share / 2, books=share / 2)
  short = {k: w / 100 * (1 - share) for k, w in OLD_SHORT.items()}
  present = lambda parts: {k: w for k, w in parts.items() if w}
  how = dict(masked=False) if name == 'no_masks' else {}
  config.data.mix = mixed(present(long), present(short), **how)


def get_config(name=''):
  config = common.published('llama3_8b', base=8_000_000.0)  # table 9
  config.name = 'llama3_8b_64k' + (f'_{name}' if name else '')
  config.model.block = 2048
  config.mesh.update(data=16, seq=4)
  config.data.layout = 'balanced'
  config.data.mix = mixed(LONG, SHORT)
  config.data.loss = '64k'  # its trainer, without token_scaled_loss
  config.train.update(
    steps=5000,  # 20B tokens, table 9
    batch=64,  # 4M tokens, table 9
    seq_len=65_536,
    loss_chunk=2048,  # LOGIT_BLOCK_SIZE of its scripts
  )
  config.optim.update(
    learning_rate=1e-5, schedule='cosine', min_ratio=0.1,  # table 9
    warmup_steps=500,  # 10 %, table 9
    weight_decay=0.1, b1=0.9, b2=0.95, clip=1.0,  # table 9
    decayed='with_norms',  # its trainer, with transformers 4.44
  )  # fmt: skip
  config.checkpoint.every_steps = 100
  common.variant(dict.fromkeys(VARIANTS), name)
  if name == 'released':
    released(config, HUB, RELEASED)
  elif name:
    ablation(config, name)
  return config
