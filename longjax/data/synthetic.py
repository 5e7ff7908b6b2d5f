"""Synthetic conversations about long texts, as lines of a jsonl file.

  questions  a model writes a question and its answer from a random chunk of a
             document, and then judges the answer; the example is the whole
             document with the question, and the answer (Llama 2 Long,
             arXiv:2309.16039, 4.3, whose exact prompts are not published)
  tables     lengthy tables with questions that have one answer each
             (LongSkywork, arXiv:2406.00605; the questions are our own)

A line is {"id": ..., "messages": [...]}, which a source of kind 'chat' reads.
What asks a model is a function prompt -> answer: `endpoint` makes one for any
server that speaks OpenAI's protocol, `recorded` one that remembers. A model
that cannot answer raises Failure.
"""

import concurrent.futures
import hashlib
import http.client
import itertools
import json
import os
import pathlib
import re
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np

from longjax import errors

ATTEMPTS = 5  # of a request, with pauses of 1, 2, 4, 8 s between them
TIMEOUT_SECONDS = 300
MENDABLE = (
  *(OSError, http.client.HTTPException),
  *(ValueError, KeyError, TypeError, IndexError),  # of an answer cut short
)
GIVE_UP = 8  # documents in a row that got no answer

ASK = '''Here is a part of a text:

"""
{chunk}
"""

Write one question that can be answered from this part alone, and its answer. \
{how} Whoever answers sees the whole text and does not know which part you \
were given, so do not speak of "the part" or "the passage". Write

<question>the question</question>
<answer>the answer</answer>'''
HOW = (
  'The answer is a full one, of a few sentences.',
  'The answer is very short: a name, a number, or a single phrase.',
)
JUDGE = '''Here is a part of a text:

"""
{chunk}
"""

Question: {question}
Answer: {answer}

Is this answer correct, and does the text support all of it? Write \
<verdict>yes</verdict> or <verdict>no</verdict>.'''
READ = (
  'Read the text and answer the question at its end.',
  'Read the text and answer the question at its end as concisely as you can, '
  'with a single phrase or sentence. Do not explain.',
)


class Failure(Exception):
  """A model gave no answer to a prompt; says why."""


def endpoint(url: str, model: str, key_variable='OPENAI_API_KEY') -> Callable:
  """A function prompt -> answer that asks a server.

  Args:
    url: up to '/v1'; '/chat/completions' is added.
    model: its name there.
    key_variable: environment variable with the key, which is sent to this
      server and shown nowhere; unset is no key.

  Returns:
    A function that raises Failure where several attempts failed, and
    InputError where the server refuses (a wrong key, model or address).
  """
  if set('@?') & set(url):  # which may hold a secret: not shown
    raise errors.InputError(
      'endpoint is a plain address like http://host:8000/v1, without user, '
      'password or query; data.synthesis.key names the variable with the key'
    )
  if not re.match(r'https?://', url):
    raise errors.InputError(f'endpoint {url!r} must begin with http(s)://')
  if not re.fullmatch(r'[A-Za-z_][A-Za-z0-9_]*', key_variable):
    raise errors.InputError(  # which may be the key itself: not shown
      'the key is named by an environment variable, as OPENAI_API_KEY; what '
      'was given cannot be the name of one'
    )

  def complete(prompt: str) -> str:
    message = dict(role='user', content=prompt)
    body = json.dumps(dict(model=model, messages=[message])).encode()
    request = urllib.request.Request(
      f'{url.rstrip("/")}/chat/completions',
      body,
      {'Content-Type': 'application/json'},
    )
    if os.environ.get(key_variable):  # not for where a redirection leads
      key = f'Bearer {os.environ[key_variable]}'
      request.add_unredirected_header('Authorization', key)
    return _patiently(lambda: _post(request), f'{url} ({model})', key_variable)

  return complete


def recorded(path, complete: Callable | None = None) -> Callable:
  """`complete` that appends what it is told to a file and asks nothing twice.

  Args:
    path: jsonl of {"prompt": sha256, "answer": text}.
    complete: asked for prompts that are not in the file; None: Failure.
  """
  path = pathlib.Path(path)
  lines = _lines(path)
  try:
    known = {line['prompt']: line['answer'] + '' for line in lines}
  except (KeyError, TypeError) as error:
    raise errors.InputError(f'{path}: not a record of answers') from error
  writing = threading.Lock()

  def remember(prompt: str) -> str:
    digest = hashlib.sha256(prompt.encode()).hexdigest()
    if digest in known:
      return known[digest]
    if complete is None:
      raise Failure(f'{path} has no answer to this prompt')
    answer = known[digest] = complete(prompt)
    with writing:
      _append(path, dict(prompt=digest, answer=answer))
    return answer

  return remember


def questions(
  documents: Iterable[tuple[str, str]], complete: Callable, path, *,
  chunk_chars=6000, seed=0, parallel=1, log=print,
) -> Counter:  # fmt: skip
  """Appends a conversation for each document from which one could be made.

  Args:
    documents: (id, text), as long as the model that is trained can read.
    complete: prompt -> answer.
    path: the jsonl file. Ids in it are not done again, nor those in
      PATH.dropped, which names what could not be used and why.
    chunk_chars: of the document, that the model is shown.
    seed: of the chunks.
    parallel: documents at once.
    log: called with a line for each document that failed.

  Returns:
    How many were kept, were there before, were dropped and why, or failed:
    these are tried again in the next run.
  """
  if min(chunk_chars, parallel) < 1:
    raise errors.InputError(
      f'chunk_chars {chunk_chars} and parallel {parallel} must be 1 at least'
    )
  path, counts, failed = pathlib.Path(path), Counter(), 0
  dropped = path.with_name(path.name + '.dropped')
  done = {line.get('id') for file in (path, dropped) for line in _lines(file)}
  fresh = (d for d in documents if d[0] not in done)

  def make(document):
    name, text = document
    try:
      return _question(name, text, complete, chunk_chars, seed)
    except Failure as error:
      return dict(id=name, failed=str(error))

  with concurrent.futures.ThreadPoolExecutor(parallel) as pool:
    while group := list(itertools.islice(fresh, parallel)):
      for made in pool.map(make, group):
        if 'failed' in made:
          log(f'{made["id"]}: {made["failed"]}')
          failed += 1
          counts['failed'] += 1
        else:
          failed = 0
          counts[made.get('dropped', 'kept')] += 1
          _append(dropped if 'dropped' in made else path, made)
        if failed == GIVE_UP:
          raise errors.InputError(
            f'{GIVE_UP} documents in a row got no answer, the last because '
            f'{made["failed"]}; {path} keeps what was made, run again to go on'
          )
  counts['there before'] = len(done)
  return counts


def tables(path, count: int, rows: int, seed=0, asked=3) -> Counter:
  """Appends `count` conversations, each about a table of `rows` rows.

  Args:
    path: the jsonl file; tables in it are not made again.
    count: of tables.
    rows: of a table; 100 are about 3,000 tokens.
    seed: conversation i is a function of (rows, seed, i).
    asked: questions about a table, in turns.

  Returns:
    How many were kept, and were there before.
  """
  if rows < 2 or count < 1:
    raise errors.InputError(
      f'tables need 2 rows and a count of 1 at least, got {rows} and {count}'
    )
  done = {line.get('id') for line in _lines(path)}
  counts = Counter({'there before': len(done)})
  for i in range(count):
    name = f'table {rows} {seed} {i}'
    if name not in done:
      rng = np.random.default_rng([seed, rows, i])
      _append(path, dict(id=name, messages=table(rng, rows, asked)))
      counts['kept'] += 1
  return counts


def table(rng, rows: int, asked=3) -> list[dict]:
  """A conversation about a table whose names and amounts are all different."""
  names = [f'{a}-{b}' for a in SYLLABLES for b in range(rows // 40 + 1)]
  names = rng.permutation(names)[:rows].tolist()
  columns = {
    'name': names,
    'city': rng.choice(CITIES, rows).tolist(),
    'year': rng.integers(1950, 2025, rows).tolist(),
    'amount': (rng.permutation(9 * rows) + rows)[:rows].tolist(),
  }
  lines = [' | '.join(columns), ' | '.join('---' for _ in columns)]
  lines += [' | '.join(map(str, row)) for row in zip(*columns.values())]
  turns = []
  for kind in rng.permutation(len(LOOKUPS))[:asked]:
    question, answer = LOOKUPS[kind](columns, int(rng.integers(rows)))
    turns += [dict(role='user', content=question)]
    turns += [dict(role='assistant', content=str(answer))]
  head = 'Read the table and answer the questions about it.\n\n'
  turns[0]['content'] = head + '\n'.join(lines) + '\n\n' + turns[0]['content']
  return turns


SYLLABLES = [
  a + b
  for a in ('Bar', 'Cor', 'Dal', 'Fen', 'Gor', 'Hul', 'Lin', 'Mor')
  for b in ('den', 'fax', 'lo', 'mir', 'ton')
]
CITIES = (
  'Basel', 'Cork', 'Delft', 'Graz', 'Lille', 'Porto', 'Turku', 'Vilnius',
)  # fmt: skip


def _cell(columns, i):
  column = ('city', 'year', 'amount')[i % 3]
  question = f'What is the {column} of {columns["name"][i]}?'
  return question, columns[column][i]


def _whose(columns, i):
  question = f'Which name has the amount {columns["amount"][i]}?'
  return question, columns['name'][i]


def _most(columns, i):
  city = columns['city'][i]
  both = zip(columns['amount'], columns['name'], columns['city'])
  best = max((amount, name) for amount, name, where in both if where == city)
  return f'Which name in {city} has the largest amount?', best[1]


def _count(columns, i):
  city = columns['city'][i]
  return f'How many rows have the city {city}?', columns['city'].count(city)


def _after(columns, i):
  before = max(0, i - 1)
  question = f'Which name is in the row after {columns["name"][before]}?'
  return question, columns['name'][before + 1]


LOOKUPS = (_cell, _whose, _most, _count, _after)


def _question(name, text, complete, chunk_chars, seed) -> dict:
  """A line for a document: with messages, or with why it was dropped."""
  number = int(hashlib.sha256(name.encode()).hexdigest()[:12], 16)
  rng = np.random.default_rng([seed, number])
  chunk = _chunk(text, chunk_chars, rng)
  short = int(rng.integers(2))
  told = complete(ASK.format(chunk=chunk, how=HOW[short]))
  question, answer = _tag('question', told), _tag('answer', told)
  if not question or not answer:
    return dict(id=name, dropped='no question and answer in tags')
  judged = complete(JUDGE.format(chunk=chunk, question=question, answer=answer))
  if _tag('verdict', judged).lower() != 'yes':
    return dict(id=name, dropped='answer not confirmed')
  asked = f'{READ[short]}\n\n{text}\n\n{question}'
  messages = [
    dict(role='user', content=asked),
    dict(role='assistant', content=answer),
  ]
  return dict(id=name, messages=messages)


def _chunk(text: str, chars: int, rng) -> str:
  """A random part of a text, from the start of a word on."""
  if len(text) <= chars:
    return text
  start = int(rng.integers(len(text) - chars + 1))
  part = text[start : start + chars]
  return part.split(maxsplit=1)[-1] if start else part


def _tag(name: str, text: str) -> str:
  """What the first <name> encloses, or ''."""
  found = re.search(f'<{name}>(.*?)</{name}>', text, re.DOTALL | re.IGNORECASE)
  return found[1].strip() if found else ''


def _patiently(ask, where, key_variable) -> str:
  """`ask` until it answers; what cannot get better is an InputError."""
  for attempt in range(ATTEMPTS):
    if attempt:
      time.sleep(2 ** (attempt - 1))
    try:
      return ask()
    except urllib.error.HTTPError as error:
      reason = f'{where} answers {error.code} {error.reason}'
      if error.code not in (408, 409, 425, 429) and error.code < 500:
        raise errors.InputError(
          f'{reason}; check the address, the model and ${key_variable}'
        ) from error
    except MENDABLE as error:
      reason = f'{where}: {type(error).__name__}: {error}'
  raise Failure(f'{reason} ({ATTEMPTS} attempts)')


def _post(request) -> str:
  with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
    told = json.load(response)['choices'][0]['message']['content']
  if not isinstance(told, str):
    raise TypeError('the answer is no text')
  return told


def _lines(path) -> list[dict]:
  """The lines of a jsonl file; one that was cut off is removed."""
  path = pathlib.Path(path)
  if not path.exists():
    return []
  raw = path.read_bytes()
  whole = raw[: raw.rfind(b'\n') + 1]
  try:
    lines = [json.loads(line) for line in whole.splitlines()]
  except ValueError as error:
    raise errors.InputError(f'{path}: not a jsonl file ({error})') from error
  if not all(isinstance(line, dict) for line in lines):
    raise errors.InputError(f'{path}: a line is no JSON object')
  if len(whole) != len(raw):
    path.write_bytes(whole)
  return lines


def _append(path, line: dict):
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  with open(path, 'a', encoding='utf-8') as file:
    file.write(json.dumps(line) + '\n')
