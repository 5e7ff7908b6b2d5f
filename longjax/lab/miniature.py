"""Retrieval that a model of a hundred thousand parameters learns in a minute.

An entry of a dictionary is one token, for a key and its value, and so is the
question for a key; the answer repeats the entry. (In Focused Transformer,
arXiv:2307.03170, section 5.1, keys and values are four tokens each: then
attention has two steps to learn, and the first alone lowers no loss.)
Entries stand between bytes of prose, the questions at the end:

  look_up   many entries anywhere, and questions for some of them
  passkey   one entry anywhere
  first     many entries, and a question for the one at the very beginning:
            for first-sentence retrieval (arXiv:2309.16039, section 4.1)

Ids are those of the byte tokenizer, whose prose is ASCII; entries and questions
are those above.
"""

import math

import numpy as np

from longjax.batch import Batch, one_document

KEYS, VALUES = 32, 7
ENTRY = 128  # the first id of entries, that of key 0 and value 0
QUESTION = ENTRY + KEYS * VALUES  # the first id of questions, that of key 0
TASKS = ('look_up', 'passkey', 'first')
MIN_TOKENS = 24  # tokens that each of them needs
QUESTIONS = 4  # entries of a dictionary, when it is measured
ROWS = 64  # that a measurement is the mean of


def build(rng, task: str, prose, size: int, asked: int = 0):
  """A task of exactly `size` tokens.

  Args:
    rng: numpy Generator.
    task: a name in TASKS.
    prose: [tokens] ASCII, from which passages are taken.
    size: at least MIN_TOKENS.
    asked: questions of a dictionary; 0 is all its entries.

  Returns:
    (tokens [size], mask [size]: 1 for each answer)
  """
  most = min(KEYS, size // 3)
  count = 1 if task == 'passkey' else most
  if not asked:  # to train on: dictionaries of any size
    count = int(rng.integers(1, count + 1))
  asked = min(asked or count, count) if task == 'look_up' else 1
  keys = rng.permutation(KEYS)[:count]
  entries = ENTRY + keys * VALUES + rng.integers(0, VALUES, count)
  text = passage(rng, prose, size - 2 * asked)
  places = rng.permutation(len(text))[:count]
  if task == 'first':
    places = [0, *rng.permutation(np.arange(1, len(text)))[: count - 1]]
  text[places] = entries
  which = rng.permutation(count)[:asked] if task == 'look_up' else [0]
  questions = np.stack([QUESTION + keys[which], entries[which]], 1)
  tokens = np.concatenate([text, questions.reshape(-1)])
  mask = np.zeros(size, np.uint8)
  mask[len(text) + 1 :: 2] = 1
  return tokens, mask


def document(rng, task: str, prose, size: int):
  """`size` tokens to train on: a task that fills them, or each second time one
  of any length and prose after it."""
  length = int(rng.choice([size, rng.integers(MIN_TOKENS, size + 1)]))
  tokens, mask = build(rng, task, prose, length)
  rest = passage(rng, prose, size - length)
  return np.concatenate([tokens, rest]), np.pad(mask, (0, len(rest)))


def passage(rng, prose, size: int) -> np.ndarray:
  """`size` tokens from anywhere."""
  start = int(rng.integers(0, len(prose) - size))
  return np.array(prose[start : start + size], np.int32)


def accuracy(nll, task: str, prose, size: int) -> float:
  """The share of the answers that the model finds.

  It finds an answer to which it gives more than half of the probability, so
  that greedy generation would give it.

  Args:
    nll: Batch -> [batch, seq] nats.
    task: a name in TASKS.
    prose: [tokens] ASCII, from which passages are taken.
    size: tokens of a prompt and its answers.
  """
  rng = np.random.default_rng(size)
  made = [build(rng, task, prose, size, QUESTIONS) for _ in range(ROWS)]
  tokens, mask = map(np.stack, zip(*made))
  losses = np.asarray(nll(one_document(tokens)))[:, :-1]
  return float((losses < math.log(2))[mask[:, 1:] > 0].mean())


def passages(prose, size: int) -> Batch:
  """ROWS rows of prose alone."""
  rng = np.random.default_rng(size)
  return one_document([passage(rng, prose, size) for _ in range(ROWS)])
