"""The parts of HELMET, arXiv:2410.02694, that need no data from elsewhere.

Recall: JSON key-value pairs of its own, and three of RULER's tasks with its
shorter answers. In-context learning: questions and their kinds, as in TREC
coarse, with labels that are shuffled integers, so that only the demonstrations
say what a label means. The questions are made from patterns, not TREC's.
"""

import functools
import uuid

from longjax.evals import (
  evaluation,
  fill,
  helmet_prompts,
  prompts,
  ruler,
  score,
)
from longjax.evals.prompts import Prompt, Source, Task

KV = (
  '{context}\n\nExtract the value corresponding to the specified key in the '
  'JSON object below.\n\n{shots}Key: {key}'
)
ICL = (
  'Use the provided mapping from the text to label to assign a label to the '
  'text. Only output "label: {{label}}" and nothing else. \n\n{shots}\n\n'
  '{text}'
)
SHOTS = 2
DEPTHS = 6
# Six kinds of answer, as in TREC coarse; {} are an adjective and a noun.
KINDS = (
  ('Who invented the {} {}?', 'Who was the first owner of a {} {}?',
   'Which author wrote about the {} {}?', 'Who painted a {} {}?'),
  ('Where can one see the {} {}?', 'In what country is the {} {} made?',
   'What city is known for its {} {}?', 'Where was a {} {} found?'),
  ('How many people own a {} {}?', 'What does a {} {} cost?',
   'How long is a {} {}?', 'How much does the {} {} weigh?'),
  ('What does "{} {}" mean?', 'What is a {} {}?',
   'Why does a {} {} break?', 'How does one make a {} {}?'),
  ('What animal eats a {} {}?', 'What color is the {} {}?',
   'What is another name for a {} {}?', 'What food goes with a {} {}?'),
  ('What does the abbreviation of {} {} stand for?',
   'What is the acronym for {} {}?', 'What is {} {} short for?',
   'How is {} {} abbreviated?'),
)  # fmt: skip


def json_kv(rng, source: Source, size: int, number: int) -> Prompt:
  """The value of one of `size` + 3 random pairs in a JSON object.

  It is at one of DEPTHS places in turn, evenly from the first to the last.
  """
  draw = lambda: str(uuid.UUID(bytes=rng.bytes(16), version=4))
  pairs = [(draw(), draw()) for _ in range(size + SHOTS + 1)]
  place = round((len(pairs) - 1) * (number % DEPTHS) / (DEPTHS - 1))
  asked = pairs[place]
  others = [i for i in rng.permutation(len(pairs)).tolist() if i != place]
  shots = [pairs[i] for i in others[:SHOTS]]
  context = ',\n '.join(f'"{k}": "{v}"' for k, v in pairs)
  text = KV.format(
    context='{' + context + '}',
    shots=shown(shots),
    key=asked[0],
  )
  return Prompt(text, '\nCorresponding value:', (asked[1],))


def shown(pairs) -> str:
  """Keys and their values as examples."""
  return ''.join(f'Key: {k}\nCorresponding value: {v}\n\n' for k, v in pairs)


def in_context(rng, source: Source, size: int, number: int) -> Prompt:
  """The label of a question after `size` others, balanced in rounds."""
  labels = rng.permutation(len(KINDS))
  kind = int(rng.integers(len(KINDS)))
  asked, shots = _question(rng, source.words, kind), []
  while len(shots) < size:  # each label once a round
    shots += [
      f'{_question(rng, source.words, k)}\nlabel: {labels[k]}'
      for k in rng.permutation(len(KINDS))
    ]
  shots = '\n\n'.join(shots[:size])
  text = ICL.format(shots=shots, text=asked)
  return Prompt(text, '\nlabel:', (str(labels[kind]),))


def label_match(answer: str, references) -> float:
  """1 if what the first line has is the label."""
  text = helmet_prompts.line_after('label:', f'label:{answer}')
  return score.exact_match(text, references)


def _task(build, *args, **kwargs) -> Task:
  return Task(functools.partial(fill.longest_prompts, build), *args, **kwargs)


# RULER's own with a newline before the answer, and shorter answers.
TASKS = dict(
  json_kv=_task(json_kv, 100, score.substring_match),
  niah_multikey_2=ruler.needles(50, hay='needle', joint='\n'),
  niah_multikey_3=ruler.needles(
    100, hay='needle', key='uuids', value='uuids', joint='\n'
  ),
  niah_multivalue=ruler.needles(50, values=4, joint='\n'),
  icl=_task(
    in_context, 20, label_match, ('\n',), 'questions from patterns, not TREC'
  ),
)
RECALL = ('json_kv', 'niah_multikey_2', 'niah_multikey_3', 'niah_multivalue')


def recall(results: dict) -> list[str]:
  """The mean of the recall tasks, of models that did all of them."""
  lines = []
  for name, tasks in results.items():
    if all(task in tasks for task in RECALL):
      own = prompts.points({task: tasks[task] for task in RECALL})
      means = (
        f'{100 * mean.value:.1f} at {n:,}'
        for n, mean in evaluation.means(own).items()
      )
      lines.append(f'{name}: {", ".join(means)}')
  return [f'Recall: {"; ".join(lines)}.'] if lines else []


def _question(rng, words, kind: int) -> str:
  pattern = KINDS[kind][rng.integers(len(KINDS[kind]))]
  return pattern.format(rng.choice(words.adjectives), rng.choice(words.nouns))


EVALUATION = prompts.evaluation(
  'helmet', 'HELMET, the parts without outside data', TASKS, lists=True,
  summary=recall,
)  # fmt: skip
