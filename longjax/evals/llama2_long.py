"""The long tasks of Llama 2 Long, arXiv:2309.16039, section 3.1 and table 3.

NarrativeQA without examples and Qasper with two by F1, QuALITY with two by
exact match, QMSum with one by ROUGE; scores are those of SCROLLS. The prompt is
the paper's, cut on the left. The paper does not say which examples it took,
what stood between them, nor where an answer ends. Here examples are drawn by a
hash of the question and separated by an empty line, and an answer ends with its
line.
"""

import functools

from longjax.evals import draws, prompts, records, score, scrolls
from longjax.evals.prompts import Prompt, PromptSpec, Task

PROMPT = '{} Q: {},'
CUE = ' A:'


def make(name: str, count: int, record, spec: PromptSpec) -> Prompt:
  """The prompt of a record after `count` examples."""
  put = lambda x: PROMPT.format(
    *scrolls.context_and_question(x, name == 'quality')
  )
  shots = []
  if count:
    train = scrolls.data_set(name, 'train')
    examples = records.cached(train, records.path(train, spec))
    shots = draws.shots(examples, 'id', record)[:count]
  text = ''.join(f'{put(x)}{CUE} {x["output"]}\n\n' for x in shots)
  text = records.cut(
    spec, text + put(record), CUE, drop=lambda ids, excess: ids[excess:]
  )
  return Prompt(text, CUE, records.texts(record['output']))


def task(name: str, shots: int, tokens: int, metric, **more) -> Task:
  data = scrolls.data_set(name, 'validation')
  built = functools.partial(make, name, shots)
  return records.task(
    data, built, tokens, metric, ('\n',), scrolls.merged, **more
  )


# Tokens of answers are those of ZeroSCROLLS, arXiv:2305.14196, but for QuALITY,
# whose answers are whole choices here.
TASKS = dict(
  narrative_qa=task('narrative_qa', 0, 64, score.f1),
  qasper=task('qasper', 2, 128, score.f1),
  quality=task('quality', 2, 64, score.exact_match),
  qmsum=task('qmsum', 1, 512, score.rouges, combine=score.geometric_mean),
)
EVALUATION = prompts.evaluation(
  'llama2_long', 'Long tasks of Llama 2 Long', TASKS
)
