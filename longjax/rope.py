"""Rotary position embedding: frequency vectors, their scalings, the rotation.

A recipe changes one vector of frequencies, made once on the host in float64.
Everything else here is exact arithmetic: the angle `position x frequency` is
taken modulo one turn in 64-bit integers before it becomes a float32, since a
float32 product is off by up to 0.03 rad at position 524,287.

Pairs are half split, as in Hugging Face: dim i turns with dim i + head_dim/2.
To add a scaling: SCALINGS, `temperature` if it has one, NEEDS_ORIGINAL_LENGTH;
with a field, also class Rope, its `_rules`, and `model.rope` in config.py. Only
what transformers has goes into ROPES in weights/config_json.py: any other is
exported as divisors of LongRoPE, and what is no divisor must be refused there.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from longjax import errors

# Other names in use for the same thing; `base` alone is RoPE ABF.
ALIASES = {
  'default': 'none',
  'abf': 'none',
  'pi': 'linear',
  'llama31': 'llama3',
  'llama3.1': 'llama3',
}

# Positions reach 50 times `xpos`: the least z is 2 / 7, and (7 / 2) ** 70 is
# near the largest float32.
XPOS_REACH = 50


@dataclasses.dataclass(frozen=True)
class Rope:
  """Which frequencies rotate the queries and keys.

  `none` is RoPE (arXiv:2104.09864), with a raised `base` RoPE ABF
  (arXiv:2309.16039, section 4.1). `linear` is Position Interpolation
  (arXiv:2306.15595) and SuperHOT. `nope` does not rotate (arXiv:2305.19466).
  With `xpos` any of them also decays with the distance.
  """

  base: float = 10_000.0
  scaling: str = 'none'  # a key of SCALINGS
  factor: float = 1.0  # new window / trained window
  # Trained window in tokens: for NEEDS_ORIGINAL_LENGTH and query_beta.
  original_length: int = 0
  low_freq_factor: float = 1.0  # llama3
  high_freq_factor: float = 4.0  # llama3
  beta_fast: float = 32.0  # yarn: turns in the window, kept above
  beta_slow: float = 1.0  # yarn: turns in the window, interpolated below
  # yarn: the factor on cos and sin; 0 is the paper's. Or from `mscale` and
  # `mscale_all_dim`, as DeepSeek's and Mistral's models give it.
  attention_factor: float = 0.0
  mscale: float = 0.0
  mscale_all_dim: float = 0.0
  truncate: bool = True  # yarn: the ramp's ends are whole pairs
  # Queries at position p are multiplied by
  # 1 + query_beta log(1 + floor(p / original_length)), as in Llama 4 and
  # Ministral 3 (Scalable-Softmax, arXiv:2501.19399).
  query_beta: float = 0.0
  divisors: tuple = ()  # longrope: of the frequency of each pair
  # longrope: those of rows within original_length; () is `divisors`.
  short_divisors: tuple = ()
  unscaled: int = 0  # longrope: the first so many positions are as in RoPE
  xpos: float = 0.0  # tokens over which xPos decays once; 0 is not at all

  def __post_init__(self):
    scaling = str(self.scaling).lower()
    object.__setattr__(self, 'scaling', ALIASES.get(scaling, scaling))
    for field in ('divisors', 'short_divisors'):
      given = tuple(map(float, getattr(self, field)))
      object.__setattr__(self, field, given)
    errors.check_choice('rope scaling', self.scaling, SCALINGS)
    for holds, rule in _rules(self):
      if not holds:
        fields = [f.name for f in dataclasses.fields(self) if f.name in rule]
        given = ', '.join(f'{f} {getattr(self, f)}' for f in fields)
        raise ValueError(f'rope needs {rule}; got {given or self}')

  def unrotated(self) -> 'Rope':
    """That of a layer without RoPE: it rotates by 0."""
    return Rope(
      scaling='nope', original_length=self.original_length,
      query_beta=self.query_beta,
    )  # fmt: skip

  def at_length(self, tokens: int) -> 'Rope':
    """That of rows of so many tokens: one list of divisors for all."""
    short = self.short_divisors and tokens <= self.original_length
    divisors = self.short_divisors if short else self.divisors
    return dataclasses.replace(self, divisors=divisors, short_divisors=())


def _rules(rope: Rope) -> tuple[tuple[bool, str], ...]:
  """(whether it holds, the rule) of what fields must be together."""
  numbers = [x for x in dataclasses.astuple(rope) if isinstance(x, float)]
  longrope, unscaled = rope.scaling == 'longrope', ('none', 'nope')
  yarn_only = rope.attention_factor, rope.mscale, rope.mscale_all_dim
  return (
    (all(map(math.isfinite, (*numbers, *rope.divisors))), 'finite numbers'),
    (rope.base > 1, 'base > 1'),
    (rope.factor >= 1, 'factor (new window / trained window) >= 1'),
    (
      rope.factor == 1 or rope.scaling not in unscaled,
      'a scaling (linear, ntk, yarn, llama3 ...) that reads the factor',
    ),
    (
      rope.low_freq_factor < rope.high_freq_factor,
      'low_freq_factor < high_freq_factor',
    ),
    (0 < rope.beta_slow < rope.beta_fast, '0 < beta_slow < beta_fast'),
    (rope.xpos >= 0, 'xpos >= 0 tokens'),
    (
      rope.original_length >= 2
      or not (rope.scaling in NEEDS_ORIGINAL_LENGTH or rope.query_beta),
      'original_length, the trained window in tokens, for this scaling and '
      'query_beta',
    ),
    (
      min(yarn_only, default=0) >= 0 and rope.query_beta >= 0,
      'attention_factor, mscale, mscale_all_dim and query_beta >= 0',
    ),
    (
      rope.scaling == 'yarn' or not (any(yarn_only) or not rope.truncate),
      'yarn for attention_factor, mscale, mscale_all_dim and truncate',
    ),
    (
      bool(rope.mscale) == bool(rope.mscale_all_dim)
      and not (rope.mscale and rope.attention_factor),
      'both of mscale and mscale_all_dim, or attention_factor, or neither',
    ),
    (
      longrope == bool(rope.divisors) and all(x > 0 for x in rope.divisors),
      'positive divisors, one for each pair, with longrope and only there',
    ),
    (
      (longrope and rope.unscaled >= 0)
      or not (rope.unscaled or rope.short_divisors),
      'longrope for unscaled and short_divisors',
    ),
    (
      len(rope.short_divisors) in (0, len(rope.divisors))
      and all(0 < x < math.inf for x in rope.short_divisors),
      'as many short_divisors as divisors, positive',
    ),
  )


def _plain(rope, head_dim):
  """base^(-2j/d), j = 0 .. d/2 - 1."""
  return rope.base ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)


def _linear(rope, head_dim):
  """Position Interpolation, arXiv:2306.15595, eq. 4."""
  return _plain(rope, head_dim) / rope.factor


def _ntk(rope, head_dim):
  """NTK-aware: base * s^(d/(d-2)), arXiv:2309.00071, section 3.1."""
  if head_dim < 4:
    raise ValueError(f'rope scaling ntk needs head_dim >= 4, got {head_dim}')
  base = rope.base * rope.factor ** (head_dim / (head_dim - 2))
  return _plain(dataclasses.replace(rope, base=base), head_dim)


def yarn_range(rope, head_dim):
  """First and last pair of YaRN's ramp, as its code rounds them; not whole
  without `truncate`."""

  def pair(turns):  # the pair that turns so often over the trained window
    ratio = rope.original_length / (turns * 2 * math.pi)
    return head_dim * math.log(ratio) / (2 * math.log(rope.base))

  low, high = pair(rope.beta_fast), pair(rope.beta_slow)
  if rope.truncate:
    low, high = math.floor(low), math.ceil(high)
  return max(low, 0), min(high, head_dim - 1)


def _yarn(rope, head_dim):
  """NTK-by-parts with the ramp of YaRN's code, linear in the pair's number.

  arXiv:2309.00071, section 3.2, has the ramp linear in the number of turns;
  the published models were trained with the code's.
  """
  plain, interpolated = _plain(rope, head_dim), _yarn_ramp(rope, head_dim)
  return plain / rope.factor * interpolated + plain * (1 - interpolated)


def _yarn_revised(rope, head_dim):
  """YaRN as PoSE has it (2309.10400; dwzhu-pku/PoSE, revised_yarn).

  The ramp is that of what divides the frequencies, so pairs on it are slower.
  """
  ramp = _yarn_ramp(rope, head_dim)
  return _plain(rope, head_dim) / (ramp * rope.factor + 1 - ramp)


def _yarn_ramp(rope, head_dim):
  """How far each pair is interpolated, 0 to 1."""
  low, high = yarn_range(rope, head_dim)
  pairs = np.arange(head_dim // 2, dtype=np.float64)
  return np.clip((pairs - low) / max(high - low, 1e-3), 0, 1)


def _by_parts(rope, head_dim):
  """NTK-by-parts, arXiv:2309.00071, eq. 17 and 18: a ramp in turns."""
  return _in_turns(rope, head_dim, rope.beta_slow, rope.beta_fast)


def _longrope(rope, head_dim):
  """LongRoPE, arXiv:2402.13753: each pair has a divisor, found by a search.

  Those of long rows; `cos_sin` has the rules of short rows and first tokens.
  """
  if len(rope.divisors) != head_dim // 2:
    raise ValueError(
      f'rope divisors: {len(rope.divisors)} for {head_dim // 2} pairs'
    )
  return _plain(rope, head_dim) / np.array(rope.divisors)


def _llama3(rope, head_dim):
  """Llama 3.1 and 3.2: long waves are interpolated, short ones kept."""
  low, high = rope.low_freq_factor, rope.high_freq_factor
  return _in_turns(rope, head_dim, low, high)


def _in_turns(rope, head_dim, low, high):
  """Interpolated below `low` turns in the trained window, kept above `high`."""
  plain = _plain(rope, head_dim)
  turns = rope.original_length * plain / (2 * math.pi)
  kept = np.clip((turns - low) / (high - low), 0, 1)
  return (1 - kept) * plain / rope.factor + kept * plain


def _nope(rope, head_dim):
  return np.zeros(head_dim // 2)


SCALINGS = dict(
  none=_plain,
  linear=_linear,
  ntk=_ntk,
  ntk_by_parts=_by_parts,
  yarn=_yarn,
  yarn_paper=_by_parts,
  yarn_revised=_yarn_revised,
  longrope=_longrope,
  llama3=_llama3,
  nope=_nope,
)
YARNS = ('yarn', 'yarn_paper', 'yarn_revised')
# The scalings for which `original_length` must be given.
NEEDS_ORIGINAL_LENGTH = ('ntk_by_parts', *YARNS, 'longrope', 'llama3')


def temperature(rope: Rope) -> float:
  """The factor on cos and sin of queries and of keys.

  1 but for YaRN (arXiv:2309.00071, eq. 22), whose code and paper agree in it,
  and LongRoPE, as its models compute it. A YaRN model's config may give it as
  `attention_factor`, or as `mscale` and `mscale_all_dim`: then it is the ratio
  of the factors that these two give.
  """
  if rope.attention_factor:
    return rope.attention_factor
  if rope.scaling in YARNS:
    grown = lambda scale: 0.1 * scale * math.log(rope.factor) + 1
    return grown(rope.mscale or 1) / (
      grown(rope.mscale_all_dim) if rope.mscale else 1
    )
  if rope.scaling == 'longrope':
    return math.sqrt(1 + math.log(rope.factor) / math.log(rope.original_length))
  return 1.0


def frequencies(rope: Rope, head_dim: int):
  """What rotates: radians per position, and the temperature.

  Args:
    rope: the recipe.
    head_dim: dim of a head, even.

  Returns:
    ([head_dim/2] float64 frequencies in radians per position, `temperature`).
  """
  if head_dim % 2:
    raise ValueError(f'head_dim must be even to rotate pairs, got {head_dim}')
  return SCALINGS[rope.scaling](rope, head_dim), temperature(rope)


def _turns(frequency):
  """Turns per position as 64-bit fractions of a turn: (high, low) uint32."""
  units = [round(float(f) / (2 * math.pi) * 2**64) % 2**64 for f in frequency]
  return (
    np.array([u >> 32 for u in units], np.uint32),
    np.array([u & 0xFFFFFFFF for u in units], np.uint32),
  )


def _high_product(a, b):
  """The upper 32 bits of a 32 x 32 bit product, in uint32 arithmetic."""
  a1, a0, b1, b0 = a >> 16, a & 0xFFFF, b >> 16, b & 0xFFFF
  middle = a1 * b0 + ((a0 * b0) >> 16)
  return a1 * b1 + (middle >> 16) + (((middle & 0xFFFF) + a0 * b1) >> 16)


def cos_sin(positions, rope: Rope, head_dim: int):
  """cos and sin of position x frequency, within 1e-6 at any position.

  LongRoPE (arXiv:2402.13753, section 3.2): the first `unscaled` positions turn
  as in RoPE, without a temperature, and a row without a position beyond
  original_length by short_divisors, as in transformers.

  Args:
    positions: [batch, seq] int32.
    rope: the recipe.
    head_dim: dim of a head.

  Returns:
    Two float32 arrays [batch, seq, head_dim/2], times the temperature.
  """
  positions = jnp.asarray(positions)
  long = _cos_sin(positions, *frequencies(rope, head_dim))
  if rope.short_divisors:
    short = frequencies(rope.at_length(0), head_dim)
    within = positions.max(-1, keepdims=True) < rope.original_length
    long = _select(within, _cos_sin(positions, *short), long)
  if rope.unscaled:
    plain = _cos_sin(positions, _plain(rope, head_dim), 1.0)
    long = _select(positions < rope.unscaled, plain, long)
  return long


def check_reach(rope: Rope, longest: int):
  """InputError where xPos leaves float32 within so many tokens."""
  if rope.xpos and longest > XPOS_REACH * rope.xpos:
    raise errors.InputError(
      f'model.rope.xpos is {rope.xpos:g}; it must be at least '
      f'{math.ceil(longest / XPOS_REACH):,} for {longest:,} tokens'
    )


def _select(where, first, second):
  """Where true the first (cos, sin), else the second."""
  return tuple(jnp.where(where[..., None], x, y) for x, y in zip(first, second))


def _cos_sin(positions, frequency, factor):
  """cos and sin, times a factor, of float64 frequencies [head_dim/2]."""
  high, low = (jnp.asarray(x) for x in _turns(frequency))
  p = positions.astype(jnp.uint32)[..., None]
  turns = high * p + _high_product(low, p)  # modulo one turn, in 2^-32 turns
  turns -= low * (p >> 31)  # a position below 0 was read as 2^32 more
  # As a signed number the fraction is in [-1/2, 1/2) turn.
  turns = jax.lax.bitcast_convert_type(turns, jnp.int32)
  angle = turns.astype(jnp.float32) * np.float32(2 * math.pi / 2**32)
  scale = np.float32(factor)
  return jnp.cos(angle) * scale, jnp.sin(angle) * scale


def rotations(positions, rope: Rope, head_dim: int):
  """((cos, sin) for the queries, (cos, sin) for the keys).

  They are the same, as `cos_sin` gives them, but for `query_beta`, by which
  queries alone are multiplied, and for xPos, arXiv:2212.10554: the product of
  pair j of a query at m and of a key at n is multiplied by
  z_j ** ((m - n) / xpos), z_j = (2 j + 0.4 d) / 1.4 d. Queries get
  z ** (m / xpos), keys z ** (-n / xpos), in float32; within XPOS_REACH times
  `xpos` tokens nothing overflows.
  """
  cos, sin = keys = cos_sin(positions, rope, head_dim)
  if rope.query_beta:
    turns = jnp.asarray(positions) // rope.original_length
    scale = 1 + rope.query_beta * jnp.log1p(turns.astype(jnp.float32))
    cos, sin = (x * scale[..., None] for x in keys)
  if not rope.xpos:
    return (cos, sin), keys
  pairs = np.arange(0, head_dim, 2, dtype=np.float64)
  log_z = np.log((pairs + 0.4 * head_dim) / (1.4 * head_dim)) / rope.xpos
  decay = jnp.exp(
    jnp.asarray(positions).astype(jnp.float32)[..., None] * np.float32(log_z)
  )
  return (cos * decay, sin * decay), tuple(x / decay for x in keys)


def rotate(x, cos, sin):
  """Turns each pair (i, i + dim/2) of x; float32 inside, x's dtype out.

  Args:
    x: [batch, seq, heads, dim].
    cos: [batch, seq, dim/2].
    sin: [batch, seq, dim/2].
  """
  a, b = jnp.split(x.astype(jnp.float32), 2, -1)
  cos, sin = cos[:, :, None], sin[:, :, None]
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(
    x.dtype
  )
