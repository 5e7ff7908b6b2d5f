"""Whether a config fits a TPU slice and how fast it would be, without one.

The real train step (train.build) is compiled for the devices of the slice;
nothing of the size of a model is allocated. The compiler itself judges the
memory; the time is that of the model in longjax/schedule.py.
"""

import collections
import itertools
import math
import re
import resource
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from longjax import flops, hlo, llama, schedule, sharding, tpu, train
from longjax.batch import Batch
from longjax.errors import InputError
from longjax.workload import Workload, workload

CAVEAT = 'compiled, not run on a TPU'
GIB = 2**30


class Job(NamedTuple):
  """A config that was checked against a topology."""

  config: Any  # ml_collections.ConfigDict
  model: llama.Llama
  topology: tpu.Slice
  chip: flops.Chip
  mesh: Mesh
  work: Workload


def check(config, topology: tpu.Slice, documents: str, log) -> llama.Llama:
  """The model; config.mesh is made to fit. Needs no TPU compiler.

  Raises:
    InputError: the config, the mesh or the documents cannot work.
  """
  fit_mesh(config, topology, log)
  model = check_batch(config)
  workload(config, documents)
  return model


def fit_mesh(config, topology: tpu.Slice, log):
  """Keeps mesh.seq and lets mesh.data take the rest of the devices."""
  devices, mesh = topology.chips * topology.per_chip, config.mesh
  if mesh.data * mesh.seq == devices and mesh.data % topology.slices == 0:
    return
  each = devices // topology.slices
  if mesh.seq < 1 or each % mesh.seq:
    near = min(
      (n for n in range(1, each + 1) if each % n == 0),
      key=lambda n: abs(n - mesh.seq),
    )
    raise InputError(
      f'{topology.name} has {each} devices a slice, of which mesh.seq '
      f'{mesh.seq} is no divisor; the nearest mesh is '
      f'--config.mesh.data={devices // near} --config.mesh.seq={near}'
    )
  log(
    f'mesh: data {devices // mesh.seq} x seq {mesh.seq}, as {topology.name} '
    f'has {devices} devices and the config asks for {mesh.data} x {mesh.seq}'
  )
  mesh.data = devices // mesh.seq


def check_batch(config) -> llama.Llama:
  """train.check, which here can say what would fit the mesh."""
  try:
    return train.check(config)
  except InputError as error:
    batch, data = config.train.batch, config.mesh.data
    parts = max(config.train.micro_batches, 1)
    if batch < 1 or batch % (parts * data) == 0:
      raise
    fits = [m for m in range(1, parts + 1) if batch % (m * data) == 0]
    way = f'micro_batches={max(fits)}' if fits else f'batch={parts * data}'
    raise InputError(f'{error}; --config.train.{way} would do') from None


def plan(config, topology: tpu.Slice, documents: str, log) -> dict:
  """Compiles the step of a checked config; everything there is to say.

  Returns:
    The report of docs/plan.md, json-like. `fits` is False if the compiler
    ran out of HBM; then there is no schedule to speak of.

  Raises:
    InputError: no TPU compiler here, or it refuses for another reason.
  """
  devices = topology.devices()
  chip = flops.CHIPS[topology.generation]
  mesh = make_mesh(devices, config.mesh.data, config.mesh.seq)
  job = Job(
    config, train.check(config), topology, chip, mesh,
    workload(config, documents),
  )  # fmt: skip
  log(f'compiling for {topology.name} ...')
  began, cpu = time.monotonic(), time.process_time()
  step, state = train.build(config, job.model, mesh)
  batch = abstract_batch(config, mesh)
  try:
    compiled = step.lower(state, batch).compile()
  except jax.errors.JaxRuntimeError as error:
    compiled, lacking = None, out_of_memory(error, chip)
  report = about(job) | dict(
    compile=dict(
      cpu_seconds=round(time.process_time() - cpu, 1),
      wall_seconds=round(time.monotonic() - began, 1),
      peak_rss_gib=round(rss(), 2),
    )
  )
  if compiled is None:
    return report | dict(fits=False, hbm=lacking)
  return report | measured(job, compiled, state, batch)


def make_mesh(devices, data: int, seq: int) -> Mesh:
  """`data` goes over slices first: no ring leaves one."""
  key = lambda d: getattr(d, 'slice_index', 0) or 0
  devices = np.array(sorted(devices, key=key))
  return Mesh(devices.reshape(data, seq), sharding.AXES)


def abstract_batch(config, mesh) -> Batch:
  """A batch of shapes, placed as `sharding.put` places one."""
  shape = (config.train.batch, config.train.seq_len)
  spec = NamedSharding(mesh, sharding.batch_spec(mesh, shape[0]))

  def array(field):
    dtype = jnp.float32 if field == 'weights' else jnp.int32
    return jax.ShapeDtypeStruct(shape, dtype, sharding=spec)

  return Batch(*(array(field) for field in Batch._fields))


def out_of_memory(error, chip: flops.Chip) -> dict:
  """What the compiler needs, from its message; else InputError."""
  text = ' '.join(str(error).split())
  found = re.search(r'HLO temporaries \(([\d.]+)([KMG])\)', text)
  found = found or re.search(r'Used ([\d.]+)([KMG]) of [\d.]+\w hbm', text)
  if 'RESOURCE_EXHAUSTED' not in text or not found:
    raise InputError(f'the TPU compiler refuses the step: {text[:400]}')
  needed = float(found[1]) / dict(K=2**20, M=2**10, G=1)[found[2]]
  return dict(needed_gib=needed, limit_gib=chip.hbm / GIB, message=text[:300])


def rss() -> float:
  """The most memory this process has had, GiB."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def about(job: Job) -> dict:
  """What was compiled."""
  train, topology = job.config.train, job.topology
  return dict(
    caveat=CAVEAT,
    config=job.config.name,
    topology=topology.name,
    slices=topology.slices,
    chips=topology.chips,
    devices=job.mesh.devices.size,
    device_kind=job.mesh.devices.flat[0].device_kind,
    mesh=dict(job.mesh.shape),
    batch=train.batch,
    micro_batches=train.micro_batches,
    seq_len=train.seq_len,
    remat=job.model.remat,
    documents=dict(collections.Counter(job.work.lengths)),
  )


def measured(job: Job, compiled, state, batch) -> dict:
  """The report on a program that fits."""
  program = hlo.parse(compiled.as_text())
  real = static = timed(job, program, schedule.CALIBRATION)
  if real.calls[schedule.FORWARD]:
    static = timed(job, program, 1)
  return dict(
    fits=True,
    hbm=memory(job, compiled.memory_analysis(), program, state, batch),
    step=speed(job, real, static),
    attention=attention(job),
    communication=communication(job, real),
  )


def timed(job: Job, program: hlo.Program, calibration) -> schedule.Schedule:
  """The modelled schedule, attention as the documents make it."""
  model, work = job.model, job.work
  each = 4 * work.block**2 * model.head_dim * model.heads
  forward, backward = schedule.kernel_seconds(
    job.chip, [each * blocks for blocks in work.hops], calibration
  )
  torus = tpu.Torus(job.topology, job.mesh.devices.flat)
  live = [blocks / work.pairs for blocks in work.hops]
  return schedule.schedule(
    program, schedule.Machine(job.chip, torus, forward, backward, live)
  )


def speed(job: Job, real, static) -> dict:
  """Seconds, tokens and utilization of a step."""
  tokens = job.config.train.batch * job.config.train.seq_len
  peak = job.chip.peak * job.mesh.devices.size
  causal = job.config.train.batch * job.config.train.seq_len**2
  done = lambda squares: flops.train_step(job.model, tokens, squares) / peak

  def figures(modelled):
    seconds = modelled.seconds
    return dict(
      seconds=seconds,
      tokens_per_second_per_chip=tokens / seconds / job.topology.chips,
      mfu_causal=done(causal) / seconds,
      mfu_documents=done(job.work.squares) / seconds,
    )

  parts = sorted(real.parts.items(), key=lambda item: -item[1])
  return figures(real) | dict(parts_seconds=dict(parts), static=figures(static))


def attention(job: Job) -> dict:
  """FLOPs of attention in a step, over all devices."""
  model, work = job.model, job.work
  # Forward two matmuls of a block, backward five, and forward again if the
  # output was not saved.
  passes = 4 * (2 if model.remat == 'full' else 1) + 10
  unit = model.layers * model.heads * model.head_dim * work.block**2
  executed, needed = work.executed * unit * passes, work.needed * unit * 14
  busiest = sum(work.hops) * job.config.train.micro_batches
  members = job.mesh.devices.size
  return dict(
    executed_flops=executed,
    needed_flops=needed,
    executed_over_needed=executed / needed,
    busiest_over_mean=busiest * members / work.executed,
  )


def communication(job: Job, real: schedule.Schedule) -> dict:
  """Collectives by kind, what of them is exposed, and the ring."""
  records = real.collectives.values()
  kinds = collections.defaultdict(
    lambda: dict(asynchronous=0, synchronous=0, executed=0, gib=0.0)
  )
  for record in records:
    kind = kinds[record.kind]
    kind['asynchronous' if record.asynchronous else 'synchronous'] += 1
    kind['executed'] += record.count
    kind['gib'] += record.bytes / GIB
  outside = [r for r in records if r.between_slices]
  return dict(
    exposed_seconds=real.exposed,
    exposed_share=real.exposed / real.seconds,
    collectives=dict(kinds),
    ring=ring(job, [r for r in records if r.kind == 'collective-permute']),
    between_slices_not_modelled=dict(
      count=sum(r.count for r in outside),
      gib=sum(r.bytes for r in outside) / GIB,
    ),
  )


def ring(job: Job, permutes) -> dict:
  """The permutes of the program: hidden or not, and how far they go."""
  torus = tpu.Torus(job.topology, job.mesh.devices.flat)
  hops = collections.Counter()
  for pairs in {r.pairs for r in permutes}:
    hops.update(torus.hops(pairs))
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
    links_per_hop={str(k): v for k, v in sorted(hops.items())},
  )


def memory(job: Job, stats, program: hlo.Program, state, batch) -> dict:
  """HBM of a device, as the compiler lays it out."""
  unaliased = stats.output_size_in_bytes - stats.alias_size_in_bytes
  code = stats.generated_code_size_in_bytes
  sizes = dict(
    arguments=stats.argument_size_in_bytes,
    temporaries=stats.temp_size_in_bytes,
    outputs=unaliased,
    code=code,
  )
  peak = sum(sizes.values())
  return {f'{k}_gib': v / GIB for k, v in sizes.items()} | dict(
    host_temporaries_gib=stats.host_temp_size_in_bytes / GIB,
    peak_gib=peak / GIB,
    limit_gib=job.chip.hbm / GIB,
    spare_share=1 - peak / job.chip.hbm,
    holds=[
      dict(what='params', gib=held(state['params'])),
      dict(what='optimizer moments', gib=held(state['opt'])),
      dict(what='batch', gib=held(batch)),
      *carried(job, program, state),
    ],
  )


def held(tree) -> float:
  """GiB of a tree of ShapeDtypeStructs on one device."""
  shapes = (
    (x.sharding.shard_shape(x.shape), x.dtype.itemsize)
    for x in jax.tree.leaves(tree)
  )
  return sum(math.prod(shape) * size for shape, size in shapes) / GIB


def carried(job: Job, program: hlo.Program, state) -> list[dict]:
  """The large buffers that live through the loop with the largest ones:
  what is saved for the backward pass, gradients, and copies of weights."""
  loops = [
    collections.Counter(
      a for a in i.arrays() if a.space == 0 and a.bytes > 2**20
    )
    for computation in program.computations.values()
    for i in computation
    if i.op == 'while'
  ]
  size = lambda loop: sum(a.bytes * n for a, n in loop.items())
  largest = max(loops, key=size, default=collections.Counter())
  names = known_shapes(job, state)
  buffers = sorted(largest.items(), key=lambda x: -x[0].bytes * x[1])
  return [
    dict(
      what=names.get(array.dims, 'temporary'),
      shape=f'{array.dtype}{list(array.dims)}',
      count=count,
      gib=array.bytes * count / GIB,
    )
    for array, count in buffers[:8]
  ]


def known_shapes(job: Job, state) -> dict[tuple, str]:
  """{dims on a device: what has them}."""
  model, train, mesh = job.model, job.config.train, job.mesh.shape
  rows = train.batch // train.micro_batches // mesh['data']
  local = (rows, train.seq_len // mesh['seq'])
  names = {}
  for path, leaf in jax.tree.leaves_with_path(state['params']):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    shape = leaf.sharding.shard_shape(leaf.shape)
    names[shape] = f'{name}: weight, moment or gradient'
  saved = dict(
    attn_out=(model.heads, model.head_dim),
    attn_lse=(model.heads,),
    layer_in=(model.embed,),
  )
  for name, rest in saved.items():
    names[model.layers, *local, *rest] = f'{name} of all layers, saved'
    names[*local, *rest] = f'{name.removeprefix("layer_")} of a layer'
  return names


def search(config, topology: tpu.Slice, documents: str, log) -> list[dict]:
  """Reports on the most promising meshes, remat policies and micro-batches.

  Args:
    config, topology, documents, log: as for `plan`.

  Returns:
    At most four, best first; those that do not fit last.
  """
  trials = candidates(config, topology, documents)
  if not trials:
    raise InputError(
      f'no mesh of {topology.name} divides train.batch {config.train.batch} '
      f'and train.seq_len {config.train.seq_len}'
    )
  reports = []
  for seconds, gib, trial in trials[:4]:
    mesh, train = trial.mesh, trial.train
    log(
      f'data {mesh.data} x seq {mesh.seq}, remat {trial.model.remat}, '
      f'micro_batches {train.micro_batches}: about {seconds:.3g} s and '
      f'{gib:.1f} GiB'
    )
    reports.append(plan(trial, topology, documents, log))
  late = lambda r: r['step']['seconds'] if r['fits'] else math.inf
  return sorted(reports, key=late)


def candidates(config, topology: tpu.Slice, documents: str) -> list:
  """[(seconds, GiB, config)], by the estimate, of what should fit; for each
  mesh and policy the fewest micro-batches that do."""
  chip = flops.CHIPS[topology.generation]
  found = []
  for seq, remat in itertools.product(ring_sizes(topology), llama.REMAT):
    for trial in meshes(config, topology, seq, remat):
      seconds, size = estimate(trial, topology, chip, documents)
      if size < 0.97 * chip.hbm:
        found.append((seconds, size / GIB, trial))
        break
  return sorted(found, key=lambda x: x[0])


def ring_sizes(topology: tpu.Slice) -> list[int]:
  """Products of whole axes of the torus, so that a ring has short hops."""
  axes = (*topology.dims, topology.per_chip)
  subsets = itertools.chain.from_iterable(
    itertools.combinations(axes, k) for k in range(len(axes) + 1)
  )
  return sorted({math.prod(s) for s in subsets})


def meshes(config, topology, seq: int, remat: str):
  """Valid configs with this ring, from few micro-batches to many."""
  data = topology.chips * topology.per_chip // seq
  rows = config.train.batch // data
  for parts in (m for m in range(1, rows + 1) if rows % m == 0):
    trial = config.copy_and_resolve_references()
    trial.mesh.update(data=data, seq=seq)
    trial.model.remat = remat
    trial.train.micro_batches = parts
    try:
      train.check(trial)
    except InputError:
      continue
    yield trial


def estimate(config, topology, chip, documents) -> tuple[float, float]:
  """(seconds, bytes of HBM) of a step, without compiling.

  Bytes: masters, moments and, with micro-batches, gradients, 4 each; what
  the policy saves; and 0.26 MB of working memory for a token of a device at
  a width of 4096. Seconds: the kernels, matmuls at 85 % of the peak, weights
  gathered twice and scattered once in each micro-batch.
  """
  model, work = train.llama_config(config), workload(config, documents)
  parts, devices = config.train.micro_batches, math.prod(config.mesh.values())
  tokens = config.train.batch * config.train.seq_len / devices
  count = sum(x.size for x in jax.tree.leaves(llama.abstract(model)))
  again = dict(none=0, full=4).get(model.remat, 2)
  each = 4 * work.block**2 * model.head_dim * model.heads
  forward, backward = schedule.kernel_seconds(
    chip, [each * sum(work.hops)], schedule.CALIBRATION
  )
  kernels = forward[0] * (2 if model.remat == 'full' else 1) + backward[0]
  matmul = flops.matmul_params(model) * tokens * (6 + again) / chip.peak / 0.85
  links = sum(2 if w else 1 for w in topology.wraps())
  weights = 3 * 2 * count / (links * chip.link)
  seconds = parts * (model.layers * kernels + weights) + matmul
  state = count / devices * (16 if parts > 1 else 12)
  width = model.heads * model.head_dim
  kept = model.embed * 2 + (
    0 if model.remat == 'full' else 2 * width + 4 * model.heads
  )
  if model.remat == 'none':
    kept += 2 * (4 * model.mlp + 6 * model.embed + 2 * width)
  if model.remat == 'offload':
    kept = 4 * model.heads
  working = 64 * model.embed
  here = tokens / parts * (model.layers * kept + working)
  return seconds, state + here
