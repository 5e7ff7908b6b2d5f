"""HELMET's in-context learning, arXiv:2410.02694: a text to classify after many
examples whose labels are shuffled integers, other examples for each text."""

import functools
import random

from longjax.evals import (
  draws,
  helmet,
  helmet_prompts,
  labelled,
  pieces,
  prompts,
  records,
)
from longjax.evals.prompts import Prompt, PromptSpec, Task

CONVERTED = 'hf://datasets/{}@refs/convert/parquet/default'.format
TREC, BANKING = CONVERTED('CogComp/trec'), CONVERTED('PolyAI/banking77')
NLU = CONVERTED('xingkunliuxtracta/nlu_evaluation_data')
CLINC = 'hf://datasets/clinc/clinc_oos/plus'


def make(of: labelled.Labelled, sizes, record, spec: PromptSpec) -> Prompt:
  seed = draws.seed_of(record['text'], spec.seed)
  count = helmet_prompts.size_for(sizes, spec.length)
  names = list(range(of.labels))
  random.Random(seed).shuffle(names)
  shots = '\n\n'.join(
    f'{text}\nlabel: {names[label]}'
    for text, label in labelled.balanced(record['train'], count, seed)
  )
  form = lambda shots: helmet.ICL.format(shots=shots, text=record['text'])
  text = helmet_prompts.cut(spec, form, shots, '\nlabel:')
  return Prompt(text, '\nlabel:', (str(names[record['label']]),))


def task(of: labelled.Labelled, *sizes: int) -> Task:
  """Of a data set; sizes are examples for each of helmet_prompts.LENGTHS."""
  built = functools.partial(make, of, sizes)
  drawn = functools.partial(labelled.rows, of, 500)  # texts are asked
  return records.task(
    of.data, built, 20, helmet.label_match, rows=drawn, cut=pieces.LINES
  )


BANKS = labelled.data_set('banking77', BANKING, 'label', 77)
COARSE = labelled.data_set('trec', TREC, 'coarse_label', 6)
FINE = labelled.data_set('trec', TREC, 'fine_label', 50)
INTENTS = labelled.data_set('clinic150', CLINC, 'intent', 151, 'validation')
NLU_LABELS = labelled.data_set('nlu', NLU, 'label', 68, '')
TASKS = dict(
  trec_coarse=task(COARSE, 400, 800, 1600, 3300, 6600),
  trec_fine=task(FINE, 400, 800, 1600, 3200, 6400),
  banking77=task(BANKS, 360, 720, 1450, 2900, 5900),
  clinic150=task(INTENTS, 440, 880, 1750, 3525, 7050),
  nlu=task(NLU_LABELS, 510, 1020, 2040, 4080, 8296),
)
EVALUATION = prompts.evaluation(
  'helmet_icl', 'HELMET, in-context learning', TASKS
)
