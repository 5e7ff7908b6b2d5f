"""NarrativeQA as HELMET has it, arXiv:2410.02694: questions about the stories
longer than LONG, in the order of its draw. There each run draws other examples;
here a hash of the question does, out of the first file of the training split.
"""

import functools
import itertools

from longjax.evals import draws, helmet_prompts, records
from longjax.evals.prompts import Prompt, PromptSpec

LONG = 131072  # tokens of the model, there of Llama 2
WHERE = 'hf://datasets/deepmind/narrativeqa/data, or a copy of that directory'
FIELDS = ('document', 'question', 'answers')
TEST = records.DataSet('narrativeqa', WHERE, FIELDS, 'test')
TRAIN = TEST._replace(split='train', files=1)
PROMPT = (
  'You are given a story, which can be either a novel or a movie script, and a '
  'question. Answer the question as concisely as you can, using a single '
  'phrase if possible.\n\nFor example:\n\n{shots}\n\nNow, use the following '
  'story to answer the question:\n\n{context}\n\nQuestion: {question}'
)


def flat(record) -> dict:
  answers = records.texts([x['text'] for x in record['answers']])
  return dict(question=record['question']['text'], answers=answers)


@functools.lru_cache(2)
def _examples(path: str) -> list:
  return [flat(x) for x in itertools.islice(records.read(TRAIN, path), 1000)]


def rows(data: records.DataSet, spec: PromptSpec):
  """Questions with their stories, of which each is kept once."""
  stories: dict = {}
  found = [
    (text := x['document']['text'], stories.setdefault(text, text), flat(x))[1:]
    for x in records.in_order(data, spec)
  ]
  tokens = functools.cache(lambda x: helmet_prompts.tokens(spec, x))
  for story, asked in draws.permuted(found, spec.seed):
    if len(story.encode()) >= LONG and tokens(story) > LONG:
      yield asked | dict(story=story)


def make(record, spec: PromptSpec) -> Prompt:
  examples = _examples(records.path(TRAIN, spec))
  shots = '\n\n'.join(
    f'Question: {x["question"]}\nAnswer: {x["answers"][0]}'
    for x in draws.shots(examples, 'question', record)
  )
  asked, story, cue = record['question'], record['story'], '\nAnswer:'
  form = lambda x: PROMPT.format(shots=shots, context=x, question=asked)
  text = helmet_prompts.cut(spec, form, story, cue, helmet_prompts.MARK)
  return Prompt(text, cue, record['answers'])
