"""Llama 2 Long, 70B at 16,384 tokens: RoPE ABF (arXiv:2309.16039).

  python launch/tpu.py --config configs/llama2_70b_16k.py
      --config.weights=/data/llama2_70b --config.data.directory=/data/long

For 512 chips of TPU v5p (8x8x8). Not published: as for llama2_7b_32k.py, and
schedule and warm-up of the large models (here those of the small ones). Not
run on a TPU; compiled for one ahead of time (docs/plan.md).
"""

from configs import common, llama2_7b_32k


def get_config():
  config = llama2_7b_32k.get_config()
  config.name = 'llama2_70b_16k'
  config.model.update(common.SIZES['llama2_70b'])
  config.mesh.update(data=256, seq=2)
  # Section 1, for 34B and 70B; 4M tokens a step as before.
  config.train.update(seq_len=16_384, batch=256, micro_batches=1)
  config.optim.learning_rate = 1e-5  # section 2.1, for 34B and 70B
  return config
