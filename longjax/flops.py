"""Model FLOPs of a training step, and the chips we know."""

from typing import NamedTuple


class Chip(NamedTuple):
  """What one jax device has. A TPU7x chip is two devices, the others one."""

  name: str  # as in the names of topologies
  peak: float  # bf16 FLOP/s
  hbm: float  # bytes that the compiler may use
  bandwidth: float  # of HBM, bytes/s
  link: float  # of one ICI link in one direction, bytes/s
  clock: float  # of the cycles that the compiler estimates, Hz

  @property
  def usable(self) -> float:
    """Bytes of HBM that a train step may need: all but SPARE."""
    return (1 - SPARE) * self.hbm


# What else lies in HBM while a step runs: the next batch, the programs of
# evaluations and digests, pieces of a save on their way to the host, and gaps
# that these leave. A margin, not measured on a TPU.
SPARE = 0.08

# Peaks, bandwidths: public specifications; HBM: the limit in the compiler's
# message when a program does not fit (libtpu 0.0.52); clocks: modelled.
CHIPS = dict(
  v4=Chip('v4', 275e12, 30.75 * 2**30, 1.23e12, 45e9, 1.05e9),
  v5e=Chip('v5e', 197e12, 15.75 * 2**30, 0.81e12, 45e9, 1.5e9),
  v5p=Chip('v5p', 459e12, 95.73 * 2**30, 2.77e12, 90e9, 1.75e9),
  v6e=Chip('v6e', 918e12, 31.24 * 2**30, 1.64e12, 90e9, 1.75e9),
  tpu7x=Chip('tpu7x', 1153.5e12, 94.74 * 2**30, 3.69e12, 90e9, 2.2e9),
)
# `device_kind` of jax: the name.
KINDS = {
  'TPU v4': 'v4',
  'TPU v5 lite': 'v5e',
  'TPU v5e': 'v5e',
  'TPU v5': 'v5p',
  'TPU v5p': 'v5p',
  'TPU v6 lite': 'v6e',
  'TPU v6e': 'v6e',
  'TPU7x': 'tpu7x',
}


def chip(device_kind: str) -> Chip | None:
  """What we know of a device, by its `device_kind`."""
  return CHIPS.get(KINDS.get(device_kind, ''))


def matmul_params(config) -> int:
  """Parameters that multiply: all but the embedding look-up and the norms."""
  heads = 2 * (config.heads + config.kv_heads) * config.head_dim
  layer = config.embed * (heads + 3 * config.mlp)
  return config.layers * layer + config.embed * config.vocab


def train_step(config, tokens, squares, seen=0, frozen=0) -> float:
  """FLOPs of forward and backward; recomputation earns no credit.

  6 per parameter and token, and `attention`.

  Args:
    config: llama.Llama.
    tokens, squares, seen: as for `attention`.
    frozen: parameters that multiply and get no gradient: 4 each and token.
  """
  products = 6.0 * matmul_params(config) - 2.0 * frozen
  return products * tokens + attention(config, tokens, squares, seen)


def attention(config, tokens, squares, seen=0) -> float:
  """FLOPs of causal attention in a step: 6 * layers * heads * head_dim *
  length^2 per document, 4 * length^2 / 2 per head and dim forward and twice
  that backward.

  Args:
    config: llama.Llama.
    tokens: in the step.
    squares: sum over the documents of length^2.
    seen: sum over the rows of what they see of other rows: tokens of the row x
      tokens that it sees, in each memory layer.
  """
  if config.group:
    squares = min(squares, tokens * config.group)
  heads = 6 * config.heads * config.head_dim
  # What other rows hold is no triangle.
  return heads * (
    config.layers * squares + 2 * len(config.memory.layers) * seen
  )


def seen_by_rows(config, batch, length) -> int:
  """`seen` of train_step for a batch of so many rows of full length."""
  rows, memory = config.memory.rows, config.memory
  if not rows:
    return 0
  count = sum(
    memory.wrap or 0 <= row + offset < batch
    for row in range(batch)
    for offset in rows[row % len(rows)]
  )
  return count * length**2


def narayanan(config, tokens, length) -> float:
  """FLOPs of training by the count behind table 10 of arXiv:2309.16039.

  That of Narayanan et al., arXiv:2104.04473, without recomputation and
  vocabulary: a feed-forward of two 4 x embed matrices, attention over all of
  the row. `train_step` counts what a Llama does: SwiGLU, and causal attention.

  Args:
    config: llama.Llama.
    tokens: of the training.
    length: of a row.
  """
  attention = 1 + length / (6 * config.embed)
  return 72.0 * tokens * config.layers * config.embed**2 * attention
