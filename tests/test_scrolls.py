"""Llama 2 Long's tasks, from files of SCROLLS; where such files may lie."""

import json
import zipfile

import numpy as np
import pytest
from eval_cases import TOKENS, results_of, spec

from longjax import hub
from longjax.data import compression
from longjax.errors import InputError
from longjax.evals import llama2_long, records, score, scrolls

CHOICES = 'Who?\n\n (A) Ada\n (B) Ben\n (C) Cyd\n (D) Dan'
ROWS = {
  'qasper/train': [('t1', 'Which?\n\nOne text.', 'one'),
                   ('t2', 'When?\n\nTwo\n\ntexts.', 'two')],
  'qasper/validation': [('a', 'What?\n\nLong text.', 'red'),
                        ('b', 'How?\n\nOther.', 'so'),
                        ('a', 'What?\n\nLong text.', 'a blue one')],
  'quality/train': [(x, f'{CHOICES}\n\n\nA {x}.', 'Ben') for x in ('t1', 't2')],
  'quality/validation': [('q', f'{CHOICES}\n\n\nStory (D).\n\nEnd.', 'Cyd')],
  'qmsum/train': [('t1', 'Sum up.\n\nA: hi', 'They met.')],
  'qmsum/validation': [(str(i), f'Say {i}.\n\nB: yes', text) for i, text in
                       enumerate(('he left the town', 'she stayed at home'))],
  'narrative_qa/validation': [('n', 'Why?\n\nA story.', 'Because.')],
}  # fmt: skip


@pytest.fixture
def directory(tmp_path):
  """As the data sets lie on the Hub, one of them in its archive."""
  for split, rows in ROWS.items():
    fields = ('id', 'input', 'output')
    lines = [json.dumps(dict(zip(fields, row), pid='')) for row in rows]
    text = '\n'.join(lines) + '\n'
    name, _, part = split.partition('/')
    if name == 'qasper':
      with zipfile.ZipFile(tmp_path / 'qasper.zip', 'a') as archive:
        archive.writestr(f'{split}.jsonl', text)
    else:
      (tmp_path / name).mkdir(exist_ok=True)
      (tmp_path / name / f'{part}.jsonl').write_text(text)
  return tmp_path


def samples(name, directory, length=4000):
  task = llama2_long.TASKS[name]
  found = list(task.stream(spec(task, length, scrolls=directory)))
  return [(TOKENS.decode(x.prompt), x.references) for x in found]


def test_prompts_are_those_of_the_paper(directory):
  assert samples('narrative_qa', directory) == [
    ('A story. Q: Why?, A:', ('Because.',))
  ]
  first, second = samples('qasper', directory)
  shots = {
    'One text. Q: Which?, A: one\n\n',
    'Two\n\ntexts. Q: When?, A: two\n\n',
  }
  for (text, answers), own, right in (
    (first, 'Long text. Q: What?, A:', ('red', 'a blue one')),
    (second, 'Other. Q: How?, A:', ('so',)),
  ):
    assert text.endswith(own) and answers == right
    before = text.removesuffix(own)
    one, two = sorted(shots, key=before.index)
    assert before == one + two
  ((text, answers),) = samples('quality', directory)
  assert text.endswith(f'Ben\n\nStory (D).\n\nEnd. Q: {CHOICES}, A:')
  assert answers == ('Cyd',)


@pytest.mark.parametrize('chars', [records.CHARS, 1])
def test_what_is_too_long_loses_its_start(directory, monkeypatch, chars):
  monkeypatch.setattr(records, 'CHARS', chars)  # 1: cut before it is encoded
  (whole, _), *_ = samples('qasper', directory)
  count = llama2_long.TASKS['qasper'].count
  (text, _), *_ = samples('qasper', directory, len(whole) + count - 30)
  assert text == whole[30:]


def test_texts_are_divided_as_lm_eval_divides_them():
  """Values of lm-eval 0.4.13, in whose prompts choices are not the question's;
  Llama 2 Long's has to show them."""
  ((_, text, _),) = ROWS['quality/validation']
  found = scrolls.context_and_question(dict(input=text), choices=True)
  assert found == ('Story (D).\n\nEnd.', CHOICES)
  _, (_, text, _) = ROWS['qasper/train']
  found = scrolls.context_and_question(dict(input=text), choices=False)
  assert found == ('Two\n\ntexts.', 'When?')


def test_the_score_of_summaries_is_of_means(directory):
  answer = lambda _: ' he left home\n'
  _, results = results_of('llama2_long/qmsum', answer, scrolls=directory)
  (found,) = results['qmsum']
  right = [text for _, _, text in ROWS['qmsum/validation']]
  means = np.mean([score.rouges('he left home', [x]) for x in right], axis=0)
  assert found['score'] == pytest.approx(np.prod(means) ** (1 / 3))
  assert np.mean(found['each']) == pytest.approx(found['score'])


def test_a_name_on_the_hub_is_fetched_split_by_split(directory, monkeypatch):
  asked = []

  def local(name, choose):
    names = [
      'qasper.zip',
      'qmsum/train.jsonl',
      'qmsum/validation.jsonl',
      'x.py',
    ]
    asked.append((name, choose(names)))
    return directory

  monkeypatch.setattr(hub, 'local', local)
  name = 'hf://datasets/tau/scrolls'
  data = scrolls.data_set('qmsum', 'validation')
  assert len(list(records.read(data, name))) == 2
  data = scrolls.data_set('qasper', 'train')
  assert len(list(records.read(data, name))) == 2
  assert asked == [(name, ['qmsum/validation.jsonl']), (name, ['qasper.zip'])]


@pytest.mark.parametrize('names, split, files, found', [
  (['train.json', 'trainer.json', 'train.txt'], 'train', 0, ['train.json']),
  (['d/x.parquet', 'test/0000.parquet'], 'test', 0, ['test/0000.parquet']),
  (['test-1-of-2.parquet', 'test-0-of-2.parquet'], 'test', 1,
   ['test-0-of-2.parquet']),
  (['validation.jsonl.gz'], 'validation', 0, ['validation.jsonl.gz']),
])  # fmt: skip
def test_files_of_a_split(tmp_path, names, split, files, found):
  for name in names:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('')
  data = records.DataSet('trec', 'X', (), split, files)
  assert [name for name, _ in records.files(data, str(tmp_path))] == found


def test_what_is_not_there_is_named_in_one_line(directory, monkeypatch):
  def refused(path, name='qmsum'):
    data = scrolls.data_set(name, 'validation')
    with pytest.raises(InputError) as error:
      list(records.read(data, str(path)))
    text = str(error.value)
    assert text.startswith(f'config.eval.files.scrolls: {path}: ')
    assert f'{name}/validation.jsonl, or {name}.zip' in text
    return text

  assert 'No such file' in refused(directory / 'none')
  assert 'has no quality_2/validation.jsonl' in refused(directory, 'quality_2')
  (directory / 'bad.zip').write_text('no archive')
  assert 'bad.zip: not a whole zip' in refused(directory, 'bad')
  with zipfile.ZipFile(directory / 'crc.zip', 'w') as file:
    file.writestr('crc/validation.jsonl', '{"id": "0"}\n')
  content = (directory / 'crc.zip').read_bytes()
  (directory / 'crc.zip').write_bytes(content.replace(b'"0"', b'"1"'))
  assert 'crc.zip: not a whole zip' in refused(directory, 'crc')
  with zipfile.ZipFile(
    directory / 'big.zip', 'w', zipfile.ZIP_DEFLATED
  ) as file:
    file.writestr('big/validation.jsonl', b'\n' * 10**5)
  monkeypatch.setattr(compression, 'EXPANDED_BYTES', 10**4)
  assert 'big.zip expands too much' in refused(directory, 'big')
  (directory / 'qmsum/validation.jsonl').write_text('{"id": "1", "input": ""}')
  assert "no field 'output'" in refused(directory)
  text = '{"id": "1", "input": "no empty line", "output": "x"}'
  (directory / 'qmsum/validation.jsonl').write_text(text)
  with pytest.raises(
    InputError, match=r'files\.scrolls: a record is not one of'
  ):
    samples('qmsum', directory)
  with pytest.raises(
    InputError, match=r'files\.scrolls to a directory with qmsum'
  ):
    samples('qmsum', '')
