"""Compiles the splash attention kernels of tokamax, for kernel_cycles.py."""

from typing import NamedTuple


class Tiles(NamedTuple):
  """Sizes and options of one pass; a block of keys is of one query head."""

  rows: int  # queries of a block
  keys: int
  step: int  # keys of one matmul
  lp: bool = False  # the compiler's LP scheduler; forward
  seq_minor: bool = False  # K as [dim, keys]; forward


_PLAIN, _LP = Tiles(2048, 2048, 512), Tiles(2048, 2048, 512, True, True)
_LONG = Tiles(2048, 4096, 512)
# Forward and backward by generation: those of tokamax's own tuning data on the
# chips; v5p of CANDIDATES, which has them too.
TILES = dict(
  v5e=(_PLAIN._replace(step=256), _LONG),
  v5p=(_PLAIN._replace(step=256), _LONG),
  v6e=(_LP, _PLAIN),
  tpu7x=(_LP, _PLAIN),
)
CANDIDATES = (
  (_PLAIN, _PLAIN),
  (_LP, _LONG),
  (_PLAIN._replace(step=256), Tiles(1024, 2048, 512)),
  (_LP._replace(step=256), Tiles(1024, 1024, 512)),
)
# Names of the kernels in a dump.
NAMES = dict(forward='splash_mha_fwd_no_res', backward='splash_mha_dkv')


def compile_kernels(topology, shape, forward, backward):
  """Compiles both passes of one device's share of causal attention."""
  import jax
  import jax.numpy as jnp
  import numpy as np
  from jax.experimental import topologies
  from jax.sharding import Mesh, NamedSharding
  from jax.sharding import PartitionSpec as P
  from tokamax._src.ops.experimental.tpu.splash_attention import (
    splash_attention_kernel as splash,
  )
  from tokamax._src.ops.experimental.tpu.splash_attention import (
    splash_attention_mask as masks,
  )

  forward, backward = Tiles(*forward), Tiles(*backward)
  whole_chips = dict(chip_config_name='megacore') if 'v4' in topology else {}
  devices = topologies.get_topology_desc(
    platform='tpu', topology_name=topology, **whole_chips
  ).devices
  mesh = Mesh(np.array(devices), ('data',))
  seq, heads, kv_heads, dim = shape
  array = lambda heads: jax.ShapeDtypeStruct(
    (len(devices), heads, seq, dim), jnp.bfloat16,
    sharding=NamedSharding(mesh, P('data')),
  )  # fmt: skip
  layout = splash.QKVLayout
  fastest = splash.SplashConfig(
    block_q=forward.rows, block_kv=forward.keys, block_kv_compute=forward.step,
    use_experimental_scheduler=forward.lp,
    k_layout=layout.SEQ_MINOR if forward.seq_minor else layout.HEAD_DIM_MINOR,
  )  # fmt: skip
  # Its forward pass is not read. dq in slots, as long rows need it.
  with_grad = splash.SplashConfig(
    block_q=256, block_kv=256, block_q_dkv=backward.rows,
    block_kv_dkv=backward.keys, block_kv_dkv_compute=backward.step,
    dq_reduction_steps=3,
  )  # fmt: skip
  causal = masks.CausalMask((seq, seq))
  kernels = [
    splash.make_splash_mha(causal, config=config, q_seq_shards=1)
    for config in (fastest, with_grad)
  ]

  def step(q, k, v, dout):
    out = kernels[0](q, k, v)
    return out, jax.vjp(kernels[1], q, k, v)[1](dout)

  run = jax.shard_map(
    jax.vmap(step), mesh=mesh, in_specs=P('data'), out_specs=P('data'),
    check_vma=False,
  )  # fmt: skip
  q, k = array(heads), array(kv_heads)
  jax.jit(run).lower(q, k, k, q).compile(
    {'xla_tpu_scoped_vmem_limit_kib': str(60 * 2**10)}
  )
