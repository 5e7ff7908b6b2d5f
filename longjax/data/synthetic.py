"""Synthetic conversations about long texts, as lines of a jsonl file.

  questions  a model writes a question and its answer from a random chunk of a
             document, and then judges the answer; the example is the whole
             document with the question, and the answer (Llama 2 Long,
             arXiv:2309.16039, 4.3, whose exact prompts are not published)
  tables     lengthy tables with questions that have one answer each
             (LongSkywork, arXiv:2406.00605; the questions are our own)

A line is {"id": ..., "messages": [...]}, which a source of kind 'chat' reads.
A model is a function prompt -> answer; `endpoint` makes one for any server
that speaks OpenAI's protocol. It raises Failure where it has no answer.
"""

import concurrent.futures
import hashlib
import http.client
import itertools
import json
import os
import pathlib
import re
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from longjax import errors, progress
from longjax.data import prepare, sources
from longjax.data.synthetic_tables import conversation


class Options(NamedTuple):
  """What `launch/prepare.py --synthesis=KEY=VALUE,...` sets."""

  kind: str = 'questions'  # questions (about data.sources) | tables
  endpoint: str = ''  # of a server, 'http://host:8000/v1'; '' is none
  model: str = ''  # its name there; without a server, weights or a run
  template: str = 'llama3'  # of chats (data/chat.py), without a server
  chunk_chars: int = 6000  # of a document, that a model is shown
  max_tokens: int = 0  # of a document in a conversation; 0 is all
  parallel: int = 8  # documents at once
  tables: int = 1000  # how many
  rows: int = 500  # of a table; 100 are about 3,000 tokens


MINIMA = dict(chunk_chars=1, max_tokens=0, parallel=1, tables=1, rows=2)
KINDS = ('questions', 'tables')
KEY = 'OPENAI_API_KEY'  # environment variable with a server's key
ATTEMPTS = 5  # of a request, with pauses of 1, 2, 4, 8 s between them
TIMEOUT_SECONDS = 300
RETRIED = (
  *(OSError, http.client.HTTPException),
  *(ValueError, KeyError, TypeError, IndexError),  # of an answer cut short
)
GIVE_UP = 8  # documents in a row that got no answer

ASK = '''Here is a part of a text:

"""
{chunk}
"""

Write one question that can be answered from this part alone, and its answer. \
{length} Whoever answers sees the whole text and does not know which part you \
were given, so do not speak of "the part" or "the passage". Write

<question>the question</question>
<answer>the answer</answer>'''
LENGTHS = (
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


def synthesize(config, path: str, options: Options, local: Callable) -> str:
  """Makes conversations and appends them to a jsonl file.

  Args:
    config: `data.sources`, `data.tokenizer` and `seed` are read.
    path: the file.
    options: see Options.
    local: (model, template) -> a function prompt -> answer.

  Returns:
    A line with the counts of what was made.
  """
  if options.kind == 'tables':
    counts = tables(path, options.tables, options.rows, config.seed)
  else:
    if not options.model:
      raise errors.InputError(
        '--synthesis needs model=NAME: weights or a run, or with endpoint=URL '
        'its name on that server'
      )
    if options.endpoint:
      complete = endpoint(options.endpoint, options.model)
    else:
      complete = local(options.model, options.template)
      options = options._replace(parallel=1)
    texts = _documents(config, options.max_tokens)
    counts = questions(texts, complete, path, options, config.seed)
  return f'{path}: ' + ', '.join(f'{n} {key}' for key, n in counts.items())


def endpoint(url: str, model: str) -> Callable:
  """A function prompt -> answer that asks a server.

  Args:
    url: up to '/v1'; '/chat/completions' is added. The key in $OPENAI_API_KEY,
      if any, is sent to this server and shown nowhere.
    model: its name there.

  Returns:
    A function that raises Failure where several attempts failed, and
    InputError where the server refuses (a wrong key, model or address).
  """
  if not re.fullmatch(r'https?://[^@?]+', url):  # it may hold a secret
    raise errors.InputError(
      'endpoint must be a plain address like http://host:8000/v1, without '
      f'user, password or query; the key comes from ${KEY}'
    )

  def complete(prompt: str) -> str:
    message = dict(role='user', content=prompt)
    body = json.dumps(dict(model=model, messages=[message])).encode()
    request = urllib.request.Request(
      f'{url.rstrip("/")}/chat/completions',
      body,
      {'Content-Type': 'application/json'},
    )
    if os.environ.get(KEY):  # not for where a redirection leads
      bearer = f'Bearer {os.environ[KEY]}'
      request.add_unredirected_header('Authorization', bearer)
    return _post(request, f'{url} ({model})')

  return complete


def questions(
  documents: Iterable[tuple[str, str]],
  complete: Callable[[str], str],
  path,
  options: Options,
  seed=0,
  log=print,
) -> Counter:
  """Appends a conversation about each document that is not done.

  Args:
    documents: (id, text), as long as the model that is trained can read.
    complete: prompt -> answer.
    path: the jsonl file. Ids in it are not done again, nor those in
      PATH.dropped, which names what could not be used and why.
    options: chunk_chars and parallel are read.
    seed: of the chunks.
    log: called with a line for each document that failed.

  Returns:
    How many were kept, were there before, were dropped and why, or failed:
    these are tried again in the next run.
  """
  path, counts, failed = pathlib.Path(path), Counter(), 0
  dropped = path.with_name(path.name + '.dropped')
  done = {line.get('id') for file in (path, dropped) for line in _lines(file)}
  fresh = (d for d in documents if d[0] not in done)

  def ask(document):
    name, text = document
    try:
      return _question(name, text, complete, options.chunk_chars, seed)
    except Failure as error:
      return dict(id=name, failed=str(error))

  bar = progress.Progress('questions', 0, log, lambda n: f'{n:,.1f} documents')
  with concurrent.futures.ThreadPoolExecutor(options.parallel) as pool:
    while group := list(itertools.islice(fresh, options.parallel)):
      for line in pool.map(ask, group):
        bar.add(1)
        failed = failed + 1 if 'failed' in line else 0
        if failed:
          log(f'{line["id"]}: {line["failed"]}')
          counts['failed'] += 1
        else:
          counts[line.get('dropped', 'kept')] += 1
          _append(dropped if 'dropped' in line else path, line)
        if failed == GIVE_UP:
          raise errors.InputError(
            f'{GIVE_UP} documents in a row got no answer, the last because '
            f'{line["failed"]}; {path} keeps what was made: run the same '
            'command to resume'
          )
  counts['there before'] = len(done)
  return counts


def tables(path, count: int, rows: int, seed=0) -> Counter:
  """Appends conversations about tables until the file has `count` of them.

  Conversation i is a function of (rows, seed, i). Returns how many were kept,
  and were there before.
  """
  done = {line.get('id') for line in _lines(path)}
  counts = Counter({'there before': len(done)})
  for i in range(count):
    name = f'table {rows} {seed} {i}'
    if name not in done:
      rng = np.random.default_rng([seed, rows, i])
      _append(path, dict(id=name, messages=conversation(rng, rows)))
      counts['kept'] += 1
  return counts


def _documents(config, max_tokens: int) -> Iterator[tuple[str, str]]:
  """Yields (name, text) of data.sources, cut to `max_tokens` if not 0."""
  tokens = prepare.find_tokenizer(config) if max_tokens else None
  wanted = sources.rooted(config.data.sources, config.data.root)
  for name in sorted(wanted):
    kind = sources.check(name, wanted[name])['kind']
    if kind in sources.FIELDS:
      raise errors.InputError(
        f'source {name!r}: kind {kind!r} has no text to ask about; name '
        'sources of another kind'
      )
    for document in sources.documents(name, wanted[name]):
      text = document.text
      if tokens:
        text = tokens.decode(tokens.encode(text)[:max_tokens])
      yield f'{name}/{document.name}', text


def _question(name, text, complete, chunk_chars, seed) -> dict:
  """A line for a document: with messages, or with why it was dropped."""
  number = int(hashlib.sha256(name.encode()).hexdigest()[:12], 16)
  rng = np.random.default_rng([seed, number])
  chunk = _chunk(text, chunk_chars, rng)
  short = int(rng.integers(2))
  written = complete(ASK.format(chunk=chunk, length=LENGTHS[short]))
  question, answer = _tag('question', written), _tag('answer', written)
  if not question or not answer:
    return dict(id=name, dropped='no question and answer in tags')
  judged = complete(JUDGE.format(chunk=chunk, question=question, answer=answer))
  if _tag('verdict', judged).lower() != 'yes':
    return dict(id=name, dropped='answer not confirmed')
  messages = [
    dict(role='user', content=f'{READ[short]}\n\n{text}\n\n{question}'),
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
  match = re.search(f'<{name}>(.*?)</{name}>', text, re.DOTALL | re.IGNORECASE)
  return match[1].strip() if match else ''


def _post(request, server: str) -> str:
  """The answer to a request; InputError where a retry would not help."""
  reason = ''
  for attempt in range(ATTEMPTS):
    if attempt:
      time.sleep(2 ** (attempt - 1))
    try:
      with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
        return json.load(response)['choices'][0]['message']['content'] + ''
    except urllib.error.HTTPError as error:
      reason = f'{server} answers {error.code} {error.reason}'
      if error.code not in (408, 409, 425, 429) and error.code < 500:
        raise errors.InputError(
          f'{reason}; check the address, the model and ${KEY}'
        ) from error
    except RETRIED as error:
      reason = f'{server}: {type(error).__name__}: {error}'
  raise Failure(f'{reason} ({ATTEMPTS} attempts)')


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
