"""Model FLOPs of a training step."""


def matmul_params(config) -> int:
  """Parameters that multiply: all but the embedding look-up and the norms."""
  heads = 2 * (config.heads + config.kv_heads) * config.head_dim
  layer = config.embed * (heads + 3 * config.mlp)
  return config.layers * layer + config.embed * config.vocab


def train_step(
  config, tokens, squared_lengths, memory_pairs=0, frozen=0, windowed=None
) -> float:
  """FLOPs of forward and backward; recomputation earns no credit.

  6 per parameter and token, and `attention`.

  Args:
    config: llama.Llama.
    tokens, squared_lengths, memory_pairs, windowed: as for `attention`.
    frozen: parameters that multiply and get no gradient: 4 each and token.
  """
  products = 6.0 * matmul_params(config) - 2.0 * frozen
  return products * tokens + attention(
    config, tokens, squared_lengths, memory_pairs, windowed
  )


def attention(
  config, tokens, squared_lengths, memory_pairs=0, windowed=None
) -> float:
  """FLOPs of causal attention in a step: 6 * layers * heads * head_dim *
  length^2 per document, 4 * length^2 / 2 per head and dim forward and twice
  that backward.

  Args:
    config: llama.Llama.
    tokens: in the step.
    squared_lengths: sum over the documents of length^2.
    memory_pairs: sum over the rows of tokens of the row x tokens of other rows
      that it attends to, in each memory layer.
    windowed: those within config.window, see `within`; None is the same.
  """
  if config.group:
    squared_lengths = min(squared_lengths, tokens * config.group)
  heads = 6 * config.heads * config.head_dim
  # Attention to other rows is not causal: no triangle.
  windowed = squared_lengths if windowed is None else windowed
  pairs = 2 * len(config.memory.layers) * memory_pairs
  for layer in range(config.layers):
    pairs += windowed if config.kind(layer).window else squared_lengths
  return heads * pairs


def within(lengths, window: int):
  """Of documents of these lengths, for layers with a window, twice the pairs of
  tokens that attend, as length^2 is without one; numpy."""
  beyond = (lengths - window).clip(0) if window else 0 * lengths
  return (lengths**2 - beyond**2).sum()


def count_memory_pairs(config, batch, length) -> int:
  """`memory_pairs` of a batch of so many rows of full length."""
  rows, memory = config.memory.rows, config.memory
  if not rows:
    return 0
  count = sum(
    memory.wrap or 0 <= row + offset < batch
    for row in range(batch)
    for offset in rows[row % len(rows)]
  )
  return count * length**2
