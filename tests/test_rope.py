"""RoPE against numbers of the papers and against 50-digit arithmetic."""

import mpmath
import numpy as np
import pytest

from longjax import rope
from longjax.rope import Rope

LLAMA31 = dict(base=5e5, scaling='llama3', factor=8.0, original_length=8192)
YARN = dict(base=1e4, scaling='yarn', factor=16.0, original_length=4096)
EVERY = [
  Rope(),
  Rope(base=5e5),
  Rope(base=1.28e8),
  Rope(scaling='linear', factor=8.0),
  Rope(scaling='ntk', factor=8.0),
  Rope(**YARN),
  Rope(**LLAMA31),
  Rope(**LLAMA31 | dict(factor=32.0)),
  Rope(scaling='nope'),
]


def name(r):
  return f'{r.scaling}-{r.base:g}-{r.factor:g}'


@pytest.mark.parametrize('r', EVERY, ids=name)
@pytest.mark.parametrize('dim', [64, 128])
def test_cos_and_sin_equal_50_digit_arithmetic_at_any_position(r, dim):
  positions = np.array([[0, 1, 4_095, 131_071, 524_287, 2**31 - 1]], np.int32)
  frequency, temperature = rope.frequencies(r, dim)
  cos, sin = rope.cos_sin(positions, r, dim)
  with mpmath.workdps(50):
    for i, p in enumerate(positions[0]):
      angles = [mpmath.mpf(int(p)) * mpmath.mpf(f) for f in frequency]
      want_cos = [float(mpmath.cos(a) * temperature) for a in angles]
      want_sin = [float(mpmath.sin(a) * temperature) for a in angles]
      np.testing.assert_allclose(cos[0, i], want_cos, rtol=0, atol=1e-6)
      np.testing.assert_allclose(sin[0, i], want_sin, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
  'base, first, middle, last, longest',
  [
    (1e4, 0.865964, 0.01, 1.154782e-4, 54_410),
    (5e5, 0.814617, 1.414214e-3, 2.455141e-6, 2.559e6),
    (8e6, 0.780080, 3.535534e-4, 1.602399e-7, 3.921e7),
    (1.28e8, 0.747007, 8.838835e-5, 1.045840e-8, 6.008e8),
  ],
)
def test_frequencies_of_the_recipes_bases(base, first, middle, last, longest):
  frequency, temperature = rope.frequencies(Rope(base=base), 128)
  got = [frequency[1], frequency[32], frequency[63], 2 * np.pi / frequency[63]]
  np.testing.assert_allclose(got, [first, middle, last, longest], rtol=3e-4)
  np.testing.assert_allclose(got[:3], [first, middle, last], rtol=1e-6)
  assert temperature == 1


def test_llama31_keeps_mixes_and_divides_29_6_and_29_pairs():
  frequency, _ = rope.frequencies(Rope(**LLAMA31), 128)
  plain, _ = rope.frequencies(Rope(base=5e5), 128)
  kept, divided = frequency == plain, np.isclose(frequency, plain / 8, 1e-12)
  assert (kept.sum(), divided.sum()) == (29, 29)
  np.testing.assert_allclose(
    frequency[[29, 34, 63]], [2.166571e-3, 1.785078e-4, 3.068926e-7], rtol=1e-6
  )


def test_llama32_keeps_mixes_and_divides_15_3_and_14_pairs():
  frequency, _ = rope.frequencies(Rope(**LLAMA31 | dict(factor=32.0)), 64)
  plain, _ = rope.frequencies(Rope(base=5e5), 64)
  kept, divided = frequency == plain, np.isclose(frequency, plain / 32, 1e-12)
  assert (kept.sum(), divided.sum()) == (15, 14)
  np.testing.assert_allclose(frequency[15], 1.29055e-3, rtol=1e-5)


@pytest.mark.parametrize(
  'base, length, ramp',
  [(1e4, 4096, (20, 46)), (1e4, 2048, (16, 41)), (5e5, 8192, (18, 35))],
)
def test_yarn_ramps_between_the_pairs_of_its_code(base, length, ramp):
  r = Rope(base=base, scaling='yarn', factor=16.0, original_length=length)
  assert rope.yarn_range(r, 128) == ramp


def test_yarn_frequencies_and_temperature():
  frequency, temperature = rope.frequencies(Rope(**YARN), 128)
  want = {0: 1.0, 20: 0.0562341, 21: 0.0469409, 33: 0.00460044,
          45: 1.51772e-4, 46: 8.33451e-5, 63: 7.21739e-6}  # fmt: skip
  np.testing.assert_allclose(
    frequency[list(want)], list(want.values()), rtol=1e-5
  )
  np.testing.assert_allclose(temperature, 1.277259, rtol=1e-6)


@pytest.mark.parametrize(
  'base, factor, want',
  [(1e4, 4, 40_889.9), (1e4, 8, 82_684.6), (5e5, 8, 4.13423e6)],
)
def test_ntk_is_a_larger_base(base, factor, want):
  frequency, _ = rope.frequencies(
    Rope(base=base, scaling='ntk', factor=factor), 128
  )
  np.testing.assert_allclose(
    frequency, rope.frequencies(Rope(base=want), 128)[0], rtol=1e-5
  )


def test_interpolation_at_a_multiple_is_the_plain_angle():
  plain = rope.cos_sin(np.array([[100]]), Rope(), 64)
  stretched = rope.cos_sin(
    np.array([[800]]), Rope(scaling='linear', factor=8.0), 64
  )
  np.testing.assert_allclose(plain, stretched, atol=5e-7)


def test_scores_depend_on_the_distance_only(rng):
  q, k = rng.standard_normal((2, 1, 1, 1, 64)).astype(np.float32)

  def score(m, n):
    at = [rope.cos_sin(np.array([[p]]), Rope(base=5e5), 64) for p in (m, n)]
    return float((rope.rotate(q, *at[0]) * rope.rotate(k, *at[1])).sum())

  want = score(1000, 0)
  for shift in (7, 131_071, 523_287):
    np.testing.assert_allclose(score(1000 + shift, shift), want, atol=2e-5)


def test_pairs_are_dims_half_a_head_apart():
  x = np.zeros((1, 1, 1, 4), np.float32)
  x[0, 0, 0] = [1, 0, 0, 2]  # pairs (1, 0) and (0, 2)
  cos, sin = np.array([[[0.0, 0.6]]]), np.array([[[1.0, 0.8]]])
  got = rope.rotate(x, np.float32(cos), np.float32(sin))[0, 0, 0]
  np.testing.assert_allclose(got, [0, -1.6, 1, 1.2], atol=1e-7)


def test_other_names_mean_the_same():
  pi = Rope(scaling='PI', factor=2.0)
  assert pi == Rope(scaling='linear', factor=2.0)
  assert Rope(scaling='abf', base=5e5) == Rope(base=5e5)


@pytest.mark.parametrize(
  'fields, says',
  [
    (dict(scaling='yarm'), 'yarm'),
    (dict(scaling='yarn', factor=2.0), 'original_length'),
    (dict(factor=8.0), 'name a scaling'),
    (dict(base=0.5), 'base > 1'),
  ],
)
def test_a_rope_that_cannot_be_meant_is_refused(fields, says):
  with pytest.raises(ValueError, match=says):
    Rope(**fields)
