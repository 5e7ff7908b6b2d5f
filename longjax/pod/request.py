"""The request to Google Cloud: a slice, its name and its tier.

A slice has its name of launch/plan.py, v5p:4x4x4. Google counts chips in the
names of v5e and v6e, but TensorCores, two a chip, in those of v4 and v5p.
Names of machine types and images: docs.cloud.google.com/tpu/docs, Nov 2026.
"""

import json
import math
import pathlib
import re
from typing import NamedTuple

from longjax import slices
from longjax.errors import InputError

# By generation: name of the type, units a chip in it, image of the VMs.
TYPES = {
  'v4': ('v4', 2, 'tpu-ubuntu2204-base'),
  'v5e': ('v5litepod', 1, 'v2-alpha-tpuv5-lite'),
  'v5p': ('v5p', 2, 'v2-alpha-tpuv5'),
  'v6e': ('v6e', 1, 'v2-alpha-tpuv6e'),
}
# All shapes in two dimensions.
SHAPES_2D = (
  (1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16)
)  # fmt: skip
# The shapes in three that a count of chips stands for. Others of v4 are asked
# for as such; gcloud's general release has no --type for those of v5p.
SHAPES_3D = (
  (2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4), (4, 4, 8), (4, 8, 8),
  (8, 8, 8), (8, 8, 16), (8, 16, 16), (16, 16, 16), (16, 16, 24),
)  # fmt: skip
NAME = re.compile(r'[a-z]([-a-z0-9]{0,38}[a-z0-9])?')
LABEL = 'longjax'  # its value is the name of the pod that made the resource


class Pod(NamedTuple):
  """One request, and what runs there."""

  name: str  # of the queued resource, or of the workload
  slice: slices.Slice | None  # needed to make one
  tier: str = 'on-demand'  # on-demand | spot | reserved
  reservation: str = ''  # its name, where GKE needs one
  project: str = ''  # '' is gcloud's own setting, here and below
  zone: str = ''
  service_account: str = ''
  runtime: str = ''  # image of the VMs; '' is that of TYPES
  cluster: str = ''  # of GKE; '' is one of the pod's own
  workdir: str = ''  # gs://BUCKET/RUN
  arguments: tuple[str, ...] = ()  # of launch/tpu.py

  @property
  def bucket(self) -> str:
    """That of the workdir."""
    return self.workdir.removeprefix('gs://').split('/')[0]

  @property
  def place(self) -> list[str]:
    """--project and --zone, of gcloud and of xpk."""
    flags = dict(project=self.project, zone=self.zone)
    return [f'--{k}={v}' for k, v in flags.items() if v]


def name(text: str) -> str:
  """A name that Google Cloud takes, from that of a config; or InputError."""
  made = text.replace('_', '-')
  if not NAME.fullmatch(made):
    raise InputError(
      f'a pod cannot be named {text!r}: it takes lower case letters, digits '
      'and hyphens, at most 40, a letter first; give --name'
    )
  return made


def parse(topology: str, count: int) -> slices.Slice:
  """The slice, if Google Cloud has it; InputError names the nearest."""
  found = slices.parse(topology, count)
  shapes = SHAPES_2D if len(found.dims) == 2 else SHAPES_3D
  if found.dims in shapes or found.generation in ('v4', 'tpu7x'):
    return found
  near = min(shapes, key=lambda s: abs(math.log(math.prod(s) / found.size)))
  near = slices.Slice(found.generation, near, 1)
  raise InputError(
    f'--topology {topology}: gcloud cannot request this shape; nearest is '
    f'{near.name}'
  )


def accelerator(wanted: slices.Slice) -> list[str]:
  """The flags of gcloud that name the slice."""
  kind, units, _ = TYPES[wanted.generation]
  if wanted.dims in SHAPES_2D + SHAPES_3D:
    return [f'--accelerator-type={kind}-{units * wanted.size}']
  shape = 'x'.join(map(str, wanted.dims))
  return [f'--type={kind}', f'--topology={shape}']


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
    f'{pod.tier}: {pod.slice.chips} chip-hours an hour, from when it is there '
    'until pod.py down'
  ]
  mesh, devices = config.mesh, pod.slice.devices
  if mesh.data * mesh.seq != devices:
    seq = math.gcd(mesh.seq, devices // pod.slice.slices)  # in one slice
    lines += [
      f'note: config.mesh is data {mesh.data} x seq {mesh.seq}, not the '
      f'{devices} devices that are asked for; training will want '
      f'--config.mesh.data={devices // seq} --config.mesh.seq={seq}'
    ]
  if plan:
    seconds = predicted_seconds(pod, plan, config)
    hours = config.train.steps * seconds / 3600
    lines += [
      f'{config.train.steps} steps of {seconds:.1f} s (predicted, not '
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
    fits, seconds = report['fits'], report.get('step', {}).get('seconds', 0.0)
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
  return seconds
