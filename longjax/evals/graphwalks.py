"""OpenAI's GraphWalks: breadth-first search and parents in a list of edges.

Prompts and score (F1 of the nodes in the last line) are those of the card of
openai/graphwalks, except that the empty list is right where nothing is to be
found; the card's first code gave it 0. At each length, longer graphs are
skipped.
"""

import re

from longjax.evals import prompts, records
from longjax.evals.prompts import Prompt, PromptSpec

ANSWER_TOKENS = 2048  # there as many as the model likes


def make(record, spec: PromptSpec) -> Prompt:
  """The graph, three examples and what to do."""
  return Prompt(record['prompt'], '', tuple(record['answer_nodes']))


def score_answer(answer: str, references) -> float:
  """F1 of the nodes after 'Final Answer:' in the last line; 0 without it."""
  line = answer.rsplit('\n', maxsplit=1)[-1]
  found = re.search(r'Final Answer: ?\[(.*)\]', line)
  if not found:
    return 0.0
  named = {x.strip() for x in found[1].split(',') if x.strip()}
  right = set(references)
  if not named and not right:
    return 1.0
  return 2 * len(named & right) / (len(named) + len(right))


DATA = records.DataSet(
  'graphwalks', 'a .parquet file of openai/graphwalks',
  ('prompt', 'answer_nodes'),
)  # fmt: skip
TASKS = dict(graphwalks=records.task(DATA, make, ANSWER_TOKENS, score_answer))
EVALUATION = prompts.evaluation('graphwalks', 'GraphWalks', TASKS)
