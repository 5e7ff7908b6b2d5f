"""What configs start from: `base()`, and the architectures.

A config is a function `get_config()`, of a variant where it has several, that
changes in `base()` what its recipe changes. longjax/config.py declares every
key, with its default and meaning.
"""

from typing import Any

from longjax import config
from longjax.errors import InputError

LLAMA2 = dict(vocab=32_000, norm_eps=1e-5, tied=False, head_dim=128)
LLAMA1 = LLAMA2 | dict(norm_eps=1e-6)
LLAMA3 = LLAMA2 | dict(vocab=128_256)
SMOLLM2 = dict(vocab=49_152, norm_eps=1e-5, tied=True, head_dim=64)
MISTRAL = LLAMA2  # v0.1, whose window is 4096; later ones have none
QWEN3 = dict(
  vocab=151_936, norm_eps=1e-6, tied=False, head_dim=128, qk_norm='head'
)
SMOLLM3 = dict(vocab=128_256, norm_eps=1e-6, tied=True, head_dim=128)
TINY = dict(vocab=384, norm_eps=1e-5, tied=False, head_dim=16)


def architecture(family, layers, embed, mlp, heads, kv_heads, **more) -> dict:
  """Keys of the section `model`: those of a family, and its sizes."""
  return dict(family, layers=layers, embed=embed, mlp=mlp, heads=heads,
              kv_heads=kv_heads, **more)  # fmt: skip


SIZES = dict(  # layers, embed, mlp, heads, kv_heads
  tiny=architecture(TINY, 4, 64, 160, 8, 4),
  llama1_7b=architecture(LLAMA1, 32, 4096, 11_008, 32, 32),
  llama1_13b=architecture(LLAMA1, 40, 5120, 13_824, 40, 40),
  llama1_33b=architecture(LLAMA1, 60, 6656, 17_920, 52, 52),
  llama1_65b=architecture(LLAMA1, 80, 8192, 22_016, 64, 64),
  openllama_3b=architecture(LLAMA1, 26, 3200, 8640, 32, 32, head_dim=100),
  llama2_7b=architecture(LLAMA2, 32, 4096, 11_008, 32, 32),
  llama2_13b=architecture(LLAMA2, 40, 5120, 13_824, 40, 40),
  # Never released; its shape is that of Code Llama 34B.
  llama2_34b=architecture(LLAMA2, 48, 8192, 22_016, 64, 8),
  llama2_70b=architecture(LLAMA2, 80, 8192, 28_672, 64, 8),
  llama3_8b=architecture(LLAMA3, 32, 4096, 14_336, 32, 8),
  llama3_70b=architecture(LLAMA3, 80, 8192, 28_672, 64, 8),
  llama32_1b=architecture(
    LLAMA3, 16, 2048, 8192, 32, 8, head_dim=64, tied=True
  ),
  llama32_3b=architecture(LLAMA3, 28, 3072, 8192, 24, 8, tied=True),
  smollm2_135m=architecture(SMOLLM2, 30, 576, 1536, 9, 3),
  smollm2_360m=architecture(SMOLLM2, 32, 960, 2560, 15, 5),
  smollm2_1b7=architecture(SMOLLM2, 24, 2048, 8192, 32, 32),
  # config.json of mistralai/Mistral-7B-v0.1, Qwen/Qwen3-8B and
  # HuggingFaceTB/SmolLM3-3B.
  mistral_7b=architecture(MISTRAL, 32, 4096, 14_336, 32, 8, window=4096),
  qwen3_8b=architecture(QWEN3, 36, 4096, 12_288, 32, 8),
  smollm3_3b=architecture(
    SMOLLM3, 36, 2048, 11_008, 16, 4, nope_layers=tuple(range(3, 36, 4))
  ),
)
# Of Llama 3.1; Llama 3.2 has a factor of 32.
LLAMA31_ROPE = dict(
  base=500_000.0, scaling='llama3', factor=8.0, original_length=8192,
  low_freq_factor=1.0, high_freq_factor=4.0,
)  # fmt: skip


def variant(table, name: str):
  """table[name], or an error that lists the variants of a config."""
  if name not in table:
    raise InputError(f'{name!r} is not one of {", ".join(filter(None, table))}')
  return table[name]


def base(size='tiny', **rope) -> Any:
  """A config of all defaults, with an architecture of SIZES and RoPE fields."""
  sizes = {f'model.{key}': value for key, value in SIZES[size].items()}
  return config.build(
    sizes | {f'model.rope.{key}': value for key, value in rope.items()}
  )


def published(size, **rope) -> Any:
  """`base` without what originals lack but OLMo 3: no skip of loss spikes."""
  config = base(size, **rope)
  config.optim.spike_sigmas = 0.0
  return config


def model(size, **rope) -> Any:
  """The section `model` of `base`."""
  return base(size, **rope).model


def rope(**fields) -> Any:
  """The section `model.rope` with these fields, all others at their default."""
  return base(**fields).model.rope


def fot_rows(*counts) -> tuple:
  """model.memory.rows from (positives, negatives) for each row of a pack.

  Positives are the nearest rows before it in its pack, negatives the rows
  before the pack, as in LongLLaMA (arXiv:2307.03170, appendix).
  """
  for i, (positives, _) in enumerate(counts):
    if positives > i:
      raise InputError(f'row {i} of a pack has no {positives} rows before it')
  return tuple(
    (*range(-1, -1 - positives, -1), *range(-i - 1, -i - 1 - negatives, -1))
    for i, (positives, negatives) in enumerate(counts)
  )
