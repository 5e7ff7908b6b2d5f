"""Weights in and out.

  python launch/convert.py import --from PATH --to DIR [--dtype float32]
  python launch/convert.py export --from DIR --to DIR
  python launch/convert.py show --from PATH

import makes a run directory with a checkpoint, the tokenizer and the model's
configuration from a directory of Hugging Face (safetensors, also sharded), of
Meta (consolidated.*.pth, all shards) or a GGUF file; the format is detected.
export writes a checkpoint as transformers loads it. show says what is there.
import and export need little memory, whatever the size of the model.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from longjax import cli
from longjax.errors import InputError

SUFFIXES = dict(KB=10**3, MB=10**6, GB=10**9)


def import_(from_, to_, dtype_='float32'):
  """A run directory of the weights of others."""
  _known(dtype_, 'float32', 'bfloat16')
  convert = _convert()
  convert.to_checkpoint(from_, to_, dtype_)
  print(f'imported {from_} into {to_}: use it as --config.weights={to_}')


def export(from_, to_, dtype_='', shard_size_='5GB'):
  """A directory that transformers loads, of a checkpoint."""
  _known(dtype_, '', 'float32', 'bfloat16', 'float16')
  size, suffix = shard_size_[:-2], shard_size_[-2:].upper()
  if suffix not in SUFFIXES or not size.isdigit() or int(size) < 1:
    raise InputError(f'--shard-size is a size like 5GB, got {shard_size_!r}')
  convert = _convert()
  convert.to_huggingface(from_, to_, dtype_, int(size) * SUFFIXES[suffix])
  print(f'exported {from_} into {to_}')


def show(from_, digests_='yes'):
  """Prints what is there."""
  _known(digests_, 'yes', 'no')
  _convert()
  from longjax.weights import show as showing

  print(showing.describe(from_, digests=digests_ == 'yes'))


def _known(value, *known):
  if value not in known:
    raise InputError(f'{value!r} is none of {", ".join(filter(None, known))}')


def _convert():
  """The library: on this machine's CPU, and late since jax takes seconds."""
  import jax

  jax.config.update('jax_platforms', 'cpu')
  from longjax.weights import convert

  return convert


FROM = {'from': 'what to read: a directory or file'}
TO = {'to': 'directory to make'}
DTYPE = 'of what is written: float32, bfloat16'

VERBS = {
  'import': (
    import_,
    {
      **FROM,
      **TO,
      'dtype': f'{DTYPE}, which loses nothing of files in it; default float32',
    },
  ),
  'export': (
    export,
    {
      **FROM,
      **TO,
      'dtype': f'{DTYPE}, float16; default: as it was imported, float32 if '
      'it was trained',
      'shard-size': 'of the files, default 5GB',
    },
  ),
  'show': (show, dict(**FROM, digests='no: do not read all for their sha256')),
}

if __name__ == '__main__':
  sys.exit(cli.run_verb(__doc__, **VERBS))
