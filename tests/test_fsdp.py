"""Weights are gathered, and gradients scattered, one mesh axis at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_llama import packed, params_of, small
from test_train import tiny_config

from longjax import llama
from longjax.parallel import fsdp, sharding
from longjax.train import step as train_step


@pytest.mark.parametrize('data, seq, shape, cuts', [
  (4, 16, (4096, 32, 128), dict(seq=0, data=0)),  # q of Llama 3 8B
  (4, 16, (32, 128, 4096), dict(seq=0, data=1)),  # o
  (1, 8, (9, 64, 576), dict(seq=1)),  # o of SmolLM2
  (2, 4, (12, 5), dict(seq=0)),  # 2 divides neither 12 / 4 nor 5
  (2, 4, (6, 9), dict(data=0)),
  (2, 4, (7, 9), {}),
  (2, 4, (64,), {}),  # a norm
])  # fmt: skip
def test_each_mesh_axis_cuts_the_first_dim_that_it_divides(
  data, seq, shape, cuts
):
  axes = (jax.sharding.AxisType.Auto,) * 2
  mesh = jax.sharding.AbstractMesh((data, seq), sharding.AXES, axes)
  assert sharding.sharded_dims(shape, mesh) == cuts


# On 2 x 4 devices: cut over both axes, over `seq`, over `data`, over neither.
SHAPES = dict(
  both=dict(),
  seq=dict(embed=36, mlp=20, vocab=92, heads=5, kv_heads=5, head_dim=10),
  data=dict(embed=6, mlp=10, vocab=94, heads=3, kv_heads=3, head_dim=2),
  neither=dict(embed=7, mlp=9, vocab=95, heads=3, kv_heads=3, head_dim=2),
)


@pytest.mark.slow  # tests/test_train.py has both, whole steps
@pytest.mark.parametrize('shapes, rows, tied', [
  (shapes, rows, tied)
  for shapes in SHAPES for rows, tied in ((1, True), (2, False))
])  # fmt: skip
def test_gradients_are_those_of_one_device_however_weights_and_rows_divide(
  shapes, rows, tied, rng, make_mesh
):
  config = small(dict(tied=tied, layers=2, heads=8, kv_heads=2, head_dim=8)
                 | SHAPES[shapes])  # fmt: skip
  mesh, params = make_mesh(2, 4), params_of(config)
  batch = jax.tree.map(lambda x: x[:rows], packed(rng, config.vocab))

  def gradients(params, batch, mesh=None):
    loss = lambda p: (
      batch.weights * llama.nll(p, config, batch, mesh=mesh)
    ).sum()
    return jax.value_and_grad(loss)(params)

  want = jax.jit(gradients)(params, batch)
  params = jax.device_put(params, sharding.params(params, mesh))
  got = jax.jit(lambda p, b: gradients(p, b, mesh))(
    params, sharding.put(batch, mesh)
  )
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * np.abs(b).max())


def test_gradients_add_up_in_float32_over_devices(make_mesh):
  """256 + 1 is 256 in bfloat16."""
  mesh = make_mesh(2, 4)
  x = jnp.ones((2, 4), jnp.bfloat16).at[0, 0].set(256)
  scale = lambda x, w: x * w[0, 0]

  def loss(w):
    return fsdp.with_gathered_weights(
      scale, [x], [w], dtype=jnp.bfloat16, mesh=mesh
    ).sum()

  gradient = jax.jit(jax.grad(loss))(jnp.ones((8, 2)))
  assert gradient[0, 0] == 256 + 7


def test_sparse_cores_are_asked_of_a_tpu_and_by_choice():
  config = tiny_config(1, 1)
  assert not train_step.compiler_options(config, 'tpu')
  config.train.sparse_core = True
  assert not train_step.compiler_options(config, 'cpu')
  options = train_step.compiler_options(config, 'tpu')
  assert len(options) == 5 and {*options.values()} == {'true'}
