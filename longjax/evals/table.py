"""The table of evaluations, by the names that `eval.tasks` gives them.

A name may go on after a slash where there are several of a kind: ruler/vt,
helmet/json_kv, lm_eval/lambada_openai.
"""

from longjax.errors import InputError, nearest
from longjax.evals import (
  context_gain,
  first_sentence,
  graphwalks,
  helmet,
  helmet_icl,
  helmet_longqa,
  helmet_rag,
  helmet_recall,
  helmet_rerank,
  helmet_summ,
  llama2_long,
  longbench,
  longppl,
  mrcr,
  needle,
  nolima,
  passkey,
  perplexity,
  position_loss,
  ruler,
  short_tasks,
)
from longjax.evals.evaluation import Evaluation

EVALUATIONS = {
  evaluation.name: evaluation
  for evaluation in (
    position_loss.EVALUATION,
    position_loss.BY_SOURCE,
    perplexity.EVALUATION,
    context_gain.EVALUATION,
    longppl.EVALUATION,
    passkey.EVALUATION,
    needle.EVALUATION,
    ruler.EVALUATION,
    helmet.EVALUATION,
    helmet_recall.EVALUATION,
    helmet_rag.EVALUATION,
    helmet_rerank.EVALUATION,
    helmet_icl.EVALUATION,
    helmet_longqa.EVALUATION,
    helmet_summ.EVALUATION,
    llama2_long.EVALUATION,
    nolima.EVALUATION,
    passkey.ORIGINAL,
    first_sentence.EVALUATION,
    longbench.EVALUATION,
    mrcr.EVALUATION,
    graphwalks.EVALUATION,
    short_tasks.EVALUATION,
  )
}


def find(name: str) -> tuple[Evaluation, str]:
  """(the evaluation, the part after a slash or '').

  Raises:
    InputError: there is none of this name.
  """
  head, _, part = name.partition('/')
  evaluation = EVALUATIONS.get(head)
  if evaluation and (
    part in evaluation.parts or bool(part) == evaluation.any_part
  ):
    return evaluation, part
  known = [*EVALUATIONS, *(
    f'{e.name}/{part}' for e in EVALUATIONS.values() for part in e.parts
  )]  # fmt: skip
  raise InputError(
    f'there is no task {name!r}; nearest is {nearest(name, known)!r}. Tasks '
    f'are {", ".join(EVALUATIONS)}, and their parts: ruler/vt, lm_eval/NAME'
  )


def by_evaluation(results: dict) -> dict:
  """{name of an evaluation: its results}, parts put together, in the order of
  the table.

  Args:
    results: {name with its part: results}, as `evals.evaluate` gives them.
  """
  parts: dict = {name: {} for name in EVALUATIONS}
  for key, result in results.items():
    evaluation, part = find(key)
    parts[evaluation.name][part] = result
  return {
    name: EVALUATIONS[name].merge(found)
    for name, found in parts.items() if found
  }  # fmt: skip
