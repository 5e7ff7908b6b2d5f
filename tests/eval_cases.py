"""What tests of evaluations share: words, prose, and models that are no model.

`reader` answers every task by reading its prompt, as a person would with a
pencil: it knows the wording of the question and nothing of how prompts are
made. `blind` does not look at the prompt.
"""

import collections
import json
import re

import numpy as np

from configs import common
from longjax import evals
from longjax.data import tokenizer
from longjax.evals import table
from longjax.evals.prompts import Source, make_spec
from longjax.evals.word_lists import Words
from longjax.inference.language_model import LM

TOKENS = tokenizer.load('bytes')
SYLLABLES = [c + v for c in 'bdfgklmnprstvz' for v in 'aeiou']


def invented(count, ending, seed):
  """Words that a reader can tell apart."""
  rng = np.random.default_rng(seed)
  drawn = (''.join(rng.choice(SYLLABLES, 3)) + ending for _ in range(2 * count))
  return sorted(dict.fromkeys(drawn))[:count]


WORDS = Words(invented(400, 'n', 1), invented(200, 'ly', 2),
              invented(100, 'te', 3))  # fmt: skip


def prose(sentences=400):
  """Sentences of 4 to 11 words, no two alike."""
  rng = np.random.default_rng(4)
  lines = (
    ' '.join(rng.choice(WORDS.nouns, rng.integers(3, 11)))
    for _ in range(sentences)
  )
  return ' '.join(f'S{i} {line}.' for i, line in enumerate(lines))


SOURCE = Source(prose(), WORDS)


def model(answer) -> LM:
  """A model whose text is answer(prompt text)."""

  def run(prompts, count, stopped=None):
    texts = [answer(TOKENS.decode(p)) for p in prompts]
    return [np.asarray(TOKENS.encode(t)[:count]) for t in texts]

  return LM(None, run)


def spec(task, length=20_000, source=SOURCE, **files):
  """The PromptSpec of a task that reads files, eval.files."""
  source = source._replace(files={k: str(v) for k, v in files.items()})
  return make_spec(TOKENS, task, source, length, 42)


def write(path, rows):
  """Lines of JSON."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(json.dumps(x) + '\n' for x in rows))
  return path


def results_of(name: str, answer, **files):
  """(evaluation, results) of a task that reads files, at 4,000 tokens.

  Args:
    name: EVALUATION/TASK.
    answer: prompt text -> text of the model.
    **files: eval.files.
  """
  config = common.base()
  config.eval.update(lengths=(4000,))
  config.eval.files.update({key: str(path) for key, path in files.items()})
  setup = evals.Setup(config, TOKENS, log=lambda line: None)
  evals.check(setup, [name])
  evaluation, part = table.find(name)
  return evaluation, evaluation.run(model(answer), setup, part)


blind = model(lambda text: ' 3 7777777')


def _magic(text):
  asked = text[text.rindex('What ') :]
  pairs = re.findall(r'special magic \w+ for (\S+) is: (\S+)\.', text)
  named = re.findall(r'[\w-]+', asked)
  return ' '.join(value for key, value in pairs if key in named)


def _variables(text):
  text = text[text.rindex('Memorize and track') :]
  value = re.findall(r'assigned the value (\d+)', text)[-1]
  found = re.findall(rf'VAR (\w+) = {value}', text)
  for new, old in re.findall(r'VAR (\w+) = VAR (\w+) ', text):
    found += [new] if old in found else []
  return ' '.join(found)


def _common(text):
  text = text[text.rindex('Below is a numbered') : text.rindex('Question:')]
  counted = collections.Counter(re.findall(r'\d+\. (\w+)', text))
  return ' '.join(word for word, _ in counted.most_common(10))


def _frequent(text):
  text = text[text.index('coded words.') : text.rindex('Question:')]
  counted = collections.Counter(re.findall(r'\b[a-z]{6}\b', text))
  return ' '.join(word for word, _ in counted.most_common(3))


def _question(text):
  asked = text[text.rindex('Question:') :]
  name = re.search(r'(?:was|where) ([A-Z]\w+ \w+) ', asked)[1]
  town = re.search(rf'{name} \(born \d+ in (\w+ \w+)\)', text)[1]
  river = re.search(rf'{town} is a town .*? river (\w+ \w+) runs', text)
  return river[1] if 'Which river' in text else town


def _value(text):
  key = re.findall(r'Key: (\S+)', text)[-1]
  return ' ' + re.search(rf'"{key}": "(\S+)"', text)[1]


def _label(text):
  """That of the demonstration that has the most words in common."""
  items = re.findall(r'([^\n]+)\nlabel: (\d)', text)
  asked = set(text.split('\n')[-2].split())
  near = lambda item: len(asked & set(item[0].split()))
  return ' ' + max(items, key=near)[1] + '\n'


def _first(text):
  body = text[text.rindex('Text:\n"""\n') + 10 :]
  return ' ' + body[: body.index('.') + 1] + '\n'


def _key(text):
  return ' ' + re.search(r'pass key is (\d+)', text)[1] + '.'


READS = {
  'special magic': _magic,
  'assigned the value': _variables,
  'numbered list of words': _common,
  'coded text': _frequent,
  'given documents': _question,
  'JSON object': _value,
  'mapping from the text to label': _label,
  'Repeat the first sentence': _first,
  'pass key': _key,
  'San Francisco': lambda text: ' sandwich, Dolores Park, sunny',
}


def read(text):
  """The right answer, out of the prompt alone."""
  ways = [way for mark, way in READS.items() if mark in text]
  return ways[0](text)


reader = model(read)
