"""Questions and documents of RULER's qa_1 and qa_2.

SQuAD and HotpotQA are read from the files that RULER takes (dev-v2.0.json,
hotpot_dev_distractor_v1.json), whose paths eval.files gives. Without them both
are invented: people who were born in towns, and towns by rivers.
"""

import functools
import random
from typing import NamedTuple

from longjax.errors import InputError
from longjax.evals import records

INVENTED = 4000  # people, and towns
WHERE = 'the file that RULER downloads: https://github.com/NVIDIA/RULER'
DATA = dict(
  squad=records.DataSet('squad', WHERE, ('data',)),
  hotpotqa=records.DataSet(
    'hotpotqa', WHERE, ('question', 'answer', 'context')
  ),
)


class Question(NamedTuple):
  """A question about documents, which are named by number."""

  query: str
  answers: tuple[str, ...]
  own: tuple[int, ...]  # those with the answer, always there
  near: tuple[int, ...] = ()  # those of the same article, there before others


def load(name: str, source) -> tuple[list[Question], list[str]]:
  """(questions, documents) of 'squad' or 'hotpotqa'.

  Raises:
    InputError: the file is not that data set.
  """
  if not source.files.get(name):
    words = source.words
    return invented(
      tuple(words.nouns), tuple(words.adjectives), name == 'hotpotqa'
    )
  return read(name, source.files[name])


@functools.lru_cache(2)
def read(name: str, path: str) -> tuple[list[Question], list[str]]:
  """The data set in a file, here or on the Hub, in its order."""
  found = list(records.read(DATA[name], path))
  try:
    return squad(found[0]['data']) if name == 'squad' else hotpotqa(found)
  except (ValueError, LookupError, TypeError) as error:
    raise InputError(
      f'config.eval.files.{name}: {path} is not {DATA[name].where}: '
      f'{type(error).__name__} {error}'
    ) from None


def squad(data: list) -> tuple[list[Question], list[str]]:
  """Of the list `data` of SQuAD 2.0: questions that have an answer."""
  texts = sorted({p['context'] for d in data for p in d['paragraphs']})
  number = {text: i for i, text in enumerate(texts)}
  questions = []
  for article in data:
    here = [number[p['context']] for p in article['paragraphs']]
    for paragraph in article['paragraphs']:
      own = number[paragraph['context']]
      questions += [
        Question(
          qa['question'], tuple(a['text'] for a in qa['answers']), (own,),
          tuple(i for i in here if i != own),
        )
        for qa in paragraph['qas'] if not qa['is_impossible']
      ]  # fmt: skip
  return questions, texts


def hotpotqa(data: list) -> tuple[list[Question], list[str]]:
  """Of the list of HotpotQA: each question has ten documents, two needed."""
  text = lambda title, lines: f'{title}\n{"".join(lines)}'
  texts = sorted({text(*part) for d in data for part in d['context']})
  number = {text: i for i, text in enumerate(texts)}
  own = lambda d: tuple(number[text(*part)] for part in d['context'])
  return [Question(d['question'], (d['answer'],), own(d)) for d in data], texts


@functools.lru_cache(2)
def invented(nouns, adjectives, river: bool):
  """(questions, documents) on people and towns; a river takes two of them."""
  rng = random.Random(0)

  def name() -> str:
    return f'{rng.choice(adjectives)} {rng.choice(nouns)}'.title()

  questions, texts = [], []
  for number in range(INVENTED):
    person, town, water = name(), name(), name()
    texts += [
      f'{person}\n{person} (born {rng.randint(1700, 1999)} in {town}) was '
      f'known for a {rng.choice(adjectives)} {rng.choice(nouns)}. After '
      f'leaving {town} at the age of {rng.randint(12, 40)}, {person} wrote '
      f'about the {rng.choice(nouns)}.',
      f'{town}\n{town} is a town of {rng.randint(1000, 99_999)} people. The '
      f'river {water} runs through it. It has a {rng.choice(adjectives)} '
      f'{rng.choice(nouns)} from {rng.randint(1200, 1900)}.',
    ]
    query, answer = f'In which town was {person} born?', town
    if river:
      query = f'Which river runs through the town where {person} was born?'
      answer = water
    own = (2 * number, 2 * number + 1)[: 2 if river else 1]
    questions.append(Question(query, (answer,), own))
  return questions, texts
