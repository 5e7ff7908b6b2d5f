"""An independent Llama in float64 numpy: what the tests hold longjax to.

Written as Meta's llama `model.py` reads and off the papers; it shares no code
with longjax and must not import it. `test_reference_oracle.py` holds it to
Hugging Face's transformers. Letters: B batch, T query and S key tokens,
N query heads, K kv heads, H head dim, D embed, F mlp, V vocab.
"""

import numpy as np


def rope_frequencies(
  head_dim,
  *,
  base=10_000.0,
  scaling='none',
  factor=1.0,
  original_length=0,
  low_freq_factor=1.0,
  high_freq_factor=4.0,
  beta_fast=32.0,
  beta_slow=1.0,
  attention_factor=0.0,
  mscale=0.0,
  mscale_all_dim=0.0,
  truncate=True,
  query_beta=0.0,  # of queries alone: see `query_scale`
  divisors=(),
  xpos=0.0,
  short_divisors=(),
  unscaled=0,
):
  """Radians per position, [head_dim/2], and the factor on cos and sin."""
  assert not short_divisors and not unscaled  # these depend on the position
  pair = np.arange(head_dim // 2, dtype=np.float64)
  if scaling == 'ntk':  # NTK-aware: the slowest pair is slowed by `factor`
    return (base * factor ** (head_dim / (head_dim - 2))) ** (
      -2 * pair / head_dim
    ), 1.0
  plain = base ** (-2 * pair / head_dim)
  simple = dict(
    none=plain,
    linear=plain / factor,  # Position Interpolation, arXiv:2306.15595
    nope=0 * pair,  # arXiv:2305.19466: no rotation
  )
  if scaling in simple:
    return simple[scaling], 1.0
  if scaling == 'longrope':  # arXiv:2402.13753
    grown = np.sqrt(1 + np.log(factor) / np.log(original_length))
    return plain / np.array(divisors), grown
  if scaling in ('ntk_by_parts', 'yarn_paper'):  # arXiv:2309.00071, section 3
    turns = original_length / (2 * np.pi / plain)
    ramp = (turns - beta_slow) / (beta_fast - beta_slow)
    ramp = np.where(turns < beta_slow, 0, np.where(turns > beta_fast, 1, ramp))
    grown = 0.1 * np.log(factor) + 1 if scaling == 'yarn_paper' else 1.0
    return (1 - ramp) * plain / factor + ramp * plain, grown
  if scaling == 'llama3':  # Llama 3.1, apply_scaling of its model.py
    wavelength = 2 * np.pi / plain
    smooth = (original_length / wavelength - low_freq_factor) / (
      high_freq_factor - low_freq_factor
    )
    mixed = (1 - smooth) * plain / factor + smooth * plain
    long = wavelength > original_length / low_freq_factor
    short = wavelength < original_length / high_freq_factor
    return np.where(long, plain / factor, np.where(short, plain, mixed)), 1.0
  if scaling == 'yarn':  # arXiv:2309.00071, with the ramp of its code

    def dim_that_turns(times):
      turns = original_length / (times * 2 * np.pi)
      return head_dim * np.log(turns) / (2 * np.log(base))

    floor, ceil = (np.floor, np.ceil) if truncate else (float, float)
    low = max(floor(dim_that_turns(beta_fast)), 0)
    high = min(ceil(dim_that_turns(beta_slow)), head_dim - 1)
    high = high + 0.001 if low == high else high
    interpolated = np.clip((pair - low) / (high - low), 0, 1)
    mixed = interpolated * plain / factor + (1 - interpolated) * plain
    grown = lambda m: 0.1 * m * np.log(factor) + 1 if factor > 1 else 1.0
    pair = mscale and mscale_all_dim
    growth = grown(mscale) / grown(mscale_all_dim) if pair else grown(1)
    return mixed, attention_factor or growth
  raise ValueError(f'no such scaling: {scaling}')


def rotate(x, positions, frequencies, temperature):
  """Turns pairs (i, i + H/2) of x [B, T, N, H] as complex numbers."""
  half = x.shape[-1] // 2
  angles = positions[:, :, None, None] * frequencies
  turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)
  return temperature * np.concatenate([turned.real, turned.imag], axis=-1)


def query_scale(positions, query_beta=0.0, original_length=0, **_):
  """Llama 4's and Ministral 3's temperature of queries [B, T, N, H]."""
  beyond = positions[:, :, None, None] // max(original_length, 1)
  return 1 + query_beta * np.log(1 + beyond)


def xpos_scale(positions, head_dim, base):
  """xPos, arXiv:2212.10554: what queries [B, T, N, H] are multiplied by."""
  if not base:
    return 1.0
  zeta = (2 * np.arange(head_dim // 2) + 0.4 * head_dim) / (1.4 * head_dim)
  scale = zeta ** (positions[:, :, None, None] / base)
  return np.concatenate([scale, scale], -1)


def attention_mask(segments, index, keys=None, window=0):
  """[B, T, S] bool: keys of the same document that are not later.

  Args:
    segments, index: [B, T] of the queries; segment 0 is padding.
    keys: (segments, index) [B, S] of the keys where they are not the queries.
      Segment -1 is shared by all documents; index -1 is before all others.
    window: the last so many tokens, mine included; 0 is all.
  """
  key_segments, key_index = (segments, index) if keys is None else keys
  mine = key_segments[:, None, :] == segments[:, :, None]
  mine |= key_segments[:, None, :] == -1
  ago = index[:, :, None] - key_index[:, None, :]
  recent = (ago < (window or np.inf)) | (key_index[:, None, :] == -1)
  return mine & recent & (ago >= 0) & (segments[:, :, None] != 0)


def attention(q, k, v, segments, index, keys=None, window=0):
  """Softmax attention of packed documents.

  Args:
    q: [B, T, N, H]; k, v: [B, S, K, H] with N a multiple of K.
    segments, index, keys, window: as for `attention_mask`.

  Returns:
    [B, T, N, H]; a query without keys gets 0.
  """
  weights = _softmax(q, k, attention_mask(segments, index, keys, window))
  return np.einsum('bnts,bsnh->btnh', weights, _repeated(v, q))


def attention_grads(q, k, v, dout, segments, index, keys=None, window=0):
  """Gradients of sum(attention * dout), by hand.

  With O = P V, P = softmax(S), S = Q K^T / sqrt(H):  dV = P^T dO,
  dP = dO V^T,  dS = P * (dP - sum_s dP * P),  dQ = dS K / sqrt(H),
  dK = dS^T Q / sqrt(H); heads that share a key add up.

  Args:
    q, k, v, segments, index, keys, window: as for `attention`.
    dout: [B, T, N, H].

  Returns:
    dq [B, T, N, H], dk, dv [B, S, K, H].
  """
  p = _softmax(q, k, attention_mask(segments, index, keys, window))
  dp = np.einsum('btnh,bsnh->bnts', dout, _repeated(v, q))
  ds = p * (dp - (dp * p).sum(-1, keepdims=True)) / np.sqrt(q.shape[-1])
  dq = np.einsum('bnts,bsnh->btnh', ds, _repeated(k, q))
  dk = np.einsum('bnts,btnh->bsnh', ds, q)
  dv = np.einsum('bnts,btnh->bsnh', p, dout)
  batch, seq, kv_heads, dim = k.shape
  shared = (batch, seq, kv_heads, -1, dim)
  return dq, dk.reshape(shared).sum(3), dv.reshape(shared).sum(3)


def _softmax(q, k, mask):
  """Attention weights [B, N, T, S]; 0 for a query without keys."""
  scores = np.einsum('btnh,bsnh->bnts', q, _repeated(k, q))
  scores, mask = scores / np.sqrt(q.shape[-1]), mask[:, None]
  peak = np.max(scores, axis=-1, keepdims=True, where=mask, initial=-1e300)
  weights = np.where(mask, np.exp(np.where(mask, scores - peak, 0)), 0)
  return weights / np.maximum(weights.sum(-1, keepdims=True), 1e-300)


def _repeated(x, q):
  """Keys or values [B, S, K, H] for each of the heads of q [B, T, N, H]."""
  return np.repeat(x, q.shape[2] // x.shape[2], axis=2)


def rms_norm(x, scale, eps):
  """x [..., D] over its root mean square, times scale [D]."""
  return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * scale


def forward(params, config, tokens, *, segments, positions, index):
  """Logits [B, T, V] in float64.

  Args:
    params: dict of numpy arrays, layers stacked, as longjax's.
    config: dict with layers, norm_eps and rope, the keyword arguments of
      `rope_frequencies`, and perhaps nope_layers, window and full_layers;
      dataclasses.asdict of a llama.Llama is one. Biases and norms of q and k
      are used where params have them.
    tokens, segments, positions, index: [B, T].
  """
  p = {k: v for k, v in params.items() if k != 'layers'} | params['layers']
  p = {name: np.asarray(x, np.float64) for name, x in p.items()}
  head_dim = p['q'].shape[-1]
  turn = rope_frequencies(head_dim, **config['rope'])
  decay = xpos_scale(positions, head_dim, config['rope'].get('xpos', 0))
  eps = config['norm_eps']
  none = np.zeros(config['layers'])
  x = p['embedding'][tokens]
  for i in range(config['layers']):
    post = config.get('post_norm')
    h = x if post else rms_norm(x, p['attn_norm'][i], eps)
    q, k, v = (
      _project(h, p[n][i]) + p.get(f'{n}_bias', none)[i] for n in 'qkv'
    )
    if 'q_norm' in p:
      wide = lambda y, scale: y.reshape(*y.shape[:2], -1, len(scale))
      q, k = (
        rms_norm(wide(y, scale), scale, eps).reshape(y.shape)
        for y, scale in ((q, p['q_norm'][i]), (k, p['k_norm'][i]))
      )
    window = config.get('window', 0)
    window = 0 if i in config.get('full_layers', ()) else window
    plain = window and not config.get('scale_windows', True)
    here = rope_frequencies(head_dim, base=config['rope']['base'])
    here = here if plain else turn
    if i not in config.get('nope_layers', ()):
      q = rotate(q, positions, *here) * decay
      k = rotate(k, positions, *here) / decay
    q = q * query_scale(positions, **config['rope'])
    out = attention(q, k, v, segments, index, window=window)
    out = np.tensordot(out, p['o'][i], axes=2) + p.get('o_bias', none)[i]
    x = x + (rms_norm(out, p['attn_norm'][i], eps) if post else out)
    h = x if post else rms_norm(x, p['mlp_norm'][i], eps)
    gate = h @ p['gate'][i]
    out = (gate / (1 + np.exp(-gate)) * (h @ p['up'][i])) @ p['down'][i]
    x = x + (rms_norm(out, p['mlp_norm'][i], eps) if post else out)
  head = p['head'] if 'head' in p else p['embedding'].T
  return rms_norm(x, p['norm'], eps) @ head


def random_params(shapes, seed=0):
  """Float32 arrays for a tree of shapes as `forward` has it.

  Matrices of variance 1 / fan-in, norms around 1; the norms of a model that
  was only initialized are ones, which would hide mistakes.
  """
  rng = np.random.default_rng(seed)

  def draw(name, shape):
    if 'norm' in name:
      return rng.uniform(0.8, 1.2, shape).astype(np.float32)
    fan_in = dict(embedding=shape[-1], head=shape[0]).get(name, shape[1])
    fan_in *= shape[2] if name == 'o' else 1
    return rng.standard_normal(shape, np.float32) / np.float32(fan_in) ** 0.5

  top = {k: draw(k, x.shape) for k, x in shapes.items() if k != 'layers'}
  layers = {k: draw(k, x.shape) for k, x in shapes['layers'].items()}
  return top | dict(layers=layers)


def _project(x, matrix):
  """x [B, T, D] times matrix [D, N, H]: [B, T, N, H]."""
  return np.tensordot(x, matrix, axes=1)


def token_nll(logits, targets):
  """-log p(target) of every token, [B, T], from logits [B, T, V]."""
  logits = logits - logits.max(axis=-1, keepdims=True)
  chosen = np.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  return np.log(np.exp(logits).sum(-1)) - chosen


def nll(logits, targets, weights):
  """The loss: the weighted mean of `token_nll`, a float."""
  return float(np.sum(weights * token_nll(logits, targets)) / np.sum(weights))
