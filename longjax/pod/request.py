"""The request to Google Cloud: a slice or hosts, their name, their tier.

A slice has its name of launch/plan.py, v5p:4x4x4, or Google's (slices.py).
Flags, names of machine types and images: cloud.google.com/sdk/gcloud/reference
and docs.cloud.google.com/tpu/docs, read in November 2026.
"""

import json
import math
import pathlib
import re
from typing import NamedTuple

from longjax import slices
from longjax.errors import InputError

# Image of the VMs, by generation.
IMAGES = dict(
  v4='tpu-ubuntu2204-base',
  v5e='v2-alpha-tpuv5-lite',
  v5p='v2-alpha-tpuv5',
  v6e='v2-alpha-tpuv6e',
)
TYPES = dict(v4='v4', v5e='v5litepod', v5p='v5p', v6e='v6e')  # with --topology
NAME = re.compile(r'[a-z]([-a-z0-9]{0,38}[a-z0-9])?')
HOST = re.compile(r'([\w.-]+@)?\w[\w.:-]*')
ENV = re.compile(r'[A-Za-z_]\w*=.*', re.DOTALL)
LABEL = 'longjax'  # its value is the name of the pod that made the resource
TIERS = ('spot', 'reserved', 'flex-start')
# Flags of `queued-resources create` that have the same name here; those of
# ALPHA are in the alpha track only, as is the tier flex-start.
PASSED = (
  'network', 'subnetwork', 'internal_ips', 'service_account',
  'valid_until_duration', 'max_run_duration', 'reservation',
)  # fmt: skip
ALPHA = ('max_run_duration', 'reservation')


class Pod(NamedTuple):
  """One request, or hosts that exist, and what runs there."""

  name: str  # of the queued resource, or of the workload
  slice: slices.Slice | None  # needed to make one
  tier: str = 'on-demand'  # or one of TIERS
  tpu: str = ''  # a node that exists, instead of a request
  mig: str = ''  # a managed instance group that exists
  hosts: tuple[str, ...] = ()  # hosts that exist, by ssh
  project: str = ''  # '' is gcloud's own setting, here and below
  zone: str = ''
  network: str = ''
  subnetwork: str = ''
  internal_ips: bool = False
  tunnel_through_iap: bool = False
  valid_until_duration: str = ''
  max_run_duration: str = ''
  reservation: str = ''
  service_account: str = ''
  runtime: str = ''  # image of the VMs; '' is that of IMAGES
  cluster: str = ''  # of GKE; '' is one of the pod's own
  gcloud_flag: tuple[str, ...] = ()  # more flags, for what creates
  env: tuple[str, ...] = ()  # KEY=VALUE, for training
  workdir: str = ''  # gs://BUCKET/RUN, or a directory that the hosts share
  arguments: tuple[str, ...] = ()  # of launch/tpu.py

  @property
  def uses_existing_hosts(self) -> bool:
    """Whether its hosts were made by somebody else."""
    return bool(self.tpu or self.mig or self.hosts)

  @property
  def bucket(self) -> str:
    """That of the workdir, '' if that is a directory."""
    inside = self.workdir.startswith('gs://')
    return self.workdir.removeprefix('gs://').split('/')[0] if inside else ''

  @property
  def place(self) -> list[str]:
    """--project and --zone, of gcloud and of xpk."""
    return flags(self, 'project', 'zone')


def flags(pod: Pod, *names: str) -> list[str]:
  """--name=value, or --name, of the fields that are set."""
  given = ((n.replace('_', '-'), getattr(pod, n)) for n in names)
  return [f'--{n}' + ('' if v is True else f'={v}') for n, v in given if v]


def name(text: str) -> str:
  """A name that Google Cloud takes, from that of a config; or InputError."""
  made = text.replace('_', '-')
  if not NAME.fullmatch(made):
    raise InputError(
      f'a pod cannot be named {text!r}: it takes lower case letters, digits '
      'and hyphens, at most 40, a letter first; give --name'
    )
  return made


def check(pod: Pod):
  """Refuses flags that have no meaning, or none together."""
  ways = dict(topology=pod.slice, tpu=pod.tpu, mig=pod.mig, hosts=pod.hosts)
  given = [f'--{k}' for k, v in ways.items() if v]
  if len(given) > 1 and given != ['--topology', '--tpu']:
    raise InputError(f'{" and ".join(given)} are mutually exclusive')
  for host in pod.hosts:
    if not HOST.fullmatch(host):
      raise InputError(f'--hosts: {host!r} is not a host, or USER@HOST')
  for word in pod.env:
    if not ENV.fullmatch(word):
      raise InputError(f'--env {word!r} is not KEY=VALUE')
  if pod.tier == 'flex-start' and not on_gke(pod):
    if not pod.max_run_duration:
      raise InputError('--flex-start needs --max-run-duration, at most 7d')
    if pod.slice and pod.slice.generation == 'v4':
      raise InputError('--flex-start gives v5e, v5p, v6e and tpu7x, not v4')


def on_gke(pod: Pod) -> bool:
  """Whether its TPU is requested from GKE: TPU7x."""
  return bool(
    pod.slice
    and pod.slice.generation == 'tpu7x'
    and not pod.uses_existing_hosts
  )


def accelerator(wanted: slices.Slice) -> list[str]:
  """The flags of gcloud that name the slice."""
  if wanted.google:
    return [f'--accelerator-type={wanted.google}']
  shape = 'x'.join(map(str, wanted.dims))
  return [f'--type={TYPES[wanted.generation]}', f'--topology={shape}']


def check_size(pod: Pod, node: dict):
  """Refuses a node of the Cloud TPU API that is not the slice of the pod."""
  if not pod.slice or on_gke(pod):
    return
  custom = node.get('acceleratorConfig', {})  # V5P and 2x2x16
  kind, dims = custom.get('type', ''), custom.get('topology', '')
  there = f'{kind.lower().replace("v5lite_pod", "v5e")}:{dims}' if kind else ''
  google = node.get('acceleratorType', '').rsplit('/', 1)[-1]
  names = {there, google} - {''}
  if names and not names & {pod.slice.name, pod.slice.google}:
    raise InputError(
      f'{pod.tpu or pod.name} exists as {google or there}, not as '
      f'{pod.slice.name}; delete it with pod.py down, or give another --name'
    )


def check_mesh(pod: Pod, config):
  """Refuses a mesh that cannot run on the slice, before it is asked for."""
  assert pod.slice
  mesh, devices = config.mesh, pod.slice.devices
  inside = devices // pod.slice.slices  # a ring stays in one slice
  if mesh.data * mesh.seq == devices and inside % mesh.seq == 0:
    return
  seq = math.gcd(mesh.seq, inside)
  raise InputError(
    f'config.mesh is data {mesh.data} x seq {mesh.seq} = '
    f'{mesh.data * mesh.seq} devices, but {pod.slice.slices} x '
    f'{pod.slice.name} has {devices}, and a ring stays in one slice: add '
    f'--config.mesh.data={devices // seq} --config.mesh.seq={seq}'
  )


def cost(pod: Pod, plan: str, config) -> list[str]:
  """What the pod will cost, in lines for the user.

  Args:
    plan: a file that `launch/plan.py --json` wrote for this config and slice,
      or ''.

  Raises:
    InputError: the plan is not one, or of another config or slice.
  """
  assert pod.slice
  count = f'{pod.slice.slices} x ' if pod.slice.slices > 1 else ''
  lines = [
    f'{pod.name}: {count}{pod.slice.name}, {pod.slice.chips} chips, '
    f'{pod.tier}: {pod.slice.chips} chip-hours an hour, from when it is active '
    'until pod.py down'
  ]
  if on_gke(pod) and not pod.cluster:
    lines += ['and the CPU pool of the cluster: 6 VMs of e2-standard-16']
  if plan:
    step = predicted_seconds(pod, plan, config)
    hours = config.train.steps * step / 3600
    lines += [
      f'{config.train.steps} steps of {step:.1f} s (predicted, not '
      f'measured) are {hours:,.1f} hours: {hours * pod.slice.chips:,.0f} '
      'chip-hours without starts, compiling and evaluation'
    ]
  return lines


def predicted_seconds(pod: Pod, plan: str, config) -> float:
  """Seconds of a step, from the plan."""
  assert pod.slice
  try:
    report = json.loads(pathlib.Path(plan).read_text())
    planned = report['config'], report['topology'], report['slices']
    fits, step = report['fits'], report.get('step', {}).get('seconds', 0.0)
  except (ValueError, KeyError, TypeError, AttributeError):
    raise InputError(
      f'--plan {plan} is not the output of launch/plan.py --json'
    ) from None
  wanted = config.name, pod.slice.name, pod.slice.slices
  if planned != wanted:
    show = lambda name, topology, count: f'{name} on {count} x {topology}'
    raise InputError(
      f'--plan {plan} is for {show(*planned)}, not for {show(*wanted)}'
    )
  if not fits:
    raise InputError(
      f'--plan {plan}: the config does not fit {pod.slice.name}; try '
      'launch/plan.py --search'
    )
  return step
