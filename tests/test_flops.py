"""FLOPs against hand-worked numbers."""

import dataclasses

import numpy as np

from configs import common
from longjax import crossbatch, flops, llama
from longjax.rope import Rope


def config(size):
  fields = common.model(size).to_dict()
  return llama.Llama(**fields | dict(rope=Rope(**fields['rope'])))


def test_llama3_8b_at_512k_needs_457_gflops_a_token():
  length = 524_288
  done = flops.train_step(config('llama3_8b'), length, length**2)
  np.testing.assert_allclose(done / length, 4.57e11, rtol=2e-3)


def test_memory_layers_cost_what_their_rows_see():
  """Two packs of rows that see 0, 2, 3 and 3 before them, cut at the first:
  0 + 1 + 2 + 3, then 0 + 2 + 3 + 3."""
  memory = crossbatch.Memory(
    (6, 12, 18), ((), (-1, -2), (-1, -2, -3), (-1, -2, -3))
  )
  plain = config('openllama_3b')
  model = dataclasses.replace(plain, memory=memory)
  seen = flops.count_memory_pairs(model, 8, 2048)
  assert seen == (6 + 8) * 2048**2
  more = flops.train_step(model, 8, 0, seen) - flops.train_step(plain, 8, 0)
  # Forward 4 per pair, head and dim, backward twice that; three layers.
  np.testing.assert_allclose(more, 12 * 3 * 32 * 100 * seen, rtol=1e-12)


def test_matmul_params_leave_out_the_look_up_and_the_norms():
  c = config('llama3_8b')
  everything = 8_030_261_248
  norms = (2 * c.layers + 1) * c.embed
  assert flops.matmul_params(c) == everything - norms - c.vocab * c.embed
