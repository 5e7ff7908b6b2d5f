"""Synthetic conversations: exact, resumable, robust to failing servers."""

import http.server
import json
import re
import threading

import numpy as np
import pytest

from launch import prepare as command
from longjax import errors
from longjax.data import synthetic, synthetic_tables

DOCUMENTS = [
  (f'{i}.txt', ' '.join(f'word{i}x{j}' for j in range(400))) for i in range(6)
]
KEY = 'sk-very-secret'
OPTIONS = synthetic.Options(parallel=1)


def model(prompt: str) -> str:
  """Asks for the first word of the chunk; approves unless it ends in 3."""
  chunk = re.search(r'"""\n(.*)\n"""', prompt, re.DOTALL)[1]
  first = chunk.split()[0]
  if 'Write one question' in prompt:
    return f'Sure.\n<Question>First?</Question>\n<answer> {first}\n</answer>'
  return f'<verdict>{"no" if chunk.startswith("word3") else "Yes"}</verdict>'


def read(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def server(monkeypatch):
  """A server that says what is in `.answers`, then what `model` says."""

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
      size = int(self.headers['Content-Length'])
      asked = json.loads(self.rfile.read(size))
      here.asked.append((self.path, self.headers['Authorization'], asked))
      code, body = here.answers.pop(0) if here.answers else (200, None)
      if body is None:
        content = model(asked['messages'][0]['content'])
        choice = dict(message=dict(role='assistant', content=content))
        body = json.dumps(dict(choices=[choice]))
      self.send_response(code)
      self.send_header('Content-Length', str(len(body)))
      self.end_headers()
      self.wfile.write(body.encode())

    def log_message(self, format, *args):
      pass

  here = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  here.answers, here.asked = [], []
  here.url = f'http://127.0.0.1:{here.server_port}/v1/'
  thread = threading.Thread(target=here.serve_forever, args=(0.01,))
  thread.start()
  monkeypatch.setenv('OPENAI_API_KEY', KEY)
  monkeypatch.setattr(synthetic.time, 'sleep', lambda _: None)
  yield here
  here.shutdown()
  here.server_close()
  thread.join()


def test_an_example_is_the_whole_document_then_the_question(tmp_path):
  path = tmp_path / 'qa.jsonl'
  counts = synthetic.questions(
    DOCUMENTS, model, path, OPTIONS._replace(chunk_chars=300)
  )
  assert counts == {'kept': 5, 'answer not confirmed': 1, 'there before': 0}
  lines = {line['id']: line['messages'] for line in read(path)}
  assert sorted(lines) == ['0.txt', '1.txt', '2.txt', '4.txt', '5.txt']
  starts = set()
  for name, text in DOCUMENTS:
    if name in lines:
      user, assistant = lines[name]
      assert [user['role'], assistant['role']] == ['user', 'assistant']
      how, whole, question = user['content'].split('\n\n')
      assert (whole, question) == (text, 'First?')
      assert how in synthetic.READ
      assert assistant['content'] in text.split()
      starts.add((how, assistant['content'].split('x')[1]))
  assert len(starts) == 5 and len({how for how, _ in starts}) == 2
  dropped = read(tmp_path / 'qa.jsonl.dropped')
  assert dropped == [dict(id='3.txt', dropped='answer not confirmed')]


def test_what_is_done_is_not_done_again(tmp_path):
  path = tmp_path / 'qa.jsonl'
  synthetic.questions(DOCUMENTS[:2], model, path, OPTIONS)
  part = path.read_text()
  path.write_text(part + '{"id": "2.txt", "mess')  # a run that was killed
  asked = []

  def counting(prompt):
    asked.append(prompt)
    return model(prompt)

  counts = synthetic.questions(DOCUMENTS, counting, path, OPTIONS)
  assert counts['there before'] == 2 and len(asked) == 2 * 4
  once = tmp_path / 'once.jsonl'
  synthetic.questions(DOCUMENTS, model, once, OPTIONS._replace(parallel=3))
  assert path.read_text() == once.read_text()


def test_answers_without_tags_are_dropped_by_name(tmp_path):
  path = tmp_path / 'qa.jsonl'
  for told in ('', '<question>a</question>', '<question></question><answer>b'):
    counts = synthetic.questions(
      [(repr(told), 'a text')], lambda _, told=told: told, path, OPTIONS
    )
    assert counts['no question and answer in tags'] == 1
  assert not path.exists() and len(read(tmp_path / 'qa.jsonl.dropped')) == 3


def test_a_server_that_fails_is_asked_again(server, tmp_path, capsys):
  server.answers = [(503, 'busy'), (200, '{"choices": []}'), (200, 'cut {')]
  complete = synthetic.endpoint(server.url, 'llama')
  counts = synthetic.questions(
    DOCUMENTS, complete, tmp_path / 'qa.jsonl', OPTIONS
  )
  assert counts['kept'] == 5 and len(server.asked) == 12 + 3
  path, key, asked = server.asked[0]
  assert (path, key) == ('/v1/chat/completions', f'Bearer {KEY}')
  assert asked['model'] == 'llama' and len(asked['messages']) == 1
  written = ''.join(p.read_text() for p in tmp_path.iterdir())
  assert KEY not in capsys.readouterr().out + written


def test_a_document_that_got_no_answer_is_named_and_tried_again(
  server, tmp_path
):
  server.answers = [(500, 'x')] * synthetic.ATTEMPTS
  complete = synthetic.endpoint(server.url, 'llama')
  path, told = tmp_path / 'qa.jsonl', []
  counts = synthetic.questions(
    DOCUMENTS, complete, path, OPTIONS, log=told.append
  )
  assert counts['failed'] == 1 and counts['kept'] == 4
  assert len(told) == 1 and re.match(r'0\.txt: .* answers 500', told[0])
  assert synthetic.questions(DOCUMENTS, complete, path, OPTIONS)['kept'] == 1


def test_a_server_that_never_answers_ends_the_run(server, tmp_path):
  server.answers = [(500, 'x')] * 1000
  complete = synthetic.endpoint(server.url, 'llama')
  many = [(f'{i}', 'a text') for i in range(100)]
  with pytest.raises(errors.InputError, match='8 documents in a row'):
    synthetic.questions(
      many, complete, tmp_path / 'a', OPTIONS, log=lambda _: None
    )
  assert len(server.asked) == 8 * synthetic.ATTEMPTS


def test_a_wrong_key_is_told_at_once_and_not_shown(server, tmp_path):
  server.answers = [(401, 'who?')]
  complete = synthetic.endpoint(server.url, 'llama')
  with pytest.raises(errors.InputError, match=r'401 .*OPENAI_API_KEY') as told:
    synthetic.questions(DOCUMENTS, complete, tmp_path / 'qa.jsonl', OPTIONS)
  assert KEY not in str(told.value) and len(server.asked) == 1
  for url in ('file:///etc', f'https://me:{KEY}@host/v1', f'http://h?k={KEY}'):
    with pytest.raises(errors.InputError, match='http') as told:
      synthetic.endpoint(url, 'llama')
    assert KEY not in str(told.value)


def test_options_are_read_and_refused_in_one_line():
  made = command.parse_options('kind=tables,rows=9')
  assert (made.kind, made.rows, made.tables) == ('tables', 9, 1000)
  for text, match in (
    ('kinds=tables', "'kind'"), ('kind=poems', "'poems'"),
    ('rows=many', "'many'"), ('rows=1', 'from 2 to'),
    ('parallel=0', 'parallel'),
  ):  # fmt: skip
    with pytest.raises(errors.InputError, match=match):
      command.parse_options(text)


def parsed(messages):
  """The columns of the table in the first message."""
  lines = messages[0]['content'].split('\n\n')[1].splitlines()
  rows = [line.split(' | ') for line in lines]
  return dict(zip(rows[0], zip(*rows[2:])))


@pytest.mark.parametrize('rows', [2, 41, 500])
def test_every_answer_about_a_table_is_in_the_table(rows):
  seen = set()
  for i in range(30):
    messages = synthetic_tables.conversation(
      np.random.default_rng(i), rows, asked=5
    )
    table = parsed(messages)
    assert all(len(column) == rows for column in table.values())
    assert len(set(table['name'])) == len(set(table['amount'])) == rows
    row = {name: k for k, name in enumerate(table['name'])}
    for asked, told in zip(messages[::2], messages[1::2]):
      question, answer = asked['content'].split('\n\n')[-1], told['content']
      if found := re.fullmatch(r'What is the (\w+) of (.*)\?', question):
        want = table[found[1]][row[found[2]]]
      elif found := re.fullmatch(
        r'Which name has the amount (\d+)\?', question
      ):
        want = table['name'][table['amount'].index(found[1])]
      elif found := re.fullmatch(r'Which name in (\w+) has .*\?', question):
        here = [k for k, c in enumerate(table['city']) if c == found[1]]
        want = table['name'][max(here, key=lambda k: int(table['amount'][k]))]
      elif found := re.fullmatch(
        r'How many rows have the city (.*)\?', question
      ):
        want = str(sum(c == found[1] for c in table['city']))
      else:
        found = re.fullmatch(r'Which name is in the row after (.*)\?', question)
        want = table['name'][row[found[1]] + 1]
      assert answer == want
      seen.add(question.split()[2])
  assert len(seen) == 5  # every kind of question


def test_tables_are_made_once_each_and_the_same_again(tmp_path):
  path = tmp_path / 'tables.jsonl'
  assert synthetic.tables(path, 3, rows=20)['kept'] == 3
  first = path.read_text()
  counts = synthetic.tables(path, 5, rows=20)
  assert (counts['kept'], counts['there before']) == (2, 3)
  assert path.read_text().startswith(first)
  synthetic.tables(tmp_path / 'again.jsonl', 5, rows=20)
  assert path.read_text() == (tmp_path / 'again.jsonl').read_text()
