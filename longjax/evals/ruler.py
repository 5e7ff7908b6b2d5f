"""RULER, arXiv:2404.06654: thirteen tasks, and how long a context is effective.

Prompts, parameters and metrics are those of the benchmark's generators
(scripts/data/synthetic, synthetic.yaml). What differs: the essays are the
documents of `eval.sources`; the documents of qa_1 and qa_2 are invented, since
SQuAD and HotpotQA come in no package; the haystack is the largest that fits,
not a multiple of an increment. Scores are therefore near to the published
ones, and not the same.
"""

import functools
import itertools
import string
import uuid

import numpy as np

from longjax.evals import evaluation, haystack, prompts, score
from longjax.evals.markdown import table
from longjax.evals.prompts import Source, Task

NOISE = (
  'The grass is green. The sky is blue. The sun is yellow. Here we go. There '
  'and back again.'
)
NEEDLE = 'One of the special magic {kind} for {key} is: {value}.'
NIAH = (
  'Some special magic {kind} are hidden within the following text. Make sure '
  'to memorize it. I will quiz you about the {kind} afterwards.\n{context}\n'
  'What are all the special magic {kind} for {query} mentioned in the provided '
  'text? The special magic {kind} for {query} mentioned in the provided text '
  'are'
)
VT = (
  'Memorize and track the chain(s) of variable assignment hidden in the '
  'following text.\n\n{context}\nQuestion: Find all variables that are '
  'assigned the value {query} in the text above. Answer: According to the '
  'chain(s) of variable assignment in the text above, {count} variables are '
  'assgined the value {query}, they are: '
)
CWE = (
  'Below is a numbered list of words. In these words, some appear more often '
  'than others. Memorize the ones that appear most often.\n{context}\n'
  'Question: What are the 10 most common words in the above list? Answer: The '
  'top 10 words that appear most often in the list are:'
)
FWE = (
  'Read the following coded text and track the frequency of each coded word. '
  'Find the three most frequently appeared coded words. {context}\nQuestion: '
  "Do not provide any explanation. Please ignore the dots '....'. What are the "
  'three most frequently appeared words in the above coded text? Answer: '
  'According to the coded text above, the three most frequently appeared words '
  'are:'
)
QA_RULE = (
  'Answer the question based on the given documents. Only give me the answer '
  'and do not output any other words.'
)
QA = (
  QA_RULE + '\n\nThe following are given documents.\n\n{context}\n\n' + QA_RULE
  + '\n\nQuestion: {query} Answer:'
)  # fmt: skip
DEPTHS = np.round(np.linspace(0, 100, 40)).astype(int)
HOPS = 4


def niah(
  rng, source: Source, size, length, *, hay='essay', keys=1, values=1,
  queries=1, key='words', value='numbers',
):  # fmt: skip
  """Needles: special magic numbers, words or uuids, by key.

  Args:
    hay: 'noise', 'essay' or 'needle' (other needles).
    keys, values, queries: keys hidden, values of each, keys asked for.
    key, value: what they are.
  """
  draw = functools.partial(_secret, rng, source.words)
  needle = lambda k, v: NEEDLE.format(kind=value, key=k, value=v)
  hidden = [
    (draw(key), [draw(value) for _ in range(values)]) for _ in range(keys)
  ]
  needles = [needle(k, v) for k, vs in hidden for v in vs]
  rng.shuffle(needles)
  if hay == 'essay':
    context = _in_essay(rng, source.text, size, needles)
  else:
    lines = [NOISE] * size
    if hay == 'needle':
      lines = [needle(draw(key), draw(value)) for _ in range(size)]
    context = '\n'.join(_inserted(rng, lines, needles))
  asked = [hidden[i] for i in rng.permutation(keys)[:queries]]
  names = [k for k, _ in asked]
  query = names[0]
  if queries > 1:
    query = ', '.join(names[:-1]) + ', and ' + names[-1]
  template = NIAH
  if values * queries == 1:
    template = template.replace('Some', 'A', 1).replace('are all', 'is')
    template, value = template.replace('are', 'is'), value[:-1]
  text = template.format(kind=value, context=context, query=query)
  return text, [v for _, vs in asked for v in vs]


def tracking(rng, source: Source, size, length):
  """Variable tracking: which variables have a value, through HOPS copies."""
  example, answer = _chain(rng, 12, letters=3)
  text, variables = _chain(rng, size, letters=5)
  shot = f'{example}{" ".join(answer)}\n\n'
  return shot + text, variables


def common_words(rng, source: Source, size, length):
  """Common words extraction: ten words appear often, `size` seldom."""
  many = length >= 4096
  words = source.words.all
  one, shot = _numbered(rng, words, 30 if many else 10, (10, 3) if many else
                        (3, 1))  # fmt: skip
  text, common = _numbered(rng, words, size, (30, 3) if many else (6, 1))
  answer = ' '.join(f'{i}. {word}' for i, word in enumerate(shot, 1))
  return f'{one}{answer}\n{text}', common


def frequent_words(rng, source: Source, size, length):
  """Frequent words extraction: coded words by Zipf's law, exponent 2.

  The most frequent is noise, the three after it are asked for.
  """
  vocab = max(length // 50, 10)
  letters = rng.choice(list(string.ascii_lowercase), (vocab, 6))
  coded = ['...', *dict.fromkeys(''.join(word) for word in letters)][:vocab]
  rank = np.arange(1, len(coded) + 1)
  counts = size * rank**-2.0 / (np.pi**2 / 6)
  text = [w for w, n in zip(coded, counts.astype(int)) for _ in range(n)]
  rng.shuffle(text)
  return FWE.format(context=' '.join(text)), coded[1:4]


def question(rng, source: Source, size, length, *, hops: int):
  """Questions about one of `size` + `hops` invented documents, or two of them.

  hops 1 stands for qa_1 (SQuAD), hops 2 for qa_2 (HotpotQA).
  """
  words = source.words
  town, person, river = (_name(rng, words) for _ in range(3))
  facts = [_person(rng, words, person, town), _town(rng, words, town, river)]
  asked = f'In which town was {person} born?', town
  if hops == 2:
    asked = f'Which river runs through the town where {person} was born?', river
  documents = facts[:hops] + [
    (_person if i % 2 else _town)(rng, words, *(
      _name(rng, words) for _ in range(2)
    ))
    for i in range(size)
  ]  # fmt: skip
  rng.shuffle(documents)
  context = '\n\n'.join(
    f'Document {i}:\n{text}' for i, text in enumerate(documents, 1)
  )
  return QA.format(context=context, query=asked[0]), [asked[1]]


def _needles(**kinds) -> Task:
  return Task(functools.partial(niah, **kinds), 128)


def _questions(hops: int, stand_in: str) -> Task:
  build = functools.partial(question, hops=hops)
  return Task(build, 32, score.any_reference, stand_in=stand_in)


TASKS = dict(
  niah_single_1=_needles(hay='noise'),
  niah_single_2=_needles(),
  niah_single_3=_needles(value='uuids'),
  niah_multikey_1=_needles(keys=4),
  niah_multikey_2=_needles(hay='needle'),
  niah_multikey_3=_needles(hay='needle', key='uuids', value='uuids'),
  niah_multivalue=_needles(values=4),
  niah_multiquery=_needles(keys=4, queries=4),
  vt=Task(tracking, 30),
  cwe=Task(common_words, 120),
  fwe=Task(frequent_words, 50),
  qa_1=_questions(1, 'invented documents, not SQuAD'),
  qa_2=_questions(2, 'invented documents, not HotpotQA'),
)
BAR = 85.6  # Llama-2-7B-chat at 4K, the paper's bar for an effective length
BASE_BAR = 79.4  # the same of the base model, table 12


def effective_length(means: dict, bar: float) -> int:
  """The longest length whose mean of the tasks reaches the bar; 0 is none.

  Args:
    means: {length: mean of the thirteen tasks in percent}.
    bar: in percent.
  """
  return max((n for n, mean in means.items() if mean >= bar), default=0)


def weighted(means: dict) -> tuple[float, float]:
  """wAvg (inc) and (dec): linear weights, rising and falling with length."""
  values = [means[length] for length in sorted(means)]
  rising = np.arange(1, len(values) + 1)
  average = lambda weights: float(np.average(values, weights=weights))
  return average(rising), average(rising[::-1])


def summary(results: dict) -> list[str]:
  """Means by length, effective lengths and weighted means of each model."""
  rows = []
  for name, tasks in results.items():
    points = evaluation.means(prompts.points(tasks))
    means = {length: 100 * point.value for length, point in points.items()}
    if not means:
      continue
    shown = (f'{n:,}: {mean:.1f}' for n, mean in sorted(means.items()))
    effective = [
      f'{effective_length(means, bar):,}'
      if tasks.keys() == TASKS.keys() else 'not all tasks'
      for bar in (BAR, BASE_BAR)
    ]  # fmt: skip
    average = [f'{x:.1f}' for x in weighted(means)]
    rows.append([name, ', '.join(shown), *effective, *average])
  head = ['', 'mean of the tasks', f'effective (bar {BAR})',
          f'effective (bar {BASE_BAR})', 'wAvg inc', 'dec']  # fmt: skip
  return [
    table(head, rows),
    'Essays are held-out documents, and stand-ins count in the means: compare '
    'models with each other, not with the published tables.',
  ]


def _secret(rng, words, kind: str) -> str:
  if kind == 'numbers':
    return str(rng.integers(10**6, 10**7))
  if kind == 'uuids':
    return str(uuid.UUID(bytes=rng.bytes(16), version=4))
  return f'{rng.choice(words.adjectives)}-{rng.choice(words.nouns)}'


def _in_essay(rng, text: str, size: int, needles) -> str:
  """The first `size` sentences, the needles after shares of them."""
  parts = haystack.first(haystack.sentences(text), size)
  depths = np.sort(rng.choice(DEPTHS, len(needles), replace=False))
  places = (len(parts) * depths / 100).astype(int)
  for place, needle in sorted(zip(places, needles), reverse=True):
    parts.insert(place, needle)
  return ' '.join(parts)


def _inserted(rng, lines, needles) -> list[str]:
  """Each needle before a line of its own, or after all."""
  for place, needle in zip(
    np.sort(rng.integers(0, len(lines) + 1, len(needles)))[::-1], needles
  ):
    lines.insert(place, needle)
  return lines


def _chain(rng, noises: int, letters: int):
  """(prompt, the variables) of one chain among so many lines of noise."""
  names: list[str] = []
  while len(names) <= HOPS:
    drawn = rng.choice(list(string.ascii_uppercase), letters)
    names = list(dict.fromkeys([*names, ''.join(drawn)]))
  value = rng.integers(10_000, 99_999)
  chain = [f'VAR {names[0]} = {value}']
  chain += [f'VAR {b} = VAR {a} ' for a, b in itertools.pairwise(names)]
  lines = [NOISE + '\n'] * noises
  places = np.sort(rng.integers(0, len(lines) + 1, len(chain)))
  for place, line in list(zip(places, chain))[::-1]:
    lines.insert(place, line)
  context = ' '.join(lines).replace('. \n', '.\n')
  text = VT.format(context=context, query=value, count=len(names))
  return text, names


def _numbered(rng, words, size: int, repeats):
  """(prompt, the ten common words): ten often, `size` others seldom."""
  drawn = list(rng.permutation(words)[: 10 + size])
  common, rest = drawn[:10], drawn[10:]
  listed = common * repeats[0] + rest * repeats[1]
  rng.shuffle(listed)
  context = ' '.join(f'{i}. {word}' for i, word in enumerate(listed, 1))
  return CWE.format(context=context), common


def _name(rng, words) -> str:
  """An invented proper name."""
  return ' '.join(
    str(rng.choice(x)).capitalize() for x in (words.adjectives, words.nouns)
  )


def _person(rng, words, person, town) -> str:
  trade, thing = rng.choice(words.nouns), rng.choice(words.nouns)
  return (
    f'{person}\n{person} (born {rng.integers(1700, 2000)} in {town}) was known '
    f'for a {rng.choice(words.adjectives)} {trade}. After leaving {town} at '
    f'the age of {rng.integers(12, 40)}, {person} wrote about the {thing}.'
  )


def _town(rng, words, town, river) -> str:
  return (
    f'{town}\n{town} is a town of {rng.integers(1000, 99_999)} people. The '
    f'river {river} runs through it. It has a {rng.choice(words.adjectives)} '
    f'{rng.choice(words.nouns)} from {rng.integers(1200, 1900)}.'
  )


EVALUATION = prompts.evaluation(
  'ruler', 'RULER', TASKS, lists=True, summary=summary
)
