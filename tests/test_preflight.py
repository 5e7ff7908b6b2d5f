"""Start-up checks find what they look for."""

import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from configs import tiny
from longjax import slices
from longjax.errors import InputError
from longjax.parallel import processes
from longjax.train import preflight


def test_one_process_agrees_with_itself_and_links_compute(make_mesh):
  preflight.same_everywhere(tiny.get_config())
  for shape in ((2, 4), (8, 1), (1, 8)):
    preflight.check_collectives(make_mesh(*shape))


def test_a_neighbour_that_is_not_heard_is_found(make_mesh, monkeypatch):
  monkeypatch.setattr(jax.lax, 'ppermute', lambda x, *_: x)
  with pytest.raises(InputError, match='8 of 8 received a wrong number'):
    preflight.check_collectives(make_mesh(2, 4))


def test_processes_that_differ_are_shown_with_what_they_have(monkeypatch):
  monkeypatch.setattr(processes, 'allgather_text', lambda x: [x, 'other', x])
  with pytest.raises(
    InputError, match=r'config: abc on processes \[0, 2\]; other on .* \[1\]'
  ):
    processes.require_equal('config', 'abc')


def lowered(share, fails=''):
  """Of a step that needs this share of a v5e, or that its compiler refuses."""
  sizes = SimpleNamespace(
    argument_size_in_bytes=share * slices.CHIPS['v5e'].hbm - 200,
    temp_size_in_bytes=60, output_size_in_bytes=140, alias_size_in_bytes=100,
    generated_code_size_in_bytes=100, host_temp_size_in_bytes=0,
  )  # fmt: skip

  def compile_it():
    if fails:
      raise jax.errors.JaxRuntimeError(fails)
    return SimpleNamespace(memory_analysis=lambda: sizes)

  return SimpleNamespace(compile=compile_it)


def test_a_step_that_fills_a_chip_is_refused():
  ask = preflight.compiled
  assert ask(lowered(0.91), 'TPU v5 lite')
  assert ask(lowered(5.0), 'cpu')  # nothing is known of it
  with pytest.raises(InputError, match=r'14.65 GiB of the 15.75 GiB of a v5e'):
    ask(lowered(0.93), 'TPU v5 lite')
  said = 'RESOURCE_EXHAUSTED: Used 16.53G of 15.75G hbm'
  with pytest.raises(InputError, match=r'16.53 GiB of the 15.75 GiB of a v5e'):
    ask(lowered(1.05, said), 'TPU v5 lite')
  with pytest.raises(InputError, match='the TPU compiler refuses the step'):
    ask(lowered(0.1, 'INTERNAL: Mosaic failed'), 'TPU v5 lite')
  with pytest.raises(jax.errors.JaxRuntimeError):
    ask(lowered(0.1, 'INTERNAL: none of our chips'), 'cpu')


STATE = dict(w=jax.ShapeDtypeStruct((2**20,), jnp.float32))  # 4 MiB


def test_checkpoints_need_a_place_and_space(tmp_path, monkeypatch):
  place = epath.Path(tmp_path / 'checkpoints')
  preflight.storage(place, STATE, 3)
  assert list(tmp_path.rglob('*')) == [tmp_path / 'checkpoints']
  usage = shutil.disk_usage(tmp_path)._replace(free=2 * 2**22)
  monkeypatch.setattr(shutil, 'disk_usage', lambda _: usage)
  preflight.storage(place, STATE, 2)
  with pytest.raises(InputError, match=r'3 checkpoints need 0.01'):
    preflight.storage(place, STATE, 3)
  (tmp_path / 'file').write_text('')
  with pytest.raises(InputError, match='cannot be written there'):
    preflight.storage(epath.Path(tmp_path / 'file' / 'c'), STATE, 3)


@pytest.mark.parametrize('libtpu, fits', [
  ('0.0.50.1', True), ('0.0.50', True), ('0.0.5', False), ('0.0.52', False),
  (None, False),
])  # fmt: skip
def test_jax_and_libtpu_must_be_a_pair(libtpu, fits, monkeypatch):
  requires = ['numpy>=2', "libtpu==0.0.50.*; extra == 'tpu'"]
  monkeypatch.setattr(preflight.metadata, 'requires', lambda _: requires)
  have = {} if libtpu is None else dict(libtpu=libtpu)
  monkeypatch.setattr(preflight.provenance, 'versions', lambda: have)
  if fits:
    preflight.libtpu_pair()
  else:
    with pytest.raises(InputError, match=r'libtpu==0.0.50'):
      preflight.libtpu_pair()
