"""Names on the Hub: a small server of its endpoints, and its own client."""

import base64
import hashlib
import http.server
import json
import re
import threading

import huggingface_hub.constants
import numpy as np
import pytest
import weight_files as files

from launch import convert as command
from longjax import errors, hub, storage, weights
from longjax.data import prepare, tokenizer
from longjax.weights import convert

COMMIT = 'c0ffee' + '0' * 34


class Server(http.server.ThreadingHTTPServer):
  """Repositories as {'ORG/NAME' or 'datasets/ORG/NAME': {file: bytes}}."""

  def __init__(self):
    super().__init__(('127.0.0.1', 0), Handler)
    self.repositories, self.gated, self.requests = {}, set(), []
    self.cut = 0  # bytes after which the next large file breaks off
    self.ranges = True  # whether parts of a file are given
    self.damaged = False  # whether the last byte of each is another


class Handler(http.server.BaseHTTPRequestHandler):
  server: Server

  def log_message(self, format, *args):
    pass

  def answer(self, status, body=b'', **headers):
    self.send_response(status)
    for name, value in headers.items():
      self.send_header(name.replace('_', '-'), value)
    if 'Content_Length' not in headers:
      self.send_header('Content-Length', str(len(body)))
    self.end_headers()
    if self.command != 'HEAD':
      self.wfile.write(body)

  def refuse(self, status, code):
    self.answer(status, X_Error_Code=code, X_Error_Message=code)

  def do_GET(self):
    asked = self.headers['Range'] or ''
    self.server.requests.append((self.command, self.path + asked))
    api = re.fullmatch(
      r'/api/(models|datasets)/([^/]+/[^/]+)/(revision|tree)/([^?/]+).*',
      self.path,
    )
    file = re.fullmatch(
      r'/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)', self.path
    )
    if api:
      key = ('datasets/' if api[1] == 'datasets' else '') + api[2]
      revision = api[4]
    elif file:
      key, revision = file[1], file[2]
    else:
      return self.refuse(404, 'EntryNotFound')
    held = self.server.repositories.get(key)
    code = 'GatedRepo' if key in self.server.gated else 'RepoNotFound'
    if held is None:
      self.refuse(401, code)
    elif revision not in ('main', COMMIT):
      self.refuse(404, 'RevisionNotFound')
    elif file and file[3] not in held:
      self.refuse(404, 'EntryNotFound')
    elif file:
      self.send(held[file[3]])
    else:
      entry = lambda name: dict(
        type='file', path=name, size=len(held[name]), oid='0' * 40,
        rfilename=name,
      )  # fmt: skip
      listed = [*map(entry, held)]
      about = dict(id=api[2], sha=COMMIT, siblings=listed)
      tree = api[3] == 'tree'
      self.answer(200, json.dumps(listed if tree else about).encode())

  do_HEAD = do_GET

  def do_POST(self):
    raw = self.rfile.read(int(self.headers['Content-Length']))
    if 'good' not in self.headers.get('Authorization', ''):
      return self.refuse(401, 'RepoNotFound')
    url = f'http://127.0.0.1:{self.server.server_port}/org/mine'
    if self.path == '/api/repos/create':
      self.server.created = json.loads(raw)
      about = dict(url=url, id='org/mine')
    elif 'preupload' in self.path:
      named = json.loads(raw)['files']
      about = dict(files=[
        dict(path=f['path'], uploadMode='regular', shouldIgnore=False)
        for f in named
      ])  # fmt: skip
    elif '/commit/' in self.path:
      held = self.server.repositories['org/mine'] = {}
      for line in map(json.loads, raw.splitlines()):
        if line['key'] == 'file':
          value = line['value']
          held[value['path']] = base64.b64decode(value['content'])
      about = dict(commitOid=COMMIT, commitUrl=f'{url}/commit/{COMMIT}')
    else:  # validate-yaml
      about = dict(errors=[], warnings=[])
    self.answer(200, json.dumps(about).encode())

  def send(self, content):
    digest = hashlib.sha256(content).hexdigest()
    if self.server.damaged:
      content = content[:-1] + bytes([content[-1] ^ 1])
    asked = self.headers['Range'] if self.server.ranges else None
    first, last = (asked or 'bytes=0-')[6:].split('-')
    begin, end = int(first), min(int(last or len(content)) + 1, len(content))
    body = content[begin:end]
    headers = dict(
      ETag=f'"{digest}"', X_Repo_Commit=COMMIT, Accept_Ranges='bytes',
      Content_Length=str(len(body)),
    )  # fmt: skip
    if asked:
      headers['Content_Range'] = f'bytes {begin}-{end - 1}/{len(content)}'
    if self.command == 'GET' and 0 < self.server.cut < len(body):
      body, self.server.cut = body[: self.server.cut], 0
      self.close_connection = True
    self.answer(206 if asked else 200, body, **headers)


@pytest.fixture
def server(tmp_path, monkeypatch):
  server = Server()
  thread = threading.Thread(
    target=server.serve_forever, args=(0.01,), daemon=True
  )
  thread.start()
  endpoint = f'http://127.0.0.1:{server.server_port}'
  constants = huggingface_hub.constants  # read from the environment at import
  for name, value in dict(
    ENDPOINT=endpoint,
    HUGGINGFACE_CO_URL_TEMPLATE=(
      endpoint + '/{repo_id}/resolve/{revision}/{filename}'
    ),
    HF_HUB_CACHE=str(tmp_path / 'hub'),
    HF_HUB_OFFLINE=False,
  ).items():
    monkeypatch.setattr(constants, name, value)
  monkeypatch.setenv('LONGJAX_CACHE', str(tmp_path / 'cache'))
  hub.forget()
  yield server
  hub.forget()
  server.shutdown()
  server.server_close()


def model(tmp_path) -> tuple[dict[str, bytes], dict]:
  """({name: content} of a repository with two formats, its parameters)."""
  root = tmp_path / 'model'
  fields = files.MHA | dict(vocab=384)
  truth = files.write_huggingface(root, fields, files.LLAMA31, shards=2)
  tokenizer.load('bytes').save(root)
  held = {path.name: path.read_bytes() for path in root.iterdir()}
  return held | {'pytorch_model.bin': b'old', 'original/x.pth': b'old'}, truth


def test_a_model_is_fetched_in_one_format_and_imported(server, tmp_path):
  server.repositories['org/model'], truth = model(tmp_path)
  params, _ = weights.load('hf://org/model@main')
  np.testing.assert_array_equal(params['embedding'], truth['embedding'])
  asked = ' '.join(path for _, path in server.requests)
  assert 'pytorch_model.bin' not in asked and '.pth' not in asked
  convert.to_checkpoint('hf://org/model', tmp_path / 'run', log=str)
  about = convert.checkpoint.metadata(tmp_path / 'run')
  assert about['source']['hub'] == f'hf://org/model@{COMMIT}'
  shard = 'model-00001-of-00002.safetensors'
  content = server.repositories['org/model'][shard]
  assert about['source']['sha256'][shard] == hashlib.sha256(content).hexdigest()


def test_what_broke_off_is_resumed_and_what_is_damaged_is_refused(
  server, tmp_path
):
  server.repositories['org/model'], _ = model(tmp_path)
  server.cut = 1000
  weights.config('hf://org/model')
  path = hub.local('hf://org/model', hub.of_weights)
  for name, content in server.repositories['org/model'].items():
    if '.safetensors' in name:
      assert (path / name).read_bytes() == content
  blob = (path / 'model-00001-of-00002.safetensors').resolve()
  raw = bytearray(blob.read_bytes())
  raw[-1] ^= 1
  blob.write_bytes(raw)
  with pytest.raises(errors.InputError, match='damaged: its sha256'):
    convert.to_checkpoint('hf://org/model', tmp_path / 'run', log=str)


def test_an_import_keeps_no_copy_and_goes_on_where_it_broke_off(
  server, tmp_path
):
  server.repositories['org/model'], truth = model(tmp_path)
  hub.stream('hf://org/model')
  server.cut = 1000
  convert.to_checkpoint('hf://org/model', tmp_path / 'run', log=str)
  kept = [p.name for p in (tmp_path / 'hub').rglob('*') if p.is_file()]
  assert 'config.json' in kept
  assert not [name for name in kept if name.endswith('.safetensors')]
  shards = [path for _, path in server.requests if 'bytes=' in path]
  assert all(COMMIT in path for path in shards)
  first = re.compile(r'bytes=(\d+)-(\d+)')
  asked = [tuple(map(int, first.search(path).groups())) for path in shards]
  assert any((a + 1000, b) in asked for a, b in asked)
  params, _ = weights.load(tmp_path / 'run')
  np.testing.assert_array_equal(params['embedding'], truth['embedding'])
  np.testing.assert_array_equal(params['layers']['up'], truth['layers']['up'])
  # What was fetched before is read from the cache.
  hub.local('hf://org/model', hub.of_weights)
  server.requests.clear()
  convert.to_checkpoint('hf://org/model', tmp_path / 'again', log=str)
  assert not [path for _, path in server.requests if 'bytes=' in path]
  digests = [
    convert.checkpoint.metadata(tmp_path / run)['source']['sha256']
    for run in ('run', 'again')
  ]
  assert digests[0] == digests[1]


def test_a_streamed_import_is_whole_or_nothing(server, tmp_path, monkeypatch):
  held, _ = model(tmp_path)
  server.repositories['org/model'] = held

  def refused(match):
    hub.forget()
    with pytest.raises(errors.InputError, match=match) as caught:
      convert.to_checkpoint('hf://org/model', tmp_path / 'run', log=str)
    assert '\n' not in str(caught.value)
    assert not list(tmp_path.glob('run*'))

  shard = 'model-00002-of-00002.safetensors'
  whole = held[shard]
  held[shard] = whole[:100] + whole[101:]
  refused('truncated or damaged')
  held[shard] = b'\xff' * 7 + b'\x00' + whole[8:]  # a header of 2^56 bytes
  refused('damaged header')
  del held[shard]
  refused(f'lacks the file {shard}')
  held[shard] = whole
  server.ranges = False
  refused('range requests.*hf download org/model')
  server.ranges, server.damaged = True, True
  hub.local('hf://org/model', lambda names: ['config.json', 'tokenizer.json'])
  refused('damaged: its sha256|NaN or infinity')
  server.damaged = False
  monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
  refused('not whole.* in the cache')


def test_without_the_network_the_cache_will_do(server, tmp_path, monkeypatch):
  server.repositories['org/model'], _ = model(tmp_path)
  weights.config('hf://org/model')
  monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
  hub.forget()
  weights.load('hf://org/model')
  with pytest.raises(errors.InputError, match=r'not .* in the cache') as caught:
    weights.load('hf://org/other')
  assert '\n' not in str(caught.value)
  closed = 'http://127.0.0.1:9'  # instead of a setting
  constants = huggingface_hub.constants
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
  monkeypatch.setattr(constants, 'ENDPOINT', closed)
  monkeypatch.setattr('time.sleep', lambda seconds: None)  # between its tries
  hub.forget()
  weights.load('hf://org/model')
  shard = 'model-00002-of-00002.safetensors'
  (hub.local('hf://org/model', hub.of_weights) / shard).unlink()
  with pytest.raises(errors.InputError, match=r'not whole.* in the cache'):
    weights.load('hf://org/model')


WRONG = {
  'hf://org/gated': 'gated; ask .* HF_TOKEN',
  'hf://org/absent': 'there is no org/absent, or it is private',
  'hf://org/model@v9': 'has no revision v9',
  'hf://org/model@main/absent.gguf': r'has no absent\.gguf; it has ',
  'hf://model': 'is not hf://ORG/NAME',
}


@pytest.mark.parametrize('name', WRONG)
def test_what_cannot_be_had_is_one_line(name, server):
  server.repositories['org/model'] = {'config.json': b'{}'}
  server.gated.add('org/gated')
  with pytest.raises(errors.InputError, match=WRONG[name]) as caught:
    weights.config(name)
  assert '\n' not in str(caught.value) and name in str(caught.value)


def test_several_quantizations_must_be_named(server):
  held = {'a.Q4.gguf': b'', 'a.Q8.gguf': b''}
  server.repositories['org/model'] = held
  with pytest.raises(errors.InputError, match=r'2 \.gguf files: name one'):
    weights.config('hf://org/model')


def test_data_and_tokenizer_come_from_the_hub(server, tmp_path):
  from configs import tiny

  held, _ = model(tmp_path)
  server.repositories['org/model'] = held
  row = json.dumps(dict(text='some text')).encode() + b'\n'
  server.repositories['datasets/org/set'] = {
    'README.md': b'about', 'web/a.jsonl': row * 3, 'books/b.jsonl': row,
  }  # fmt: skip
  config = tiny.get_config()
  name = 'hf://datasets/org/set@main/web'
  config.data.sources = dict(web=dict(path=name))
  config.data.tokenizer = 'hf://org/model@main'
  tokens = prepare.find_tokenizer(config, str)
  assert tokens.digest == tokenizer.load('bytes').digest
  store = prepare.prepare(config, tokens, str)
  assert store.manifest['sources'][0]['documents'] == 3
  assert store.manifest['hub'] == {'web': f'hf://datasets/org/set@{COMMIT}'}
  asked = ' '.join(path for _, path in server.requests)
  assert 'books' not in asked and '.safetensors' not in asked


def test_an_export_is_pushed_with_the_report_of_its_run(
  server, tmp_path, monkeypatch
):
  server.repositories['org/model'], _ = model(tmp_path)
  run, out = tmp_path / 'run', tmp_path / 'out'
  convert.to_checkpoint('hf://org/model', run, log=str)
  (run / 'REPORT.md').write_text('# pose\n\n![x](plots/x.png)\n\ncommit abc\n')
  monkeypatch.setenv('HF_TOKEN', 'good')
  command.export(str(run), str(out), push_='hf://org/mine')
  held = server.repositories['org/mine']
  assert 'private' in json.dumps(server.created)
  assert {p.name for p in out.iterdir()} == set(held) > {'config.json'}
  shard = 'model.safetensors'
  assert held[shard] == (out / shard).read_bytes()
  card = held['README.md'].decode()
  assert card.startswith('---\nlibrary_name: transformers\n')
  assert 'commit abc' in card and COMMIT in card and 'png' not in card
  monkeypatch.setenv('HF_TOKEN', 'bad')
  with pytest.raises(errors.InputError, match=r'not uploaded .*hf upload'):
    hub.push(out, 'hf://org/mine')
  with pytest.raises(errors.InputError, match='is not a model'):
    command.export(str(run), str(out), push_='hf://org/mine@v1')
  (run / 'REPORT.md').unlink()  # a stranger's run must not publish my files
  (run / 'REPORT.md').symlink_to('/etc/hostname')
  with pytest.raises(errors.InputError, match='leads out of'):
    convert.write_card(run, out)


def test_the_second_form_of_a_model_is_not_fetched():
  names = ['config.json', 'model-1.safetensors', 'tokenizer.json']
  second = ['params.json', 'consolidated.safetensors', 'sub/a.safetensors']
  assert sorted(hub.of_weights(names + second)) == sorted(names)
  assert 'params.json' in hub.of_weights(['params.json', 'consolidated.00.pth'])


def test_a_folder_of_a_snapshot_links_to_the_blobs(tmp_path):
  blob = tmp_path / 'models--o--n' / 'blobs' / 'x'
  folder = tmp_path / 'models--o--n' / 'snapshots' / 'c' / 'original'
  blob.parent.mkdir(parents=True)
  folder.mkdir(parents=True)
  blob.write_text('{}')
  (folder / 'params.json').symlink_to(blob)
  (folder / 'out.json').symlink_to('/etc/hostname')
  assert storage.inside(folder, 'params.json').endswith('params.json')
  with pytest.raises(errors.InputError, match='leads out of'):
    storage.inside(folder, 'out.json')
