"""The laboratory: the base model, 64 tokens, extended to 256 by each method.

  python launch/lab.py

Every method gets as many tokens: 100 steps of 4,096.
"""

from configs import common
from configs.lab import base

TARGET = 4 * base.WINDOW
LONG = 0.6  # of the rows with tasks, ProLong, arXiv:2410.02660, figure 3
ABF = dict(base=50 * base.BASE)  # arXiv:2309.16039, section 4.1: 50 times
PI = dict(base=base.BASE, scaling='linear', factor=4.0)  # arXiv:2306.15595
SAME = dict(base=base.BASE)
# The divisors are ours, not searched for: 1 for pairs that turn five times in
# the window, 4 for those that make no turn.
LONGROPE = dict(
  scaling='longrope', original_length=base.WINDOW, unscaled=4,
  divisors=(1.0, 1.0, 1.5, 2.5, 4.0, 4.0, 4.0, 4.0),
  short_divisors=(1.0,) * 8,
)  # fmt: skip
ROPES = dict(
  none=SAME,
  abf=ABF,
  pi=PI,
  ntk=PI | dict(scaling='ntk'),  # arXiv:2309.00071, section 3.1
  yarn=PI | dict(scaling='yarn', original_length=base.WINDOW),
  curriculum=ABF,  # arXiv:2309.16039, section 4.4
  joined=ABF,  # without document masks, arXiv:2410.02660, table 20
  pose=PI,  # arXiv:2309.10400, rows of 64
  short=SAME,  # more of the same: rows of 64
  fot=SAME,  # arXiv:2307.03170: rows of 64, and memory
  superhot=PI,  # LoRA on q, k, v, o, as the model card of superhot-30b-8k
  longlora=PI,  # arXiv:2309.12307: LoRA, attention in groups of a quarter
  longce=PI,  # arXiv:2410.23771
  longrope=PI | LONGROPE,  # arXiv:2402.13753
  interleaved=ABF,  # arXiv:2406.00605: long rows of short documents' chunks
  skipalign=PI,  # arXiv:2405.03939, rows of 64
  pi_64=PI,  # rows of 64 and no more, what pose and skipalign compare with
  abf_64=ABF,  # the same for interleaved
  smollm3_128=dict(base=30 * base.BASE),  # 5e4, 1.5e6, 5e6: its release note
  smollm3=dict(base=100 * base.BASE),
)
VARIANTS = ROPES
# A run of the laboratory that is extended, where it is not the base.
STARTS = dict(smollm3_128='rnope', smollm3='smollm3_128')
SHORT_ROWS = ('pose', 'short', 'fot', 'skipalign', 'pi_64', 'abf_64')
LORA = dict(
  superhot=dict(rank=4, alpha=8.0, whole=()),
  longlora=dict(rank=8, alpha=16.0, whole=('embedding', 'norm')),
)


def chain(method):
  """A method, after those from whose weights it starts."""
  start = STARTS.get(method)
  return (*chain(start), method) if start else (method,)


def mixture(masked, tokens=TARGET):
  """Packs of 256 tokens, a row or four: documents that fill one, or short."""
  tasks, length = 1 - base.PLAYS, dict(length=tokens)
  short = base.of_length(base.WINDOW)
  return dict(
    plays=dict(weight=base.PLAYS, **length),
    long=dict(weight=LONG * tasks, sources=base.of_length(TARGET), **length),
    short=dict(
      weight=(1 - LONG) * tasks, sources=short, masked=masked, **length
    ),
  )


def get_config(method='abf'):
  rope = common.variant(ROPES, method)
  config = base.get_config('rnope' if method in STARTS else 'base')
  config.name = f'lab_extend_{method}'
  config.weights = STARTS.get(method, '')
  config.model.rope = common.rope(**rope)
  seq_len = base.WINDOW if method in SHORT_ROWS else TARGET
  config.train.update(steps=100, batch=4096 // seq_len, seq_len=seq_len)
  if method == 'fot' or method not in SHORT_ROWS:
    config.data.mix = mixture(masked=method != 'joined')
  if method == 'curriculum':
    config.data.curriculum = ((0.4, base.WINDOW), (0.6, TARGET))
  if method == 'pose':
    config.data.positions.update(kind='pose', target=TARGET, chunks=2)
  if method == 'skipalign':  # each question and each answer is a turn
    config.data.positions.update(kind='skipalign', target=TARGET)
  if method == 'interleaved':
    config.data.mix = dict(
      plays=dict(weight=base.PLAYS),
      tasks=dict(
        weight=1 - base.PLAYS, sources=base.of_length(base.WINDOW),
        pack='interleave', documents=4, chunks=4,
      ),
    )  # fmt: skip
  if method == 'fot':
    config.model.memory = dict(
      layers=(0, 1),  # the base looks up in the first of its two
      # Positives and negatives of each row, as those of the 7B (appendix).
      rows=common.fot_rows((0, 0), (1, 2), (2, 5), (3, 4)),
      wrap=False,
    )
  if method in LORA:
    config.lora.update(weights=('q', 'k', 'v', 'o'), **LORA[method])
  if method == 'longlora':
    config.model.group = TARGET // 4
  if method == 'longce':
    config.train.longce.update(gamma=5.0, short=base.WINDOW, stride=16)
  if method in STARTS:  # two steps, which together have as many tokens
    length = TARGET if method == 'smollm3' else TARGET // 2
    config.data.mix = mixture(masked=True, tokens=length)
    config.train.update(steps=50, batch=4096 // length, seq_len=length)
  config.optim.update(
    learning_rate=2e-3, schedule='linear', warmup_steps=10, min_ratio=0.1
  )
  config.checkpoint.update(every_steps=100, keep=1)
  return config
