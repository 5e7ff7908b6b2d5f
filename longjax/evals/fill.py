"""Prompts that fill a length: how large their haystack has to be.

A builder makes a prompt of a given size (sentences, words, pairs: what its
haystack is counted in) from random numbers.
"""

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from longjax.errors import InputError
from longjax.evals.prompts import PromptSpec, Sample

FILLED = 0.95  # of a length: what the largest haystack must fill


def too_long(tokens: int, limit: int) -> InputError:
  """Of a prompt with the least haystack."""
  return InputError(
    f'a prompt needs at least {tokens} tokens, but only {limit} are left '
    'beside the answer: use longer --lengths (config.eval.lengths)'
  )


def encoded(spec: PromptSpec, text: str, prefix: str) -> tuple[np.ndarray, int]:
  """(ids, tokens of prompt and answer as RULER counts them)."""
  ids = spec.encode(text, prefix)
  return ids, len(ids) - spec.uncounted + spec.count


def stream(
  spec: PromptSpec, build: Callable, step: int, measure: Callable | None = None,
  **bounds: int,
) -> Iterator[Sample]:  # fmt: skip
  """Prompts as RULER's generators make them: the size is searched once.

  Where one prompt comes out longer than `spec.length` it is drawn again with
  `step` less, as there.

  Args:
    spec: what they are made for.
    build: (size, number of the prompt) -> Prompt.
    step: the least size.
    measure: size -> tokens of a prompt and its answer; by default of the first.
    bounds: of the search.

  Raises:
    InputError: the least is too long, or the most does not fill the length.
  """
  first = lambda size: encoded(spec, *build(size, 0)[:2])[1]
  size = search(spec, measure or first, step, **bounds)
  for number in itertools.count():
    used = size
    while True:
      text, prefix, references = build(used, number)
      ids, tokens = encoded(spec, text, prefix)
      if tokens <= spec.length:
        break
      if used <= step:
        raise too_long(tokens - spec.count, spec.length - spec.count)
      used = max(used - step, step)
    yield Sample(ids, references)


def search(
  spec: PromptSpec, measure: Callable, step: int, probe=0, most=0, extra=0
) -> int:
  """The largest size that fits, by bisection; `step` if none does.

  Args:
    spec: what prompts are made for.
    measure: size -> tokens of a prompt, drawn anew, and its answer.
    step: the least size.
    probe: a size that is measured to estimate which fits; the search goes to
      twice the estimate. 0: `step` is measured, and it goes to three times.
    most: the largest size that can be built; 0 is any.
    extra: tokens that `measure` counts beside.
  """
  double, probe = bool(probe), min(probe or step, most or spec.length)
  each = (measure(probe) - spec.count - extra) / probe
  fits = spec.length / each
  high = max(2 * int(fits) if double else int(3 * fits), 2 * step)
  high = min(high, most or high)
  low, size, tokens = step, step, 0
  while low <= high:
    middle = (low + high) // 2
    total = measure(middle)
    if total <= spec.length:
      size, low, tokens = middle, middle + 1, total
    else:
      high = middle - 1
  if size == most and tokens < FILLED * spec.length:
    raise InputError(
      f'all {most:,} words of its list fill no more than {tokens:,} tokens: '
      'use shorter --lengths (config.eval.lengths)'
    )
  return size


def longest_prompts(build: Callable, spec: PromptSpec) -> Iterator[Sample]:
  """Prompts each of which is the largest that fits: one unit more would not.

  Args:
    build: (numpy Generator, Source, size, number of the prompt) -> Prompt.
    spec: what they are made for.
  """
  size = 0
  for number in itertools.count():

    def made(size, number=number):
      rng = np.random.default_rng([spec.seed, number])
      return build(rng, spec.source, size, number)

    measure = lambda n, made=made: len(spec.encode(*made(n)[:2]))
    size = largest(measure, spec.length - spec.count, near=size)
    prompt = made(size)
    yield Sample(spec.encode(*prompt[:2]), prompt.references)


def largest(measure, limit: int, near=0) -> int:
  """The largest size with measure(size) <= limit, from a size it is near to.

  Raises:
    InputError: not even size 0 fits.
  """
  low, high, step = -1, None, 1
  size, before = near, -1
  while high is None or high - low > 1:
    tokens = measure(size)
    if tokens <= limit:
      if tokens == before and high is None and step > 64:
        return low  # there is no more of the haystack
      low, before = size, tokens
    else:
      high = size
    if not size and tokens > limit:
      raise too_long(tokens, limit)
    if high is None:
      # As if all of it were haystack: near from below.
      step = max(step * 2, (limit - tokens) * size // max(tokens, 1))
      size = low + step
    elif low < 0:
      size = max(size - max(step, (tokens - limit) * size // tokens + 1), 0)
      step *= 2
    else:
      size = (low + high) // 2
  return low
