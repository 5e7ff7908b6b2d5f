"""First-sentence retrieval, arXiv:2309.16039, section 4.1.

The model is given a text and asked for its first sentence; ROUGE-L says how
much of it comes back. The paper gives no wording: this one is ours, with two
short examples for models that were not tuned to follow instructions.
"""

import functools

from longjax.errors import InputError
from longjax.evals import fill, haystack, prompts, score
from longjax.evals.prompts import Prompt, Source, Task

WORDS = range(8, 41)  # of a sentence that is asked for
SHOTS = (
  ('The old mill stood at the edge of the village for two hundred years. '
   'Nobody remembered who had built it. In spring the river rose.'),
  ('A letter arrived on Tuesday with a stamp that none of us had ever seen. '
   'My brother opened it. It was empty.'),
)  # fmt: skip
PROMPT = (
  'Text:\n"""\n{text}\n"""\nRepeat the first sentence of the text exactly.'
)
PREFIX = '\nFirst sentence:'


def build(rng, source: Source, size: int, number: int) -> Prompt:
  """A text of `size` + 1 sentences; its first occurs nowhere else in it."""
  start = int(rng.choice(_starts(source.text)))
  parts = haystack.sentences(source.text)
  parts = parts[start:] + parts[:start]
  answer = parts[0]
  rest = [s for s in parts[1:] if answer not in s]
  shots = ''.join(
    f'{PROMPT.format(text=t)}{PREFIX} {haystack.sentences(t)[0]}\n\n'
    for t in SHOTS
  )
  text = ' '.join([answer, *haystack.first(rest, size)])
  return Prompt(shots + PROMPT.format(text=text), PREFIX, (answer,))


@functools.lru_cache(1)
def _starts(text: str) -> list[int]:
  """The sentences that may be asked for."""
  found = [
    i for i, sentence in enumerate(haystack.sentences(text))
    if len(sentence.split()) in WORDS
  ]  # fmt: skip
  if not found:
    raise InputError(
      'the documents of eval.sources have no sentence of '
      f'{WORDS[0]} to {WORDS[-1]} words for first_sentence: it needs prose'
    )
  return found


TASKS = dict(
  first_sentence=Task(
    functools.partial(fill.longest_prompts, build), 96, score.rouge_l, ('\n',)
  )
)
EVALUATION = prompts.evaluation(
  'first_sentence', 'First-sentence retrieval, ROUGE-L', TASKS
)
