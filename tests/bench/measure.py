"""What attention costs, forward and backward: shared by the benchmarks."""

import time
from typing import NamedTuple

import jax
import numpy as np

RUNS = 3


class Cost(NamedTuple):
  """The least of RUNS; CPU time depends least on other processes."""

  cpu: float  # seconds, all threads
  wall: float  # seconds
  temporaries: float  # MiB on a device

  def __str__(self):
    return (
      f'{self.cpu:7.2f} CPU s {self.wall:7.2f} s {self.temporaries:7.1f} MiB'
    )

  def beside(self, base: 'Cost') -> str:
    """How many times less than `base`."""
    return ' '.join(f'{b / x:6.2f}x' for x, b in zip(self, base))


def inputs(seq, heads, kv_heads, dim):
  """q, k, v and the gradient of the output, [1, seq, heads, dim]."""
  rng = np.random.default_rng(0)
  return [
    rng.standard_normal((1, seq, n, dim)).astype(np.float32)
    for n in (heads, kv_heads, kv_heads, heads)
  ]


def compiled(attend, arguments):
  """(q, k, v, dout) -> (out, dq, dk, dv)."""

  def run(q, k, v, dout):
    out, vjp = jax.vjp(attend, q, k, v)
    return out, *vjp(dout)

  return jax.jit(run).lower(*arguments).compile()


def cost(attend, arguments) -> Cost:
  """Of attend(q, k, v) and its gradients."""
  run = compiled(attend, arguments)
  clocks = lambda: np.array([time.process_time(), time.perf_counter()])
  spent = []
  for _ in range(RUNS):
    began = clocks()
    jax.block_until_ready(run(*arguments))
    spent.append(clocks() - began)
  temporaries = run.memory_analysis().temp_size_in_bytes / 2**20
  return Cost(*np.min(spent, axis=0), temporaries)
