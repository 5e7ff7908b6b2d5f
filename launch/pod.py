"""TPU slices from a laptop: up, push, run, logs, status, supervise, down.

  python launch/pod.py up --config configs/C.py --topology v5p:4x4x4 [--spot]
  python launch/pod.py push --config configs/C.py
  python launch/pod.py run --config configs/C.py --workdir gs://BUCKET/RUN
  python launch/pod.py logs | status | down --config configs/C.py
  python launch/pod.py supervise --config configs/C.py --topology v5p:4x4x4
      --workdir gs://BUCKET/RUN [--spot]

v4, v5e, v5p and v6e are queued resources of Cloud TPU, through gcloud; tpu7x
is on GKE, through xpk. --dry-run prints the commands and runs none. supervise
does up, push and run, and repeats them when a slice is taken away. Keys of the
config (--config.a.b=v) are passed on to launch/tpu.py; there the bucket of the
workdir is the directory bucket/, for weights and data. docs/tpu.md goes from an
empty project to a run. Not run on a TPU.

Exit code 0: done; 1: the cloud, or the training, failed; 2: the input is wrong.
"""

import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from longjax import cli
from longjax.errors import InputError
from longjax.pod import request, tree, verbs, xpk
from longjax.pod.commands import CommandFailed, DryRun, Terminal

VERBS = ('up', 'push', 'run', 'logs', 'status', 'supervise', 'down')
MAKES = ('up', 'supervise')
TRAINS = ('run', 'supervise')
FIELDS = (
  'reservation', 'project', 'zone', 'service_account', 'runtime', 'cluster',
  'workdir',
)  # fmt: skip
GS = r'gs://[a-z0-9][a-z0-9._-]+/.+'
PUSHES = ('push', 'run', 'supervise')


def main(verb, words, config, **flags):
  """Does one verb; returns the exit code.

  Args:
    verb: one of VERBS.
    words: --config=FILE and the overrides --config.KEY=VALUE, as typed.
    config: the config that they make.
    **flags: by name.
  """
  pod = make_request(verb, config, flags)._replace(arguments=tuple(words))
  terminal = Terminal()
  if flags['dry_run']:
    terminal = DryRun(exists=verb not in MAKES, name=pod.name)
  try:
    return do(verb, terminal, pod, config, flags)
  except CommandFailed as error:
    print(f'pod.py: {cli.one_line(error)}', file=sys.stderr)
    return 1


def do(verb, terminal, pod, config, flags) -> int:
  """Reads the checkout, shows the cost, asks, acts."""
  retries = cli.number('retries', flags['retries'], 10, 0)
  code = None
  if verb in PUSHES:
    code = tree.read()
    if verb != 'run' and not terminal.dry:
      tree.check(code, flags['dirty'])
    pod = pod._replace(arguments=arguments(code, pod))
  sure = flags['yes'] or terminal.dry
  if verb in MAKES:
    for line in request.cost(pod, flags['plan'], config):
      terminal.log(line)
    confirm('request it?', sure)
  if verb == 'down':
    confirm(f'delete {pod.name}? What is on its disks is lost.', sure)
  more = dict(
    push=(code,),
    run=(code, retries, flags['restart']),
    supervise=(code, retries),
  ).get(verb, ())
  return getattr(verbs, verb)(terminal, pod, *more)


def make_request(verb, config, flags) -> request.Pod:
  """The request of the flags; InputError if one is missing."""
  topology = flags['topology']
  count = cli.number('slices', flags['slices'], 1, 1)
  if verb in MAKES and not topology:
    raise InputError(f'{verb} needs --topology, as v5p:4x4x4')
  if flags['spot'] and flags['reserved']:
    raise InputError('--spot and --reserved exclude each other')
  tiers = ('spot', 'reserved')
  pod = request.Pod(
    name=request.name(flags['name'] or config.name),
    slice=request.parse(topology, count) if topology else None,
    tier=next((tier for tier in tiers if flags[tier]), 'on-demand'),
    **{k: flags[k] for k in FIELDS},
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


def arguments(code, pod) -> tuple[str, ...]:
  """What launch/tpu.py gets on the hosts: this config, with its overrides."""
  file, *changes = pod.arguments
  config = tree.config_path(code, file.removeprefix('--config='))
  workdir = [f'--workdir={pod.workdir}'] if pod.workdir else []
  return (f'--config={config}', *changes, *workdir)


def confirm(question: str, sure: bool):
  """Returns only after a yes."""
  if sure:
    return
  if not sys.stdin.isatty():
    raise InputError(f'{question} There is no terminal to answer on; add --yes')
  print(f'{question} [y/N] ', end='', flush=True)
  if sys.stdin.readline().strip().lower() not in ('y', 'yes'):
    raise InputError('not confirmed; nothing was changed')


if __name__ == '__main__':
  sys.exit(
    cli.run(
      main,
      __doc__,
      verbs=VERBS,
      switches=('spot', 'reserved', 'dirty', 'restart', 'yes', 'dry_run'),
      topology='the slice, as in launch/plan.py: v5p:4x4x4, tpu7x:4x4x4',
      slices='number of such slices, default: 1',
      spot='cheaper; may be preempted at any time',
      reserved='use a reservation of the project',
      reservation='its name; only for tpu7x',
      name='of the pod, default: that of the config',
      project="Google Cloud project, default: gcloud's own setting",
      zone="such as us-east5-a, default: gcloud's own setting",
      service_account='account of the workers; it needs access to the bucket',
      runtime="image of the VMs, default: Google's for this TPU",
      cluster='existing GKE cluster for tpu7x, default: create one',
      workdir='gs://BUCKET/RUN, the run directory',
      plan='output of launch/plan.py --json, to predict the chip-hours',
      retries='failures allowed in a row without a new step, default: 10',
      dirty='push files that differ from the commit; code.json records it',
      restart='run: first save a checkpoint and stop the job that trains there',
      yes='act without asking for confirmation',
      dry_run='print the commands, run none',
    )
  )
