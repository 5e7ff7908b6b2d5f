"""RoPE against numbers of the papers and against 50-digit arithmetic."""

import dataclasses
import json
import pathlib

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
  Rope(**YARN | dict(scaling='yarn_paper')),
  Rope(**YARN | dict(scaling='ntk_by_parts')),
]
UNEVEN = dict(scaling='longrope', factor=16.0, original_length=4096)


def name(r):
  return f'{r.scaling}-{r.base:g}-{r.factor:g}'


@pytest.mark.parametrize('r', EVERY, ids=name)
def test_cos_and_sin_equal_50_digit_arithmetic_at_any_position(r):
  positions = [0, 1, 4_095, 524_287, 2**31 - 1, -524_287, -(2**31)]
  positions = np.array([positions], np.int32)
  frequency, temperature = rope.frequencies(r, 64)
  cos, sin = rope.cos_sin(positions, r, 64)
  with mpmath.workdps(50):
    for i, p in enumerate(positions[0]):
      angles = [mpmath.mpf(int(p)) * mpmath.mpf(f) for f in frequency]
      want_cos = [float(mpmath.cos(a) * temperature) for a in angles]
      want_sin = [float(mpmath.sin(a) * temperature) for a in angles]
      np.testing.assert_allclose(cos[0, i], want_cos, rtol=0, atol=1e-6)
      np.testing.assert_allclose(sin[0, i], want_sin, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
  'base, first, middle, last, longer',
  [
    (1e4, 0.865964, 0.01, 1.154782e-4, (18, 0)),
    (5e5, 0.814617, 1.414214e-3, 2.455141e-6, (32, 18)),
    (8e6, 0.780080, 3.535534e-4, 1.602399e-7, (37, 26)),
    (1.28e8, 0.747007, 8.838835e-5, 1.045840e-8, (41, 32)),
  ],
)
def test_frequencies_of_the_recipes_bases(base, first, middle, last, longer):
  """And how many waves are longer than windows of 4K and 64K tokens."""
  frequency, temperature = rope.frequencies(Rope(base=base), 128)
  got = [frequency[1], frequency[32], frequency[63]]
  np.testing.assert_allclose(got, [first, middle, last], rtol=1e-6)
  waves = 2 * np.pi / frequency
  assert ((waves > 4096).sum(), (waves > 65_536).sum()) == longer
  assert temperature == 1


@pytest.mark.parametrize('factor, dim, kept, divided, some', [
  # Llama 3.1 of 8B, Llama 3.2 of 1B.
  (8, 128, 29, 29, {29: 2.166571e-3, 34: 1.785078e-4, 63: 3.068926e-7}),
  (32, 64, 15, 14, {15: 1.29055e-3}),
])  # fmt: skip
def test_llama3_keeps_mixes_and_divides_pairs(factor, dim, kept, divided, some):
  frequency, _ = rope.frequencies(Rope(**LLAMA31 | dict(factor=factor)), dim)
  plain, _ = rope.frequencies(Rope(base=5e5), dim)
  assert (frequency == plain).sum() == kept
  assert np.isclose(frequency, plain / factor, 1e-12).sum() == divided
  np.testing.assert_allclose(
    frequency[list(some)], list(some.values()), rtol=1e-5
  )


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


def test_yarn_s_paper_ramps_in_turns_and_its_code_in_pairs():
  """Both keep what turns 32 times and interpolate what turns once; between
  them the code interpolates more."""
  plain, _ = rope.frequencies(Rope(), 128)
  code, same = rope.frequencies(Rope(**YARN), 128)
  paper, temperature = rope.frequencies(
    Rope(**YARN | dict(scaling='yarn_paper')), 128
  )
  turns = 4096 * plain / (2 * np.pi)
  np.testing.assert_array_equal(paper[turns >= 32], plain[turns >= 32])
  np.testing.assert_array_equal(paper[turns <= 1], plain[turns <= 1] / 16)
  # By hand: pair 30 turns 4096 * 1e4 ** -(60 / 128) / 2 pi = 8.6926 times,
  # so it keeps 7.6926 / 31 of itself.
  kept = 7.6926 / 31
  np.testing.assert_allclose(
    paper[30], plain[30] * (kept + (1 - kept) / 16), rtol=1e-4
  )
  assert (code[25:40] > paper[25:40]).all()
  assert temperature == same


GOLDEN = json.loads(
  (pathlib.Path(__file__).parent / 'golden' / 'recipes.json').read_text()
)['longrope']
LONGROPE = Rope(
  base=GOLDEN['base'], scaling='longrope', factor=GOLDEN['factor'],
  original_length=GOLDEN['original'], divisors=GOLDEN['factors'],
)  # fmt: skip


def test_longrope_keeps_its_first_positions_as_its_code_does():
  recipe = dataclasses.replace(LONGROPE, unscaled=GOLDEN['first'])
  length = len(GOLDEN['cos'])
  got = rope.cos_sin(np.arange(length)[None], recipe, GOLDEN['dim'])
  for values, name in zip(got, ('cos', 'sin')):
    np.testing.assert_allclose(values[0], GOLDEN[name], rtol=0, atol=2e-6)


def test_longrope_has_two_lists_as_in_transformers():
  """By the largest position of a row, or by a length that is known."""
  recipe = dataclasses.replace(LONGROPE, short_divisors=GOLDEN['factors'][::-1])
  ends = [int(n) for n in GOLDEN['transformers']]
  rows = np.stack([np.arange(n - 8, n) for n in ends])  # 16 and 17 tokens
  got = rope.cos_sin(rows, recipe, GOLDEN['dim'])
  for i, (n, (want, scale)) in enumerate(GOLDEN['transformers'].items()):
    fixed = recipe.at_length(int(n))
    frequency, factor = rope.frequencies(fixed, GOLDEN['dim'])
    np.testing.assert_allclose(frequency, want, rtol=1e-6)
    assert factor == pytest.approx(scale)
    for x, y in zip(got, rope.cos_sin(rows[i : i + 1], fixed, GOLDEN['dim'])):
      np.testing.assert_array_equal(x[i], y[0])


def test_longrope_divides_each_pair_by_its_own():
  divisors = tuple(np.linspace(1, 32, 32))
  frequency, temperature = rope.frequencies(
    Rope(**UNEVEN, divisors=divisors), 64
  )
  plain, _ = rope.frequencies(Rope(), 64)
  np.testing.assert_allclose(frequency * divisors, plain, rtol=1e-15)
  # ln 16 / ln 4096 is a third.
  np.testing.assert_allclose(temperature, 1.1547005, rtol=1e-7)
  # Phi-3's window of 4,096 by 32: sqrt(1 + 5 / 12).
  phi = Rope(**UNEVEN | dict(factor=32.0), divisors=divisors)
  np.testing.assert_allclose(rope.temperature(phi), 1.1902381, rtol=1e-7)


def test_a_pair_that_turns_more_than_once_a_position_is_exact():
  r = Rope(**UNEVEN, divisors=(0.05, 0.1))
  cos, sin = rope.cos_sin(np.array([[1, 7]]), r, 4)
  # 20 rad and base ** -(1 / 2) / 0.1 = 0.1 rad a position.
  angle = np.array([[20, 0.1], [140, 0.7]])
  grown = np.sqrt(4 / 3)
  np.testing.assert_allclose(cos[0], grown * np.cos(angle), rtol=0, atol=1e-6)
  np.testing.assert_allclose(sin[0], grown * np.sin(angle), rtol=0, atol=1e-6)


def test_ntk_needs_two_pairs():
  with pytest.raises(ValueError, match='head_dim >= 4'):
    rope.frequencies(Rope(scaling='ntk', factor=2.0), 2)


DISTANCES = [0, 1, 10, 100, 1000, 4096, 8192, 16_384, 30_000]


@pytest.mark.parametrize('r, want', [
  (
    Rope(),
    [11.314, 10.977, 7.570, 5.399, 1.799, -0.598, 0.282, -1.610, -1.058],
  ),
  (
    Rope(scaling='linear', factor=8.0),
    [11.314, 11.308, 10.801, 7.490, 4.724, 2.483, 2.313, 1.350, 0.439],
  ),
  (
    Rope(base=5e5),
    [11.314, 11.064, 8.646, 6.913, 5.569, 4.330, 3.003, 1.509, 0.370],
  ),
])  # fmt: skip
def test_scores_of_ones_by_distance_are_llama_2_long_s_figure_4(r, want):
  ones = np.ones((1, len(DISTANCES), 1, 128), np.float32)
  at = rope.cos_sin(np.array([DISTANCES]), r, 128)
  zero = rope.cos_sin(np.zeros((1, len(DISTANCES)), np.int32), r, 128)
  scores = (rope.rotate(ones, *at) * rope.rotate(ones, *zero)).sum(-1)
  np.testing.assert_allclose(scores[0, :, 0] / np.sqrt(128), want, atol=6e-4)


@pytest.mark.parametrize('r, want', [
  (Rope(), 0.109383),
  (Rope(scaling='linear', factor=4.0), 0.029025),
  (Rope(scaling='linear', factor=8.0), 0.014556),
  (Rope(base=5e5), 0.078816),
])  # fmt: skip
def test_sine_between_neighbours_is_theorem_1_of_llama_2_long(r, want):
  """(2/d) sum sin(theta): how far apart consecutive positions lie."""
  frequency, _ = rope.frequencies(r, 128)
  np.testing.assert_allclose(np.sin(frequency).mean(), want, atol=5e-7)


def test_xpos_decays_by_its_formula():
  """z_0, z_1 and z_63 of the formula, arXiv:2212.10554, over `xpos` tokens."""
  r = Rope(base=5e5, xpos=512.0)
  (cos, sin), (k_cos, k_sin) = rope.rotations(np.array([[0, 512]]), r, 128)
  decay = np.hypot(cos, sin)[0]
  np.testing.assert_allclose(decay[0], 1, rtol=1e-6)
  np.testing.assert_allclose(
    decay[1, [0, 1, 63]], [0.285714, 0.296875, 0.988839], rtol=1e-5
  )
  np.testing.assert_allclose(np.hypot(k_cos, k_sin)[0] * decay, 1, rtol=1e-6)


@pytest.mark.parametrize('scaling', [
  'linear', 'ntk', 'ntk_by_parts', 'yarn', 'yarn_paper', 'yarn_revised',
  'llama3',
])  # fmt: skip
def test_a_window_that_grows_by_1_is_plain_rope(scaling):
  same = Rope(scaling=scaling, factor=1.0, original_length=4096)
  got, temperature = rope.frequencies(same, 128)
  want, _ = rope.frequencies(Rope(), 128)
  np.testing.assert_allclose(got, want, rtol=1e-15)
  assert temperature == 1


@pytest.mark.parametrize('xpos, shifts', [
  (0.0, (7, 131_071, 523_287)), (2048.0, (7, 31_000)),
])  # fmt: skip
def test_scores_depend_on_the_distance_only(xpos, shifts, rng):
  q, k = rng.standard_normal((2, 1, 1, 1, 64)).astype(np.float32)
  r = Rope(base=5e5, xpos=xpos)

  def score(m, n):
    of_query, _ = rope.rotations(np.array([[m]]), r, 64)
    _, of_key = rope.rotations(np.array([[n]]), r, 64)
    return float((rope.rotate(q, *of_query) * rope.rotate(k, *of_key)).sum())

  want = score(1000, 0)
  for shift in shifts:
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
    (dict(factor=8.0), 'a scaling .*factor 8'),
    (dict(base=0.5), 'base > 1'),
    (dict(base=float('nan')), 'finite'),
    (dict(base=5e5, factor=float('inf')), 'finite'),
    (dict(factor=0.5, scaling='linear'), 'factor .*>= 1'),
    (dict(scaling='longrope', factor=2.0, original_length=64), 'divisors'),
    (dict(divisors=(1.0, 2.0)), 'divisors'),
    (dict(**UNEVEN, divisors=(1.0, float('nan'))), 'finite'),
    (dict(xpos=-1.0), 'xpos'),
    (dict(xpos=float('nan')), 'finite'),
    (dict(scaling='yarn_paper', factor=2.0), 'original_length'),
  ],
)
def test_an_invalid_rope_is_refused(fields, says):
  with pytest.raises(ValueError, match=says):
    Rope(**fields)
