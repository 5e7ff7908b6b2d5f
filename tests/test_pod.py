"""TPU slices from a laptop: the commands given to gcloud and xpk, and what
happens when a cloud waits, refuses, preempts or loses connections.

The hosts of the fake cloud are real shells.
"""

import contextlib
import io
import json
import os
import pathlib
import re
import runpy
import shlex
import signal
import subprocess
import sys
import time

import pytest

from configs import llama3_8b_512k
from longjax import slices
from longjax.errors import InputError
from longjax.pod import hosts, request, tree, verbs, xpk
from longjax.pod import supervise as supervising
from longjax.pod.commands import CommandFailed, DryRun, Result, Terminal
from longjax.train import provenance

ROOT = pathlib.Path(__file__).resolve().parents[1]
RUN = ['--config=configs/llama3_8b_512k.py', '--workdir=gs://bucket/run']
DRY = [*RUN, '--project=ours', '--zone=us-east5-a', '--dry-run']
QUOTA = "Quota 'TPUV5PPerProjectPerZoneForTPUAPI' exhausted. Limit 64 in zone"

STUBS = dict(
  hostname='echo $WORKER',
  sudo='echo "$WORKER $(cat) $*" >>$FAKE_CLOUD/sudo',
  gcsfuse='echo "$WORKER $*" >>$FAKE_CLOUD/mounts; ls >"${@: -1}/mounted"',
  mountpoint='test -f "$2/mounted"',
  # The system's Python: pip brings uv, uv makes .venv, whose python trains.
  python3="""
    echo "$WORKER $*" >>$FAKE_CLOUD/installs
    if [ "$2 $3" = "uv venv" ]; then
      mkdir -p .venv/bin && cat >.venv/bin/python <<'END'
#!/bin/bash
echo "$*" >>$FAKE_CLOUD/trained
eval "$(cat $FAKE_CLOUD/train)"
END
      chmod +x .venv/bin/python
    fi""",
)


@pytest.fixture
def cloud(tmp_path, monkeypatch):
  """cloud(now=[...], lives=[[...]]): sets the script; its directory."""
  monkeypatch.setenv('FAKE_CLOUD', str(tmp_path))
  monkeypatch.setenv('LONGJAX_CACHE', str(tmp_path / 'cache'))
  monkeypatch.setenv('LONGJAX_STOP_SECONDS', '5')
  monkeypatch.setenv('PATH', f'{tmp_path}/bin:{os.environ["PATH"]}')
  (tmp_path / 'bin').mkdir()
  fake = f'exec {sys.executable} -S {ROOT}/tests/fake_gcloud.py ${{0##*/}} "$@"'
  fakes = dict.fromkeys(('gcloud', 'xpk', 'ssh', 'scp'), fake)
  for program, body in (fakes | STUBS).items():
    file = tmp_path / 'bin' / program
    file.write_text(f'#!/bin/bash\n{body}\n')
    file.chmod(0o755)

  def play(**script):
    script = dict(now=[], lives=[['ACTIVE']] * 9) | script
    (tmp_path / 'script.json').write_text(json.dumps(script))
    for i in range(script.get('there', 0)):  # hosts that exist
      (tmp_path / f'workers/w{i}').mkdir(parents=True)
      (tmp_path / 'train').write_text(script['trains'][0])
    return tmp_path

  yield play
  for pid in tmp_path.glob('workers/*/longjax/*/pid'):
    with contextlib.suppress(ProcessLookupError, ValueError):
      os.killpg(int(pid.read_text()), signal.SIGKILL)


@pytest.fixture(scope='module')
def checkout(tmp_path_factory):
  """A small checkout with what goes to a host."""
  root = tmp_path_factory.mktemp('checkout')
  for name in ('longjax/pod/worker.sh', 'configs/tiny.py', 'requirements.txt'):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes((ROOT / name).read_bytes())
  who = ['-c', 'user.name=x', '-c', 'user.email=x@example.com']
  for words in (['init', '-q'], ['add', '-A'], ['commit', '-qm', 'first']):
    subprocess.run(['git', '-C', root, *who, *words], check=True)
  return root


@pytest.fixture
def command(monkeypatch, capsys):
  """command(*arguments): launch/pod.py in this process; (code, out, err)."""

  def run(*arguments):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, 'argv', ['pod.py', *arguments])
    monkeypatch.setattr(sys, 'stdin', io.StringIO())
    with pytest.raises(SystemExit) as ended:
      runpy.run_path('launch/pod.py', run_name='__main__')
    return ended.value.code, *capsys.readouterr()

  return run


@pytest.fixture
def dry(command, monkeypatch):
  """dry(*arguments): what --dry-run prints, digests and commits replaced."""
  monkeypatch.setenv('LONGJAX_CACHE', 'CACHE')

  def run(*arguments) -> str:
    code, text, error = command(*arguments)
    assert code == 0, error
    return re.sub(r'\b[0-9a-f]{12}\b', 'TREE', text)

  return run


class Quiet(Terminal):
  """Collects lines and waits; waits only briefly."""

  def __init__(self):
    self.lines, self.seconds = [], []
    super().__init__(self.lines.append, self._wait)

  def _wait(self, seconds):
    self.seconds.append(seconds)
    time.sleep(0.02)


def pod(**fields):
  given = dict(
    name='run',
    slice=slices.parse('v5p:4x4x4'),
    workdir='gs://bucket/run',
    arguments=('--config=configs/tiny.py', '--workdir=gs://bucket/run'),
  )
  return request.Pod(**given | fields)


def calls(directory) -> list[list[str]]:
  lines = (directory / 'calls.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def requests(directory) -> list[str]:
  """What was asked of the cloud but for states: create, scp, start, ..."""
  found = []
  for call in calls(directory):
    word = call[3] if call[:2] == ['compute', 'tpus'] else call[0]
    if word == 'compute':
      word = call[1] if call[1] in ('ssh', 'scp') else 'describe'
    if word == 'ssh':
      word = re.sub(r'.*worker\.sh (\w+).*', r'\1', call[-1])
    if word not in ('describe', 'status', 'storage'):
      found.append(word)
  return found


def edit(there, **changes):
  """Changes the script of the cloud."""
  script = json.loads((there / 'script.json').read_text())
  (there / 'script.json').write_text(json.dumps(script | changes))


def started(there, checkout):
  """A slice with the tree, training; the tree."""
  code = tree.read(checkout)
  verbs.up(Quiet(), pod())
  verbs.push(Quiet(), pod(), code)
  assert run(code) == 0
  wait_for((there / 'trained').exists)
  return code


def run(code, restart=False, terminal=None):
  return verbs.run(terminal or Quiet(), pod(), code, 3, restart)


def supervised(checkout, retries=9, last_step=dict, terminal=None):
  code = tree.read(checkout)
  terminal = terminal or Quiet()
  return supervising.supervise(terminal, pod(), code, retries, last_step)


def states():
  return [x['state'] for x in hosts.status(Terminal(), pod())]


def wait_for(condition, seconds=20):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.05)


# --- what is asked


QUEUED = 'gcloud compute tpus queued-resources'
WHERE = '--project=ours --zone=us-east5-a'
EVERYWHERE = f'{WHERE} --node=all --worker=all --quiet'


def test_supervising_64_chips_of_v5p_reads_as_one_would_type_it(dry):
  assert (
    dry('supervise', *DRY, '--topology=v5p:4x4x4')
    == f"""\
# llama3-8b-512k: v5p:4x4x4, 64 chips, on-demand: 64 chip-hours an hour, from \
when it is active until pod.py down
{QUEUED} describe llama3-8b-512k {WHERE} --format=json
# llama3-8b-512k: absent
{QUEUED} create llama3-8b-512k {WHERE} --accelerator-type=v5p-128 \
--runtime-version=v2-alpha-tpuv5 --node-id=llama3-8b-512k \
--labels=longjax=llama3-8b-512k --async --quiet
{QUEUED} describe llama3-8b-512k {WHERE} --format=json
{QUEUED} ssh llama3-8b-512k {EVERYWHERE} --command='bash \
longjax/llama3-8b-512k/code/longjax/pod/worker.sh status'
# llama3-8b-512k: empty
{QUEUED} scp CACHE/pods/longjax-TREE.tar.gz llama3-8b-512k: {EVERYWHERE}
{QUEUED} ssh llama3-8b-512k {EVERYWHERE} --command='mkdir -p \
longjax/llama3-8b-512k/TREE && tar -xzf longjax-TREE.tar.gz -C \
longjax/llama3-8b-512k/TREE && bash \
longjax/llama3-8b-512k/TREE/longjax/pod/worker.sh install'
{QUEUED} ssh llama3-8b-512k {EVERYWHERE} --command='bash \
longjax/llama3-8b-512k/code/longjax/pod/worker.sh start \
bucket --config=configs/llama3_8b_512k.py --workdir=gs://bucket/run'
{QUEUED} describe llama3-8b-512k {WHERE} --format=json
{QUEUED} ssh llama3-8b-512k {EVERYWHERE} --command='bash \
longjax/llama3-8b-512k/code/longjax/pod/worker.sh status'
# llama3-8b-512k: done
"""
  )


def sized(flags) -> list[str]:
  """The flags, and a mesh that fits their slice."""
  given = dict(flag.lstrip('-').split('=', 1) for flag in flags if '=' in flag)
  count = int(given.get('slices', 1))
  devices = slices.parse(given['topology'], count).devices
  data = 4 if devices >= 64 else 1
  mesh = dict(data=data, seq=devices // data)
  return [*flags, *(f'--config.mesh.{k}={v}' for k, v in mesh.items())]


# The flags are those of the reference of gcloud, GA and alpha, and of the pages
# on reservations, flex-start and networks, read on 28 November 2026.
@pytest.mark.parametrize('flags, track, create', [
  ('--topology=v5e:16x16', '',
   '--accelerator-type=v5litepod-256 --runtime-version=v2-alpha-tpuv5-lite '
   '--node-id=NAME'),
  ('--topology=v6e-256 --spot', '',
   '--accelerator-type=v6e-256 --runtime-version=v2-alpha-tpuv6e '
   '--node-id=NAME --spot'),
  ('--topology=v5p-128 --slices=2 --reserved', '',
   '--accelerator-type=v5p-128 --runtime-version=v2-alpha-tpuv5 '
   '--node-count=2 --node-prefix=NAME --reserved'),
  ('--topology=v4:2x2x4 --runtime=tpu-ubuntu2404-base', '',
   '--accelerator-type=v4-32 --runtime-version=tpu-ubuntu2404-base '
   '--node-id=NAME'),
  ('--topology=v4:2x2x16 --service-account=tpu@ours.example', '',
   '--type=v4 --topology=2x2x16 --runtime-version=tpu-ubuntu2204-base '
   '--node-id=NAME --service-account=tpu@ours.example'),
  ('--topology=v5p:2x2x16', '',
   '--type=v5p --topology=2x2x16 --runtime-version=v2-alpha-tpuv5 '
   '--node-id=NAME'),
  ('--topology=v6e:1x1', '',
   '--accelerator-type=v6e-1 --runtime-version=v2-alpha-tpuv6e '
   '--node-id=NAME'),
  ('--topology=v5litepod-64 --network=vpc --subnetwork=sub --internal-ips '
   '--tunnel-through-iap --valid-until-duration=6h --gcloud-flag=--tags=a,b '
   '--gcloud-flag=--shielded-secure-boot', '',
   '--accelerator-type=v5litepod-64 --runtime-version=v2-alpha-tpuv5-lite '
   '--node-id=NAME --network=vpc --subnetwork=sub --internal-ips '
   '--valid-until-duration=6h --labels=longjax=NAME --tags=a,b '
   '--shielded-secure-boot'),
  ('--topology=v6e-64 --flex-start --max-run-duration=2d12h', 'alpha ',
   '--accelerator-type=v6e-64 --runtime-version=v2-alpha-tpuv6e '
   '--node-id=NAME --provisioning-model=flex-start --max-run-duration=2d12h'),
  ('--topology=v5p:4x4x4 --reservation=projects/p/reservations/r', 'alpha ',
   '--accelerator-type=v5p-128 --runtime-version=v2-alpha-tpuv5 '
   '--node-id=NAME --reservation=projects/p/reservations/r'),
])  # fmt: skip
def test_a_slice_is_requested_in_the_words_of_gcloud(flags, track, create, dry):
  lines = dry('up', *DRY, *sized(flags.split())).splitlines()
  queued = QUEUED.replace('gcloud ', f'gcloud {track}')
  create = create if '--labels' in create else f'{create} --labels=longjax=NAME'
  made = f'{queued} create NAME {WHERE} {create} --async --quiet'
  made = made.replace('NAME', 'llama3-8b-512k')
  assert [x for x in lines if ' create ' in x] == [made]


TO_NODE = '--worker=all --quiet'
RUN_IT = 'bash longjax/llama3-8b-512k/code/longjax/pod/worker.sh'
TRAIN = f'{RUN_IT} start bucket --config=configs/llama3_8b_512k.py {RUN[1]}'
LIST = f'gcloud compute instance-groups managed list-instances group {WHERE}'
OPENSSH = 'ssh -o BatchMode=yes -o ConnectTimeout=30'
IAP = '--tunnel-through-iap'
TAIL = 'tail -n 100 -F longjax/llama3-8b-512k/log'


@pytest.mark.parametrize('arguments, lines', [
  (['run', '--tpu=node', '--env=LIBTPU_INIT_ARGS=--a=1 --b'],
   [f'gcloud compute tpus tpu-vm ssh node {WHERE} --worker=all --quiet '
    f'--command=env "LIBTPU_INIT_ARGS=--a=1 --b" {TRAIN}']),
  (['stop', '--tpu=node', IAP],
   [f'gcloud alpha compute tpus tpu-vm ssh node {WHERE} --worker=all {IAP} '
    f'--quiet --command={RUN_IT} stop']),
  (['stop', IAP],
   [f'{QUEUED} ssh llama3-8b-512k {WHERE} --node=all --worker=all {IAP} '
    f'--quiet --command={RUN_IT} stop']),
  (['logs', '--worker=1.3', '--internal-ips'],
   [f'{QUEUED} ssh llama3-8b-512k {WHERE} --node=1 --worker=3 --internal-ip '
    f'--quiet --command={TAIL}']),
  (['run', '--mig=group', IAP],
   [f'{LIST} --format=json'] + [
    f'gcloud compute ssh HOST-{i} --project=ours --zone=ZONE {IAP} --quiet '
    f'--command={TRAIN}' for i in (0, 1)]),
  (['run', '--hosts=a,me@b', '--env=A=1'],
   [f'{OPENSSH} {host} env LONGJAX_COORDINATOR=a:8476 LONGJAX_PROCESSES=2 '
    f'LONGJAX_PROCESS={i} A=1 {TRAIN}' for i, host in ((0, 'a'), (1, 'me@b'))]),
  (['run', '--hosts=a'], [f'{OPENSSH} a {TRAIN}']),
  (['logs', '--hosts=a,b', '--worker=1'], [f'{OPENSSH} b {TAIL}']),
  (['logs', '--hosts=a,b', '--worker=all'],
   [f'{OPENSSH} {host} {TAIL} | sed -u "s/^/$(hostname): /"'
    for host in 'ab']),
])  # fmt: skip
def test_hosts_are_reached_in_the_words_of_gcloud_and_ssh(
  arguments, lines, dry
):
  verb, *flags = arguments
  text = dry(verb, *DRY, *flags)
  # Unquoted: what each word is to the shell of the host has a test below.
  plain = lambda line: ' '.join(shlex.split(line)).replace('"', "'")
  found = [plain(x) for x in text.splitlines() if x[0] != '#']
  assert found == [x.replace('"', "'") for x in lines]


def test_tpu7x_goes_through_xpk(dry):
  flags = sized(['--topology=tpu7x-128', '--spot', '--env=A=b c'])
  text = dry('supervise', *DRY, *flags, '--network=wide')
  assert '# and the CPU pool of the cluster: 6 VMs of e2-standard-16' in text
  place = '--cluster=llama3-8b-512k --project=ours --zone=us-east5-a'
  describe = (
    'gcloud container clusters list --filter=name=llama3-8b-512k '
    '--project=ours --format=json'
  )
  assert [x for x in text.splitlines() if x[0] != '#'] == [
    describe,
    'xpk cluster create --cluster=llama3-8b-512k --tpu-type=tpu7x-4x4x4 '
    '--num-slices=1 --project=ours --zone=us-east5-a --spot '
    "--custom-cluster-arguments='--labels=gke_product_type=xpk,"
    "longjax=llama3-8b-512k --network=wide'",
    describe,
    f'xpk workload create --workload=llama3-8b-512k {place} '
    '--tpu-type=tpu7x-4x4x4 --num-slices=1 --base-docker-image=python:3.12 '
    '--script-dir=CACHE/pods/TREE --max-restarts=10 '
    '--restart-on-exit-codes=1,75 --no-use-parallel-containers '
    '--ttl-seconds-after-finished=604800 '
    "--termination-grace-period-seconds=300 --env='A=b c' "
    "--command='pip install -q uv && uv pip "
    'install -q --system -r requirements.txt "jax[tpu]" gcsfs && exec python '
    'launch/tpu.py --config=configs/llama3_8b_512k.py '
    '--config.mesh.data=4 --config.mesh.seq=32 '
    "--workdir=gs://bucket/run'",
    f'xpk workload list {place} --wait-for-job-completion=llama3-8b-512k',
  ]


def test_the_log_of_a_zonal_cluster(dry):
  text = dry('logs', *DRY, '--topology=tpu7x:4x4x4', '--worker=1.2')
  assert text.splitlines()[1:] == [
    'gcloud container clusters get-credentials llama3-8b-512k '
    '--location=REGION --project=ours --dns-endpoint',
    'kubectl logs --follow --tail=100 --all-containers '
    '--selector=jobset.sigs.k8s.io/jobset-name=llama3-8b-512k,'
    'jobset.sigs.k8s.io/job-index=1,batch.kubernetes.io/'
    'job-completion-index=2',
  ]


def documented() -> list[list[str]]:
  """The commands of the pages on TPUs that start with pod.py."""
  pages = ('docs/tpu.md', 'docs/free_tpu.md')
  text = '\n'.join((ROOT / page).read_text() for page in pages)
  text = text.replace('\\\n', ' ')
  words = [shlex.split(x) for x in text.splitlines() if 'launch/pod.py' in x]
  return [x[2:] for x in words if x[0] == 'python']


@pytest.mark.parametrize('arguments', documented(), ids=lambda a: a[0])
def test_the_commands_of_the_documentation_work(arguments, dry, tmp_path):
  plan = dict(
    config='llama3_8b_64k', topology='v5p:4x4x4', slices=1, fits=True,
    step=dict(seconds=1.0),
  )  # fmt: skip
  (tmp_path / 'plan.json').write_text(json.dumps(plan))
  names = {'$BUCKET': 'bucket', '$PROJECT': 'ours'}
  names |= {'plan.json': str(tmp_path / 'plan.json')}
  for name, value in names.items():
    arguments = [x.replace(name, value) for x in arguments]
  assert 'gcloud compute' in dry(*arguments, '--dry-run')


@pytest.mark.parametrize('hostile', [
  '--config.notes=("$(touch /tmp/x)",)', "--config.weights='; rm -rf ~ #",
  '--config.weights=`id` && x | y > z\n--config.seed=1',
])  # fmt: skip
def test_what_a_shell_would_act_on_stays_one_word_on_the_host(hostile):
  terminal, sent = DryRun(exists=True, name='run'), []
  terminal.run = lambda argv, **_: sent.append(argv) or Result(0)
  one = pod(arguments=('--config=configs/a b;c.py', hostile))
  hosts.start(terminal, one)
  xpk.start(terminal, one, tree.Tree(ROOT, {}, 'c', 'd' * 64), 3)
  for argv in sent:
    (remote,) = [x for x in argv if x.startswith('--command=')]
    words = shlex.split(remote.removeprefix('--command='))
    assert words[-2:] == ['--config=configs/a b;c.py', hostile]


@pytest.mark.parametrize('arguments, fact', [
  (['upp', *RUN], "nearest is 'up'"),
  ([], 'up, push, run'),
  (['up', *RUN], '--topology, as v5p:4x4x4'),
  (['up', *RUN, '--topolgy=v5p:4x4x4'], "nearest is '--topology'"),
  (['up', *RUN, '--topology=v5p:4x4'], 'nearest is v5p:4x4x1'),
  (['up', *RUN, '--topology=v5p-100'], 'nearest is v5p:4x4x4 (v5p-128)'),
  (['up', *RUN, '--topology=v5p:4x4x8'], 'add --config.mesh.data=8'),
  (['supervise', *RUN, '--topology=v5p:2x2x4', '--slices=4',
    '--config.mesh.data=2', '--config.mesh.seq=32'], '--config.mesh.seq=16'),
  (['up', *RUN, '--topology=v5p-128', '--flex-start'], '--max-run-duration'),
  (['up', *RUN, '--topology=v4:4x4x4', '--flex-start',
    '--max-run-duration=8h'], 'not v4'),
  (['up', *RUN, '--topology=v5p-128', '--spot', '--reservation=r'], '--spot'),
  (['up', *RUN, '--topology=v5p-128', '--tpu=node'], 'push, run, logs'),
  (['down', *RUN, '--mig=group'], 'push, run, logs'),
  (['run', *RUN, '--mig=group', '--tpu=node'], '--tpu and --mig are mutually'),
  (['run', *RUN, '--hosts=a,-oProxyCommand=x'], "'-oProxyCommand=x'"),
  (['run', *RUN, '--hosts=a', '--env=A'], "'A'"),
  (['run', RUN[0], '--hosts=a', '--workdir=runs/x'], "got 'runs/x'"),
  (['logs', *RUN, '--worker=last'], "'last'"),
  (['up', *RUN, '--topology', '-1'], "--topology '-1'"),
  (['up', *RUN, '--spot', '-1'], '--1'),
  (['up', *RUN, '--topology=v9:4x4'], "'v9'"),
  (['up', *RUN, '--topology=v5e:4x4', '--slices=two'], "'two'"),
  (['up', *RUN, '--topology=v5e:4x4', '--spot', '--reserved'], '--reserved'),
  (['up', *RUN, '--topology=tpu7x:4x4x4'], '--zone and --project'),
  (['up', *DRY, '--topology=tpu7x:4x4x4', '--internal-ips'], '--private'),
  (['up', *RUN, '--topology=v5e:4x4', '--name=A;b'], "'A;b'"),
  (['up', *RUN, *sized(['--topology=v5e:4x4'])], '--yes'),
  (['up', *RUN, *sized(['--topology=v5e:4x4']), '--plan=none.json'],
   'none.json'),
  (['run', RUN[0]], 'gs://BUCKET/RUN'),
  (['run', RUN[0], '--workdir=/data/x'], "gs://BUCKET/RUN, got '/data/x'"),
  (['run', RUN[0], '--workdir=gs://-o;x/y'], "got 'gs://-o;x/y'"),
  (['up', *RUN, '--topology=v5e:4x4', '--cluster=c'], '--topology=tpu7x'),
  (['down', *RUN], 'disks is lost'),
  (['push', '--config=configs/none.py'], 'configs/none.py'),
])  # fmt: skip
def test_bad_input_is_refused_in_one_line(arguments, fact, command):
  code, _, error = command(*arguments)
  assert (code, len(error.splitlines())) == (2, 1)
  assert fact in error


def test_without_gcloud_its_address_is_given(command, monkeypatch):
  monkeypatch.setenv('PATH', str(ROOT / 'tests'))
  code, _, error = command('status', *RUN)
  assert code == 2
  assert 'https://cloud.google.com/sdk/docs/install' in error


def test_a_failed_command_names_the_setting_that_gcloud_lacks():
  text = (
    'WARNING: old\nERROR: (gcloud.compute) Error parsing [queued_resource].\n'
    'The [queued_resource] resource is not properly specified.\n'
    'Failed to find attribute [zone].\n- provide the argument `--zone`\n'
  )
  said = str(CommandFailed(['gcloud', 'compute'], Result(1, error=text)))
  assert said.startswith('gcloud compute: ERROR: (gcloud.compute) Error')
  assert said.endswith('Failed to find attribute [zone].')
  assert str(CommandFailed(['git'], Result(3))) == 'git: exit code 3'


def test_the_cost_is_chips_times_the_hours_of_the_plan(tmp_path):
  plan = tmp_path / 'plan.json'
  config = llama3_8b_512k.get_config()  # 4 x 16
  report = dict(
    config='llama3_8b_512k', topology='v5p:4x4x4', slices=1, fits=True,
    step=dict(seconds=36.0),
  )  # fmt: skip
  plan.write_text(json.dumps(report))
  lines = request.cost(pod(), str(plan), config)
  assert '64 chip-hours an hour' in lines[0]
  # 2,500 steps of 36 s are 25 h; 64 chips for 25 h are 1,600 chip-hours.
  assert 'are 25.0 hours: 1,600 chip-hours' in lines[1]
  other = pod(slice=slices.parse('v5p:4x4x4', 2))
  with pytest.raises(InputError, match='llama3_8b_512k on 1 x v5p'):
    request.cost(other, str(plan), config)
  plan.write_text(json.dumps(report | dict(fits=False)))
  with pytest.raises(InputError, match='does not fit v5p:4x4x4'):
    request.cost(pod(), str(plan), config)
  plan.write_text('[]')
  with pytest.raises(InputError, match='launch/plan'):
    request.cost(pod(), str(plan), config)


# --- the tree


def test_a_tree_is_what_git_tracks(checkout, cloud):
  cloud()
  (checkout / 'weights.bin').write_text('not tracked')
  code = tree.read(checkout)
  tree.pack(code)
  place = tree.unpacked(code)
  there = {p.relative_to(place).as_posix(): p for p in place.rglob('*')}
  assert {k for k, p in there.items() if p.is_file()} == {
    *code.files, '.pushed',
  }  # fmt: skip
  script = there['longjax/pod/worker.sh']
  assert script.read_bytes() == (ROOT / 'longjax/pod/worker.sh').read_bytes()
  os.utime(checkout / 'requirements.txt', (1, 1))
  assert tree.read(checkout).digest == code.digest


def test_uncommitted_changes_are_pushed_only_on_request_and_recorded(checkout):
  file = checkout / 'requirements.txt'
  before = file.read_text()
  file.write_text('changed')
  code = tree.read(checkout)
  file.write_text(before)
  with pytest.raises(InputError, match='--dirty'):
    tree.check(code, dirty=False)
  tree.check(code, dirty=True)
  assert code.commit.endswith('+')


def test_a_config_outside_of_the_tree_is_refused(checkout, tmp_path):
  code = tree.read(checkout)
  assert tree.config_path(code, f'{checkout}/configs/tiny.py:a') == (
    'configs/tiny.py:a'
  )
  (checkout / 'configs/new.py').write_text('')
  with pytest.raises(InputError, match='track configs/new'):
    tree.config_path(code, str(checkout / 'configs/new.py'))
  with pytest.raises(InputError, match='outside of'):
    tree.config_path(code, str(tmp_path / 'x.py'))
  with pytest.raises(InputError, match='git checkout'):
    tree.read(tmp_path)


def test_a_pushed_tree_knows_its_commit(tmp_path, monkeypatch):
  (tmp_path / 'longjax').mkdir()
  (tmp_path / '.pushed').write_text('{"commit": "abc+", "sha256": "0"}')
  monkeypatch.setattr(provenance, '__file__', f'{tmp_path}/longjax/x.py')
  assert provenance.commit() == 'abc+'


# --- up, push, run, logs, status, down


def test_up_waits_for_the_slice_and_does_not_ask_twice(cloud):
  there = cloud(lives=[['WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE']])
  terminal = Quiet()
  assert verbs.up(terminal, pod()) == 0
  assert terminal.seconds == [0, 60, 60]
  assert [x.split(': ')[1] for x in terminal.lines] == [
    'not there', 'WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE',
  ]  # fmt: skip
  assert verbs.up(terminal, pod()) == 0
  assert requests(there) == ['create']
  larger = pod(slice=slices.parse('v5p:4x4x8'))
  with pytest.raises(InputError, match=r'v5p-128, not as v5p:4x4x8'):
    verbs.up(terminal, larger)


def test_a_refused_quota_is_reported_in_the_words_of_the_cloud(cloud):
  terminal = Quiet()
  cloud(lives=[[f'FAILED|{QUOTA}']])
  assert verbs.up(terminal, pod()) == 1
  assert f'FAILED: {QUOTA}' in terminal.lines[1]
  cloud(refuse=f'(gcloud.create) RESOURCE_EXHAUSTED: {QUOTA}')
  with pytest.raises(CommandFailed, match='TPUV5PPerProject'):
    verbs.up(terminal, pod())


def test_training_outlives_the_connection_and_leaves_its_exit_code(
  cloud, checkout
):
  there = cloud(
    trains=['test -f bucket/mounted || exit 1; sleep 0.3; echo last; exit 7']
  )
  code = started(there, checkout)
  wait_for(lambda: states() == ['exited', 'exited'])
  one = hosts.status(Terminal(), pod())[0]
  assert (one['worker'], one['code'], one['said']) == ('w0', 7, 'last')
  terminal = Quiet()
  assert verbs.logs(terminal, pod(), '') == 1
  assert terminal.lines[0].count('last') == 2  # of all hosts
  installs = (there / 'installs').read_text()
  assert '-r requirements.txt jax[tpu] gcsfs' in installs
  trained = (there / 'trained').read_text().splitlines()
  assert trained == [f'launch/tpu.py {" ".join(pod().arguments)}'] * 2
  # Once more: installed and mounted once on each host.
  assert verbs.push(terminal, pod(), code) == 0
  assert (there / 'installs').read_text() == installs
  run(code)
  where = there / 'workers/w0/longjax/run/bucket'
  mounts = (there / 'mounts').read_text().splitlines()
  assert mounts[0] == f'w0 --implicit-dirs -o ro bucket {where}'
  assert len(mounts) == 2


def test_run_twice_is_refused_and_restart_stops_the_first(cloud, checkout):
  there = cloud(trains=["trap 'exit 75' TERM; sleep 60 & wait"])
  code = started(there, checkout)
  with pytest.raises(InputError, match=r'pid \d+ on w0.*--restart'):
    run(code)
  first = [x['pid'] for x in hosts.status(Terminal(), pod())]
  run(code, restart=True)
  second = hosts.status(Terminal(), pod())
  assert [x['state'] for x in second] == ['running', 'running']
  assert not {*first} & {x['pid'] for x in second}


def test_a_process_that_took_over_the_pid_is_not_ours(cloud, checkout):
  """After a reboot of the host the pid exists and the lock is free."""
  there = cloud(trains=['exit 0'])
  code = started(there, checkout)
  wait_for(lambda: states() == ['exited', 'exited'])
  other = subprocess.Popen(['sleep', '60'], start_new_session=True)
  for home in there.glob('workers/*/longjax/run'):
    (home / 'pid').write_text(f'{other.pid}\n')
    (home / 'exit').unlink()
  assert states() == ['lost', 'lost']
  hosts.stop(Terminal(), pod())
  assert other.poll() is None
  other.kill()
  run(code)


def test_a_process_that_ignores_sigterm_is_killed(cloud, checkout, monkeypatch):
  monkeypatch.setenv('LONGJAX_STOP_SECONDS', '0.2')
  there = cloud(workers=1, trains=["trap '' TERM; while :; do sleep 0.1; done"])
  started(there, checkout)
  hosts.stop(Terminal(), pod())
  assert states() == ['lost']


def test_when_ssh_misses_a_host_run_again_starts_only_that(cloud, checkout):
  there = cloud()
  terminal = Quiet()
  verbs.up(terminal, pod())
  with pytest.raises(InputError, match=r'pod\.py push'):
    run(None)
  code = tree.read(checkout)
  verbs.push(terminal, pod(), code)
  edit(there, away=dict(w1=1))
  terminal = Quiet()
  with pytest.raises(CommandFailed, match='255'):
    run(code, terminal=terminal)
  assert terminal.lines[0].startswith('w0: started')
  assert states() == ['running', 'idle']
  assert run(code) == 0
  assert states() == ['running', 'running']


def test_status_has_state_hosts_step_loss_and_speed(cloud, checkout):
  there = cloud(trains=['sleep 60'])
  started(there, checkout)
  file = there / 'bucket/bucket/run/metrics.jsonl'
  file.parent.mkdir(parents=True)
  line = dict(step=12, loss=2.5, tokens_per_second=42_600.4, mfu=0.471)
  file.write_text(json.dumps(line) + '\n{"step": 13, "lo')
  terminal = Quiet()
  assert verbs.status(terminal, pod()) == 0
  assert terminal.lines[0] == 'run: ACTIVE'
  assert re.search(r'^w1: running, pid \d+$', terminal.lines[1], re.M)
  assert terminal.lines[2] == (
    'step 12  loss 2.5000  42,600 tokens/s  mfu 47.1%'
  )
  edit(there, away=dict(w1=1))
  assert verbs.status(terminal, pod()) == 0
  first, second = terminal.lines[4].splitlines()
  assert first.startswith('w0: running')
  assert 'do not answer' in second


def test_down_deletes_what_up_made_and_nothing_else(cloud):
  for labels in ({}, dict(labels=dict(longjax='another'))):
    cloud(now=['ACTIVE'], node=labels)
    with pytest.raises(InputError, match='longjax=run'):
      verbs.down(Quiet(), pod())
  there, terminal = cloud(), Quiet()
  verbs.up(Quiet(), pod())
  assert verbs.down(terminal, pod()) == 0
  assert verbs.down(terminal, pod()) == 0
  assert terminal.lines == ['run: deleted', 'run: nothing to delete']
  assert requests(there) == ['create', 'delete']


# --- hosts that exist


WAYS = dict(tpu=dict(tpu='node'), mig=dict(mig='group'),
            hosts=dict(hosts=('w0', 'me@w1')))  # fmt: skip


@pytest.mark.parametrize('way', WAYS)
def test_hosts_that_exist_are_pushed_to_run_and_stopped(way, cloud, checkout):
  there = cloud(
    there=2, node=dict(state='READY', acceleratorType='v5p-16'),
    trains=['trap "exit 75" TERM; env >$FAKE_CLOUD/env$WORKER; sleep 9 & wait'],
  )  # fmt: skip
  one = pod(slice=None, env=('A=b c',), **WAYS[way])
  code = tree.read(checkout)
  assert verbs.push(Quiet(), one, code) == 0
  assert verbs.run(Quiet(), one, code, 0, restart=False) == 0
  wait_for(lambda: len([*there.glob('env*')]) == 2)
  terminal = Quiet()
  assert verbs.status(terminal, one) == 0
  assert re.findall(r'^(w\d): running', terminal.lines[1], re.M) == ['w0', 'w1']
  assert verbs.stop(terminal, one) == 0
  wait_for(lambda: {x['code'] for x in hosts.status(Terminal(), one)} == {75})
  assert requests(there) == [
    x for x in ('scp', 'install', 'start', 'stop')
    for _ in range(1 if way == 'tpu' else 2)
  ]  # fmt: skip
  for i in (0, 1):
    lines = (there / f'envw{i}').read_text().splitlines()
    found = {x for x in lines if x.startswith('LONGJAX_PROC')}
    numbered = {f'LONGJAX_PROCESS={i}', 'LONGJAX_PROCESSES=2'}
    assert found == (numbered if way == 'hosts' else set())
    assert ('LONGJAX_COORDINATOR=w0:8476' in lines) == (way == 'hosts')
    assert 'A=b c' in lines
  if pathlib.Path('/sys/kernel/mm/transparent_hugepage/enabled').exists():
    assert 'w0 always -n tee /sys/' in (there / 'sudo').read_text()


def test_private_hosts_are_reached_through_iap_only(cloud):
  there = cloud(there=2, private=True, trains=[''])
  one = pod(mig='group')
  with pytest.raises(CommandFailed, match='255'):
    hosts.status(Terminal(), one)
  with pytest.raises(InputError, match=r'pod\.py push'):
    hosts.status(Terminal(), one._replace(tunnel_through_iap=True))
  assert all('--tunnel-through-iap' in x for x in calls(there)[-2:])


def test_a_run_directory_that_the_hosts_share_has_the_last_step(
  cloud, tmp_path
):
  cloud(there=1, trains=[''])
  (tmp_path / 'metrics.jsonl').write_text('{"step": 7}\n{"step": 8')
  one = pod(hosts=('w0',), workdir=str(tmp_path), slice=None)
  assert verbs.last_step(Terminal(), one) == dict(step=7)
  assert one.bucket == ''


@pytest.mark.parametrize('node, fits', [
  (dict(acceleratorType='projects/p/acceleratorTypes/v5p-128'), True),
  (dict(acceleratorType='v5p-64'), False),
  (dict(acceleratorConfig=dict(type='V5P', topology='4x4x4')), True),
  (dict(acceleratorConfig=dict(type='V5P', topology='2x2x16')), False),
  (dict(acceleratorConfig=dict(type='V4', topology='4x4x4')), False),
  (dict(acceleratorConfig=dict(type='V5P', topology='4x4x4'),
        acceleratorType='v5p-128'), True), ({}, True),
])  # fmt: skip
def test_a_slice_of_another_size_is_refused(node, fits):
  refused = pytest.raises(InputError, match='not as v5p:4x4x4')
  with contextlib.nullcontext() if fits else refused:
    request.check_size(pod(), node)


@pytest.mark.parametrize('google, ours', [
  ('v5e-256', 'v5e:16x16'), ('v5litepod-8', 'v5e:2x4'), ('v5p-64', 'v5p:2x4x4'),
  ('v6e-64', 'v6e:8x8'), ('v4-8', 'v4:2x2x1'), ('tpu7x-128', 'tpu7x:4x4x4'),
])  # fmt: skip
def test_names_of_google_count_chips_or_cores(google, ours):
  found = slices.parse(google)
  assert found.name == ours
  cores = google[:2] in ('v4', 'tp') or google.startswith('v5p')
  assert found.size * (2 if cores else 1) == int(google.split('-')[1])
  assert ('TensorCores' in slices.meaning(google)) == cores


# --- TPU7x


def gke(**fields):
  return pod(
    slice=slices.parse('tpu7x:4x4x4'), project='ours', zone='us-east5-a',
    **fields,
  )  # fmt: skip


def gke_requests(there) -> list[str]:
  return [' '.join(x[:2]) for x in calls(there) if x[0] != 'container']


def test_a_run_on_gke_is_made_once_and_deleted(cloud, checkout):
  there, code = cloud(), tree.read(checkout)
  assert verbs.supervise(Quiet(), gke(), code, 3) == 0
  with pytest.raises(CommandFailed, match='already exists'):
    verbs.run(Quiet(), gke(), code, 3, restart=False)
  verbs.run(Quiet(), gke(), code, 3, restart=True)
  assert verbs.down(Quiet(), gke()) == 0
  assert verbs.down(Quiet(), gke()) == 0
  assert gke_requests(there) == [
    'cluster create', 'workload create', 'workload list', 'workload create',
    'workload delete', 'workload create', 'workload delete', 'cluster delete',
  ]  # fmt: skip


def test_a_cluster_that_was_there_stays(cloud, checkout):
  there, code = cloud(cluster={}, ended=125), tree.read(checkout)
  theirs = gke(cluster='theirs')
  with pytest.raises(InputError, match=r'pod\.py push'):
    verbs.run(Quiet(), theirs, code, 3, restart=False)
  terminal = Quiet()
  assert verbs.supervise(terminal, theirs, code, 3) == 1
  assert 'failed' in terminal.lines[-1]
  assert verbs.down(Quiet(), theirs) == 0
  assert gke_requests(there) == [
    'workload create', 'workload list', 'workload delete',
  ]  # fmt: skip


# --- supervise


def test_a_preempted_slice_is_made_again_until_training_is_done(
  cloud, checkout
):
  there = cloud(
    lives=[['ACTIVE'] * 3 + ['SUSPENDED'], ['PROVISIONING', 'ACTIVE'],
           ['ACTIVE']],
    trains=['sleep 60', 'exit 75', 'exit 0'],
  )  # fmt: skip
  assert supervised(checkout) == 0
  once = ['create', 'scp', 'install', 'start']
  assert requests(there) == [*once, 'delete', *once, 'delete', *once]


def test_exit_code_2_ends_it_with_the_one_line(cloud, checkout):
  terminal = Quiet()
  there = cloud(trains=['echo tpu.py: config.mesh is wrong >&2; exit 2'])
  assert supervised(checkout, terminal=terminal) == 2
  assert terminal.lines[-1] == 'run: refused: tpu.py: config.mesh is wrong'
  assert 'delete' not in requests(there)
  (there / 'train').write_text('exit 0')  # mended, and repeated
  assert supervised(checkout) == 0


def test_a_crash_starts_again_where_it_is_and_retries_end(cloud, checkout):
  terminal = Quiet()
  there = cloud(workers=1, trains=['echo boom; exit 1'])
  assert supervised(checkout, retries=3, terminal=terminal) == 1
  assert requests(there).count('start') == 5  # at first, and after each crash
  assert requests(there).count('create') == 1
  # 30, 60, 120
  assert [x for x in terminal.seconds if x not in (0, 60)] == [30, 120]
  assert any('boom' in x for x in terminal.lines)
  assert '3 retries in a row' in terminal.lines[-1]


def test_a_new_step_between_failures_resets_their_count(cloud, checkout):
  steps = iter([5, 5, 9, 9, 9])
  cloud(workers=1, trains=['exit 1'])
  terminal = Quiet()
  last_step = lambda: dict(step=next(steps))
  assert supervised(checkout, 2, last_step, terminal) == 1
  failures = [x for x in terminal.lines if x.startswith('failure')]
  # At 5: first, second. At 9: first, second, and a third that ends it.
  assert [int(x.split()[1]) for x in failures] == [1, 2, 1, 2]


def test_a_broken_connection_neither_stops_nor_doubles_training(
  cloud, checkout
):
  """Supervise, repeated after an interruption, continues what is there."""
  there = cloud(trains=['sleep 1; exit 0'], drop=0)
  started(there, checkout)
  edit(there, drop=2, away=dict(w1=1))
  before = requests(there)
  assert supervised(checkout) == 0
  assert requests(there) == before


def test_hosts_out_of_reach_for_long_are_given_up(cloud, checkout, monkeypatch):
  monkeypatch.setattr(supervising, 'MAX_STALLED_POLLS', 3)
  there = cloud(away=dict(w1=3), trains=['exit 0', 'exit 0'])
  verbs.up(Quiet(), pod())
  assert supervised(checkout) == 0
  assert requests(there)[:3] == ['create', 'delete', 'create']


def test_a_run_out_of_reach_that_makes_steps_is_left_alone(
  cloud, checkout, monkeypatch
):
  monkeypatch.setattr(supervising, 'MAX_STALLED_POLLS', 3)
  steps = iter(range(1, 99))
  there = cloud(trains=['exit 0'])
  started(there, checkout)
  edit(there, away=dict(w1=5))
  assert supervised(checkout, last_step=lambda: dict(step=next(steps))) == 0
  assert 'delete' not in requests(there)


def test_while_this_machine_is_offline_nothing_is_deleted(cloud, checkout):
  there = cloud(trains=['exit 0'])
  started(there, checkout)
  edit(there, now=['OFFLINE'] * 4 + ['ACTIVE'])
  assert supervised(checkout) == 0
  edit(there, now=['OFFLINE'])
  assert supervised(checkout, retries=3) == 1
  assert 'delete' not in requests(there)


@pytest.mark.parametrize('workers, state', [
  ('idle idle', 'empty'), ('running idle', 'empty'), ('running running',
  'running'), ('0 0', 'done'), ('0 running', 'running'), ('75 running',
  'ending'), ('75 0', 'preempted'), ('75 134', 'preempted'), ('134 134',
  'crashed'), ('lost 0', 'crashed'), ('2 75', 'refused'), ('2 running',
  'refused'), ('', 'out of reach'),
])  # fmt: skip
def test_the_states_of_hosts_together(workers, state):
  text = '\n'.join(
    f'longjax worker=w{i} state='
    + (f'exited code={x} said=' if x.isdecimal() else x)
    for i, x in enumerate(workers.split())
  )
  assert supervising.summarize(hosts.parse(text), '')[0] == state
  unreached = supervising.summarize(hosts.parse(text), 'ssh')[0]
  assert unreached == ('refused' if state == 'refused' else 'out of reach')
