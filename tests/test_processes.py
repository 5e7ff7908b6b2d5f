"""Which processes make up a job, and when they look for each other."""

import contextlib
import io
import socket
import threading
import time
import urllib.error

import pytest

from longjax.errors import InputError
from longjax.parallel import processes, sharding

JOB = dict(COORDINATOR='localhost:1234', PROCESSES='2', PROCESS='1')


def start(monkeypatch, **variables):
  for name, value in variables.items():
    monkeypatch.setenv(f'LONGJAX_{name}', value)
  sharding.start(8)


@pytest.mark.parametrize('wrong, says', [
  (dict(PROCESSES='two'), "LONGJAX_PROCESSES='two' must be a number from 1"),
  (dict(PROCESSES='0'), "LONGJAX_PROCESSES='0' must be"),
  (dict(PROCESS='-1'), "LONGJAX_PROCESS='-1' must be a number from 0"),
  (dict(PROCESS='2'), "from 0 to N - 1; got 'localhost:1234', 2 and 2"),
  (dict(COORDINATOR='localhost'), "got 'localhost', 2 and 1"),
  (dict(HEARTBEAT_SECONDS='1.5'), "LONGJAX_HEARTBEAT_SECONDS='1.5' must be"),
])  # fmt: skip
def test_an_invalid_job_is_refused_before_a_device_is_used(
  wrong, says, monkeypatch
):
  with pytest.raises(InputError, match=says):
    start(monkeypatch, **JOB | wrong)


def test_a_process_without_a_number_is_refused(monkeypatch):
  with pytest.raises(InputError, match='2 and none'):
    start(monkeypatch, **{k: v for k, v in JOB.items() if k != 'PROCESS'})


KAGGLE = dict(TPU_PROCESS_ADDRESSES='local')
MEGASCALE = dict(MEGASCALE_COORDINATOR_ADDRESS='', MEGASCALE_NUM_SLICES='1')
POD = '0:10.0.0.2:8470,1:10.0.0.3:8470'


@pytest.mark.parametrize('variables, metadata, several', [
  # One host, for which jax.distributed.initialize() would wait or raise.
  (KAGGLE, None, False),
  (KAGGLE | MEGASCALE | dict(TPU_WORKER_ID='0'), None, False),
  (KAGGLE | MEGASCALE, None, False),
  (dict(TPU_WORKER_HOSTNAMES='localhost', TPU_WORKER_ID='0',
        MEGASCALE_NUM_SLICES=''), None, False),
  (dict(TPU_SKIP_MDS_QUERY='1'), None, False),
  # One host of Cloud TPU; no metadata server, or one that knows no TPU.
  ({}, {'worker-network-endpoints': '0:10.0.0.2:8470'}, False),
  ({}, socket.gaierror(-2, 'Name or service not known'), False),
  ({}, {}, False),
  # Several: GKE, a file of addresses, two slices of a host each, Cloud TPU,
  # Compute Engine with a plain list, two slices of Cloud TPU.
  (dict(TPU_WORKER_HOSTNAMES='a,b', TPU_WORKER_ID='1'), None, True),
  (dict(TPU_PROCESS_ADDRESSES_PATH='a:8476\nb:8476\n'), None, True),
  (dict(TPU_WORKER_HOSTNAMES='a', MEGASCALE_NUM_SLICES='2'), None, True),
  ({}, {'worker-network-endpoints': POD}, True),
  ({}, {'worker-network-endpoints': 'a.internal,b.internal'}, True),
  ({}, {'worker-network-endpoints': '0:10.0.0.2:8470',
        'tpu-env': "ZONE: 'z'\nMEGASCALE_NUM_SLICES: '2'\n"}, True),
])  # fmt: skip
def test_jax_looks_for_other_hosts_only_where_several_are_listed(
  variables, metadata, several, monkeypatch, tmp_path
):
  asked = []

  def answer(_, request, timeout):
    asked.append(request.full_url)
    assert request.headers == {'Metadata-flavor': 'Google'}
    if isinstance(metadata, OSError):
      raise urllib.error.URLError(metadata)
    key = request.full_url.rpartition('/')[2]
    if key not in metadata:
      raise urllib.error.HTTPError(request.full_url, 404, '', {}, None)
    return io.BytesIO(metadata[key].encode())

  monkeypatch.setattr(processes.urllib.request.OpenerDirector, 'open', answer)
  for name in (*processes.HOST_LISTS, 'TPU_SKIP_MDS_QUERY', *MEGASCALE):
    monkeypatch.delenv(name, raising=False)
  for name, value in variables.items():
    if name.endswith('PATH'):
      (tmp_path / 'addresses').write_text(value)
      value = str(tmp_path / 'addresses')
    monkeypatch.setenv(name, value)
  begun = []
  monkeypatch.setattr(
    processes.jax.distributed, 'initialize', lambda *_, **k: begun.append(k)
  )
  processes.join(processes.Job(), on_tpu=True)
  assert begun == [dict(heartbeat_timeout_seconds=100)] * several
  assert bool(asked) == (metadata is not None)


def drops(connection):
  with contextlib.suppress(OSError):
    while not connection.sendall(b'HTTP/1.1 200 OK\r\n'[:1]):
      time.sleep(0.05)


@pytest.mark.parametrize('answer', [
  None,  # nobody listens
  lambda connection: time.sleep(1),
  drops,
  lambda connection: connection.close(),
  lambda connection: connection.sendall(b'no HTTP\r\n\r\n'),
  lambda connection: connection.sendall(b'HTTP/1.1 503 Busy\r\n\r\n'),
  lambda connection: connection.sendall(b'HTTP/1.1 200 OK\r\n\r\n\xff'),
  lambda connection: connection.sendall(
    b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\na,b'
  ),
])  # fmt: skip
def test_a_metadata_server_that_fails_is_named_and_not_waited_for(
  answer, monkeypatch, capsys
):
  server = socket.create_server(('127.0.0.1', 0))
  address = f'http://127.0.0.1:{server.getsockname()[1]}'
  if answer is None:
    server.close()

  def serve():
    with contextlib.suppress(OSError):
      while True:
        connection = server.accept()[0]
        connection.recv(1000)
        answer(connection)
        connection.close()

  threading.Thread(target=serve, daemon=True).start()
  monkeypatch.setattr(processes, 'METADATA', address)
  monkeypatch.setattr(processes, 'METADATA_SECONDS', 0.3)
  began = time.monotonic()
  assert processes.metadata('a', 'b') == ['', '']
  assert time.monotonic() - began < 1
  server.close()
  said = capsys.readouterr().err
  assert said.count('\n') == 1
  assert address in said and '0.3 s' in said and 'TPU_WORKER_HOSTNAMES' in said


def test_a_described_job_asks_nobody(monkeypatch):
  begun = []
  monkeypatch.setattr(
    processes.jax.distributed,
    'initialize',
    lambda *a, **k: begun.append((a, k)),
  )
  processes.join(processes.Job('a:1', 2, 1, 9), on_tpu=True)
  deactivated = dict(cluster_detection_method='deactivate')
  assert begun == [
    (('a:1', 2, 1), deactivated | dict(heartbeat_timeout_seconds=9))
  ]


def test_a_long_value_is_broadcast_whole(monkeypatch):
  cut = lambda text: [text.encode()[: processes.BYTES].decode()]
  monkeypatch.setattr(processes, 'allgather_text', cut)
  monkeypatch.setattr(processes.jax, 'process_count', lambda: 2)
  value = dict(each=[0.1] * 10_000, name='\u00e9')
  assert processes.broadcast_from_primary(value) == value
  assert processes.broadcast_from_primary(None) is None


def test_an_error_without_text_or_of_any_kind_is_one_of_all_processes(
  monkeypatch, capsys
):
  monkeypatch.setattr(processes.jax, 'process_count', lambda: 2)
  monkeypatch.setattr(processes, 'allgather_text', lambda text: ['', text])
  for error, says in (
    (TimeoutError(), 'TimeoutError'),
    (KeyError('model'), "KeyError: 'model'"),
    (InputError('no file'), 'no file'),
  ):

    def fail(error=error):
      raise error

    with pytest.raises(InputError, match=rf'^{says} \(processes \[1\]\)'):
      processes.raise_on_all(fail)
  assert 'Traceback' in capsys.readouterr().err  # of what nobody expected
