"""Benchmarks in files, and prompts in a chat template."""

import json
import os
import pathlib

import numpy as np
import pytest
from eval_cases import SOURCE, TOKENS, model, spec, write

from configs import common
from longjax import evals
from longjax.data import encoders, tokenizer, vocabularies
from longjax.errors import InputError
from longjax.evals import (
  graphwalks,
  helmet_rag,
  helmet_rerank,
  longbench,
  mrcr,
  nolima,
  prompts,
  records,
  ruler,
  ruler_data,
  table,
)

GOLDEN = json.loads(
  (pathlib.Path(__file__).parent / 'golden/benchmarks.json').read_text()
)
TEMPLATE = (
  "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<eos>{% endfor %}"
  '{% if add_generation_prompt %}[assistant]{% endif %}'
)
QUESTION = dict(
  context=' word' * 400 + ' ', question='Which? ', choice_A='a', choice_B='b',
  choice_C='c', choice_D='d', answer='B',
)  # fmt: skip
TALK = [dict(role='user', content='poem'), dict(role='assistant', content='p1'),
        dict(role='user', content='Prepend XY to the 1st poem')]  # fmt: skip
RECORDS = dict(
  longbench_v2=[QUESTION, QUESTION | dict(answer='A')],
  mrcr=[dict(prompt=json.dumps(TALK), answer='XYp1 ab',
             random_string_to_prepend='XY')],
  graphwalks=[dict(prompt='a -> b', answer_nodes=['b', 'c']),
              dict(prompt='x' * 5000, answer_nodes=[])],
)  # fmt: skip


@pytest.fixture(scope='module')
def tokens():
  settings = encoders.Settings('<bos>', '<eos>', chat_template=TEMPLATE)
  return tokenizer.Tokenizer(
    encoders.HuggingFace(vocabularies.from_bytes(), settings), settings
  )


def setup(tokens, tmp_path, **options):
  config = common.base()
  config.eval.update(lengths=(3000,), samples=1, **options)
  for name, rows in RECORDS.items():
    config.eval.files[name] = str(write(tmp_path / f'{name}.jsonl', rows))
  return evals.Setup(config, tokens, log=lambda line: None)


ANSWERS = {
  '<text>': 'The correct answer is (B)', '[user]poem<eos>': 'XYp1 ax',
  'a -> b': 'so\nFinal Answer: [b, d]',
}  # fmt: skip


def test_all_records_that_fit_are_asked_and_scored(tokens, tmp_path):
  here = setup(tokens, tmp_path, chat=True)
  reply = lambda text: next(a for mark, a in ANSWERS.items() if mark in text)
  wanted = dict(longbench_v2=(0.5, 2), mrcr=(0.8, 1), graphwalks=(0.5, 1))
  for name, (score, count) in wanted.items():
    evaluation, _ = table.find(name)
    evaluation.check(here, '')
    (found,) = evaluation.run(model(reply), here, '')[name]
    assert (found['score'], found['samples']) == (pytest.approx(score), count)
  here.config.eval.limit = 1
  assert (
    table.find('longbench_v2')[0].run(model(reply), here, '')['longbench_v2'][
      0
    ]['score']
    == 1
  )


@pytest.mark.parametrize('name, options, says', [
  ('mrcr', {}, 'config.eval.chat=true'),
  ('graphwalks', dict(lengths=(2050,)), 'no prompt is that short'),
])  # fmt: skip
def test_what_cannot_be_asked_is_refused(tokens, tmp_path, name, options, says):
  here = setup(tokens, tmp_path)
  here.config.eval.update(options)
  with pytest.raises(InputError, match=says):
    table.find(name)[0].check(here, '')
  here.config.eval.files[name] = ''
  with pytest.raises(InputError, match=f'{name} at .*config.eval.files.{name}'):
    table.find(name)[0].check(here, '')


def test_a_file_without_the_fields_is_refused(tokens, tmp_path):
  here = setup(tokens, tmp_path)
  here.config.eval.files.graphwalks = here.config.eval.files.mrcr
  with pytest.raises(InputError, match="no field 'answer_nodes'"):
    table.find('graphwalks')[0].check(here, '')


@pytest.mark.parametrize('task, field, value', [
  ('mrcr', 'prompt', 'no JSON'), ('mrcr', 'prompt', '[' * 10**5),
  ('longbench_v2', 'context', 5), ('graphwalks', 'answer_nodes', 5),
])  # fmt: skip
def test_a_field_of_another_kind_is_one_line(
  tokens, tmp_path, task, field, value
):
  here = setup(tokens, tmp_path, chat=True)
  record = RECORDS[task][0] | {field: value}
  (tmp_path / f'{task}.jsonl').write_text(json.dumps(record))
  with pytest.raises(InputError, match=f'eval.files.{task}') as refused:
    evals.check(here, [task])
  assert '\n' not in str(refused.value)


@pytest.mark.parametrize('chars', [records.CHARS, 2])
def test_a_long_text_is_cut_in_the_middle(tokens, monkeypatch, chars):
  monkeypatch.setattr(records, 'CHARS', chars)  # 2: cut before it is encoded
  task = prompts.Task(lambda spec: iter(()), 128, cut=None)
  spec = prompts.make_spec(tokens, task, SOURCE, 1000, 0, chat=True)
  record = QUESTION | dict(context='begin' + 'x' * 5000 + 'end')
  text = longbench.make(record, spec).text
  ids = spec.encode(text, '')
  assert len(ids) in (1000 - 128, 1000 - 129)
  assert 'begin' in text and '\n(D) d\n' in text and 'xend' in text


def test_the_prefix_of_an_answer_follows_the_template(tokens):
  """RULER's, as its templates end: the answer begins where ours begins."""
  task = ruler.TASKS['niah_single_1']
  plain, chat = (
    next(task.stream(prompts.make_spec(t, task, SOURCE, 4096, 0, c)))
    for t, c in ((TOKENS, False), (tokens, True))
  )
  text = tokens.decode(chat.prompt)
  before, after = text.split('<eos>[assistant]')
  assert before.startswith('[user]A special magic number is hidden')
  assert after.startswith(' The special magic number for')
  assert TOKENS.decode(plain.prompt).endswith(after)
  assert np.array_equal(chat.references, plain.references)


@pytest.mark.parametrize('score_answer, answer, references, score', [
  (longbench.score_answer, 'The correct answer is **(C)**', ('C',), 1),
  (longbench.score_answer, 'The correct answer is A.', ('A',), 1),
  (longbench.score_answer, 'I think (A)', ('A',), 0),
  (mrcr.score_answer, 'XYabc', ('XYabc', 'XY'), 1),
  (mrcr.score_answer, ' XYabc', ('XYabc', 'XY'), 0),
  (mrcr.score_answer, 'XYab', ('XYabcd', 'XY'), 2 * 2 / 6),
  (graphwalks.score_answer, 'Final Answer: [a, b]', ('a', 'b'), 1),
  # Not the last line.
  (graphwalks.score_answer, 'Final Answer: [a]\n', ('a',), 0),
  (graphwalks.score_answer, 'Final Answer: []', (), 1),
  (graphwalks.score_answer, 'Final Answer: [a]', (), 0),
  (graphwalks.score_answer, 'Final Answer: a', ('a',), 0),
  (graphwalks.score_answer, 'Final Answer: [a, b, c]', ('a',), 0.5),
])  # fmt: skip
def test_scores_by_hand(score_answer, answer, references, score):
  assert score_answer(answer, references) == pytest.approx(score)


@pytest.mark.parametrize('part, score, suffix', [
  (helmet_rag, helmet_rag.SCORE, '_k3_'),
  (helmet_rerank, helmet_rerank.score.ndcg, '_k10_'),
])  # fmt: skip
def test_prompts_and_scores_of_helmet_are_the_originals(
  tmp_path, part, score, suffix
):
  name, told = part.DATA.name, GOLDEN[part.DATA.name]
  file = write(tmp_path / 'a_k50_b.jsonl', told['records'])
  write(tmp_path / f'a{suffix}b.jsonl', told['demos'])
  task = prompts.Task(iter, 20)
  here = spec(task, 10_000, **{name: file})
  made = filter(None, (part.make(x, here) for x in told['records']))
  assert [p.text + p.prefix for p in made] == told['prompts']
  for answer, right, wanted in told['scores']:
    right = tuple(right.items()) if isinstance(right, dict) else right
    assert score(answer, right) == pytest.approx(wanted, abs=1e-5)
  # What is too long loses the end of its passages.
  whole = told['prompts'][0]
  short = spec(task, len(whole) - 5, **{name: file})
  cut = part.make(told['records'][0], short)
  assert len(short.encode(cut.text, cut.prefix)) == len(whole) - 25
  end = part.passages(told['records'][0])[-30:]
  assert cut.text + cut.prefix == whole.replace(end, end[:-25])
  with pytest.raises(InputError, match='lengths 300'):
    part.make(told['records'][0], spec(task, 300, **{name: file}))


def test_prompts_of_nolima_are_the_originals(tmp_path):
  told = GOLDEN['nolima']
  for name in 'ab':
    (tmp_path / f'{name}.txt').write_text(told['book'])
  book = nolima._book(TOKENS, tmp_path / 'b.txt')
  for case in told['cases']:
    text = nolima.hide(
      TOKENS, book, 'HERE it is.', told['length'], case['depth']
    )
    assert text == case['text']
  made = list(nolima.tests(told['needles'], 42 + 1))
  for (*texts, answers), (*wanted, right) in zip(
    made, told['tests'], strict=True
  ):
    assert texts == wanted
    drawn = len(right) == len(nolima.DEPTHS)
    assert [[x] for x in right] == [list(x) for x in answers] if drawn else \
      answers == [right] * len(nolima.DEPTHS)  # fmt: skip
  task = nolima.TASKS['nolima']
  set_file = write(tmp_path / 'needles.jsonl', told['needles'])
  here = spec(task, 1500, nolima=set_file, nolima_books=tmp_path)
  samples = list(task.stream(here))
  assert len(samples) == 2 * len(nolima.DEPTHS) * len(made)
  assert max(len(s.prompt) for s in samples) == 1500 - task.count
  assert min(len(s.prompt) for s in samples) > 1400 - task.count
  text, last = TOKENS.decode(samples[-1].prompt), samples[-1]
  assert text.endswith('The lamp was red.\n\nQ: What was lamp?\nA:')
  assert nolima.score_answer('It was red.', last.references) == 1
  assert nolima.score_answer('It was blue.', last.references) == 0
  with pytest.raises(InputError, match='use shorter eval'):
    next(task.stream(here._replace(length=20_000)))
  write(set_file, [told['needles'][0] | dict(tests={'T': {}})])
  with pytest.raises(InputError, match='nolima: a record is not one of'):
    next(task.stream(here))


def test_a_pipe_and_a_book_in_another_encoding_are_refused(tmp_path):
  pipe, book = tmp_path / 'squad.json', tmp_path / 'book.txt'
  os.mkfifo(pipe)
  book.write_bytes('caf\xe9'.encode('latin-1'))
  with pytest.raises(InputError, match=r'squad\.json is not a regular file'):
    ruler_data.read('squad', str(pipe))
  with pytest.raises(InputError, match=r'book\.txt: .* UTF-8'):
    nolima._book(TOKENS, book)
