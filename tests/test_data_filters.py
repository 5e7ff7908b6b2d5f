"""prepare --score and --synthesize: what is kept, made and refused."""

import json
import pathlib
import re

import numpy as np
import pytest
import small_tokenizers

from configs import tiny
from launch import prepare as command
from longjax import errors
from longjax.data import filters, prepare, synthetic, tokenizer

SMOLLM2 = small_tokenizers.SMOLLM2


@pytest.fixture
def config(tmp_path):
  """Three texts: the second repeats a line, the third has no two chunks."""
  text = pathlib.Path(__file__).read_text()
  (tmp_path / 'docs').mkdir()
  (tmp_path / 'docs' / 'a.txt').write_text(text)
  (tmp_path / 'docs' / 'b.txt').write_text('the same line\n' * 200)
  (tmp_path / 'docs' / 'c.txt').write_text('short')
  config = tiny.get_config()
  config.data.sources = dict(docs=dict(path=str(tmp_path / 'docs')))
  return config


def remembering(model, tokens):
  """A model to which a chunk is easier after another than alone."""
  return lambda batch: 3.0 - (batch.index - batch.positions == 0)


def test_the_kept_documents_are_a_store_that_trains(config, tmp_path):
  tokens = tokenizer.load('bytes')
  out = str(tmp_path / 'kept')
  store = filters.keep(
    config, tokens, str(tmp_path), 0.34, 30, out, remembering
  )
  scores = (tmp_path / 'kept.scores.jsonl').read_text().splitlines()
  assert len(scores) == 1 + 3 and json.loads(scores[0])['pairs'] == 30
  best = max(map(json.loads, scores[1:]), key=lambda line: line['score'])
  assert list(store.names) == [best['name']]
  config.data.directory = out
  again = prepare.prepare(config, tokens, lambda _: None)
  assert again.digest == store.digest
  with pytest.raises(errors.InputError, match='a store already'):
    filters.keep(config, tokens, str(tmp_path), 0.5, 30, out, remembering)


def test_gzip_keeps_the_documents_in_the_middle(config, tmp_path):
  """OLMo 3: 60 % without those that are compressed most and least."""
  assert filters.middle([5, 1, 3, 2, 4], 0.6).tolist() == [2, 3, 4]
  assert filters.middle(np.arange(9), 0.6).tolist() == [2, 3, 4, 5, 6]
  rng = np.random.default_rng(0)
  letters = [chr(c) for c in rng.integers(33, 127, 3000)]
  (tmp_path / 'docs' / 'c.txt').write_text(''.join(letters))
  tokens, out = tokenizer.load('bytes'), str(tmp_path / 'kept')
  store = filters.keep(config, tokens, 'gzip', 0.4, 0, out, None)
  assert [name.split('/')[-1] for name in store.names] == ['a.txt']
  with pytest.raises(errors.InputError, match='--pairs'):
    command.main(config, score='gzip', pairs='3', out=f'{out}2')


@pytest.mark.parametrize(
  ('share', 'pairs', 'told'),
  [
    ('2', '', '--keep'),
    ('half', '', '--keep'),
    ('nan', '', '--keep'),
    ('', '0', '--pairs'),
  ],
)
def test_shares_and_pairs_must_be_numbers(config, share, pairs, told, tmp_path):
  with pytest.raises(errors.InputError, match=told):
    command.main(
      config, str(tmp_path / 'out'), score='x', keep=share, pairs=pairs
    )
  assert not (tmp_path / 'out').exists()


def test_questions_about_the_documents_of_a_config(config, tmp_path):
  made = command.parse_options('model=ours,template=chatml,max_tokens=50')
  asked = []

  def local(model, template):
    asked.append((model, template))

    def complete(prompt):
      assert len(re.search('"""\n(.*)\n"""', prompt, re.DOTALL)[1]) <= 50
      answer = '<question>q</question><answer>a</answer>'
      return answer if 'Write one' in prompt else '<verdict>yes</verdict>'

    return complete

  path = tmp_path / 'chats.jsonl'
  line = synthetic.synthesize(config, str(path), made, local)
  assert line == f'{path}: 3 kept, 0 there before'
  assert asked == [('ours', 'chatml')]
  with pytest.raises(errors.InputError, match='model=NAME'):
    synthetic.synthesize(config, str(path), synthetic.Options(), local)


def test_the_command_makes_tables_and_refuses_in_one_line(
  config, tmp_path, capsys
):
  path = tmp_path / 'tables.jsonl'
  made = 'kind=tables,tables=2,rows=9'
  command.main(config, synthesize=str(path), synthesis=made)
  assert capsys.readouterr().out == f'{path}: 0 there before, 2 kept\n'
  assert len(path.read_text().splitlines()) == 2
  with pytest.raises(errors.InputError, match='--score=MODEL'):
    command.main(config, keep='0.5')
  with pytest.raises(errors.InputError, match='--synthesize=FILE'):
    command.main(config, synthesis=made)


def test_tables_become_documents_whose_answers_are_learned(config, tmp_path):
  path = tmp_path / 'tables.jsonl'
  synthetic.tables(path, 3, rows=12)
  ranks = small_tokenizers.tiktoken_ranks()
  (tmp_path / 'tokenizer.model').write_bytes(ranks)
  tokens = tokenizer.load(tmp_path)
  config.data.sources = dict(
    chats=dict(path=str(path), kind='chat', template='llama3')
  )
  out = str(tmp_path / 'out')
  store = prepare.prepare(config, tokens, lambda _: None, out)
  for number, line in enumerate(path.read_text().splitlines()):
    said = json.loads(line)['messages'][1::2]
    ids = np.array(store.tokens(number))
    learned = tokens.decode(ids[np.array(store.mask(number)) == 1])
    assert learned == ''.join(m['content'] + '<|eot_id|>' for m in said)
  kept = filters.keep(
    config, tokens, str(tmp_path), 1, 9, str(tmp_path / 'kept'), remembering
  )
  assert kept.mask(0).tolist() == store.mask(0).tolist()


@pytest.mark.slow
def test_smollm2_scores_documents_and_answers(config, tmp_path, monkeypatch):
  path = small_tokenizers.smollm2_path()
  monkeypatch.setattr(command, 'ANSWER_TOKENS', 12)
  answer = command.local_model(SMOLLM2, 'smollm2')
  assert 'Paris' in answer('What is the capital of France?')
  tokens = tokenizer.load(path)
  out = str(tmp_path / 'kept')
  store = filters.keep(config, tokens, SMOLLM2, 0.5, 3, out, command.load_nll)
  scores = (tmp_path / 'kept.scores.jsonl').read_text().splitlines()
  a, b, c = (json.loads(line) for line in scores[1:])
  assert (a['pairs'], b['pairs'], c['pairs']) == (3, 3, 0)
  assert b['strength'] > 0.3  # a line that comes again
  assert len(store.names) == 2
