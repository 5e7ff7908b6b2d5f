"""Retrieval in few bytes, for models of a hundred thousand parameters.

The tasks of the papers take hundreds of tokens a prompt. These take 32:

  look_up     a dictionary, then some of its entries again: 'Qd7 Ab1 ... Qd7'
              (Focused Transformer, arXiv:2307.03170, section 5.1, with keys and
              values of four tokens; here keys are two letters)
  passkey     prose with a number in it: '...#73914...', and at its end '#73914'
  first_line  '^', prose, and again '^' with the first bytes of the prose: for
              first-sentence retrieval (arXiv:2309.16039, section 4.1)

A document is a list of pieces, given and asked in turns. Only what is asked is
learned; the last piece is the answer when a document is a prompt.
"""

import math

import numpy as np

from longjax.batch import Batch, one_document

RECORD = 4  # bytes of an entry: two letters, a digit, a space
KEYS = 26 * 26
DIGITS = 5  # of a passkey
LINE = 12  # bytes of a first line that are asked for
ROWS = 64  # that a measurement is the mean of
ASKED = 4  # entries of a dictionary, when it is measured


def look_up(rng, prose: str, size: int, asked: int = 0) -> list[str]:
  """`size` bytes: distinct entries, then `asked` of them; 0 is half of all."""
  records = size // RECORD
  asked = asked or records // 2
  keys = rng.permutation(KEYS)[: records - asked]
  values = rng.integers(0, 10, len(keys))
  entries = [
    (chr(65 + key // 26) + chr(97 + key % 26), str(value))
    for key, value in zip(keys, values)
  ]
  given = ''.join(f'{key}{value} ' for key, value in entries)
  pieces = []
  for i in rng.integers(0, len(entries), asked):
    key, value = entries[i]
    pieces += [given + key, value]
    given = ' '
  return pieces


def passkey(rng, prose: str, size: int) -> list[str]:
  """`size` bytes, the number anywhere in them."""
  key = ''.join(map(str, rng.integers(0, 10, DIGITS)))
  room = size - 2 * (1 + DIGITS)
  text, before = passage(rng, prose, room), int(rng.integers(0, room + 1))
  return [f'{text[:before]}#{key}{text[before:]}#', key]


def first_line(rng, prose: str, size: int) -> list[str]:
  """`size` bytes that end as they begin."""
  text = passage(rng, prose, size - 2 - LINE)
  return [f'^{text}^', text[:LINE]]


TASKS = dict(look_up=look_up, passkey=passkey, first_line=first_line)
LEAST = 32  # bytes that each of them needs


def passage(rng, prose: str, size: int) -> str:
  """`size` characters from anywhere."""
  start = int(rng.integers(0, len(prose) - size))
  return prose[start : start + size]


def document(rng, task: str, prose: str, size: int) -> list[str]:
  """`size` bytes to train on: a task of any length, and prose after it."""
  pieces = TASKS[task](rng, prose, int(rng.integers(LEAST, size + 1)))
  return [*pieces, passage(rng, prose, size - len(''.join(pieces)))]


def encoded(pieces) -> tuple[np.ndarray, np.ndarray]:
  """The bytes of a document, and 1 for each that is asked; both [bytes]."""
  mask = [np.full(len(p), i % 2, np.uint8) for i, p in enumerate(pieces)]
  text = ''.join(pieces).encode()
  return np.frombuffer(text, np.uint8), np.concatenate(mask)


def passages(prose: str, size: int) -> Batch:
  """ROWS rows of prose."""
  rng = np.random.default_rng(size)
  return rows([['', passage(rng, prose, size)] for _ in range(ROWS)])


def rows(documents) -> Batch:
  """A batch of documents of one length, each a row; what is asked weighs."""
  tokens, asked = map(np.stack, zip(*map(encoded, documents)))
  weights = np.pad(asked[:, 1:], ((0, 0), (0, 1))).astype(np.float32)
  return one_document(tokens)._replace(weights=weights)


def accuracy(nll, task: str, prose: str, size: int) -> float:
  """The share of the bytes asked for that the model finds.

  It finds a byte that it gives more than half of the probability, when it has
  read the right ones before.

  Args:
    nll: Batch -> [batch, seq] nats, of a model that reads bytes.
    task: a name in TASKS.
    prose: ASCII, from which passages are taken.
    size: bytes of prompt and answer.
  """
  rng = np.random.default_rng(size)
  more = dict(asked=ASKED) if task == 'look_up' else {}
  batch = rows([TASKS[task](rng, prose, size, **more) for _ in range(ROWS)])
  found = np.asarray(nll(batch)) < math.log(2)
  return float((found * batch.weights).sum() / batch.weights.sum())
