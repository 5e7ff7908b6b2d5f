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
):
  """Radians per position, [head_dim/2], and the factor on cos and sin."""
  pair = np.arange(head_dim // 2, dtype=np.float64)
  if scaling == 'nope':  # arXiv:2305.19466: no rotation
    return 0 * pair, 1.0
  if scaling == 'ntk':  # NTK-aware: the slowest pair is slowed by `factor`
    return (base * factor ** (head_dim / (head_dim - 2))) ** (
      -2 * pair / head_dim
    ), 1.0
  plain = base ** (-2 * pair / head_dim)
  if scaling == 'none':
    return plain, 1.0
  if scaling == 'linear':  # Position Interpolation, arXiv:2306.15595
    return plain / factor, 1.0
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

    low = max(np.floor(dim_that_turns(beta_fast)), 0)
    high = min(np.ceil(dim_that_turns(beta_slow)), head_dim - 1)
    high = high + 0.001 if low == high else high
    interpolated = np.clip((pair - low) / (high - low), 0, 1)
    mixed = interpolated * plain / factor + (1 - interpolated) * plain
    return mixed, 0.1 * np.log(factor) + 1 if factor > 1 else 1.0
  raise ValueError(f'no such scaling: {scaling}')


def rotate(x, positions, frequencies, temperature):
  """Turns pairs (i, i + H/2) of x [B, T, N, H] as complex numbers."""
  half = x.shape[-1] // 2
  angles = positions[:, :, None, None] * frequencies
  turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)
  return temperature * np.concatenate([turned.real, turned.imag], axis=-1)


def visible(segments, index):
  """[B, T, S] bool: keys of my own document that are not after me."""
  same = segments[:, :, None] == segments[:, None, :]
  real = segments[:, :, None] != 0
  return same & real & (index[:, None, :] <= index[:, :, None])


def attention(q, k, v, segments, index):
  """Softmax attention of packed documents.

  Args:
    q: [B, T, N, H]; k, v: [B, T, K, H] with N a multiple of K.
    segments, index: [B, T].

  Returns:
    [B, T, N, H]; a query that sees nothing gets 0.
  """
  group = q.shape[2] // k.shape[2]
  k, v = np.repeat(k, group, axis=2), np.repeat(v, group, axis=2)
  scores = np.einsum('btnh,bsnh->bnts', q, k) / np.sqrt(q.shape[-1])
  sees = visible(segments, index)[:, None]
  peak = np.max(scores, axis=-1, keepdims=True, where=sees, initial=-1e300)
  weights = np.where(sees, np.exp(np.where(sees, scores - peak, 0)), 0)
  total = weights.sum(-1, keepdims=True)
  return np.einsum('bnts,bsnh->btnh', weights / np.maximum(total, 1e-300), v)


def rms_norm(x, scale, eps):
  """x [..., D] over its root mean square, times scale [D]."""
  return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * scale


def forward(params, config, tokens, *, segments, positions, index):
  """Logits [B, T, V] in float64.

  Args:
    params: dict of numpy arrays, layers stacked, as longjax's.
    config: dict with layers, norm_eps and rope, the keyword arguments of
      `rope_frequencies`; dataclasses.asdict of a llama.Llama is one.
    tokens, segments, positions, index: [B, T].
  """
  p = {k: v for k, v in params.items() if k != 'layers'} | params['layers']
  p = {name: np.asarray(x, np.float64) for name, x in p.items()}
  turn = rope_frequencies(p['q'].shape[-1], **config['rope'])
  eps = config['norm_eps']
  x = p['embedding'][tokens]
  for i in range(config['layers']):
    h = rms_norm(x, p['attn_norm'][i], eps)
    q = rotate(_project(h, p['q'][i]), positions, *turn)
    k = rotate(_project(h, p['k'][i]), positions, *turn)
    out = attention(q, k, _project(h, p['v'][i]), segments, index)
    x = x + np.tensordot(out, p['o'][i], axes=2)
    h = rms_norm(x, p['mlp_norm'][i], eps)
    gate = h @ p['gate'][i]
    x = x + (gate / (1 + np.exp(-gate)) * (h @ p['up'][i])) @ p['down'][i]
  head = p['head'] if 'head' in p else p['embedding'].T
  return rms_norm(x, p['norm'], eps) @ head


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
