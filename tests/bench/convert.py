"""Importing a model of gigabytes: memory and speed, beside cp and a peer.

  python tests/bench/convert.py --directory /data [--layers 20] [--peer]

Writes random weights of the shape of Llama 2 7B in bfloat16 (20 layers are
8.6 GB, all 32 are 13.5 GB) in shards of Hugging Face's form, then times, each
in a process of its own: `cp -r` of the files, our import to float32 and to
bfloat16, our export of the latter, and with --peer transformers'
from_pretrained and save_pretrained, which is how others read and write these
files. Each is run twice:

  memory   what is read lies in the page cache, what is written may stay there
  disk     what is read comes from the disk, what is written is synced to it

The space of about three copies is needed; all is removed at the end. `read`
counts the bytes of the source, as the ratios to cp do; `written` what was made
(float32 is twice the source); memory is the peak of the process.
"""

import argparse
import json
import multiprocessing
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import ml_dtypes
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]

import weight_files  # noqa: E402

EMBED, MLP, VOCAB = 4096, 11_008, 32_000
PEER = """
import sys, torch, transformers
model = transformers.LlamaForCausalLM.from_pretrained(
  sys.argv[1], dtype=torch.bfloat16, low_cpu_mem_usage=True)
model.save_pretrained(sys.argv[2], max_shard_size='5GB')
"""


def make(directory, layers):
  """Writes the model, a file for every four layers."""
  pool = np.random.default_rng(0).standard_normal(EMBED * MLP + (1 << 20), 'f4')
  pool = (pool * 0.02).astype(ml_dtypes.bfloat16)

  def draw(*shape):
    draw.at = (draw.at + 12_345) % (1 << 20)  # no two tensors alike
    size = int(np.prod(shape))
    repeated = np.resize(pool[draw.at :], size)
    return repeated.reshape(shape)

  draw.at = 0
  fields = dict(
    vocab=VOCAB, layers=layers, embed=EMBED, mlp=MLP, heads=32, kv_heads=32,
    head_dim=128, norm_eps=1e-5, tied=False,
  )  # fmt: skip
  directory.mkdir(parents=True)
  weight_files.write_json(
    directory / 'config.json', weight_files.config(fields, dict(base=1e4))
  )
  ends = {
    'model.embed_tokens.weight': (VOCAB, EMBED),
    'model.norm.weight': (EMBED,),
    'lm_head.weight': (VOCAB, EMBED),
  }
  layer = {
    'self_attn.q_proj': (EMBED, EMBED), 'self_attn.k_proj': (EMBED, EMBED),
    'self_attn.v_proj': (EMBED, EMBED), 'self_attn.o_proj': (EMBED, EMBED),
    'mlp.gate_proj': (MLP, EMBED), 'mlp.up_proj': (MLP, EMBED),
    'mlp.down_proj': (EMBED, MLP), 'input_layernorm': (EMBED,),
    'post_attention_layernorm': (EMBED,),
  }  # fmt: skip
  groups = [ends] + [
    {
      f'model.layers.{i}.{name}.weight': shape
      for i in range(first, min(first + 4, layers))
      for name, shape in layer.items()
    }
    for first in range(0, layers, 4)
  ]
  places = {}
  for i, group in enumerate(groups, 1):
    file = f'model-{i:05}-of-{len(groups):05}.safetensors'
    tensors = {name: draw(*shape) for name, shape in group.items()}
    weight_files.write_safetensors(directory / file, tensors)
    places |= dict.fromkeys(group, file)
  (directory / 'model.safetensors.index.json').write_text(
    json.dumps(dict(metadata={}, weight_map=places))
  )


def size(directory) -> int:
  return sum(f.stat().st_size for f in directory.rglob('*') if f.is_file())


def forget(directory):
  """Drops files from the page cache; their pages are clean after a sync."""
  os.sync()
  for path in directory.rglob('*'):
    if path.is_file():
      with open(path, 'rb') as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(name, source, target, command) -> dict[str, float]:
  """Runs a command both ways; its seconds. `target` stays, of the last run."""
  found = {}
  for way in ('memory', 'disk'):
    shutil.rmtree(target, ignore_errors=True)
    os.sync()
    if way == 'disk':
      forget(source)
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if way == 'disk':
      os.sync()
    seconds = time.monotonic() - began
    assert status == 0, command
    print(
      f'{name:28} {way:7} {seconds:6.1f} s '
      f'read {size(source) / seconds / 1e9:5.2f} GB/s '
      f'written {size(target) / seconds / 1e9:5.2f} GB/s '
      f'{usage.ru_utime + usage.ru_stime:6.1f} CPU s '
      f'{usage.ru_maxrss * 1024 / 1e9:6.2f} GB',
      flush=True,
    )
    found[way] = seconds
  return found


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--directory', required=True)
  parser.add_argument('--layers', type=int, default=20)
  parser.add_argument('--peer', action='store_true')
  options = parser.parse_args()
  place = pathlib.Path(tempfile.mkdtemp(dir=options.directory))
  hf, bfloat16, out = (place / name for name in ('hf', 'bfloat16', 'out'))
  ours = lambda verb, source, target, *flags: [
    sys.executable, str(ROOT / 'launch' / 'convert.py'), verb,
    f'--from={source}', f'--to={target}', *flags,
  ]  # fmt: skip
  try:
    # Elsewhere: a process inherits the peak of the one that starts it.
    spawn = multiprocessing.get_context('spawn')
    maker = spawn.Process(target=make, args=(hf, options.layers))
    maker.start()
    maker.join()
    print(f'{size(hf) / 1e9:.1f} GB of bfloat16', flush=True)
    runs = {
      'cp': (hf, out, ['cp', '-r', str(hf), str(out)]),
      'import to float32': (
        hf, out, ours('import', hf, out, '--dtype=float32')
      ),
      'import to bfloat16': (
        hf, bfloat16, ours('import', hf, bfloat16, '--dtype=bfloat16')
      ),
      'export of bfloat16': (bfloat16, out, ours('export', bfloat16, out)),
    }  # fmt: skip
    if options.peer:
      peer = [sys.executable, '-c', PEER, str(hf), str(out)]
      runs['transformers load and save'] = hf, out, peer
    found = {}
    for name, run in runs.items():
      found[name] = timed(name, *run)
      shutil.rmtree(out, ignore_errors=True)
    for name, seconds in found.items():
      for way, of in seconds.items():
        print(f'{name}, {way}: {found["cp"][way] / of:.2f} of the speed of cp')
  finally:
    shutil.rmtree(place)


if __name__ == '__main__':
  main()
