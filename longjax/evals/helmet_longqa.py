"""HELMET's questions about long documents, arXiv:2410.02694: NarrativeQA and,
of InfiniteBench, answers and choices."""

from longjax.evals import (
  helmet_narrativeqa,
  helmet_prompts,
  infbench,
  prompts,
  records,
  score,
)

STORY = 'You are given a story and a question'
QUESTION = 'Question: {question}'
OPTIONS = f'{QUESTION}\nOptions:\n{{options}}'
QA = infbench.Form(
  f'{STORY}. Answer the question as concisely as you can, using a single '
  'phrase if possible.', QUESTION, f'{QUESTION}\nAnswer: {{answer}}', 'Answer:',
)  # fmt: skip
CHOICE = infbench.Form(
  f'{STORY} with multiple choices. Choose the best answer from the options '
  'provided. Only one of the following options is correct, output the answer '
  "using one single letter (A, B, C, or D). Don't say anything else.",
  OPTIONS, f'{OPTIONS}\nAnswer: {{answer}}', 'Answer:',
)  # fmt: skip
NO_JUDGE = (
  'NarrativeQA: the published score is that of a model that judges; without '
  "one this is ROUGE-L F1, which HELMET's files have too."
)


def right_choice(answer: str, references) -> float:
  """1 for the letter, or where the whole choice is in the answer."""
  if references[1].lower() in f'Answer:{answer}'.lower():
    return 1.0
  return helmet_prompts.best(score.exact_match, 'Answer:')(answer, references)


ROUGE = helmet_prompts.best(score.stemmed_rouge_l, 'Answer:')
TASKS = dict(
  narrativeqa=records.task(
    helmet_narrativeqa.TEST, helmet_narrativeqa.make, 100, ROUGE,
    rows=helmet_narrativeqa.rows, ready=score.stemming_scorer,
  ),
  infbench_qa=infbench.task(
    'longbook_qa_eng', QA, 10, ROUGE, ready=score.stemming_scorer
  ),
  infbench_choice=infbench.task(
    'longbook_choice_eng', CHOICE, 10, right_choice
  ),
)  # fmt: skip
EVALUATION = prompts.evaluation(
  'helmet_longqa', 'HELMET, questions about long documents', TASKS,
  summary=lambda results: [NO_JUDGE],
)  # fmt: skip
