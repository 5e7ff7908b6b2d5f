"""Chunked cross-entropy: [batch, seq, vocab] never exists.

ProLong does the same in blocks of 2,048 tokens (arXiv:2410.02660, appendix).
"""

import optax

from longjax.chunks import chunked


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
