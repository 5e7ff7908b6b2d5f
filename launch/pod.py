"""TPU slices from a laptop: up, push, run, logs, status, supervise, down.

  python launch/pod.py up --config configs/C.py --topology v5p:4x4x4 [--spot]
  python launch/pod.py push --config configs/C.py
  python launch/pod.py run --config configs/C.py --workdir gs://BUCKET/RUN
  python launch/pod.py logs | status | down --config configs/C.py
  python launch/pod.py supervise --config configs/C.py --topology v5p:4x4x4
      --workdir gs://BUCKET/RUN [--spot]

v4, v5e, v5p and v6e are queued resources of Cloud TPU, through gcloud; tpu7x
is GKE, through xpk. --dry-run prints the commands of other programs and runs
none. supervise does all of the first three, and again when a slice is taken
away. Keys of the config (--config.a.b=v) go to launch/tpu.py as they are; the
bucket of the workdir is the directory bucket/ there, for weights and data.
docs/tpu.md leads from an empty project to a run. Not run on a TPU.

Exit code 0: done; 1: the cloud, or the training, failed; 2: the input is wrong.
"""

import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from longjax import cli
from longjax.errors import InputError
from longjax.pod import request, tree, verbs, xpk
from longjax.pod.terminal import CommandFailed, Rehearsal, Terminal

VERBS = ('up', 'push', 'run', 'logs', 'status', 'supervise', 'down')
MAKES = ('up', 'supervise')
TRAINS = ('run', 'supervise')
PASSED = (
  'reservation', 'project', 'zone', 'service_account', 'runtime', 'cluster',
  'workdir',
)  # fmt: skip
GS = r'gs://[a-z0-9][a-z0-9._-]+/.+'
PUSHES = ('push', 'run', 'supervise')


def main(verb, words, config, **flags):
  """Does one verb; the answer is the exit code.

  Args:
    verb: one of VERBS.
    words: what was typed of the config: its file, and changes of its keys.
    config: the config.
    **flags: by name.
  """
  pod = asked(verb, config, flags)
  terminal = Terminal()
  if flags['dry_run']:
    terminal = Rehearsal(exists=verb not in MAKES, label=pod.name)
  try:
    return do(verb, terminal, pod, config, flags | dict(words=words))
  except CommandFailed as error:
    print(f'pod.py: {cli.one_line(error)}', file=sys.stderr)
    return 1


def do(verb, terminal, pod, config, flags) -> int:
  """Says what it costs or deletes, asks, acts."""
  log = remark if flags['dry_run'] else print
  sure = flags['yes'] or flags['dry_run']
  retries = cli.number('retries', flags['retries'], 10, 0)
  code = None
  if verb in PUSHES:
    code = checkout(flags, check=verb != 'run')
    pod = pod._replace(arguments=arguments(code, pod, flags['words']))
  if verb in MAKES:
    for line in request.cost(pod, flags['plan'], config):
      log(line)
    confirm('ask for it?', sure)
  if verb == 'down':
    confirm(f'delete {pod.name}? What is on its disks is lost.', sure)
  act = dict(
    up=lambda: verbs.up(terminal, pod, log),
    push=lambda: verbs.push(terminal, pod, code, log),
    run=lambda: verbs.run(terminal, pod, code, retries, flags['restart'], log),
    logs=lambda: verbs.logs(terminal, pod, log),
    status=lambda: verbs.status(terminal, pod, log),
    supervise=lambda: verbs.supervise(terminal, pod, code, retries, log),
    down=lambda: verbs.down(terminal, pod, log),
  )
  return act[verb]()


def asked(verb, config, flags) -> request.Pod:
  """The request that the flags make; InputError if one is missing."""
  topology = flags['topology']
  count = cli.number('slices', flags['slices'], 1, 1)
  if verb in MAKES and not topology:
    raise InputError(f'{verb} needs --topology, as v5p:4x4x4')
  pod = request.Pod(
    name=request.name(flags['name'] or config.name),
    slice=request.parse(topology, count) if topology else None,
    tier=request.tier(flags['spot'], flags['reserved']),
    **{k: flags[k] for k in PASSED},
  )
  if verb in TRAINS and not re.fullmatch(GS, pod.workdir):
    raise InputError(
      f'{verb} needs --workdir=gs://BUCKET/RUN, got {pod.workdir!r}: all '
      'workers write to it, and the disks of a slice are lost with it'
    )
  if verbs.on_gke(pod):
    xpk.check(pod)
  elif pod.reservation or pod.cluster:
    raise InputError('--reservation and --cluster go with --topology=tpu7x:...')
  return pod


def checkout(flags, check: bool) -> tree.Tree:
  """The files to push; refuses uncommitted ones."""
  code = tree.read()
  if check and not flags['dry_run']:
    tree.check(code, flags['dirty'])
  return code


def arguments(code, pod, words) -> tuple[str, ...]:
  """What launch/tpu.py is given on the workers: this config, as changed."""
  file, *changes = words
  config = tree.config_path(code, file.removeprefix('--config='))
  workdir = [f'--workdir={pod.workdir}'] if pod.workdir else []
  return (f'--config={config}', *changes, *workdir)


def confirm(question: str, sure: bool):
  """Goes on only after a yes."""
  if sure:
    return
  if not sys.stdin.isatty():
    raise InputError(f'{question} Nobody is there to say yes; give --yes')
  print(f'{question} [y/N] ', end='', flush=True)
  if sys.stdin.readline().strip().lower() not in ('y', 'yes'):
    raise InputError('nothing was done')


def remark(line: str):
  """In a dry run all that is not a command is a comment."""
  for part in line.splitlines():
    print(f'# {part}')


if __name__ == '__main__':
  sys.exit(
    cli.run(
      main,
      __doc__,
      verbs=VERBS,
      switches=('spot', 'reserved', 'dirty', 'restart', 'yes', 'dry_run'),
      topology='the slice, as in launch/plan.py: v5p:4x4x4, tpu7x:4x4x4',
      slices='number of such slices, default: 1',
      spot='cheaper; may be taken away at any time',
      reserved='out of a reservation of the project',
      reservation='its name; only for tpu7x',
      name='of the pod, default: that of the config',
      project="Google Cloud project, default: gcloud's own setting",
      zone="such as us-east5-a, default: gcloud's own setting",
      service_account='that the workers act as; it must reach the bucket',
      runtime="image of the VMs, default: Google's for this TPU",
      cluster='GKE cluster of tpu7x that is there, default: one is made',
      workdir='gs://BUCKET/RUN, the run directory',
      plan='a file of launch/plan.py --json: says the hours it will take',
      retries='of supervise, in a row without a new step, default: 10',
      dirty='push files that differ from the commit; the run says so',
      restart='run: end what trains there, after a checkpoint, first',
      yes='do not ask',
      dry_run='print the commands, run none',
    )
  )
