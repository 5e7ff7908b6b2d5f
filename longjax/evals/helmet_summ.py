"""HELMET's summaries, arXiv:2410.02694: of books (InfiniteBench) and of the
documents of lawsuits (Multi-LexSum), without the model that judges them."""

from longjax.evals import (
  helmet_prompts,
  infbench,
  multi_lexsum,
  prompts,
  records,
  score,
)

BOOK = infbench.Form(
  'You are given a book and you are tasked to summarize it. Write a summary of '
  'about 1000 to 1200 words. Only write about the plot and characters of the '
  'story. Do not discuss the themes or background of the book. Do not provide '
  'any analysis or commentary.',
  'Now summarize the book.', 'Summary: {stripped}', 'Summary:',
)  # fmt: skip
NO_JUDGE = (
  'The published scores are those of a model that judges; without one these '
  "are ROUGE-L F1, which HELMET's files have too."
)


def rouge(marker: str):
  return helmet_prompts.best(score.stemmed_rouge_l, 'Summary:', marker)


TASKS = {
  name: task._replace(ready=score.stemming_scorer)
  for name, task in dict(
    infbench_sum=infbench.task(
      'longbook_sum_eng', BOOK, 1200, rouge('Answer:')
    ),
    multi_lexsum=records.task(
      multi_lexsum.DEV, multi_lexsum.make, 400, rouge('Summary:'),
      rows=multi_lexsum.rows,
    ),
  ).items()
}  # fmt: skip
EVALUATION = prompts.evaluation(
  'helmet_summ', 'HELMET, summaries', TASKS,
  summary=lambda results: [NO_JUDGE],
)  # fmt: skip
