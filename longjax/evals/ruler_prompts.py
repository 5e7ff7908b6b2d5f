"""The prompts of RULER, arXiv:2404.06654, as NVIDIA's generators make them.

Given the same seed, words, texts and tokenizer they are the same to the
character (scripts/data/synthetic, read in November 2026). They differ where
the data do: a sentence ends with . ! or ? before white space (there nltk
decides), and common words come from one list of 8,163 (there a second one
takes over where the search tries more). Chains that repeat a variable are
drawn again, on which the original stumbles.
"""

import functools
import itertools
import random
import string
import uuid

import numpy as np

from longjax.evals import fill, haystack
from longjax.evals.prompts import Prompt, PromptSpec, Sample
from longjax.evals.word_lists import Pairs

NOISE = (
  'The grass is green. The sky is blue. The sun is yellow. Here we go. There '
  'and back again.'
)
NEEDLE = 'One of the special magic {kind} for {key} is: {value}.'
NIAH = (
  'Some special magic {kind} are hidden within the following text. Make sure '
  'to memorize it. I will quiz you about the {kind} afterwards.\n{context}\n'
  'What are all the special magic {kind} for {query} mentioned in the provided '
  'text?',
  'The special magic {kind} for {query} mentioned in the provided text are',
)
VT = (
  'Memorize and track the chain(s) of variable assignment hidden in the '
  'following text.\n\n{context}\nQuestion: Find all variables that are '
  'assigned the value {query} in the text above.',
  ' Answer: According to the chain(s) of variable assignment in the text '
  'above, {count} variables are assigned the value {query}, they are: ',
)
CWE = (
  'Below is a numbered list of words. In these words, some appear more often '
  'than others. Memorize the ones that appear most often.\n{context}\n'
  'Question: What are the 10 most common words in the above list?',
  ' Answer: The top 10 words that appear most often in the list are:',
)
FWE = (
  'Read the following coded text and track the frequency of each coded word. '
  'Find the three most frequently appeared coded words. {context}\nQuestion: '
  "Do not provide any explanation. Please ignore the dots '....'. What are the "
  'three most frequently appeared words in the above coded text?',
  ' Answer: According to the coded text above, the three most frequently '
  'appeared words are:',
)
QA_RULE = (
  'Answer the question based on the given documents. Only give me the answer '
  'and do not output any other words.'
)
QA = (
  f'{QA_RULE}\n\nThe following are given documents.\n\n{{context}}\n\n'
  f'{QA_RULE}\n\nQuestion: {{query}}',
  ' Answer:',
)
DEPTHS = np.round(np.linspace(0, 100, 40)).astype(int).tolist()
HOPS = 4
EXAMPLE_TOKENS = 500  # of the worked example of variable tracking


class Draws(random.Random):
  """The two streams of random numbers that the generators draw from."""

  def __init__(self, seed: int):
    super().__init__(seed)
    self.numpy = np.random.RandomState(seed)


def wording(one: bool) -> list[str]:
  """(what a user says, how the answer begins) of one value or of several."""
  if not one:
    return list(NIAH)
  singular = (('Some', 'A'), ('are all', 'is'), ('are', 'is'))
  return [
    functools.reduce(lambda x, pair: x.replace(*pair), singular, text)
    for text in NIAH
  ]


def niah(
  spec: PromptSpec, *, hay='essay', keys=1, values=1, queries=1, key='words',
  value='numbers', joint=' ',
):  # fmt: skip
  """Needles: special magic numbers, words or uuids, by key.

  Args:
    spec: what the prompts are made for.
    hay: 'noise', 'essay' or 'needle' (other needles).
    keys, values, queries: keys hidden, values of each, keys asked for.
    key, value: what they are.
    joint: between the question and how the answer begins.
  """
  rng = Draws(spec.seed)
  pairs = Pairs(spec.source.words)
  one = queries * values == 1
  template, prefix = wording(one)

  def secret(kind: str) -> str:
    if kind == 'numbers':
      return str(rng.randint(10**6, 10**7 - 1))
    if kind == 'uuids':
      return str(uuid.UUID(int=rng.getrandbits(128), version=4))
    return rng.choice(pairs)

  def needle() -> str:
    name = secret(key)
    return NEEDLE.format(kind=value, key=name, value=secret(value))

  def build(size: int, number: int) -> Prompt:
    hidden = [
      (secret(key), [secret(value) for _ in range(values)]) for _ in range(keys)
    ]
    needles = [
      NEEDLE.format(kind=value, key=name, value=v)
      for name, found in hidden for v in found
    ]  # fmt: skip
    random.Random(spec.seed).shuffle(needles)
    if hay == 'essay':
      context = _in_essay(rng, spec.source.text, size, needles)
    else:
      noise = hay == 'noise'
      lines = [NOISE if noise else needle() for _ in range(size)]
      places = sorted(rng.sample(range(size), len(needles)), reverse=True)
      for place, line in zip(places, needles):
        lines.insert(place, line)
      context = '\n'.join(lines)
    asked = [hidden[i] for i in rng.sample(range(keys), queries)]
    *names, query = [name for name, _ in asked]
    if names:
      query = ', '.join(names) + ', and ' + query
    words = dict(kind=value[:-1] if one else value, query=query)
    return Prompt(
      template.format(context=context, **words),
      joint + prefix.format(**words),
      tuple(v for _, found in asked for v in found),
    )

  step = 500 if hay == 'essay' else 25 if spec.length >= 4096 else 5
  return fill.stream(spec, build, step)


def _in_essay(rng, text: str, size: int, needles) -> str:
  """The first `size` words, the needles after shares of their sentences."""
  parts = haystack.of_words(text, size)
  depths = rng.sample(DEPTHS, len(needles))
  places = sorted(int(len(parts) * (depth / 100)) for depth in depths)
  pieces, before = [], 0
  for place, needle in zip(places, needles):
    pieces += [' '.join(parts[before:place]), needle]
    before = place
  return ' '.join([*pieces, ' '.join(parts[before:])])


def tracking(spec: PromptSpec):
  """Variable tracking: which variables have a value, through HOPS copies."""
  rng = Draws(spec.seed)
  # The example is outside of a chat template, and so is its length.
  plain = spec._replace(
    length=EXAMPLE_TOKENS, count=0, uncounted=0,
    encode=lambda text, prefix: spec.tokenizer.encode(text + prefix),
  )  # fmt: skip

  def measure(of: PromptSpec, size: int, letters: int) -> int:
    return fill.encoded(of, *_chain(rng, size, letters)[:2])[1]

  size = fill.search(plain, lambda n: measure(plain, n, 3), 5)
  text, prefix, names = _chain(rng, size, 3)
  while fill.encoded(plain, text, prefix)[1] > EXAMPLE_TOKENS and size > 5:
    size = max(size - 5, 5)
    text, prefix, names = _chain(rng, size, 3)
  example = f'{text}{prefix} {" ".join(names)}\n'
  shot = len(spec.tokenizer.encode(example))

  def build(size: int, number: int) -> Prompt:
    text, prefix, names = _chain(rng, size, 5)
    return Prompt(f'{_renamed(rng, example)}\n{text}', prefix, names)

  step = 10 if spec.length >= 4096 else 5
  tokens = lambda size: measure(spec, size, 5) + shot
  return fill.stream(spec, build, step, tokens, extra=shot)


def _chain(rng: Draws, noises: int, letters: int) -> Prompt:
  """One chain among so many lines of noise; of 3 letters in the example."""
  names: list[str] = []
  while len(set(names)) <= HOPS:
    names = [''.join(rng.choices(string.ascii_uppercase, k=letters))
             for _ in range(HOPS + 1)]  # fmt: skip
  value = 12345 if letters == 3 else rng.numpy.randint(10_000, 99_999)
  chain = [f'VAR {names[0]} = {value}']
  chain += [f'VAR {b} = VAR {a} ' for a, b in itertools.pairwise(names)]
  lines = [NOISE] * noises
  places = sorted(rng.sample(range(noises), len(chain)))
  for number, (place, line) in enumerate(zip(places, chain)):
    lines.insert(place + number, line)
  context = '\n'.join(lines).replace('. \n', '.\n')
  text, prefix = (
    part.format(context=context, query=value, count=len(names)) for part in VT
  )
  return Prompt(text, prefix, tuple(names))


def _renamed(rng: Draws, example: str) -> str:
  """The example with other variables and another value."""
  for name in example.split()[-HOPS - 1 :]:
    new = ''.join(rng.choices(string.ascii_uppercase, k=len(name)))
    example = example.replace(name, new)
  return example.replace('12345', str(rng.numpy.randint(10_000, 99_999)))


def common_words(spec: PromptSpec):
  """Common words extraction: ten words appear often, the others seldom."""
  rng, words = Draws(spec.seed), spec.source.words.all
  random.Random(spec.seed).shuffle(words)
  many = spec.length >= 4096

  def numbered(size: int, often: int, seldom: int):
    drawn = rng.sample(words, size)
    common = drawn[:10]
    listed = common * often + drawn[10:] * seldom
    random.Random(spec.seed).shuffle(listed)
    return _listed(listed), common

  def build(size: int, number: int) -> Prompt:
    example, shot = numbered(*((40, 10, 3) if many else (20, 3, 1)))
    text, common = numbered(size, *((30, 3) if many else (6, 1)))
    prompt, prefix = CWE
    example = f'{prompt.format(context=example)}{prefix} {_listed(shot)}'
    return Prompt(
      f'{example}\n{prompt.format(context=text)}', prefix, tuple(common)
    )

  return fill.stream(spec, build, 10, probe=4096, most=len(words))


def _listed(words) -> str:
  return ' '.join(f'{i}. {word}' for i, word in enumerate(words, 1))


def frequent_words(spec: PromptSpec):
  """Frequent words extraction: coded words by Zipf's law, exponent 2.

  The most frequent is noise, the three after it are asked for. Sizes are
  tried one after another, as there.
  """
  rng, limit = Draws(spec.seed), spec.length - spec.count
  step = limit // 32

  def vocabulary() -> list[str]:
    count = limit // 50
    word = lambda: ''.join(rng.choices(string.ascii_lowercase, k=6))
    coded = [word() for _ in range(count)]
    while len(set(coded)) < count:
      coded.append(word())
    coded = sorted(set(coded))
    random.Random(spec.seed).shuffle(coded)
    return ['...', *coded[1:]]

  def build(coded, size: int) -> Prompt:
    counts = size * np.arange(1, len(coded) + 1) ** -2.0 / (np.pi**2 / 6)
    words = [w for w, n in zip(coded, counts.astype(int)) for _ in range(n)]
    random.Random(spec.seed).shuffle(words)
    text = FWE[0].format(context=' '.join(words))
    return Prompt(text, FWE[1], tuple(coded[1:4]))

  tokens = lambda p: fill.encoded(spec, *p[:2])[1] - spec.count
  size, coded = limit // 6, vocabulary()
  while tokens(build(coded, size)) < limit:
    size += step
  size -= step
  while True:
    coded, used = vocabulary(), size
    while tokens(prompt := build(coded, used)) > limit:
      if used <= step:
        raise fill.too_long(tokens(prompt), limit)
      used -= step
    yield Sample(spec.encode(*prompt[:2]), prompt.references)


def documents(spec: PromptSpec, questions, texts):
  """Questions about documents, hidden among others.

  Args:
    spec: what the prompts are made for.
    questions: list of ruler_data.Question.
    texts: documents, which the questions have by number.
  """
  rng = Draws(spec.seed)

  def build(size: int, number: int) -> Prompt:
    asked = questions[number]
    own, near = list(asked.own), list(asked.near)
    if size >= len(texts):
      shown = haystack.first(texts, size)
    else:
      if size - len(own) > len(near):
        known = {*own, *near}
        others = [i for i in range(len(texts)) if i not in known]
        drawn = near + rng.sample(others, max(0, size - len(own) - len(near)))
      else:
        drawn = rng.sample(near, size - len(own))
      shown = [texts[i] for i in own + drawn]
    random.Random(spec.seed).shuffle(shown)
    context = '\n\n'.join(
      f'Document {i}:\n{text}' for i, text in enumerate(shown, 1)
    )
    text = QA[0].format(context=context, query=asked.query)
    return Prompt(text, QA[1], asked.answers)

  return itertools.islice(fill.stream(spec, build, 10), len(questions))
