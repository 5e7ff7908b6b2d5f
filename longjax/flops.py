"""Model FLOPs of a training step, and the peak of the chips we know."""

import numpy as np

# bf16 FLOP/s of one jax device, by `device_kind`. A TPU7x chip is 2 devices.
PEAK = {
  'TPU v4': 275e12,
  'TPU v5 lite': 197e12,
  'TPU v5e': 197e12,
  'TPU v5': 459e12,
  'TPU v5p': 459e12,
  'TPU v6 lite': 918e12,
  'TPU v6e': 918e12,
  'TPU7x': 1153.5e12,
}


def matmul_params(config) -> int:
  """Parameters that multiply: all but the embedding look-up and the norms."""
  heads = 2 * (config.heads + config.kv_heads) * config.head_dim
  layer = config.embed * (heads + 3 * config.mlp)
  return config.layers * layer + config.embed * config.vocab


def train_step(config, tokens, squares) -> float:
  """FLOPs of forward and backward; recomputation earns no credit.

  6 per parameter and token, and for causal attention 6 * layers * heads *
  head_dim * length^2 per document: 4 * length^2 / 2 per head and dim forward,
  twice that backward.

  Args:
    config: llama.Llama.
    tokens: in the step.
    squares: sum over the documents of length^2.
  """
  attention = 6 * config.layers * config.heads * config.head_dim * squares
  return 6.0 * matmul_params(config) * tokens + attention


def squared_lengths(segments) -> int:
  """Sum of length^2 over the documents of [batch, seq] segments."""
  total = 0
  for row in np.asarray(segments):
    total += int((np.bincount(row)[1:].astype(np.int64) ** 2).sum())
  return total
