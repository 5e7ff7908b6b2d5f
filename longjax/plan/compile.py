"""Whether a config fits a TPU slice and how fast it would be, without one.

The real train step (train/step.py) is compiled for the devices of the slice;
nothing of the size of a model is allocated. Memory is what the compiler lays
out; time is that of the model in schedule.py.
"""

import collections
import importlib.util
import pathlib
import resource
import tempfile
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from longjax import checks, flops, hbm, llama, lora, slices
from longjax.errors import InputError
from longjax.parallel import sharding, topology
from longjax.plan import calibration, contents, hlo, schedule
from longjax.plan.network import Network
from longjax.plan.workload import Workload, workload
from longjax.train import step as train_step

CAVEAT = 'compiled, not run on a TPU'


class Job(NamedTuple):
  """A config that was checked against a slice."""

  config: Any  # ml_collections.ConfigDict
  model: llama.Llama
  slice: slices.Slice
  mesh: Mesh
  work: Workload


def check(config, target: slices.Slice, documents: str, log):
  """Makes config.mesh fit the slice and checks all. Needs no TPU compiler.

  Raises:
    InputError: the config, the mesh or the documents cannot work.
  """
  fit_mesh(config, target, log)
  checks.check(config)
  workload(config, documents)


def fit_mesh(config, target: slices.Slice, log):
  """Keeps mesh.seq and lets mesh.data take the rest of the devices."""
  devices, mesh = target.devices, config.mesh
  if mesh.data * mesh.seq == devices and mesh.data % target.slices == 0:
    return
  each = devices // target.slices
  if mesh.seq < 1 or each % mesh.seq:
    near = min(
      (n for n in range(1, each + 1) if each % n == 0),
      key=lambda n: abs(n - mesh.seq),
    )
    raise InputError(
      f'config.mesh.seq is {mesh.seq}; it must divide the {each} devices of a '
      f'slice {target.name}; the nearest mesh is '
      f'--config.mesh.data={devices // near} --config.mesh.seq={near}'
    )
  log(
    f'mesh: data {devices // mesh.seq} x seq {mesh.seq} for the {devices} '
    f'devices of {target.name}; the config has {mesh.data} x {mesh.seq}'
  )
  mesh.data = devices // mesh.seq


def plan(config, target: slices.Slice, documents: str, log) -> dict:
  """Compiles the train step of a checked config and reports on it.

  Returns:
    The report of docs/plan.md, json-like. `fits` is False if the step leaves
    less than slices.HBM_MARGIN of the HBM free; if the compiler ran out of HBM,
    there is no schedule.

  Raises:
    InputError: no TPU compiler here, or it refuses for another reason.
  """
  mesh = sharding.make_mesh(
    config.mesh.data, config.mesh.seq, devices_of(target)
  )
  model = checks.llama_config(config)
  job = Job(config, model, target, mesh, workload(config, documents))
  log(f'compiling for {target.name} ...')
  began, cpu = time.monotonic(), time.process_time()
  config.train.lengths = ()  # whole rows take most memory and time
  step, state = train_step.build(config, job.model, mesh)
  batch = train_step.abstract_batch(config, mesh)
  try:
    compiled, text = compile_step(step.lower(state, batch))
  except jax.errors.JaxRuntimeError as error:
    compiled, lacking = None, hbm.out_of_memory(error, target.chip)
  result = description(job) | dict(
    compile=dict(
      cpu_seconds=round(time.process_time() - cpu, 1),
      wall_seconds=round(time.monotonic() - began, 1),
      peak_rss_gib=round(
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2
      ),
    )
  )
  if compiled is None:
    return result | dict(fits=False, hbm=lacking)
  memory, parsed = compiled.memory_analysis(), hlo.parse(text)
  return result | report(job, memory, parsed, state, batch)


def devices_of(target: slices.Slice) -> list:
  """Devices to compile for. Raises InputError if libtpu is not here."""
  if not importlib.util.find_spec('libtpu'):
    raise InputError(
      'compiling for a TPU needs its compiler: pip install libtpu'
    )
  from jax.experimental import topologies

  options: dict = dict(num_slices=target.slices) if target.slices > 1 else {}
  if target.generation == 'v4':  # else a chip is two devices
    options['chip_config_name'] = 'megacore'
  try:
    return topologies.get_topology_desc(
      platform='tpu', topology_name=target.name, **options
    ).devices
  except RuntimeError as error:
    raise InputError(
      f'libtpu does not support {target.name}: {error}'
    ) from None


def compile_step(lowered):
  """(compiled, the text of the scheduled program).

  The text is the TPU compiler's own dump: `compiled.as_text()` goes through
  jaxlib, and that of JAX 0.10 cannot read all programs of a newer libtpu. A
  program from JAX's compile cache comes without a dump.
  """
  jax.config.update('jax_enable_compilation_cache', False)
  with tempfile.TemporaryDirectory() as dump:
    compiled = lowered.compile(compiler_options=dict(xla_dump_to=dump))
    (text,) = pathlib.Path(dump).glob('*.after_codegen.txt')
    return compiled, text.read_text()


def description(job: Job) -> dict:
  """What was compiled."""
  step, target = job.config.train, job.slice
  return dict(
    caveat=CAVEAT,
    config=job.config.name,
    topology=target.name,
    slices=target.slices,
    chips=target.chips,
    devices=job.mesh.devices.size,
    device_kind=job.mesh.devices.flat[0].device_kind,
    mesh=dict(job.mesh.shape),
    batch=step.batch,
    micro_batches=step.micro_batches,
    seq_len=step.seq_len,
    remat=job.model.remat,
    documents=dict(collections.Counter(job.work.lengths)),
  )


def report(job: Job, memory, parsed: hlo.Program, state, batch) -> dict:
  """The report on a compiled program."""
  size = hbm.memory(memory, job.slice.chip)
  fits = hbm.fits(size['peak_gib'], job.slice.chip)
  lacks = {} if fits else dict(needed_gib=size['peak_gib'])
  names = contents.known_shapes(
    job.config, job.model, job.mesh, state['params']
  )
  known = calibration.CALIBRATION[job.slice.generation]
  real = static = modelled(job, parsed, known)
  if real.calls[schedule.FORWARD]:
    static = modelled(job, parsed, calibration.STATIC)
  return dict(
    fits=fits,
    hbm=size | lacks | dict(holds=contents.report(parsed, state, batch, names)),
    step=speed(job, real, static) | dict(calibration=known._asdict()),
    attention=attention(job),
    communication=communication(job, real),
  )


def modelled(
  job: Job, parsed: hlo.Program, pace: calibration.Calibration
) -> schedule.Schedule:
  """The modelled schedule, with the attention of the documents."""
  model, work = job.model, job.work
  each = 4 * work.block**2 * model.head_dim * model.heads
  forward, backward = calibration.kernel_seconds(
    job.slice.chip, [each * blocks for blocks in work.hops], pace
  )
  network = Network(job.mesh.devices.flatten().tolist())
  live = [blocks / work.pairs for blocks in work.hops]
  return schedule.schedule(
    parsed,
    schedule.Machine(
      job.slice.chip, network, forward, backward, live, work.special
    ),
  )  # fmt: skip


def speed(job: Job, real, static) -> dict:
  """Seconds, tokens and utilization of a step."""
  tokens = job.config.train.batch * job.config.train.seq_len
  peak = job.slice.chip.peak * job.mesh.devices.size
  rows = np.full(job.config.train.batch, job.config.train.seq_len)
  causal = [flops.within(rows, window) for window in (0, job.model.window)]
  frozen = lora.frozen_matmuls(llama.abstract(job.model), job.config.lora)
  batch = job.config.train.batch, job.config.train.seq_len
  seen = flops.count_memory_pairs(job.model, *batch)
  done = lambda squared_lengths, windowed: (
    flops.train_step(job.model, tokens, squared_lengths, seen, frozen, windowed)
    / peak
  )

  def figures(modelled):
    seconds = modelled.seconds
    return dict(
      seconds=seconds,
      tokens_per_second_per_chip=tokens / seconds / job.slice.chips,
      mfu_causal=done(*causal) / seconds,
      mfu_documents=done(job.work.squared_lengths, job.work.windowed) / seconds,
    )

  parts = sorted(real.parts.items(), key=lambda item: -item[1])
  return figures(real) | dict(parts_seconds=dict(parts), static=figures(static))


def attention(job: Job) -> dict:
  """FLOPs of attention in a step, over all devices."""
  model, work, step = job.model, job.work, job.config.train
  # Forward two matmuls of a block, backward five, and forward again if the
  # output was not saved.
  passes = 4 * (2 if model.remat == 'full' else 1) + 10
  unit = model.heads * model.head_dim * work.block**2
  remember, special = len(model.memory.layers), work.special
  layers = (model.layers - remember) * 2 * special.get('', 0.5)
  layers += remember * special.get('memory_layers', 1.0)
  layers -= work.layers_saved_by_windows(model)
  times = passes * layers
  if 'longce' in special:  # forward, for each turn of the windows
    turns = 1 + step.longce.short // step.longce.stride
    times += 4 * model.layers * turns * special['longce']
  # 6 a pair of tokens, and one more matmul of the backward pass.
  needed = flops.attention(
    model, step.batch * step.seq_len, work.squared_lengths,
    flops.count_memory_pairs(model, step.batch, step.seq_len), work.windowed,
  ) * 7 / 6  # fmt: skip
  executed = work.executed * unit * times
  busiest = sum(work.hops) * step.micro_batches
  members = job.mesh.devices.size
  return dict(
    executed_flops=executed,
    needed_flops=needed,
    executed_over_needed=executed / needed,
    busiest_over_mean=float(busiest * members / work.executed),
  )


def communication(job: Job, real: schedule.Schedule) -> dict:
  """Collectives by kind, their exposed time, and the ring.

  Messages between slices are counted, not timed.
  """
  records = real.collectives.values()
  kinds = collections.defaultdict(
    lambda: dict(asynchronous=0, synchronous=0, executed=0, gib=0.0)
  )
  for record in records:
    kind = kinds[record.kind]
    kind['asynchronous' if record.asynchronous else 'synchronous'] += 1
    kind['executed'] += record.count
    kind['gib'] += record.bytes / hbm.GIB
  return dict(
    exposed_seconds=real.exposed,
    exposed_share=real.exposed / real.seconds,
    collectives=dict(kinds),
    ring=ring(job, [r for r in records if r.ring]),
  )


def ring(job: Job, permutes) -> dict:
  """The messages of the ring: hidden time, and links of each hop."""
  hops = topology.hops(job.mesh.devices)
  seconds = sum(r.seconds for r in permutes)
  exposed = sum(r.exposed for r in permutes)
  return dict(
    permutes=len(permutes),
    executed=sum(r.count for r in permutes),
    all_asynchronous=all(r.asynchronous for r in permutes),
    over_attention=sum(r.over_attention for r in permutes),
    seconds=seconds,
    exposed_seconds=exposed,
    hidden_share=1 - exposed / seconds if seconds else 1.0,
    links_per_hop={str(k): v for k, v in hops.items()},
  )
