"""TPU slices from a laptop: up, push, run, logs, status, stop, supervise, down.

  python launch/pod.py up --config configs/C.py --topology v5p:4x4x4 [--spot]
  python launch/pod.py push --config configs/C.py
  python launch/pod.py run --config configs/C.py --workdir gs://BUCKET/RUN
  python launch/pod.py logs | status | stop | down --config configs/C.py
  python launch/pod.py supervise --config configs/C.py --topology v5p:4x4x4
      --workdir gs://BUCKET/RUN [--spot]

v4, v5e, v5p and v6e are queued resources of Cloud TPU, through gcloud; tpu7x
is on GKE, through xpk. push, run, logs, status and stop also work on hosts that
exist: --tpu NODE, --mig GROUP or --hosts A,B. --dry-run prints the commands and
runs none. supervise does up, push and run, and repeats them when a slice is
taken away. Keys of the config (--config.a.b=v) are passed on to launch/tpu.py;
there the bucket of the workdir is the directory bucket/, for weights and data.
docs/tpu.md goes from an empty project to a run. Not run on a TPU.

Exit code 0: done; 1: the cloud, or the training, failed; 2: the input is wrong.
"""

import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from longjax import cli, slices
from longjax.errors import InputError
from longjax.pod import request, tree, verbs, xpk
from longjax.pod.commands import CommandFailed, DryRun, Terminal

VERBS = ('up', 'push', 'run', 'logs', 'status', 'stop', 'supervise', 'down')
MAKES = ('up', 'supervise')
TRAINS = ('run', 'supervise')
PUSHES = ('push', 'run', 'supervise')
TIERS = [tier.replace('-', '_') for tier in request.TIERS]
GS = r'gs://[a-z0-9][a-z0-9._-]+/.+'


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
    if meaning := slices.meaning(flags['topology']):
      terminal.log(meaning)
    for line in request.cost(pod, flags['plan'], config):
      terminal.log(line)
    confirm('request it?', sure)
  if verb == 'down':
    confirm(f'delete {pod.name}? What is on its disks is lost.', sure)
  more = dict(
    push=(code,),
    run=(code, retries, flags['restart']),
    logs=(flags['worker'],),
    supervise=(code, retries),
  ).get(verb, ())
  return getattr(verbs, verb)(terminal, pod, *more)


def make_request(verb, config, flags) -> request.Pod:
  """The request of the flags; InputError if one is missing or wrong."""
  topology = flags['topology']
  count = cli.number('slices', flags['slices'], 1, 1)
  tiers = [tier for tier in TIERS if flags[tier]]
  if len(tiers) > 1:
    raise InputError(f'--{" and --".join(tiers)} are mutually exclusive')
  if flags['reservation'] and tiers not in ([], ['reserved']):
    raise InputError(f'--reservation does not go with --{tiers[0]}')
  tier = 'reserved' if flags['reservation'] else [*tiers, 'on-demand'][0]
  as_typed = (flags.keys() & {*request.Pod._fields}) - {'name', 'hosts'}
  pod = request.Pod(
    name=request.name(flags['name'] or config.name),
    slice=slices.parse(topology, count) if topology else None,
    tier=tier.replace('_', '-'),
    hosts=tuple(filter(None, flags['hosts'].split(','))),
    **{k: flags[k] for k in as_typed},
  )
  if verb in MAKES and not topology:
    raise InputError(f'{verb} needs --topology, as v5p:4x4x4 or v5p-128')
  if pod.uses_existing_hosts and verb in (*MAKES, 'down'):
    raise InputError(
      f'{verb} is for slices that pod.py makes; with --tpu, --mig or --hosts '
      'use push, run, logs, status or stop'
    )
  request.check(pod)
  check_workdir(verb, pod)
  if not re.fullmatch(r'|all|(\d+\.)?\d+', flags['worker']):
    raise InputError(f'--worker {flags["worker"]!r} is not a number or all')
  if request.on_gke(pod):
    xpk.check(pod)
  elif pod.cluster:
    raise InputError('--cluster goes with --topology=tpu7x:...')
  if verb in MAKES:
    request.check_mesh(pod, config)
  return pod


def check_workdir(verb, pod):
  """Refuses a run directory that not all hosts can write, and outlives them."""
  path = pod.workdir
  if verb not in TRAINS or re.fullmatch(GS, path):
    return
  if not pod.hosts:
    raise InputError(
      f'{verb} needs --workdir=gs://BUCKET/RUN, got {path!r}: all workers '
      'write to it, and the disks of a slice are lost with it'
    )
  if not path.startswith('/'):
    raise InputError(
      f'{verb} needs --workdir, gs://BUCKET/RUN or the absolute path of a '
      f'directory that all hosts share, got {path!r}'
    )


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
      switches=(
        *TIERS,
        'internal_ips',
        'tunnel_through_iap',
        'dirty',
        'restart',
        'yes',
        'dry_run',
      ),
      lists=('gcloud_flag', 'env'),
      topology='the slice, as in launch/plan.py: v5p:4x4x4, or v5p-128',
      slices='number of such slices, default: 1',
      tpu='a TPU node that exists, of `gcloud compute tpus tpu-vm create`',
      mig='a managed instance group that exists, of TPU VMs that form a slice',
      hosts='hosts that exist, by plain ssh: a,b,user@c; the first coordinates',
      spot='cheaper; may be preempted at any time',
      reserved='use a reservation of the project',
      reservation='name of the reservation (alpha track of gcloud, except for '
      'tpu7x)',
      flex_start='for at most --max-run-duration, not preempted (alpha track)',
      max_run_duration='the slice is deleted after it: 12h, 7d (alpha track)',
      valid_until_duration='give up the request after it: 6h',
      network='VPC network of the VMs, default: default',
      subnetwork='subnetwork of that network',
      internal_ips='VMs without external addresses',
      tunnel_through_iap='ssh through Identity-Aware Proxy, with every verb',
      gcloud_flag='an extra flag for the gcloud command that creates; may be '
      'repeated',
      env='KEY=VALUE in the environment of training; may be repeated',
      name='of the pod, default: that of the config',
      project="Google Cloud project, default: gcloud's own setting",
      zone="such as us-east5-a, default: gcloud's own setting",
      service_account='account of the workers; it needs access to the bucket',
      runtime="image of the VMs, default: Google's for this TPU",
      cluster='existing GKE cluster for tpu7x, default: create one',
      workdir='gs://BUCKET/RUN; for --hosts also a directory that they share',
      worker='logs: number of a host, SLICE.NUMBER, or all; default: 0',
      plan='output of launch/plan.py --json, to predict the chip-hours',
      retries='failures allowed in a row without a new step, default: 10',
      dirty='push files that differ from the commit; code.json records it',
      restart='run: first save a checkpoint and stop the job that trains there',
      yes='act without asking for confirmation',
      dry_run='print the commands, run none',
    )
  )
