"""Evaluations and generation against what can be worked out by hand."""

import functools
import re

import numpy as np
import pytest
from eval_cases import TOKENS, blind, reader
from tensorboard.backend.event_processing.event_accumulator import (
  EventAccumulator,
)
from test_data_pack import Memory

from configs import tiny
from longjax import checks, evals
from longjax.batch import one_document
from longjax.data import layout, prepare, tokenizer
from longjax.errors import InputError
from longjax.evals import (
  evaluation,
  passkey,
  position_loss,
  prompts,
  saved_results,
)
from longjax.evals.result_cache import ResultCache
from longjax.inference import language_model
from longjax.inference.language_model import LM
from longjax.parallel import sharding
from longjax.train import loop


def test_loss_by_position_by_hand():
  batch = one_document(np.zeros((2, 32), int))
  shuffled = layout.arrange(batch, 'zigzag', 4, 32)
  nll = lambda b: b.index.astype(float)  # the loss of a token is its position
  curve = position_loss.curve(nll, [shuffled], 32)
  assert curve['end'] == list(range(2, 33, 2))
  np.testing.assert_allclose(curve['loss'][:3], [0.5, 2.5, 4.5])
  assert curve['loss'][-1] == 30  # position 31 has no target
  assert curve['tokens'] == [4.0] * 15 + [2.0]
  assert curve['each'][1] == [2.5, 2.5]
  assert position_loss.mean(curve, 0, 8) == 3.5
  assert curve['last_500'] == [15, 15]  # all 31 targets, as there are fewer
  batch = one_document(np.zeros((1, 2000), int))
  curve = position_loss.curve(nll, [batch], 2000)
  assert curve['last_500'] == [np.mean(np.arange(1500, 1999))]


def test_loss_by_source_is_that_of_its_documents():
  """The loss of a token is the token itself."""
  config = tiny.get_config()
  config.eval.update(length=3, documents=1)
  store = Memory([1, 2, 3, 4], [11, 12], [21, 22, 23, 24], sources=(0, 1, 1))
  setup = evaluation.Setup(config, TOKENS, store)
  lm = LM(lambda batch: np.asarray(batch.tokens), None)
  position_loss.BY_SOURCE.check(setup, '')
  points = position_loss.BY_SOURCE.scores(
    position_loss.BY_SOURCE.run(lm, setup, '')
  )
  assert {k: p.value for k, p in points.items() if 'last' in k} == {
    'source0/last_500': 2, 'source1/last_500': 22,
  }  # fmt: skip
  assert [points[f'source1/{n}'].value for n in (1, 2, 3)] == [21, 22, 23]
  config.eval.documents = 2
  with pytest.raises(InputError, match='2 documents of source source0 of at'):
    position_loss.BY_SOURCE.check(setup, '')


def test_documents_are_the_starts_of_those_that_are_long_enough():
  config = tiny.get_config()
  config.eval.update(length=3, documents=2)
  store = Memory([1, 2], [11, 12, 13, 14], [21, 22, 23])
  documents = evaluation.Setup(config, TOKENS, store).documents()
  assert [d.tolist() for d in documents] == [[11, 12, 13], [21, 22, 23]]


def test_a_passkey_prompt_has_its_exact_length_and_the_key_at_its_depth():
  tokens = tokenizer.load('bytes')
  for length, depth in ((700, 0.0), (1000, 0.5), (1001, 1.0)):
    ids = passkey.prompt(tokens, length, depth, 54321)
    assert len(ids) == length - passkey.ANSWER_TOKENS
    text = tokens.decode(ids)
    assert text.count('54321') == 2 and text.endswith('The pass key is')
    before = text.index('\nThe pass key is 54321') - len(passkey.INTRO)
    filler = len(text) - len(passkey.INTRO + passkey.QUESTION)
    filler -= len(passkey.KEY.format(key=54321))
    assert abs(before - depth * filler) <= 1


def test_a_copying_model_finds_every_key_and_a_blind_one_none():
  config = tiny.get_config()
  config.eval.update(passkey_lengths=(600, 900), passkey_depths=(0.2, 0.8))
  setup = evaluation.Setup(config, TOKENS, log=lambda line: None)
  assert (
    passkey.EVALUATION.run(reader, setup, '')['found'] == [[True, True]] * 2
  )
  assert (
    passkey.EVALUATION.run(blind, setup, '')['found'] == [[False, False]] * 2
  )


def test_an_interrupted_evaluation_goes_on_where_it_was(tmp_path, monkeypatch):
  """It asks the model for what it lacks, and a line cut short is not taken."""
  config, file = tiny.get_config(), tmp_path / 'unfinished.jsonl'
  config.eval.update(lengths=(600,), samples=5, batch=2)
  lines, asked = [], []
  often = functools.partial(prompts.Progress, every_seconds=0)
  monkeypatch.setattr(prompts, 'Progress', often)

  def run(most, model='a'):
    def answer(prompts, count, stopped=None):
      asked.append(len(prompts))
      if len(asked) > most:
        raise KeyboardInterrupt
      return reader.generate(prompts, count)

    asked.clear()
    setup = evaluation.Setup(
      config, TOKENS, log=lines.append, cache=ResultCache(file, model)
    )
    return passkey.ORIGINAL.run(LM(None, answer), setup, '')

  with pytest.raises(KeyboardInterrupt):
    run(2)
  assert re.fullmatch(
    '  passkey_original at 600 tokens, score 100.0: 4 samples of 5 samples, '
    r'\S+ samples/s, \S+ left', lines[-1],
  )  # fmt: skip
  file.write_text(file.read_text()[:-9])
  found = run(9)
  assert asked == [2, 1] and run(9) == found and asked == []
  assert found['passkey_original'][0]['samples'] == 5
  assert run(9, 'b') == found and asked == [2, 2, 1]  # other weights
  assert run(9, 'b')['passkey_original'][0]['score'] == 1


def test_scalars_are_the_points_of_the_curves():
  score = [dict(length=4096, score=0.5), dict(length=8192, score=0.25)]
  results = {
    'position_loss': dict(end=[8, 16], loss=[3.0, None], tokens=[8, 8]),
    'passkey': dict(length=[1024], depths=[0, 1], found=[[True, False]]),
    'ruler/vt': dict(vt=score),
    'longppl': dict(longppl=2.0, perplexity=None, tokens=9),
  }
  assert evals.scalars(results) == {
    'position_loss/8': 3.0,
    'passkey/1024': 0.5,
    'ruler/vt/4096': 0.5,
    'ruler/vt/8192': 0.25,
    'longppl/longppl': 2.0,
  }


@pytest.mark.slow
def test_evaluations_while_training_are_those_of_its_checkpoints(
  tmp_path, monkeypatch
):
  """And all are one program: the live parameters have its shapes."""
  monkeypatch.setenv('LONGJAX_CACHE', str(tmp_path / 'cache'))
  config = tiny.get_config()
  config.model.layers = 1
  config.train.update(steps=3, seq_len=64)
  config.checkpoint.update(every_steps=2, keep=2)
  config.eval.update(length=128, every_steps=2)
  programs = language_model._nll._cache_size()
  assert loop.main(config, tmp_path / 'run', lambda _: None) == 0
  untrained, live, _ = saved_results.load(tmp_path / 'run', config).values()
  mesh = sharding.make_mesh(2, 4)
  params, model = evals.load(
    tmp_path / 'run/checkpoints/2', checks.llama_config(config), mesh
  )
  store = prepare.held_out(config, TOKENS)
  setup = evals.Setup(config, TOKENS, store, mesh, lambda _: None)
  again = dict(evals.evaluate(params, model, setup))
  assert again == live != untrained
  told = EventAccumulator(str(tmp_path / 'run/tb/eval')).Reload()
  points = told.Scalars('eval/position_loss/128')
  assert [x.step for x in points] == [0, 2, 3]
  assert points[1].value == pytest.approx(live['position_loss']['loss'][-1])
  assert language_model._nll._cache_size() - programs == 1
