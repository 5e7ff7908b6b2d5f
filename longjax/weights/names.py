"""One table of tensor names: ours, GGUF's, Hugging Face's and Meta's.

To add a per-layer feature of the model that has weights: its row in TABLE, and
in `rows` the field of llama.Llama that it depends on.

All three formats store matrices as [out, in] with heads flattened, so one pair
of letter strings per row says how a tensor is reshaped and transposed:

  V vocab, D embed, F mlp, N query heads, K kv heads, H head dim

The formats differ in which dims of a head RoPE rotates as a pair. Ours and
Hugging Face's are i and i + H/2 (half split); GGUF's and Meta's are 2i and
2i + 1 (interleaved). That concerns the rows of q and k alone. numpy only.
"""

import math
from typing import NamedTuple

INTERLEAVED = ('gguf', 'meta')


class Row(NamedTuple):
  """One parameter; names have a {} for the layer and lack '.weight'.

  Fields of the model decide whether it has biases and norms of q and k, which
  only Hugging Face's form stores.
  """

  path: str  # ours, with '/' between dict keys
  dims: str  # ours, one letter a dim
  stored: str  # the formats', a space between dims
  rotated: bool  # by RoPE
  gguf: str
  huggingface: str
  meta: str


# fmt: off
TABLE = (
  Row('embedding', 'VD', 'V D', False,
      'token_embd', 'model.embed_tokens', 'tok_embeddings'),
  Row('layers/q', 'DNH', 'NH D', True,
      'blk.{}.attn_q', 'model.layers.{}.self_attn.q_proj',
      'layers.{}.attention.wq'),
  Row('layers/q_bias', 'NH', 'NH', False,
      '', 'model.layers.{}.self_attn.q_proj.bias', ''),
  Row('layers/k', 'DKH', 'KH D', True,
      'blk.{}.attn_k', 'model.layers.{}.self_attn.k_proj',
      'layers.{}.attention.wk'),
  Row('layers/k_bias', 'KH', 'KH', False,
      '', 'model.layers.{}.self_attn.k_proj.bias', ''),
  Row('layers/v', 'DKH', 'KH D', False,
      'blk.{}.attn_v', 'model.layers.{}.self_attn.v_proj',
      'layers.{}.attention.wv'),
  Row('layers/v_bias', 'KH', 'KH', False,
      '', 'model.layers.{}.self_attn.v_proj.bias', ''),
  Row('layers/o', 'NHD', 'D NH', False,
      'blk.{}.attn_output', 'model.layers.{}.self_attn.o_proj',
      'layers.{}.attention.wo'),
  Row('layers/o_bias', 'D', 'D', False,
      '', 'model.layers.{}.self_attn.o_proj.bias', ''),
  Row('layers/q_norm', 'H', 'H', False,
      '', 'model.layers.{}.self_attn.q_norm', ''),
  Row('layers/k_norm', 'H', 'H', False,
      '', 'model.layers.{}.self_attn.k_norm', ''),
  Row('layers/gate', 'DF', 'F D', False,
      'blk.{}.ffn_gate', 'model.layers.{}.mlp.gate_proj',
      'layers.{}.feed_forward.w1'),
  Row('layers/up', 'DF', 'F D', False,
      'blk.{}.ffn_up', 'model.layers.{}.mlp.up_proj',
      'layers.{}.feed_forward.w3'),
  Row('layers/down', 'FD', 'D F', False,
      'blk.{}.ffn_down', 'model.layers.{}.mlp.down_proj',
      'layers.{}.feed_forward.w2'),
  Row('layers/attn_norm', 'D', 'D', False,
      'blk.{}.attn_norm', 'model.layers.{}.input_layernorm',
      'layers.{}.attention_norm'),
  Row('layers/mlp_norm', 'D', 'D', False,
      'blk.{}.ffn_norm', 'model.layers.{}.post_attention_layernorm',
      'layers.{}.ffn_norm'),
  Row('norm', 'D', 'D', False,
      'output_norm', 'model.norm', 'norm'),
  Row('head', 'DV', 'V D', False,
      'output', 'lm_head', 'output'),
)
# fmt: on


def rows(fields) -> list[Row]:
  """The rows of a model: what all have, and what its fields add."""
  bias, norm = (fields.get(k, 'none') for k in ('bias', 'qk_norm'))
  present = dict(
    head=not fields['tied'],
    o_bias=bias == 'qkvo',
    **dict.fromkeys(('q_bias', 'k_bias', 'v_bias'), bias != 'none'),
    **dict.fromkeys(('q_norm', 'k_norm'), norm != 'none'),
  )
  found = [r for r in TABLE if present.get(r.path.rpartition('/')[2], True)]
  other = {}
  if norm == 'all':
    other |= {
      f'layers/{x}_norm': dict(dims=d, stored=d) for x, d in ('qQ', 'kP')
    }
  if fields.get('post_norm'):
    for ours, theirs in (('attn', 'attention'), ('mlp', 'feedforward')):
      name = f'model.layers.{{}}.post_{theirs}_layernorm'
      other[f'layers/{ours}_norm'] = dict(huggingface=name)
  return [row._replace(**other.get(row.path, {})) for row in found]


def layers(row, fields):
  """The layers that a row has a tensor for; (None,) if it is not in layers."""
  return range(fields['layers']) if is_layered(row.path) else (None,)


def is_layered(path) -> bool:
  """Whether our parameter has a tensor for each layer, stacked in front."""
  return path.startswith('layers/')


def name(row, format, layer=None) -> str:
  """The tensor's name in `format`: 'gguf', 'huggingface' or 'meta'."""
  found = getattr(row, format).format(layer)
  return found if found.endswith('.bias') else f'{found}.weight'


def sizes(letters, fields) -> tuple[int, ...]:
  """The sizes of dims given as letters, from the fields of a llama.Llama."""
  letter_fields = dict(
    V='vocab', D='embed', F='mlp', N='heads', K='kv_heads', H='head_dim'
  )
  several = dict(Q='NH', P='KH')  # flat, also in ours: norms are vectors
  size = lambda letter: (
    math.prod(sizes(several[letter], fields)) if letter in several
    else fields[letter_fields[letter]]
  )  # fmt: skip
  return tuple(map(size, letters))


def shapes(fields) -> dict[str, tuple]:
  """{path: shape} of our parameters, layers stacked in front."""
  return {
    row.path: (
      *((fields['layers'],) if is_layered(row.path) else ()),
      *sizes(row.dims, fields),
    )
    for row in rows(fields)
  }


def stored_shape(row, fields) -> tuple[int, ...]:
  """The shape of the stored tensor, dims in numpy order."""
  return tuple(math.prod(sizes(dim, fields)) for dim in row.stored.split())


def split_shape(row, fields) -> tuple[int, ...]:
  """`stored_shape` with heads not flattened: a size a letter."""
  return sizes(row.stored.replace(' ', ''), fields)


def order(row) -> list[int]:
  """Our dims in the order in which the stored tensor has them."""
  return [row.dims.index(letter) for letter in row.stored.replace(' ', '')]


def to_ours(row: Row, array, fields, format):
  """One layer of our parameter from the tensor that `format` stores.

  Args:
    array: the stored tensor, of shape `stored_shape(row, fields)`.
    fields: dict of the fields of a llama.Llama.
    format: 'gguf', 'huggingface' or 'meta'.

  Returns:
    A view or copy of shape `sizes(row.dims, fields)`.
  """
  array = to_huggingface(row, array, fields, format)
  letters = row.stored.replace(' ', '')
  array = array.reshape(split_shape(row, fields))
  return array.transpose([letters.index(letter) for letter in row.dims])


def to_huggingface(row, array, fields, format):
  """The tensor as Hugging Face stores it; arguments as for `to_ours`."""
  if not row.rotated or format not in INTERLEAVED:
    return array
  return half_split(array.reshape(split_shape(row, fields))).reshape(
    array.shape
  )


def half_split(array):
  """Rows [heads, dim, in] from pairs (2i, 2i + 1) to pairs (i, i + dim/2)."""
  heads, dim, inputs = array.shape
  pairs = array.reshape(heads, dim // 2, 2, inputs)
  return pairs.swapaxes(1, 2).reshape(array.shape)
