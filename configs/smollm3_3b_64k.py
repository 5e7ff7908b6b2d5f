"""SmolLM3 3B at 32K, then 64K tokens (its release note, July 2025).

  python launch/tpu.py --config configs/smollm3_3b_64k.py:32k ...
  python launch/tpu.py --config configs/smollm3_3b_64k.py:64k
      --config.weights=runs/smollm3_3b_32k ...

huggingface.co/blog/smollm3: 50B tokens a stage, base 1.5M and 5M, documents
masked from each other, the mix of the end of pretraining. Every fourth layer
has no RoPE (arXiv:2501.18795). Steps, batch and optimizer are those of
huggingface/smollm, text/pretraining/smollm3/long_context_*.yaml, which has base
2M for 32K and also loads the moments of the pretraining. For 64 chips of TPU
v5p. Not run on a TPU.
"""

from configs import common

# Base, tokens of a row, steps, rows of a step, mesh.seq.
STAGES = {
  '32k': (1.5e6, 32_768, 20_000, 72, 8), '64k': (5e6, 65_536, 22_000, 36, 16),
}  # fmt: skip
VARIANTS = tuple(STAGES)


def get_config(name='64k'):
  base, length, steps, batch, ring = common.variant(STAGES, name)
  config = common.published('smollm3_3b', base=base)
  config.name = f'smollm3_3b_{name}'
  config.model.block = 2048
  config.mesh.update(data=64 // ring, seq=ring)
  config.data.layout = 'balanced'
  config.train.update(steps=steps, batch=batch, seq_len=length, loss_chunk=2048)
  config.optim.update(
    learning_rate=2e-5, schedule='cosine', min_ratio=0.0, warmup_steps=1000,
    weight_decay=0.1, b1=0.9, b2=0.95, clip=1.0, decayed='not_embedding',
  )  # fmt: skip
  return config
