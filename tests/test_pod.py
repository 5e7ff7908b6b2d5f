"""TPU slices from a laptop: what is asked of gcloud and xpk, and what happens
when the cloud does what clouds do. The workers of the fake are real shells."""

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

import commands
import pytest

from configs import llama3_8b_512k
from longjax.errors import InputError
from longjax.pod import queued, request, tree, verbs, watch, xpk
from longjax.pod.terminal import CommandFailed, Done, Rehearsal, Terminal
from longjax.train import provenance

ROOT = pathlib.Path(__file__).resolve().parents[1]
RUN = ['--config=configs/llama3_8b_512k.py', '--workdir=gs://bucket/run']
DRY = [*RUN, '--project=ours', '--zone=us-east5-a', '--dry-run']
QUOTA = "Quota 'TPUV5PPerProjectPerZoneForTPUAPI' exhausted. Limit 64 in zone"

STUBS = dict(
  hostname='echo $WORKER',
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
  """cloud(now=[...], lives=[[...]]): plays what follows; its directory."""
  monkeypatch.setenv('FAKE_CLOUD', str(tmp_path))
  monkeypatch.setenv('LONGJAX_CACHE', str(tmp_path / 'cache'))
  monkeypatch.setenv('LONGJAX_STOP_SECONDS', '5')
  monkeypatch.setenv('PATH', f'{tmp_path}/bin:{os.environ["PATH"]}')
  (tmp_path / 'bin').mkdir()
  fake = f'exec {sys.executable} -S {ROOT}/tests/fake_gcloud.py "$@"'
  for program, body in dict(gcloud=fake, xpk=fake, **STUBS).items():
    file = tmp_path / 'bin' / program
    file.write_text(f'#!/bin/bash\n{body}\n')
    file.chmod(0o755)

  def play(**script):
    script = dict(now=[], lives=[['ACTIVE']] * 9) | script
    (tmp_path / 'script.json').write_text(json.dumps(script))
    return tmp_path

  yield play
  for pid in tmp_path.glob('workers/*/longjax/*/pid'):
    with contextlib.suppress(ProcessLookupError, ValueError):
      os.killpg(int(pid.read_text()), signal.SIGKILL)


@pytest.fixture
def checkout(tmp_path):
  """A small checkout with what goes to a worker."""
  root = tmp_path / 'checkout'
  for name in ('longjax/pod/worker.sh', 'configs/tiny.py', 'requirements.txt'):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes((ROOT / name).read_bytes())
  git(root, 'init', '-q')
  git(root, 'add', '-A')
  git(root, 'commit', '-qm', 'first')
  return root


def git(root, *arguments):
  who = ['-c', 'user.name=x', '-c', 'user.email=x@example.com']
  subprocess.run(['git', '-C', root, *who, *arguments], check=True)


def pod(**fields):
  given = dict(
    name='run',
    slice=request.parse('v5p:4x4x4', 1),
    workdir='gs://bucket/run',
    arguments=('--config=configs/tiny.py', '--workdir=gs://bucket/run'),
  )
  return request.Pod(**given | fields)


def calls(directory) -> list[list[str]]:
  lines = (directory / 'calls.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def asked(directory) -> list[str]:
  """What was asked of the cloud, states left out: create, scp, start, ..."""
  found = []
  for call in calls(directory):
    word = call[3] if call[0] == 'compute' else call[0]
    if word == 'ssh':
      word = re.sub(r'.*worker\.sh (\w+).*', r'\1', call[-1])
    if word not in ('describe', 'status', 'storage'):
      found.append(word)
  return found


def dry(*arguments) -> str:
  """What --dry-run prints, without what differs between checkouts."""
  done = commands.run('pod.py', *arguments, LONGJAX_CACHE='CACHE')
  assert done.returncode == 0, done.stderr
  text = re.sub(r'\b[0-9a-f]{12}\b', 'TREE', done.stdout)
  return re.sub(r'commit \w+', 'commit COMMIT', text)


# --- what is asked


QUEUED = 'gcloud compute tpus queued-resources'
WHERE = '--project=ours --zone=us-east5-a'
EVERYWHERE = f'{WHERE} --node=all --worker=all --quiet'


def test_supervising_64_chips_of_v5p_reads_as_one_would_type_it():
  assert (
    dry('supervise', *DRY, '--topology=v5p:4x4x4')
    == f"""\
# llama3-8b-512k: v5p:4x4x4, 64 chips, on-demand: 64 chip-hours an hour, from \
when it is there until pod.py down
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


@pytest.mark.parametrize('flags, create', [
  (['--topology=v5e:16x16'],
   '--accelerator-type=v5litepod-256 --runtime-version=v2-alpha-tpuv5-lite '
   '--node-id=llama3-8b-512k'),
  (['--topology=v6e:16x16', '--spot'],
   '--accelerator-type=v6e-256 --runtime-version=v2-alpha-tpuv6e '
   '--node-id=llama3-8b-512k --spot'),
  (['--topology=v5p:4x4x4', '--slices=2', '--reserved'],
   '--accelerator-type=v5p-128 --runtime-version=v2-alpha-tpuv5 '
   '--node-count=2 --node-prefix=llama3-8b-512k --reserved'),
  (['--topology=v4:2x2x4', '--runtime=tpu-ubuntu2404-base'],
   '--accelerator-type=v4-32 --runtime-version=tpu-ubuntu2404-base '
   '--node-id=llama3-8b-512k'),
  (['--topology=v5p:4x4x12', '--service-account=tpu@ours.example'],
   '--type=v5p --topology=4x4x12 --runtime-version=v2-alpha-tpuv5 '
   '--node-id=llama3-8b-512k --service-account=tpu@ours.example'),
])  # fmt: skip
def test_a_slice_is_asked_for_by_the_name_that_google_gives_it(flags, create):
  lines = dry('up', *DRY, *flags).splitlines()
  label = '--labels=longjax=llama3-8b-512k --async --quiet'
  made = f'{QUEUED} create llama3-8b-512k {WHERE} {create} {label}'
  assert [x for x in lines if ' create ' in x] == [made]


@pytest.mark.parametrize('topology, flag', [
  ('v5e:1x1', '--accelerator-type=v5litepod-1'),
  ('v6e:1x1', '--accelerator-type=v6e-1'),
  ('v5e:2x4', '--accelerator-type=v5litepod-8'),
])  # fmt: skip
def test_one_chip_or_one_host_can_be_had_to_try_things(topology, flag):
  assert request.hardware(request.parse(topology, 1)) == [flag]


def test_tpu7x_goes_through_xpk():
  text = dry('supervise', *DRY, '--topology=tpu7x:4x4x4', '--spot')
  place = '--cluster=llama3-8b-512k --project=ours --zone=us-east5-a'
  describe = (
    'gcloud container clusters describe llama3-8b-512k --location=us-east5 '
    '--project=ours --format=json'
  )
  assert [x for x in text.splitlines() if x[0] != '#'] == [
    describe,
    'xpk cluster create --cluster=llama3-8b-512k --tpu-type=tpu7x-4x4x4 '
    '--num-slices=1 --project=ours --zone=us-east5-a --spot '
    '--custom-cluster-arguments=--labels=longjax=llama3-8b-512k',
    describe,
    f'xpk workload create --workload=llama3-8b-512k {place} '
    '--tpu-type=tpu7x-4x4x4 --num-slices=1 --base-docker-image=python:3.12 '
    '--script-dir=CACHE/pods/TREE --max-restarts=10 '
    "--restart-on-exit-codes=1,75 --command='pip install -q uv && uv pip "
    'install -q --system -r requirements.txt "jax[tpu]" gcsfs && exec python '
    'launch/tpu.py --config=configs/llama3_8b_512k.py '
    "--workdir=gs://bucket/run'",
    f'xpk workload list {place} --wait-for-job-completion=llama3-8b-512k',
  ]


@pytest.mark.parametrize(
  'verb', ['up', 'push', 'run', 'logs', 'status', 'down']
)
def test_each_verb_rehearses_without_gcloud(verb):
  path = os.pathsep.join([str(ROOT / 'tests'), '/usr/bin', '/bin'])
  done = commands.run(
    'pod.py', verb, *DRY, '--topology=v6e:4x4', PATH=path, LONGJAX_CACHE='/none'
  )
  assert done.returncode == 0, done.stderr
  commands_ = [x for x in done.stdout.splitlines() if x[0] != '#']
  assert all(shlex.split(x)[0] == 'gcloud' for x in commands_)
  assert not pathlib.Path('/none').exists()


def documented() -> list[list[str]]:
  """The commands of docs/tpu.md that start with pod.py."""
  text = (ROOT / 'docs/tpu.md').read_text().replace('\\\n', ' ')
  words = [shlex.split(x) for x in text.splitlines() if 'launch/pod.py' in x]
  return [x[2:] for x in words if x[0] == 'python']


@pytest.mark.parametrize('arguments', documented(), ids=lambda a: a[0])
def test_the_commands_of_the_documentation_are_taken(
  arguments, monkeypatch, capsys, tmp_path
):
  monkeypatch.chdir(ROOT)
  plan = dict(
    config='llama3_8b_64k', topology='v5p:4x4x4', slices=1, fits=True,
    step=dict(seconds=1.0),
  )  # fmt: skip
  (tmp_path / 'plan.json').write_text(json.dumps(plan))
  names = {'$BUCKET': 'bucket', '$PROJECT': 'ours'}
  names |= {'plan.json': str(tmp_path / 'plan.json')}
  for name, value in names.items():
    arguments = [x.replace(name, value) for x in arguments]
  monkeypatch.setattr(sys, 'argv', ['pod.py', *arguments, '--dry-run'])
  with pytest.raises(SystemExit) as ended:
    runpy.run_path('launch/pod.py', run_name='__main__')
  printed = capsys.readouterr()
  assert ended.value.code == 0, printed.err
  assert QUEUED in printed.out
  assert 'note: config.mesh' not in printed.out  # the config is for this slice


@pytest.mark.parametrize('hostile', [
  '--config.notes=("$(touch /tmp/x)",)', "--config.weights='; rm -rf ~ #",
  '--config.weights=`id` && x | y > z\n--config.seed=1',
])  # fmt: skip
def test_what_a_shell_would_act_on_stays_one_word_for_the_worker(hostile):
  said = []
  terminal = Rehearsal(exists=True, label='run')
  terminal.run = lambda argv, **_: said.append(argv) or Done(0)
  one = pod(arguments=('--config=configs/a b;c.py', hostile))
  queued.start(terminal, one)
  (remote,) = [x for x in said[0] if x.startswith('--command=')]
  words = shlex.split(remote.removeprefix('--command='))
  assert words[-2:] == ['--config=configs/a b;c.py', hostile]
  said.clear()
  xpk.start(terminal, one, tree.Tree(ROOT, (), 'c', 'd' * 64), 3)
  (remote,) = [x for x in said[0] if x.startswith('--command=')]
  assert shlex.split(remote)[-2:] == ['--config=configs/a b;c.py', hostile]


@pytest.mark.parametrize('arguments, says', [
  (['upp', *RUN], "nearest is 'up'"),
  ([], 'the first argument is one of up, push, run'),
  (['up', *RUN], 'up needs --topology, as v5p:4x4x4'),
  (['up', *RUN, '--topolgy=v5p:4x4x4'], "nearest is '--topology'"),
  (['up', *RUN, '--topology=v5p:4x4'], 'nearest is v5p:4x4x1'),
  (['up', *RUN, '--topology=v5e:6x6'], 'nearest is v5e:4x8'),
  (['up', *RUN, '--topology', '-1'], "--topology '-1' is not GENERATION"),
  (['up', *RUN, '--spot', '-1'], 'unknown flag --1'),
  (['up', *RUN, '--topology=v9:4x4'], "no TPU generation 'v9'"),
  (['up', *RUN, '--topology=v5e:4x4', '--slices=two'], "'two' is not a number"),
  (['up', *RUN, '--topology=v5e:4x4', '--spot', '--reserved'], 'exclude'),
  (['up', *RUN, '--topology=tpu7x:4x4x4'], 'give --zone and --project'),
  (['up', *RUN, '--topology=v5e:4x4', '--name=A;b'], 'cannot be called'),
  (['up', *RUN, '--topology=v5e:4x4'], 'give --yes'),
  (['up', *RUN, '--topology=v5e:4x4', '--plan=none.json'], 'none.json'),
  (['run', RUN[0]], 'run needs --workdir=gs://BUCKET/RUN'),
  (['run', RUN[0], '--workdir=/data/x'], "gs://BUCKET/RUN, got '/data/x'"),
  (['run', RUN[0], '--workdir=gs://-o;x/y'], "got 'gs://-o;x/y'"),
  (['up', *RUN, '--topology=v5e:4x4', '--cluster=c'], '--topology=tpu7x'),
  (['down', *RUN], 'What is on its disks is lost. Nobody is there to say yes'),
  (['push', '--config=configs/none.py'], 'there is no config configs/none.py'),
])  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(
  arguments, says, monkeypatch, capsys
):
  monkeypatch.chdir(ROOT)
  monkeypatch.setattr(sys, 'argv', ['pod.py', *arguments])
  monkeypatch.setattr(sys, 'stdin', io.StringIO())
  with pytest.raises(SystemExit) as ended:
    runpy.run_path('launch/pod.py', run_name='__main__')
  lines = capsys.readouterr().err.splitlines()
  assert (ended.value.code, len(lines)) == (2, 1)
  assert says in lines[0]


def test_without_gcloud_the_user_is_told_where_it_is():
  empty = str(ROOT / 'tests')
  line = commands.refused('pod.py', 'status', *RUN, PATH=empty)
  assert line == (
    'pod.py: gcloud is not installed; see https://cloud.google.com/sdk/docs/'
    'install'
  )


def test_a_command_that_failed_says_which_setting_gcloud_lacks():
  text = (
    'ERROR: (gcloud.compute) Error parsing [queued_resource].\n'
    'The [queued_resource] resource is not properly specified.\n'
    'Failed to find attribute [zone].\n- provide the argument `--zone`\n'
  )
  said = str(CommandFailed(['gcloud', 'compute'], Done(1, error=text)))
  assert said.startswith('gcloud compute: ERROR: (gcloud.compute) Error')
  assert said.endswith('Failed to find attribute [zone].')
  assert str(CommandFailed(['git'], Done(3))) == 'git: exit code 3'


def test_the_cost_is_chips_times_the_hours_of_the_plan(tmp_path):
  plan = tmp_path / 'plan.json'
  config = llama3_8b_512k.get_config()
  report = dict(
    config='llama3_8b_512k', topology='v5p:4x4x4', slices=1, fits=True,
    step=dict(seconds=36.0),
  )  # fmt: skip
  plan.write_text(json.dumps(report))
  lines = request.cost(pod(), str(plan), config)
  assert '64 chip-hours an hour' in lines[0]
  # 2,500 steps of 36 s are 25 h; 64 chips for 25 h are 1,600 chip-hours.
  assert 'are 25.0 hours: 1,600 chip-hours' in lines[1]
  other = pod(slice=request.parse('v5p:4x4x4', 2))
  with pytest.raises(InputError, match='is of llama3_8b_512k on 1 x v5p'):
    request.cost(other, str(plan), config)
  plan.write_text('[]')
  with pytest.raises(InputError, match='is not what launch/plan'):
    request.cost(pod(), str(plan), config)


def test_a_mesh_of_another_size_than_the_slice_is_said_before_it_costs():
  config = llama3_8b_512k.get_config()  # 4 x 16
  lines = request.cost(pod(slice=request.parse('v5e:16x16', 1)), '', config)
  assert '--config.mesh.data=16' in lines[1]


# --- the tree


def test_a_tree_is_what_git_tracks_and_its_archive_is_always_the_same(
  checkout, cloud
):
  cloud()
  (checkout / 'weights.bin').write_text('not tracked')
  code = tree.read(checkout)
  tree.pack(code)
  first = tree.archive(code).read_bytes()
  os.utime(checkout / 'requirements.txt', (1, 1))
  tree.pack(tree.read(checkout))
  assert tree.archive(code).read_bytes() == first
  tree.unpack(code)
  there = {
    str(p.relative_to(tree.unpacked(code)))
    for p in tree.unpacked(code).rglob('*') if p.is_file()
  }  # fmt: skip
  assert there == {*code.files, '.pushed'}


def test_uncommitted_changes_are_pushed_only_on_request_and_recorded(checkout):
  (checkout / 'requirements.txt').write_text('changed')
  code = tree.read(checkout)
  with pytest.raises(InputError, match='give --dirty'):
    tree.check(code, dirty=False)
  tree.check(code, dirty=True)
  assert code.commit.endswith('+')


def test_a_config_that_would_not_go_along_is_refused(checkout, tmp_path):
  code = tree.read(checkout)
  assert tree.config_path(code, str(checkout / 'configs/tiny.py')) == (
    'configs/tiny.py'
  )
  (checkout / 'configs/new.py').write_text('')
  with pytest.raises(InputError, match='git does not track configs/new'):
    tree.config_path(code, str(checkout / 'configs/new.py'))
  with pytest.raises(InputError, match='lies outside'):
    tree.config_path(code, str(tmp_path / 'x.py'))
  with pytest.raises(InputError, match='no git checkout'):
    tree.read(tmp_path)


def test_a_pushed_tree_knows_its_commit(tmp_path, monkeypatch):
  (tmp_path / 'longjax').mkdir()
  (tmp_path / '.pushed').write_text('{"commit": "abc+", "sha256": "0"}')
  monkeypatch.setattr(provenance, '__file__', f'{tmp_path}/longjax/x.py')
  assert provenance.commit() == 'abc+'


# --- up, push, run, logs, status, down


def test_up_waits_for_the_slice_and_does_not_ask_twice(cloud):
  seconds, said = [], []
  there = cloud(lives=[['WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE']])
  up = lambda: verbs.up(Terminal(), pod(), said.append, seconds.append)
  assert up() == 0
  assert seconds == [0, 60, 60]
  assert [x.split(': ')[1] for x in said] == [
    'not there', 'WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE',
  ]  # fmt: skip
  assert up() == 0
  assert asked(there) == ['create']


def test_a_refused_quota_is_said_in_the_words_of_the_cloud(cloud):
  said = []
  cloud(lives=[[f'FAILED|{QUOTA}']])
  assert verbs.up(Terminal(), pod(), said.append, lambda _: None) == 1
  assert f'FAILED: {QUOTA}' in said[1]
  cloud(refuse=f'(gcloud.create) RESOURCE_EXHAUSTED: {QUOTA}')
  with pytest.raises(CommandFailed, match='TPUV5PPerProject'):
    verbs.up(Terminal(), pod(), said.append, lambda _: None)


def test_training_outlives_the_connection_and_leaves_its_exit_code(
  cloud, checkout
):
  there = cloud(trains=['sleep 0.3; echo last words; exit 7'])
  started(there, checkout)
  wait_for(lambda: states() == ['exited', 'exited'])
  one = queued.workers(Terminal(), pod())[0]
  assert (one['worker'], one['code'], one['said']) == ('w0', 7, 'last words')
  said = []
  assert verbs.logs(Terminal(), pod(), said.append) == 1
  assert said[0].count('last words') == 2  # of all workers
  assert (
    '-r requirements.txt jax[tpu] gcsfs' in (there / 'installs').read_text()
  )
  trained = (there / 'trained').read_text().splitlines()
  assert trained == [f'launch/tpu.py {" ".join(pod().arguments)}'] * 2


def test_the_bucket_of_the_workdir_is_mounted_where_the_run_looks(
  cloud, checkout
):
  there = cloud(trains=['test -f bucket/mounted; exit $?'])
  code = started(there, checkout)
  wait_for(lambda: states() == ['exited', 'exited'])
  assert [x['code'] for x in queued.workers(Terminal(), pod())] == [0, 0]
  verbs.run(Terminal(), pod(), code, 3, again=False, log=lambda _: None)
  mounts = (there / 'mounts').read_text().splitlines()
  where = there / 'workers/w0/longjax/run/bucket'
  assert mounts[0] == f'w0 --implicit-dirs -o ro bucket {where}'
  assert len(mounts) == 2  # once on each worker


def test_push_twice_installs_once(cloud, checkout):
  there = cloud()
  started(there, checkout)
  before = (there / 'installs').read_text()
  assert verbs.push(Terminal(), pod(), tree.read(checkout), lambda _: None) == 0
  assert (there / 'installs').read_text() == before


def test_run_twice_is_refused_and_restart_ends_the_first(cloud, checkout):
  there = cloud(trains=["trap 'exit 75' TERM; sleep 60 & wait"])
  code = started(there, checkout)
  with pytest.raises(InputError, match=r'trains already \(pid \d+ on w0\)'):
    verbs.run(Terminal(), pod(), code, 3, again=False, log=lambda _: None)
  first = [x['pid'] for x in queued.workers(Terminal(), pod())]
  verbs.run(Terminal(), pod(), code, 3, again=True, log=lambda _: None)
  second = [x['pid'] for x in queued.workers(Terminal(), pod())]
  assert states() == ['running', 'running']
  assert not {*first} & {*second}


def test_a_process_that_took_over_the_pid_is_not_ours(cloud, checkout):
  """A worker that was rebooted: the pid is there, the lock is free."""
  there = cloud(trains=['exit 0'])
  code = started(there, checkout)
  wait_for(lambda: states() == ['exited', 'exited'])
  other = subprocess.Popen(['sleep', '60'], start_new_session=True)
  for home in there.glob('workers/*/longjax/run'):
    (home / 'pid').write_text(f'{other.pid}\n')
    (home / 'exit').unlink()
  assert states() == ['lost', 'lost']
  queued.stop(Terminal(), pod())
  assert other.poll() is None
  other.kill()
  verbs.run(Terminal(), pod(), code, 3, again=False, log=lambda _: None)


def test_what_does_not_end_on_sigterm_is_killed(cloud, checkout, monkeypatch):
  monkeypatch.setenv('LONGJAX_STOP_SECONDS', '0.2')
  there = cloud(workers=1, trains=["trap '' TERM; while :; do sleep 0.1; done"])
  started(there, checkout)
  queued.stop(Terminal(), pod())
  assert states() == ['lost']


def test_when_ssh_misses_a_worker_run_again_starts_only_that(cloud, checkout):
  there = cloud()
  verbs.up(Terminal(), pod(), lambda _: None, lambda _: None)
  code = tree.read(checkout)
  verbs.push(Terminal(), pod(), code, lambda _: None)
  edit(there, away=dict(w1=1))
  said = []
  again = lambda: verbs.run(Terminal(), pod(), code, 3, False, said.append)
  with pytest.raises(CommandFailed, match='return code'):
    again()
  assert said[0].startswith('w0: started')
  assert states() == ['running', 'idle']
  assert again() == 0
  assert states() == ['running', 'running']


def test_status_says_state_step_loss_and_speed(cloud, checkout):
  there = cloud(trains=['sleep 60'])
  started(there, checkout)
  file = there / 'bucket/bucket/run/metrics.jsonl'
  file.parent.mkdir(parents=True)
  line = dict(step=12, loss=2.5, tokens_per_second=42_600.4, mfu=0.471)
  file.write_text(json.dumps(line) + '\n{"step": 13, "lo')
  said = []
  assert verbs.status(Terminal(), pod(), said.append) == 0
  assert said[0] == 'run: ACTIVE'
  assert re.fullmatch(r'w1: running, pid \d+', said[2])
  assert said[3] == 'step 12  loss 2.5000  42,600 tokens/s  mfu 47.1%'


def test_without_code_on_the_workers_run_says_push(cloud):
  cloud()
  verbs.up(Terminal(), pod(), lambda _: None, lambda _: None)
  with pytest.raises(InputError, match=r'no code yet: pod\.py push'):
    verbs.run(Terminal(), pod(), None, 3, False, lambda _: None)


def test_down_deletes_what_up_made_and_nothing_else(cloud):
  said = []
  down = lambda: verbs.down(Terminal(), pod(), said.append)
  there = cloud(now=['ACTIVE'], node={})
  with pytest.raises(InputError, match='was not made by pod'):
    down()
  cloud(now=['ACTIVE'], node=dict(labels=dict(longjax='another')))
  with pytest.raises(InputError, match='was not made by pod'):
    down()
  cloud()
  verbs.up(Terminal(), pod(), lambda _: None, lambda _: None)
  assert down() == 0
  assert down() == 0
  assert said == ['run: deleted', 'run: there is none']
  assert asked(there) == ['create', 'delete']


# --- TPU7x


def gke(**fields):
  return pod(
    slice=request.parse('tpu7x:4x4x4', 1), project='ours', zone='us-east5-a',
    **fields,
  )  # fmt: skip


def quietly(verb, *arguments):
  return verb(Terminal(), *arguments, lambda _: None)


def test_a_run_on_gke_is_made_once_and_deleted(cloud, checkout):
  there, code = cloud(), tree.read(checkout)
  assert quietly(verbs.supervise, gke(), code, 3) == 0
  with pytest.raises(CommandFailed, match='already exists'):
    verbs.run(Terminal(), gke(), code, 3, again=False, log=lambda _: None)
  verbs.run(Terminal(), gke(), code, 3, again=True, log=lambda _: None)
  assert quietly(verbs.down, gke()) == 0
  assert quietly(verbs.down, gke()) == 0
  did = [' '.join(x[:2]) for x in calls(there) if x[0] != 'container']
  assert did == [
    'cluster create', 'workload create', 'workload list', 'workload create',
    'workload delete', 'workload create', 'workload delete', 'cluster delete',
  ]  # fmt: skip


def test_a_cluster_that_was_there_stays(cloud, checkout):
  there = cloud(cluster={}, ended=125)
  theirs = gke(cluster='theirs')
  assert quietly(verbs.supervise, theirs, tree.read(checkout), 3) == 1
  assert quietly(verbs.down, theirs) == 0
  did = [' '.join(x[:2]) for x in calls(there) if x[0] != 'container']
  assert did == ['workload create', 'workload list', 'workload delete']


def test_on_gke_run_before_push_says_push(cloud, checkout):
  cloud(cluster={})
  with pytest.raises(InputError, match=r'not pushed yet: pod\.py push'):
    verbs.run(Terminal(), gke(), tree.read(checkout), 3, False, print)


# --- supervise


def test_a_preempted_slice_is_made_again_until_training_is_done(
  cloud, checkout
):
  there = cloud(
    lives=[['ACTIVE'] * 3 + ['SUSPENDED'], ['PROVISIONING', 'ACTIVE']],
    trains=['sleep 60', 'exit 0'],
  )
  assert watched(checkout) == 0
  once = ['create', 'scp', 'install', 'start']
  assert asked(there) == [*once, 'delete', *once]


def test_exit_code_75_deletes_and_asks_again(cloud, checkout):
  there = cloud(trains=['exit 75', 'exit 0'])
  assert watched(checkout) == 0
  assert asked(there).count('create') == 2
  assert asked(there).count('delete') == 1


def test_exit_code_2_ends_it_with_the_one_line(cloud, checkout):
  said = []
  there = cloud(trains=['echo tpu.py: config.mesh is wrong >&2; exit 2'])
  assert watched(checkout, log=said.append) == 2
  assert said[-1] == 'run: refused: tpu.py: config.mesh is wrong'
  assert 'delete' not in asked(there)
  (there / 'train').write_text('exit 0')  # mended, and given again
  assert watched(checkout) == 0


def test_a_crash_starts_again_where_it_is_and_retries_end(cloud, checkout):
  said, seconds = [], []
  there = cloud(workers=1, trains=['echo boom; exit 1'])
  done = watched(checkout, retries=3, log=said.append, sleep=seconds.append)
  assert done == 1
  assert asked(there).count('start') == 5  # at first, and after each crash
  assert asked(there).count('create') == 1
  assert [x for x in seconds if x not in (0, 60)] == [30, 120]  # 30, 60, 120
  assert any('boom' in x for x in said)
  assert '3 retries in a row without a new step' in said[-1]


def test_a_new_step_between_failures_makes_the_budget_new(cloud, checkout):
  steps = iter([5, 5, 9, 9, 9])
  cloud(workers=1, trains=['exit 1'])
  said = []
  last = lambda: dict(step=next(steps))
  assert watched(checkout, 2, said.append, last_step=last) == 1
  told = [int(x.split()[1]) for x in said if x.startswith('failure')]
  # At 5: first, second. At 9: first, second, and a third that ends it.
  assert told == [1, 2, 1, 2]


def test_a_broken_connection_neither_stops_nor_doubles_training(
  cloud, checkout
):
  there = cloud(trains=['sleep 1; exit 0'], drop=0)
  started(there, checkout)
  edit(there, drop=2, away=dict(w1=1))
  before = asked(there)
  assert watched(checkout) == 0
  assert asked(there) == before


def test_workers_out_of_reach_for_long_are_given_up(
  cloud, checkout, monkeypatch
):
  monkeypatch.setattr(watch, 'PATIENCE', 3)
  there = cloud(away=dict(w1=3), trains=['exit 0', 'exit 0'])
  verbs.up(Terminal(), pod(), lambda _: None, lambda _: None)
  assert watched(checkout) == 0
  assert asked(there)[:3] == ['create', 'delete', 'create']


def test_a_run_out_of_reach_that_makes_steps_is_left_alone(
  cloud, checkout, monkeypatch
):
  monkeypatch.setattr(watch, 'PATIENCE', 3)
  steps = iter(range(1, 99))
  there = cloud(trains=['exit 0'])
  started(there, checkout)
  edit(there, away=dict(w1=5))
  last = lambda: dict(step=next(steps))
  assert watched(checkout, last_step=last) == 0
  assert 'delete' not in asked(there)


def test_while_this_machine_is_offline_nothing_is_deleted(cloud, checkout):
  there = cloud(trains=['exit 0'])
  started(there, checkout)
  edit(there, now=['OFFLINE'] * 4 + ['ACTIVE'])
  assert watched(checkout) == 0
  edit(there, now=['OFFLINE'])
  assert watched(checkout, retries=3) == 1
  assert 'delete' not in asked(there)


def test_a_slice_of_another_size_is_not_taken_for_ours(cloud):
  there = cloud()
  verbs.up(Terminal(), pod(), lambda _: None, lambda _: None)
  larger = pod(slice=request.parse('v5p:4x4x8', 1))
  with pytest.raises(InputError, match='as v5p-128, not v5p:4x4x8'):
    verbs.up(Terminal(), larger, lambda _: None, lambda _: None)
  assert asked(there) == ['create']


def test_status_names_who_does_not_answer(cloud, checkout):
  there, said = cloud(), []
  started(there, checkout)
  edit(there, away=dict(w1=1))
  assert verbs.status(Terminal(), pod(), said.append) == 0
  assert said[1].startswith('w0: running')
  assert 'others do not answer' in said[2]


def edit(there, **changes):
  """Changes the script."""
  script = json.loads((there / 'script.json').read_text())
  (there / 'script.json').write_text(json.dumps(script | changes))


def test_supervise_takes_up_what_is_there(cloud, checkout):
  """Interrupted and given again, it looks and goes on."""
  there = cloud(trains=['sleep 0.5; exit 0'])
  started(there, checkout)
  before = asked(there)
  assert watched(checkout) == 0
  assert asked(there) == before


@pytest.mark.parametrize('workers, saw', [
  ('idle idle', 'empty'), ('running idle', 'empty'), ('running running',
  'running'), ('0 0', 'done'), ('0 running', 'running'), ('75 running',
  'ending'), ('75 0', 'preempted'), ('75 134', 'preempted'), ('134 134',
  'crashed'), ('lost 0', 'crashed'), ('2 75', 'refused'), ('2 running',
  'refused'), ('', 'out of reach'),
])  # fmt: skip
def test_what_the_states_of_workers_mean_together(workers, saw):
  text = '\n'.join(
    f'longjax worker=w{i} state='
    + (f'exited code={x} said=' if x.isdecimal() else x)
    for i, x in enumerate(workers.split())
  )
  assert watch.verdict(queued.read(text), '')[0] == saw
  unreached = watch.verdict(queued.read(text), 'ssh')[0]
  assert unreached == ('refused' if saw == 'refused' else 'out of reach')


def started(there, checkout):
  """A slice with the tree, training; the tree."""
  code = tree.read(checkout)
  verbs.up(Terminal(), pod(), lambda _: None, lambda _: None)
  verbs.push(Terminal(), pod(), code, lambda _: None)
  assert verbs.run(Terminal(), pod(), code, 3, False, lambda _: None) == 0
  wait_for((there / 'trained').exists)
  return code


def watched(
  checkout, retries=9, log=lambda _: None, last_step=dict, sleep=None
):
  def briefly(seconds):
    time.sleep(0.02)
    if sleep:
      sleep(seconds)

  code = tree.read(checkout)
  return watch.watch(
    Terminal(), pod(), code, retries, last_step, log, briefly
  )  # fmt: skip


def states():
  return [x['state'] for x in queued.workers(Terminal(), pod())]


def wait_for(condition, seconds=20):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.05)
