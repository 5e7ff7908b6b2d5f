"""The ablations of Llama 2 Long, 7B (arXiv:2309.16039, sections 4.1, 4.2, 4.4).

  python launch/tpu.py --config configs/llama2_long_ablations.py:pi ...

Positions, 80B tokens more at 32,768: rope, pi, abf, xpos_abf (table 5). Data,
80B tokens: llama2_mix; no_long_text, without its documents of the window or
longer; upsampled, them more often (table 7; the shares and what counts as long
are not published: here 30 % of the rows). Curricula, from scratch over 100,000
steps: 32k, 4k_32k_20, 4k_32k_40, 4k_32k_80 (table 10); rows stay 32,768 long
and are cut into segments, which is as many tokens a step.
"""

from configs import common, llama2_7b_32k

LONG = 32_768
PI = dict(scaling='linear', factor=8.0)  # 32,768 / 4,096; appendix B
ROPES = dict(
  rope=dict(),
  pi=PI,
  abf=dict(base=500_000.0),
  # The base of the decay is not published; 2,048 is that of a public code.
  xpos_abf=dict(base=500_000.0, xpos=2048.0),
)
MIXES = dict(
  llama2_mix={},
  no_long_text=dict(short=dict(sources=('*',), max_length=LONG)),
  upsampled=dict(
    all=dict(sources=('*',), weight=0.7),
    long=dict(sources=('*',), weight=0.3, min_length=LONG),
  ),
)
CURRICULA = {'32k': ()} | {
  f'4k_32k_{percent}': ((percent / 100, 4096), (1 - percent / 100, LONG))
  for percent in (20, 40, 80)
}
VARIANTS = {**ROPES, **MIXES, **CURRICULA}


def get_config(name='abf'):
  common.variant(VARIANTS, name)
  config = llama2_7b_32k.get_config()
  config.name = f'llama2_long_ablations_{name}'
  rope = ROPES.get(name, ROPES['abf'])
  config.model.rope = common.rope(**rope)
  config.train.steps = 20_000  # section 4.1: 80B tokens
  config.data.mix = MIXES.get(name, {})
  if name in CURRICULA:
    config.weights = 'random'
    config.data.curriculum = CURRICULA[name]
    config.train.steps = 100_000  # figure 6
    config.optim.learning_rate = 3e-4  # Llama 2's, 7B from scratch
  return config
