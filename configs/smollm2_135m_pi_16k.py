"""SmolLM2-135M beyond its window on a laptop: Position Interpolation.

  python launch/tpu.py --config configs/smollm2_135m_pi_16k.py

The laptop job with arXiv:2306.15595 in place of ABF: positions are divided by
2, the released base stays. PI needs training to be of use, and at short
positions costs more than ABF does; the report shows both.
"""

from configs import common, smollm2_135m_abf_16k


def get_config():
  config = smollm2_135m_abf_16k.get_config()
  config.name = 'smollm2_135m_pi_16k'
  config.notes = (
    config.notes[0],
    'Position Interpolation was published with 1,000 steps of 64 rows or more '
    '(arXiv:2306.15595, section 3.1); these few only begin to adapt the model.',
  )
  rope = dict(base=100_000.0, scaling='linear', factor=2.0)
  config.model.rope = common.rope(**rope)
  return config
