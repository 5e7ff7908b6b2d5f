"""Small models in the forms of others, written by hand: bytes, not libraries.

Nothing here uses longjax.weights or its table: names, layouts and file formats
are typed out, so that a reader that agrees with these files agrees with the
formats. The slow tests hold the files to `safetensors` and `torch`.
"""

import io
import json
import pickle
import struct
import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
MHA = dict(vocab=96, layers=2, embed=64, mlp=112, heads=4, kv_heads=4,
           head_dim=16, norm_eps=1e-5, tied=False)  # fmt: skip
GQA = MHA | dict(kv_heads=2, layers=3)
TIED = GQA | dict(tied=True)
EIGHT = MHA | dict(heads=16, kv_heads=8, head_dim=8, embed=128)
LLAMA31 = dict(base=5e5, scaling='llama3', factor=8.0, original_length=8192,
               low_freq_factor=1.0, high_freq_factor=4.0)  # fmt: skip
YARN = dict(base=1e4, scaling='yarn', factor=4.0, original_length=4096,
            beta_fast=32.0, beta_slow=1.0)  # fmt: skip
LINEAR = dict(base=1e4, scaling='linear', factor=4.0)


def params(fields, seed=0, dtype=BFLOAT16):
  """Random parameters of ours in float32, exact in `dtype`."""
  rng = np.random.default_rng(seed)
  L, D, F = fields['layers'], fields['embed'], fields['mlp']
  N, K, H = fields['heads'], fields['kv_heads'], fields['head_dim']

  def draw(*shape, norm=False):
    x = rng.uniform(0.5, 1.5, shape) if norm else rng.normal(size=shape) * 0.2
    return x.astype(dtype).astype(np.float32)

  found = dict(
    embedding=draw(fields['vocab'], D),
    layers=dict(
      attn_norm=draw(L, D, norm=True),
      q=draw(L, D, N, H),
      k=draw(L, D, K, H),
      v=draw(L, D, K, H),
      o=draw(L, N, H, D),
      mlp_norm=draw(L, D, norm=True),
      gate=draw(L, D, F),
      up=draw(L, D, F),
      down=draw(L, F, D),
    ),
    norm=draw(D, norm=True),
  )
  return (
    found if fields['tied'] else found | dict(head=draw(D, fields['vocab']))
  )


def huggingface(params, dtype=BFLOAT16):
  """{name: tensor} as a LlamaForCausalLM stores them, in its order."""
  found = {'model.embed_tokens.weight': params['embedding']}
  for i in range(len(params['layers']['q'])):
    layer = {name: x[i] for name, x in params['layers'].items()}
    flat = lambda x: x.reshape(x.shape[0], -1).T
    at = f'model.layers.{i}.'
    found |= {
      at + 'self_attn.q_proj.weight': flat(layer['q']),
      at + 'self_attn.k_proj.weight': flat(layer['k']),
      at + 'self_attn.v_proj.weight': flat(layer['v']),
      at + 'self_attn.o_proj.weight': layer['o'].reshape(
        -1, layer['o'].shape[-1]
      ).T,
      at + 'mlp.gate_proj.weight': layer['gate'].T,
      at + 'mlp.up_proj.weight': layer['up'].T,
      at + 'mlp.down_proj.weight': layer['down'].T,
      at + 'input_layernorm.weight': layer['attn_norm'],
      at + 'post_attention_layernorm.weight': layer['mlp_norm'],
    }  # fmt: skip
  found['model.norm.weight'] = params['norm']
  if 'head' in params:
    found['lm_head.weight'] = params['head'].T
  return {name: np.ascontiguousarray(x, dtype) for name, x in found.items()}


META = {
  'model.embed_tokens': 'tok_embeddings',
  'model.norm': 'norm',
  'lm_head': 'output',
  'self_attn.q_proj': 'attention.wq',
  'self_attn.k_proj': 'attention.wk',
  'self_attn.v_proj': 'attention.wv',
  'self_attn.o_proj': 'attention.wo',
  'mlp.gate_proj': 'feed_forward.w1',
  'mlp.down_proj': 'feed_forward.w2',
  'mlp.up_proj': 'feed_forward.w3',
  'input_layernorm': 'attention_norm',
  'post_attention_layernorm': 'ffn_norm',
}


def meta(params, fields, dtype=BFLOAT16):
  """{name: tensor} as Meta stores them: pairs of a head side by side."""
  found = {}
  for name, x in huggingface(params, dtype).items():
    name = name.removesuffix('.weight').replace('model.layers', 'layers')
    if name.endswith(('q_proj', 'k_proj')):
      half = fields['head_dim'] // 2
      heads = x.reshape(-1, 2 * half, x.shape[-1])
      pairs = [[h[i], h[i + half]] for h in heads for i in range(half)]
      x = np.array(pairs).reshape(x.shape)
    for theirs, metas in META.items():
      name = name.replace(theirs, metas)
    found[name + '.weight'] = x
  if 'output.weight' not in found:
    found['output.weight'] = found['tok_embeddings.weight']
  return found


GGUF = {
  'layers': 'blk',
  'tok_embeddings': 'token_embd',
  'attention.wq': 'attn_q',
  'attention.wk': 'attn_k',
  'attention.wv': 'attn_v',
  'attention.wo': 'attn_output',
  'attention_norm': 'attn_norm',
  'feed_forward.w1': 'ffn_gate',
  'feed_forward.w2': 'ffn_down',
  'feed_forward.w3': 'ffn_up',
}


def gguf(params, fields):
  """{name: tensor} as llama.cpp stores them: Meta's, by other names."""
  found = {}
  for name, x in meta(params, fields, np.dtype('f4')).items():
    for metas, theirs in GGUF.items():
      name = name.replace(metas, theirs)
    found['output_norm.weight' if name == 'norm.weight' else name] = x
  if 'head' not in params:
    del found['output.weight']
  return found


def assert_same(found, wanted):
  """Fails unless two trees of parameters have the same numbers."""
  jax.tree.map_with_path(
    lambda path, a, b: np.testing.assert_array_equal(a, b, err_msg=str(path)),
    found,
    wanted,
  )


def meta_shards(tensors, count, embedding_dim=0):
  """The tensors of each of `count` files."""

  def cut(name, x):
    if x.ndim == 1:
      return [x] * count
    dim = embedding_dim if name == 'tok_embeddings.weight' else 0
    dim = 1 if name.endswith(('wo.weight', 'w2.weight')) else dim
    return np.split(x, count, dim)

  parts = {name: cut(name, x) for name, x in tensors.items()}
  return [{name: x[i] for name, x in parts.items()} for i in range(count)]


def rope_parameters(rope):
  """Our rope fields under the names of transformers 5."""
  names = dict(base='rope_theta', scaling='rope_type',
               original_length='original_max_position_embeddings')  # fmt: skip
  return dict(rope_type='default') | {
    names.get(k, k): v for k, v in rope.items()
  }


def config(fields, rope, **more):
  """config.json as transformers 5 writes it."""
  names = dict(vocab='vocab_size', layers='num_hidden_layers',
               embed='hidden_size', mlp='intermediate_size',
               heads='num_attention_heads', kv_heads='num_key_value_heads',
               norm_eps='rms_norm_eps', tied='tie_word_embeddings')  # fmt: skip
  return (
    dict(
      architectures=['LlamaForCausalLM'],
      model_type='llama',
      hidden_act='silu',
      max_position_embeddings=16_384,
      dtype='bfloat16',
      rope_parameters=rope_parameters(rope),
      **{names.get(key, key): value for key, value in fields.items()},
    )
    | more
  )


def meta_config(fields, **more):
  """params.json."""
  return dict(
    dim=fields['embed'], n_layers=fields['layers'], n_heads=fields['heads'],
    n_kv_heads=fields['kv_heads'], vocab_size=fields['vocab'],
    norm_eps=fields['norm_eps'], multiple_of=16, rope_theta=500_000.0,
  ) | more  # fmt: skip


KINDS = {'float32': 'F32', 'float16': 'F16', 'bfloat16': 'BF16',
         'float64': 'F64', 'int8': 'I8'}  # fmt: skip


def header(tensors):
  """The header of a safetensors file, as the library orders it."""
  order = sorted(tensors, key=lambda n: (-tensors[n].dtype.itemsize, n))
  found, at = {'__metadata__': {'format': 'pt'}}, 0
  for name in order:
    x = tensors[name]
    found[name] = dict(dtype=KINDS[x.dtype.name], shape=list(x.shape),
                       data_offsets=[at, at + x.nbytes])  # fmt: skip
    at += x.nbytes
  return found


def write_safetensors(path, tensors, head=None):
  head = header(tensors) if head is None else head
  text = json.dumps(head, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)
  order = sorted(tensors, key=lambda n: (-tensors[n].dtype.itemsize, n))
  data = b''.join(tensors[name].tobytes() for name in order)
  path.write_bytes(struct.pack('<Q', len(text)) + text + data)


def write_json(path, value):
  path.write_text(json.dumps(value))


def write_huggingface(
  directory, fields, rope, *, shards=1, tensors=None, **more
):
  """A directory that transformers loads; returns the parameters in it."""
  directory.mkdir(parents=True, exist_ok=True)
  truth = params(fields)
  tensors = huggingface(truth) if tensors is None else tensors
  write_json(directory / 'config.json', config(fields, rope, **more))
  if shards == 1:
    write_safetensors(directory / 'model.safetensors', tensors)
    return truth
  places, names = {}, list(tensors)
  for i in range(shards):
    file = f'model-{i + 1:05}-of-{shards:05}.safetensors'
    mine = names[i * len(names) // shards : (i + 1) * len(names) // shards]
    write_safetensors(directory / file, {n: tensors[n] for n in mine})
    places |= dict.fromkeys(mine, file)
  write_json(
    directory / 'model.safetensors.index.json',
    dict(metadata=dict(total_size=0), weight_map=places),
  )
  return truth


def write_meta(
  directory, fields, *, shards=1, embedding_dim=0, tensors=None, **more
):
  """A directory of Meta's; returns the parameters in it."""
  directory.mkdir(parents=True, exist_ok=True)
  truth = params(fields)
  tensors = meta(truth, fields) if tensors is None else tensors
  write_json(directory / 'params.json', meta_config(fields, **more))
  for i, part in enumerate(meta_shards(tensors, shards, embedding_dim)):
    write_pytorch(directory / f'consolidated.{i:02}.pth', part)
  return truth


STORAGES = {'float32': 'FloatStorage', 'float16': 'HalfStorage',
            'bfloat16': 'BFloat16Storage', 'int64': 'LongStorage'}  # fmt: skip


def text(string):
  data = string.encode()
  return b'X' + struct.pack('<I', len(data)) + data


def integer(number):
  return b'J' + struct.pack('<i', number)


def pickled_tensor(key, kind, count, shape, stride, offset=0):
  """torch._utils._rebuild_tensor_v2(storage, offset, shape, stride, ...)."""
  storage = (
    b'(' + text('storage') + b'ctorch\n' + kind.encode() + b'\n'
    + text(str(key)) + text('cpu') + integer(count) + b'tQ'
  )  # fmt: skip
  tuples = [b'(' + b''.join(map(integer, x)) + b't' for x in (shape, stride)]
  hooks = b'ccollections\nOrderedDict\n)R'
  return (
    b'ctorch._utils\n_rebuild_tensor_v2\n(' + storage + integer(offset)
    + tuples[0] + tuples[1] + b'\x89' + hooks + b'tR'
  )  # fmt: skip


def pickled(tensors):
  """The pickle of a dict of tensors, opcode by opcode."""
  items = b''
  for key, (name, x) in enumerate(tensors.items()):
    stride = [s // x.itemsize for s in x.strides]
    items += text(name) + pickled_tensor(
      key, STORAGES[x.dtype.name], x.size, x.shape, stride
    )
  return b'\x80\x02}(' + items + b'u.'


def write_pytorch(path, tensors, pickle_bytes=None, **records):
  """A file as torch.save writes it; skips the test if torch is missing."""
  pytest.importorskip('torch')
  tensors = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED) as archive:
    archive.writestr('archive/data.pkl', pickle_bytes or pickled(tensors))
    archive.writestr('archive/byteorder', records.get('byteorder', 'little'))
    for key, x in enumerate(tensors.values()):
      archive.writestr(f'archive/data/{key}', x.tobytes())
    archive.writestr('archive/version', '3\n')


def bomb(path):
  """A file whose pickle would run a command."""

  class Bomb:
    def __reduce__(self):
      return (print, ('executed',))

  stream = io.BytesIO()
  pickle.Pickler(stream, protocol=2).dump({'x': Bomb()})
  write_pytorch(path, {}, stream.getvalue())
