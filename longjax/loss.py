"""Cross-entropy by chunks of tokens: [batch, seq, vocab] never exists.

ProLong does the same in blocks of 2,048 tokens (arXiv:2410.02660, appendix).
"""

import jax
import jax.numpy as jnp
import optax


def nll(x, targets, head, *, logits, chunk):
  """Negative log-likelihood of the targets.

  Args:
    x: [batch, seq, embed] hidden states.
    targets: [batch, seq] int32.
    head: the weight that `logits` reads.
    logits: (x, head) -> [batch, tokens, vocab] float32.
    chunk: tokens of a row whose logits exist at once.

  Returns:
    [batch, seq] float32, in nats.
  """

  def losses(x, targets, head):
    return optax.softmax_cross_entropy_with_integer_labels(
      logits(x, head), targets
    )

  return chunked(losses, chunk, (x, targets), (head,))


def chunked(function, size, activations, weights):
  """function(*activations, *weights), `size` tokens of each row at once.

  The backward pass computes each chunk again, so what a function makes of all
  tokens (logits, the inside of a feed-forward) never exists as a whole.

  Args:
    function: of activations and weights, each token by itself.
    size: tokens; the sequence need not be a multiple.
    activations: arrays [batch, seq, ...].
    weights: arrays; their gradients add up over the chunks in float32.

  Returns:
    [batch, seq, ...]: what the function returns of all tokens.
  """
  batch, seq = activations[0].shape[:2]
  size = min(size, seq)
  count = -(-seq // size)
  # float32 outside, cast again inside: so the gradients add up in float32. XLA
  # removes the pair of casts.
  weights32 = [w.astype(jnp.float32) for w in weights]

  def split(x):  # [batch, seq, ...] -> [count, batch, size, ...]
    widths = [(0, 0), (0, count * size - seq)] + [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, widths).reshape(batch, count, size, *x.shape[2:])
    return jnp.moveaxis(x, 1, 0)

  @jax.checkpoint
  def one(activations):
    whole = [w32.astype(w.dtype) for w32, w in zip(weights32, weights)]
    return function(*activations, *whole)

  out = jax.lax.map(one, [split(x) for x in activations])
  out = jnp.moveaxis(out, 0, 1)
  return out.reshape(batch, -1, *out.shape[3:])[:, :seq]
