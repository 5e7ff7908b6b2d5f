"""FLOPs against hand-worked numbers."""

import numpy as np

from configs import common
from longjax import flops, llama
from longjax.rope import Rope


def config(size):
  fields = common.model(size).to_dict()
  return llama.Llama(**fields | dict(rope=Rope(**fields['rope'])))


def test_llama3_8b_at_512k_needs_457_gflops_a_token():
  length = 524_288
  done = flops.train_step(config('llama3_8b'), length, length**2)
  np.testing.assert_allclose(done / length, 4.57e11, rtol=2e-3)


def test_documents_cost_their_own_square():
  segments = np.array([[1, 1, 1, 2, 2, 0], [1, 2, 3, 4, 5, 5]])
  assert flops.squared_lengths(segments) == 9 + 4 + 4 + 4


def test_matmul_params_leave_out_the_look_up_and_the_norms():
  c = config('llama3_8b')
  everything = 8_030_261_248
  norms = (2 * c.layers + 1) * c.embed
  assert flops.matmul_params(c) == everything - norms - c.vocab * c.embed
