"""What configs start from: `base()`, and the architectures.

A config is a function `get_config()`, of a variant where it has several, that
changes in `base()` what its recipe changes. longjax/config.py declares every
key, with its default and meaning.
"""

from typing import Any

from longjax import config
from longjax.errors import InputError

# Architectures. heads, kv_heads, layers are counts; mlp and embed are widths.
LLAMA2 = dict(vocab=32_000, norm_eps=1e-5, tied=False, head_dim=128)
LLAMA1 = LLAMA2 | dict(norm_eps=1e-6)
LLAMA3 = dict(
  vocab=128_256, norm_eps=1e-5, tied=False, head_dim=128, kv_heads=8
)
SMOLLM2 = dict(vocab=49_152, norm_eps=1e-5, tied=True, head_dim=64)

SIZES = dict(
  tiny=dict(
    vocab=384,
    layers=4,
    embed=64,
    mlp=160,
    heads=8,
    kv_heads=4,
    head_dim=16,
    norm_eps=1e-5,
    tied=False,
  ),
  llama2_7b=LLAMA2
  | dict(layers=32, embed=4096, mlp=11_008, heads=32, kv_heads=32),
  llama2_13b=LLAMA2
  | dict(layers=40, embed=5120, mlp=13_824, heads=40, kv_heads=40),
  llama1_7b=LLAMA1
  | dict(layers=32, embed=4096, mlp=11_008, heads=32, kv_heads=32),
  llama1_13b=LLAMA1
  | dict(layers=40, embed=5120, mlp=13_824, heads=40, kv_heads=40),
  llama1_33b=LLAMA1
  | dict(layers=60, embed=6656, mlp=17_920, heads=52, kv_heads=52),
  llama1_65b=LLAMA1
  | dict(layers=80, embed=8192, mlp=22_016, heads=64, kv_heads=64),
  openllama_3b=LLAMA1
  | dict(layers=26, embed=3200, mlp=8640, heads=32, kv_heads=32, head_dim=100),
  # Never released; its shape is that of Code Llama 34B.
  llama2_34b=LLAMA2
  | dict(layers=48, embed=8192, mlp=22_016, heads=64, kv_heads=8),
  llama2_70b=LLAMA2
  | dict(layers=80, embed=8192, mlp=28_672, heads=64, kv_heads=8),
  llama3_8b=LLAMA3 | dict(layers=32, embed=4096, mlp=14_336, heads=32),
  llama3_70b=LLAMA3 | dict(layers=80, embed=8192, mlp=28_672, heads=64),
  llama32_1b=LLAMA3
  | dict(layers=16, embed=2048, mlp=8192, heads=32, head_dim=64, tied=True),
  llama32_3b=LLAMA3
  | dict(layers=28, embed=3072, mlp=8192, heads=24, tied=True),
  smollm2_135m=SMOLLM2
  | dict(layers=30, embed=576, mlp=1536, heads=9, kv_heads=3),
  smollm2_360m=SMOLLM2
  | dict(layers=32, embed=960, mlp=2560, heads=15, kv_heads=5),
  smollm2_1b7=SMOLLM2
  | dict(layers=24, embed=2048, mlp=8192, heads=32, kv_heads=32),
)


def llama31_rope(factor=8.0):
  """RoPE of Llama 3.1 (factor 8) and 3.2 (factor 32)."""
  return dict(
    base=500_000.0,
    scaling='llama3',
    factor=factor,
    original_length=8192,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
  )


def variant(table, name: str):
  """table[name], or an error that lists the variants of a config."""
  if name not in table:
    raise InputError(f'{name!r} is none of {", ".join(filter(None, table))}')
  return table[name]


def base(size='tiny', **rope) -> Any:
  """A config of all defaults, with an architecture of SIZES and RoPE fields."""
  sizes = {f'model.{key}': value for key, value in SIZES[size].items()}
  return config.build(
    sizes | {f'model.rope.{key}': value for key, value in rope.items()}
  )


def model(size, **rope) -> Any:
  """The section `model` of `base`."""
  return base(size, **rope).model


def rope(**fields) -> Any:
  """The section `model.rope` with these fields, all others at their default."""
  return base(**fields).model.rope
