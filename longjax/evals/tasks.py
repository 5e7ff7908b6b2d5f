"""Every evaluation there is, by the name that `eval.tasks` gives it.

An evaluation is a function of a Setting to what JSON holds. A name may go on
after a slash where there are several of a kind: ruler/vt, helmet/json_kv,
lm_eval/lambada_openai.
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from longjax.data import pack
from longjax.errors import InputError, nearest
from longjax.evals import (
  first_sentence,
  haystack,
  helmet,
  longppl,
  needle,
  passkey,
  perplexity,
  position_loss,
  prompts,
  ruler,
  scaling,
  score,
  word_lists,
)

PARTS = dict(ruler=ruler.TASKS, helmet=helmet.TASKS)
PROMPTS = PARTS | dict(
  passkey_original=dict(passkey_original=passkey.ORIGINAL),
  first_sentence=dict(first_sentence=first_sentence.TASK),
)


class Setting(NamedTuple):
  """What an evaluation is done with."""

  lm: Any  # generate.LM
  tokenizer: Any  # data.tokenizer.Tokenizer
  store: Any  # held-out documents, or None
  ask: Any  # the section `eval` of a config
  seed: int
  log: Any  # called with a line about what is running


def by_position(setting: Setting, part: str) -> dict:
  """The loss by position in held-out documents."""
  ask = setting.ask
  spans = pack.one_document_rows(setting.store, ask.length, ask.documents)
  batch = pack.batch(setting.store, spans, ask.length)
  return position_loss.curve(setting.lm.nll, [batch], ask.length)


def windows(setting: Setting, part: str) -> dict:
  """Perplexity over windows of those eval.lengths that documents have."""
  lengths = [n for n in setting.ask.lengths if n <= setting.ask.length]
  return perplexity.table(setting.lm, documents(setting), lengths)


def context_gain(setting: Setting, part: str) -> dict:
  """The loss of the same last tokens by what is before them, and its fit."""
  length = setting.ask.length
  scored = min(scaling.SCORED, length // 4)
  most = length - scored
  contexts = [2**k for k in range(4, most.bit_length()) if 2**k < most]
  result = scaling.gain(
    setting.lm, documents(setting), [*contexts, most], scored
  )
  try:
    result['fit'] = scaling.fit(result['context'], result['loss'])
  except InputError as error:
    result['fit'] = None
    setting.log(f'  {error}')
  return result


def key_tokens(setting: Setting, part: str) -> dict:
  """The model is its own evaluator, which favours no other."""
  short = min(longppl.SHORT, setting.ask.length // 4)
  stride = min(longppl.STRIDE, max(short // 4, 1))
  return longppl.longppl(
    setting.lm, setting.lm, documents(setting), short, stride
  )


def find_passkey(setting: Setting, part: str) -> dict:
  """Passkeys at eval.passkey_lengths, else at eval.lengths."""
  ask = setting.ask
  lengths = ask.passkey_lengths or ask.lengths
  return passkey.accuracy(
    setting.lm, setting.tokenizer, lengths, ask.passkey_depths, setting.seed
  )


def find_needle(setting: Setting, part: str) -> dict:
  """Needles by length, at 2 to 11 depths: eval.samples of them."""
  depths = np.linspace(0, 1, max(2, min(setting.ask.samples, 11)))
  return needle.heat_map(
    setting.lm, setting.tokenizer, text(setting), setting.ask.lengths,
    depths.round(3).tolist(),
  )  # fmt: skip


def asked_for(head: str, part: str) -> dict:
  """The tasks of a kind that are put to a model by length, or one of them."""
  known = PROMPTS.get(head, {})
  return {part: known[part]} if part in known else known


def by_length(head: str, setting: Setting, part: str) -> dict:
  """{task: [{'length', 'score', 'low', 'high', 'samples', 'tokens'}]}.

  `tokens` are those of the shortest prompt and its answer: how near the
  prompts come to their length.
  """
  found: dict = {}
  of = source(setting, head)
  for name, task in asked_for(head, part).items():
    found[name] = []
    for length in setting.ask.lengths:
      setting.log(f'  {name} at {length:,} tokens')
      made = prompts.samples(
        task, setting.tokenizer, of, length, setting.ask.samples, setting.seed
      )
      scores = prompts.scores(setting.lm, setting.tokenizer, task, made)
      least = min(len(sample.prompt) for sample in made) + task.count
      found[name].append(
        dict(length=int(length), tokens=least) | score.summary(scores)
      )
  return found


def run_harness(setting: Setting, part: str) -> dict:
  """One task of lm-eval."""
  window = max(setting.ask.lengths)
  lm = harness().Harness(setting.lm, setting.tokenizer, window)
  return harness().run(lm, part, setting.ask.samples)


def harness():
  """The module around lm-eval, an optional package."""
  try:
    from longjax.evals import short_tasks
  except ImportError:
    raise InputError('lm_eval/... needs: pip install lm-eval') from None
  return short_tasks


TASKS = dict(
  position_loss=by_position,
  perplexity=windows,
  context_gain=context_gain,
  longppl=key_tokens,
  passkey=find_passkey,
  passkey_original=functools.partial(by_length, 'passkey_original'),
  needle=find_needle,
  first_sentence=functools.partial(by_length, 'first_sentence'),
  ruler=functools.partial(by_length, 'ruler'),
  helmet=functools.partial(by_length, 'helmet'),
  lm_eval=run_harness,
)
NO_TEXT = ('passkey', 'passkey_original', 'lm_eval')  # need no documents
LOSSES = ('position_loss', 'perplexity', 'context_gain', 'longppl')


def check(name: str):
  """InputError for a name that is no evaluation."""
  head, _, part = name.partition('/')
  known = [*TASKS, *(f'{h}/{p}' for h, ps in PARTS.items() for p in ps)]
  fits = head in TASKS and (not part or head in PARTS or head == 'lm_eval')
  if fits and head in PARTS and part:
    fits = part in PARTS[head]
  if not fits or (head == 'lm_eval' and not part):
    raise InputError(
      f'there is no task {name!r}; nearest is {nearest(name, known)!r}. Tasks '
      f'are {", ".join(TASKS)}, and their parts: ruler/vt, lm_eval/NAME'
    )


def check_room(setting: Setting, name: str):
  """InputError where a prompt without any haystack is too long already, or
  lm-eval has no such task."""
  head, _, part = name.partition('/')
  if head == 'lm_eval':
    harness().find(part)
  shortest, length = min(setting.ask.lengths), setting.ask.length
  if head == 'perplexity' and not 2 <= shortest <= length:
    raise InputError(
      f'perplexity needs eval.lengths from 2 to eval.length {length}, got '
      f'{tuple(setting.ask.lengths)}'
    )
  if head == 'needle':
    for length in setting.ask.lengths:
      needle.prompt(setting.tokenizer, text(setting), length, 0.5)
  of = source(setting, head) if head in PROMPTS else None
  for task in asked_for(head, part).values():
    for length in setting.ask.lengths:
      least, _ = task.build(np.random.default_rng(0), of, 0, length)
      tokens = len(prompts.encode(setting.tokenizer, least))
      prompts.check_room(tokens, length - task.count)


def run(setting: Setting, name: str) -> dict:
  """What one evaluation found."""
  head, _, part = name.partition('/')
  return TASKS[head](setting, part)


def source(setting: Setting, head: str) -> prompts.Source:
  """What prompts of a kind are made of; the words may have to be fetched."""
  prose = '' if setting.store is None else text(setting)
  return prompts.Source(
    prose, word_lists.load(setting.log) if head in PARTS else None
  )


def text(setting: Setting) -> str:
  """The prose of the haystacks: enough for the longest."""
  return haystack.text(
    setting.store, setting.tokenizer, max(setting.ask.lengths)
  )


def documents(setting: Setting) -> list[np.ndarray]:
  """The first eval.length tokens of held-out documents."""
  ask = setting.ask
  spans = pack.one_document_rows(setting.store, ask.length, ask.documents)
  return [setting.store.tokens(*row[0]) for row in spans]
