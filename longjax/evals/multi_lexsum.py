"""Multi-LexSum, arXiv:2206.10883 (v20230518), as HELMET's data.py has it: the
documents of a lawsuit and a short summary, of cases of at least LONG tokens.

They are in the order of the file. There each run draws other examples; here a
hash of the case does.
"""

from longjax.evals import draws, helmet_prompts, records
from longjax.evals.prompts import Prompt, PromptSpec

LONG = 65536  # tokens of the model, there of Llama 2
PROMPT = (
  'You are given the legal documents in a civil rights lawsuit, and you are '
  'tasked to summarize the case. Write a concise summary of one paragraph (200 '
  'to 250 words). The summary should contain a short description of the '
  'background, the parties involved, and the outcomes of the case.\n\nExample '
  'summaries:\n\n{shots}\n\nNow, write a summary of the following legal '
  'documents.\nLegal documents:\n{context}\n\nNow please summarize the case.'
)
DEV = records.DataSet(
  'multi_lexsum', 'hf://datasets/allenai/multi_lexsum/releases/v20230518, or a '
  'copy of that directory', ('case_id', 'summary/short'), 'dev',
)  # fmt: skip
TRAIN = DEV._replace(split='train')
SOURCES = DEV._replace(split='sources', fields=())


def rows(data: records.DataSet, spec: PromptSpec):
  """Cases that have a short summary, their documents as one text."""
  path = records.path(data, spec)
  (texts,) = records.cached(SOURCES, path)
  for record in records.cached(data, path):
    if record['summary/short'] is not None:
      found = [texts[name]['doc_text'] for name in record['case_documents']]
      text = '\n\n'.join(found)
      if helmet_prompts.tokens(spec, text) >= LONG:
        yield dict(record, context=text)


def make(record, spec: PromptSpec) -> Prompt:
  train = records.cached(TRAIN, records.path(TRAIN, spec))
  examples = [x for x in train if x['summary/short'] is not None]
  drawn = draws.shots(examples, 'case_id', record)
  shots = '\n\n'.join(f'Summary: {x["summary/short"]}' for x in drawn)
  form = lambda text: PROMPT.format(shots=shots, context=text)
  text, cue = record['context'], '\n\nSummary:'
  text = helmet_prompts.cut(spec, form, text, cue, helmet_prompts.MARK)
  return Prompt(text, cue, records.texts(record['summary/short']))
