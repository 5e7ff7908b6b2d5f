"""Passkey retrieval: five digits hidden in filler, asked for at the end.

The task of Landmark Attention (arXiv:2305.16300), with the length counted in
tokens exactly, keys of five digits and fixed depths. Any tuned model passes
(arXiv:2309.16039, footnote 4): a failure tells more than a success.
"""

import re

import numpy as np

from longjax.errors import InputError

INTRO = (
  'There is an important info hidden inside a lot of irrelevant text. Find it '
  'and memorize it. I will quiz you about the important information there.\n'
)
FILLER = (
  'The grass is green. The sky is blue. The sun is yellow. Here we go. There '
  'and back again. '
)
KEY = '\nThe pass key is {key}. Remember it. {key} is the pass key.\n'
QUESTION = '\nWhat is the pass key? The pass key is'
ANSWER_TOKENS = 8


def prompt(tokenizer, length: int, depth: float, key: int) -> np.ndarray:
  """[length - ANSWER_TOKENS] ids, the key after a share `depth` of filler."""
  intro, hidden, question = (
    np.asarray(tokenizer.encode(text))
    for text in (INTRO, KEY.format(key=key), QUESTION)
  )
  room = length - ANSWER_TOKENS - len(intro) - len(hidden) - len(question)
  if room < 0:
    raise InputError(
      f'passkey needs at least {length - room} tokens, got length {length}'
    )
  once = np.asarray(tokenizer.encode(FILLER))
  filler = np.tile(once, -(-room // len(once)) + 1)
  before = round(room * depth)
  return np.concatenate(
    [intro, filler[:before], hidden, filler[: room - before], question]
  )


def found(answer: str, key: int) -> bool:
  """Whether the first integer of the answer is the key."""
  numbers = re.findall(r'\d+', answer)
  return bool(numbers) and numbers[0] == str(key)


def accuracy(generate, tokenizer, lengths, depths, seed=0) -> dict:
  """Which keys are found.

  Args:
    generate: (list of prompts, count) -> [len(prompts), count] ids.
    tokenizer: data.tokenizer.Tokenizer.
    lengths: tokens of prompt and answer.
    depths: shares of the filler before the key, 0 to 1.
    seed: of the keys.

  Returns:
    dict of lists: length, depths, found (a list of bools for each length).
  """
  rng = np.random.default_rng(seed)
  result = dict(length=[], depths=list(depths), found=[])
  for length in lengths:
    keys = rng.integers(10_000, 100_000, len(depths)).tolist()
    prompts = [
      prompt(tokenizer, length, depth, key) for depth, key in zip(depths, keys)
    ]
    answers = generate(prompts, ANSWER_TOKENS)
    result['length'].append(int(length))
    result['found'].append([
      found(tokenizer.decode(ids), key) for ids, key in zip(answers, keys)
    ])  # fmt: skip
  return result
