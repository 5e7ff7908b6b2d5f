"""Random directories of weights: the tensors that were written, or one line."""

import json
import random

import numpy as np
import pytest
import weight_files as files

from longjax import errors, weights
from longjax.data import tokenizer

SMALL = files.MHA | dict(vocab=12, embed=8, mlp=12, heads=4, kv_heads=2,
                         head_dim=2)  # fmt: skip
ROPES = (dict(base=1e4), files.LLAMA31, files.YARN, files.LINEAR)
DTYPES = (files.BFLOAT16, np.dtype('f2'), np.dtype('f4'), np.dtype('f8'))
INDEX = 'model.safetensors.index.json'


def written(rng, root):
  """Writes a whole model: (its tensors by Hugging Face's names, fields)."""
  fields = SMALL | dict(tied=rng.random() < 0.3, layers=rng.randint(1, 3))
  truth = files.params(fields, rng.randrange(9))
  form = rng.choice(['one', 'one', 'shards', 'shards', 'pytorch', 'meta'])
  if form == 'meta' and not fields['tied']:
    files.write_meta(root, fields, shards=rng.choice([1, 2]),
                     tensors=files.meta(truth, fields))  # fmt: skip
    return form, files.huggingface(truth), fields
  tensors = files.huggingface(truth, rng.choice(DTYPES))
  if rng.random() < 0.2:  # one of another type
    name = rng.choice(list(tensors))
    tensors[name] = tensors[name].astype(rng.choice(DTYPES))
  shards = rng.randint(2, 4) if form == 'shards' else 1
  files.write_huggingface(
    root, fields, rng.choice(ROPES), shards=shards, tensors=tensors
  )
  whole = root / 'model.safetensors'
  if form == 'pytorch' and all(x.dtype.itemsize < 8 for x in tensors.values()):
    whole.unlink()
    files.write_pytorch(root / 'pytorch_model.bin', tensors)
  return form, tensors, fields


def of_json(name, change):
  """Damage: a JSON file whose object is changed."""

  def damage(rng, root):
    if (root / name).exists():
      value = json.loads((root / name).read_text())
      change(rng, value)
      files.write_json(root / name, value)

  return damage


def cut(rng, root):
  path = rng.choice(sorted(root.iterdir()))
  raw = path.read_bytes()
  path.write_bytes(raw[: rng.randrange(len(raw))])


def grow(rng, root):
  with open(rng.choice(sorted(root.iterdir())), 'ab') as file:
    file.write(bytes(rng.randint(1, 40)))


def lose(rng, root):
  rng.choice(sorted(root.iterdir())).unlink()


def rename(rng, root):
  names = [path.name for path in root.iterdir()]
  target = rng.choice([*names, 'model.safetensors', 'x.safetensors',
                       'pytorch_model.bin', 'model.bin'])  # fmt: skip
  (root / rng.choice(sorted(names))).rename(root / target)


def beside(rng, root):
  """Another model in the same directory, in another format."""
  other = SMALL | dict(layers=1)
  names = dict(meta='params.json', pytorch='pytorch_model.bin')
  new = [k for k, name in names.items() if not (root / name).exists()]
  kind = rng.choice([*new, 'bare'])
  tensors = files.huggingface(files.params(other, 77))
  if kind == 'meta':
    files.write_meta(root, other)
  elif kind == 'pytorch':
    files.write_pytorch(root / 'pytorch_model.bin', tensors)
  else:
    files.write_safetensors(root / 'model-00009-of-00009.safetensors', tensors)


def tensors_changed(rng, root):
  """A safetensors file that is whole, and has other tensors."""
  found = sorted(root.glob('*.safetensors'))
  if not found:
    return
  path = rng.choice(found)
  raw = path.read_bytes()
  size = int.from_bytes(raw[:8], 'little')
  head = json.loads(raw[8 : 8 + size])
  names = [name for name in head if name != '__metadata__']
  name, kind = rng.choice(names), rng.randrange(4)
  if kind == 0:
    del head[name]
  elif kind == 1:
    head[name + 'x'] = head.pop(name)
  elif kind == 2:
    head[name]['shape'] = head[name]['shape'][::-1]
  else:
    head[name]['dtype'] = rng.choice(['I16', 'I32', 'I64', 'F8_E4M3'])
  text = json.dumps(head).encode()
  text += b' ' * (-len(text) % 8)
  path.write_bytes(len(text).to_bytes(8, 'little') + text + raw[8 + size :])


def field(rng, config):
  key = rng.choice(list(config))
  if rng.random() < 0.4:
    del config[key]
  else:
    config[key] = rng.choice([
      0, 1, 2, 4, 3, -1, 1.5, '8', None, True, [], {}, 10**12, 'x', 1e400
    ])  # fmt: skip


def place(rng, index):
  places = index['weight_map']
  name = rng.choice(list(places))
  kind = rng.randrange(4)
  if kind == 0:
    del places[name]
  elif kind == 1:
    places[name] = rng.choice(
      ['absent.safetensors', '../up', '', 'config.json']
    )
  elif kind == 2:
    places[name] = rng.choice(list(places.values()))
  else:
    places['model.extra.weight'] = rng.choice(list(places.values()))


DAMAGE = dict(
  cut=cut,
  grow=grow,
  lose=lose,
  rename=rename,
  beside=beside,
  tensors=tensors_changed,
  config=of_json('config.json', field),
  params=of_json('params.json', field),
  index=of_json(INDEX, place),
)


def check(seed, root):
  """One case; whether it was read."""
  rng = random.Random(seed)
  form, tensors, fields = written(rng, root)
  damage = rng.choice([None, *DAMAGE])
  if damage:
    DAMAGE[damage](rng, root)
  try:
    params, config = weights.load(root)
  except errors.InputError as error:
    assert '\n' not in str(error) and str(root) in str(error), (seed, error)
    assert damage, (seed, error)
    return False
  if form == 'meta' or damage in ('config', 'params'):
    # Heads and ropes may be others without any sign; sizes may not.
    assert config.layers == fields['layers'], seed
  found = files.huggingface(params, np.dtype('f4'))
  names = set(tensors) if not config.tied else set(found)
  assert set(found) == names, (seed, damage)
  for name, x in found.items():
    wanted = tensors[name].astype('f4').reshape(x.shape)
    if not (form == 'meta' and damage == 'params'):
      assert np.array_equal(x, wanted), (seed, damage, name)
  return True


def test_a_pointer_of_git_lfs_says_what_to_do(tmp_path):
  files.write_huggingface(tmp_path, SMALL, ROPES[0])
  pointer = 'version https://git-lfs.github.com/spec/v1\noid sha256:00\n'
  (tmp_path / 'model.safetensors').write_text(pointer)
  with pytest.raises(errors.InputError, match='git lfs pull'):
    weights.load(tmp_path)
  (tmp_path / 'tokenizer.model').write_text(pointer)
  with pytest.raises(errors.InputError, match='git lfs pull'):
    tokenizer.load(tmp_path)


def run(seeds, tmp_path):
  read = sum(check(seed, tmp_path / str(seed)) for seed in seeds)
  assert len(seeds) // 8 < read < len(seeds)


def test_tensors_are_exact_or_refused_in_one_line(tmp_path):
  run(range(200), tmp_path)
