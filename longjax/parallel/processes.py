"""The processes of one job: how they find each other, and exchanges of small
values between them.

With a single process each exchange returns its own value and touches no device.
"""

import functools
import http.client
import json
import os
import pathlib
import re
import socket
import sys
import threading
import time
import traceback
import urllib.error
import urllib.request
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from longjax.errors import InputError

BYTES = 16_384  # of the text of a process; the rest is cut off


# Where jax, too, looks for the hosts of a slice, in this order.
HOST_LISTS = (
  'TPU_PROCESS_ADDRESSES_PATH', 'TPU_PROCESS_ADDRESSES', 'TPU_WORKER_HOSTNAMES'
)  # fmt: skip
METADATA = (
  'http://metadata.google.internal/computeMetadata/v1/instance/attributes'
)
METADATA_SECONDS = 4.0  # for all that is asked of it; it answers in a few ms


class Job(NamedTuple):
  """This process among those of its job."""

  address: str = ''  # of the first, host:port; '' where nothing describes it
  processes: int = 1
  number: int = 0
  heartbeat: int = 100  # seconds of silence after which the others end


def job_from_environment() -> Job:
  """What LONGJAX_COORDINATOR, LONGJAX_PROCESSES and LONGJAX_PROCESS describe,
  and LONGJAX_HEARTBEAT_SECONDS.

  Raises:
    InputError: they describe no job.
  """
  address = os.environ.get('LONGJAX_COORDINATOR', '')
  heartbeat = _count('LONGJAX_HEARTBEAT_SECONDS', 100)
  if not address:
    return Job(heartbeat=heartbeat)
  processes = _count('LONGJAX_PROCESSES', 1)
  number = _count('LONGJAX_PROCESS', processes, least=0)
  if number >= processes or not re.fullmatch(r'.+:\d+', address):
    raise InputError(
      'with LONGJAX_COORDINATOR=HOST:PORT and LONGJAX_PROCESSES=N each process '
      f'needs its own LONGJAX_PROCESS from 0 to N - 1; got {address!r}, '
      f'{processes} and {os.environ.get("LONGJAX_PROCESS", "none")}'
    )
  return Job(address, processes, number, heartbeat)


def join(job: Job, on_tpu: bool):
  """Connects the processes of a job; one alone has nothing to connect to.

  On a TPU without a described job, jax finds the others, if the slice has
  several hosts.
  """
  beat: dict[str, Any] = dict(heartbeat_timeout_seconds=job.heartbeat)
  # It would take SIGTERM from train/preemption.py, and do nothing at it.
  jax.config.update('jax_enable_preemption_service', False)
  if job.address:  # without `deactivate` jax detects what it was given, too
    jax.distributed.initialize(
      job.address, job.processes, job.number,
      cluster_detection_method='deactivate', **beat,
    )  # fmt: skip
  elif on_tpu and several_hosts():
    jax.distributed.initialize(**beat)


def several_hosts() -> bool:
  """Whether the environment, or Google's metadata, lists more than one host.

  Variables that only mark a TPU prove nothing: Kaggle's image sets
  TPU_PROCESS_ADDRESSES=local on its one host, for which jax would wait 300 s.
  """
  environment = os.environ
  name = next((x for x in HOST_LISTS if environment.get(x)), '')
  slices = environment.get('MEGASCALE_NUM_SLICES', '')
  if name:
    hosts = environment[name]
    if name.endswith('PATH'):
      hosts = pathlib.Path(hosts).read_text()
  elif 'TPU_SKIP_MDS_QUERY' in environment:
    return False
  else:
    hosts, of_tpu = metadata('worker-network-endpoints', 'tpu-env')
    found = re.search(r"MEGASCALE_NUM_SLICES: *'(\d+)'", of_tpu)
    slices = slices or (found[1] if found else '')
  listed = [x for x in re.split(r'[,\n]', hosts) if x.strip()]
  return len(listed) > 1 or (slices.isdecimal() and int(slices) > 1)


def metadata(*keys: str) -> list[str]:
  """Values of Google's metadata server; '' where there is none.

  In a thread, since neither a look-up of names nor an answer that comes in
  drops keeps to a timeout.
  """
  found, problem = {}, ['no answer']
  until = time.monotonic() + METADATA_SECONDS

  def ask():
    while len(found) < len(keys) and time.monotonic() < until:
      key = keys[len(found)]
      try:
        found[key] = _metadata(key)
      except (OSError, http.client.HTTPException, UnicodeError) as error:
        problem[0] = ' '.join(f'{type(error).__name__}: {error}'.split())
        time.sleep(METADATA_SECONDS / 10)

  thread = threading.Thread(target=ask, daemon=True)
  thread.start()
  thread.join(METADATA_SECONDS)
  if len(found) < len(keys):
    print(
      f'{METADATA} did not answer in {METADATA_SECONDS:g} s ({problem[0]}): '
      'this host is taken for the only one of its job; where it is not, set '
      'TPU_WORKER_HOSTNAMES to the names of all',
      file=sys.stderr,
    )
  return [found.get(key, '') for key in keys]


def _metadata(key: str) -> str:
  """One value; '' where the server has none, or there is no server."""
  request = urllib.request.Request(
    f'{METADATA}/{key}', headers={'Metadata-Flavor': 'Google'}
  )
  direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
  try:
    with direct.open(request, timeout=METADATA_SECONDS) as answer:
      return answer.read().decode()
  except urllib.error.HTTPError as error:
    if error.code != 404:
      raise
  except OSError as error:
    if not isinstance(getattr(error, 'reason', error), socket.gaierror):
      raise  # else not a machine of Google
  return ''


def _count(name: str, default: int, least=1) -> int:
  """A whole number in an environment variable, or InputError."""
  text = os.environ.get(name, str(default))
  if not text.isdecimal() or int(text) < least:
    raise InputError(f'{name}={text!r} must be a number from {least}')
  return int(text)


def is_primary() -> bool:
  """Whether this is the process that writes files and logs."""
  return jax.process_index() == 0


def allgather_text(text: str) -> list[str]:
  """The texts of all processes, in their order; all must call this."""
  if jax.process_count() == 1:
    return [text]
  padded = np.zeros(BYTES, np.uint8)
  data = np.frombuffer(text.encode(errors='replace')[:BYTES], np.uint8)
  padded[: len(data)] = data
  rows = multihost_utils.process_allgather(padded)
  return [bytes(x).rstrip(b'\0').decode(errors='replace') for x in rows]


def broadcast_from_primary(value):
  """The primary process's value, small JSON; all must call this."""
  if jax.process_count() == 1:
    return json.loads(json.dumps(value))
  text = json.dumps(value) if is_primary() else ''  # ASCII
  count = int(allgather_text(str(-(-len(text) // BYTES)))[0])
  parts = (text[i * BYTES : (i + 1) * BYTES] for i in range(count))
  return json.loads(''.join(allgather_text(part)[0] for part in parts))


def raise_on_all(action) -> Any:
  """Returns action(), or raises on every process if it failed on any.

  A process that failed alone would leave the others waiting for it.

  Raises:
    InputError: the first failure, with the numbers of the processes.
  """
  value, problem = None, ''
  try:
    value = action()
  except InputError as error:
    problem = str(error)
  except OSError as error:  # of a file: no space, no permission
    if error.filename and jax.process_count() == 1:
      raise
    problem = str(error) or type(error).__name__  # with the file, if known
  except Exception as error:  # a bug, or what a library raises
    if jax.process_count() == 1:
      raise
    traceback.print_exc()
    problem = f'{type(error).__name__}: {error}'
  problems = allgather_text(problem)
  failed = [i for i, text in enumerate(problems) if text]
  if not failed:
    return value
  where = f' (processes {failed})' if len(problems) > 1 else ''
  raise InputError(problems[failed[0]] + where)


def from_primary(action) -> Any:
  """What action() gives on the primary process, small JSON, on all of them;
  where it fails, `raise_on_all`."""
  return broadcast_from_primary(
    raise_on_all(lambda: action() if is_primary() else None)
  )


def require_equal(what: str, value: str):
  """InputError, with all values, where those of the processes differ."""
  processes_of: dict[str, list] = {}
  for process, text in enumerate(allgather_text(value)):
    processes_of.setdefault(text, []).append(process)
  if len(processes_of) > 1:
    parts = (f'{text} on processes {i}' for text, i in processes_of.items())
    raise InputError(
      f'the processes of this job differ in {what}: {"; ".join(parts)}; start '
      'all with the same files and flags'
    )


def any_process(flag: bool, mesh) -> bool:
  """Whether any process has its flag set; all must call this.

  One small all-reduce, queued behind the work that the devices have.
  """
  if jax.process_count() == 1:
    return bool(flag)
  sharding = NamedSharding(mesh, P(mesh.axis_names))
  flags = jax.make_array_from_callback(
    (mesh.size,), sharding, lambda _: np.full(1, flag, np.int32)
  )
  return bool(_largest(mesh)(flags))


@functools.cache
def _largest(mesh):
  replicated = NamedSharding(mesh, P())
  return jax.jit(lambda x: x.max(), out_shardings=replicated)
