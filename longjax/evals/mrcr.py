"""OpenAI's MRCR: which of several like answers of a long conversation is it?

Prompts and score (difflib's ratio after a random prefix) are those of the
card of openai/mrcr. At each length, longer conversations are skipped.
"""

import difflib

from longjax import json_text
from longjax.evals import prompts, records
from longjax.evals.prompts import Prompt, PromptSpec

ANSWER_TOKENS = 2048  # there as many as the model likes
FIELDS = ('prompt', 'answer', 'random_string_to_prepend')


def make(record, spec: PromptSpec) -> Prompt:
  """The conversation, whose last turn asks for an answer again."""
  text, answer, prefix = (record[field] for field in FIELDS)
  return Prompt(json_text.loads(text), '', (answer, prefix))


def score_answer(answer: str, references) -> float:
  """How like the answer is to the right one; 0 without the prefix."""
  right, prefix = references
  if not answer.startswith(prefix):
    return 0.0
  given, right = (text.removeprefix(prefix) for text in (answer, right))
  return difflib.SequenceMatcher(None, given, right).ratio()


DATA = records.DataSet('mrcr', 'a .parquet file of openai/mrcr', FIELDS)
TASKS = dict(mrcr=records.task(DATA, make, ANSWER_TOKENS, score_answer))
EVALUATION = prompts.evaluation('mrcr', 'MRCR', TASKS)
