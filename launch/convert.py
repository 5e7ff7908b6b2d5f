"""Weights in and out.

  python launch/convert.py import --from PATH --to DIR [--dtype float32]
  python launch/convert.py export --from DIR --to DIR [--max-length N] [--push hf://ORG/NAME]
  python launch/convert.py show --from PATH

import makes a run directory, with a checkpoint, the tokenizer and the model's
configuration, from a GGUF file or from a directory in the form of Hugging Face
(safetensors, one file or shards) or Meta (consolidated.*.pth, all shards), on
this machine, in a bucket or on the Hub (hf://ORG/NAME@REVISION); the format is
detected. PyTorch's files (.pth, .bin) need torch. export writes a
checkpoint in the form that transformers loads. show prints format, model,
tensors and digests. import and export need little memory for any size of model.
"""

import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from longjax import cli, hub
from longjax.errors import InputError

SUFFIXES = dict(KB=10**3, MB=10**6, GB=10**9)


def import_(from_, to_, dtype_='float32'):
  """Makes a run directory from weights in another format."""
  _known(dtype_, 'float32', 'bfloat16')
  convert = _convert()
  convert.to_checkpoint(from_, to_, dtype_)
  print(f'imported {from_} into {to_}: use it as --config.weights={to_}')


def export(from_, to_, dtype_='', shard_size_='5GB', max_length_='', push_=''):
  """Makes a directory that transformers loads from a checkpoint."""
  _known(dtype_, '', 'float32', 'bfloat16', 'float16')
  size, suffix = shard_size_[:-2], shard_size_[-2:].upper()
  if suffix not in SUFFIXES or not size.isdigit() or int(size) < 1:
    raise InputError(f'--shard-size is a size like 5GB, got {shard_size_!r}')
  if max_length_ and not re.fullmatch(r'[1-9]\d*[kK]?', max_length_):
    raise InputError(
      f'--max-length is a number of tokens like 32768 or 32K, got '
      f'{max_length_!r}'
    )
  thousands = 1024 if max_length_[-1:] in ('k', 'K') else 1
  window = int(max_length_.rstrip('kK') or 0) * thousands
  if push_:
    hub.check_target(push_)
  convert = _convert()
  convert.to_huggingface(
    from_, to_, dtype_, int(size) * SUFFIXES[suffix], max_length=window
  )
  print(f'exported {from_} into {to_}')
  if push_:
    convert.write_card(from_, to_)
    print(hub.push(to_, push_))


def show(from_, digests_='yes'):
  """Prints what a path holds."""
  _known(digests_, 'yes', 'no')
  _convert()
  from longjax.weights import show as showing

  print(showing.describe(hub.resolve(from_), digests=digests_ == 'yes'))


def _known(value, *known):
  if value not in known:
    raise InputError(
      f'{value!r} is not one of {", ".join(filter(None, known))}'
    )


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
      'dtype': f'{DTYPE} (lossless for bfloat16 files); default float32',
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
      'max-length': 'tokens that config.json gives as the window; default: the '
      'longest that the model was released or trained for',
      'push': 'hf://ORG/NAME, to upload it there too, with REPORT.md of the '
      'run as its card',
    },
  ),
  'show': (show, dict(**FROM, digests='no: do not read all for their sha256')),
}

if __name__ == '__main__':
  sys.exit(cli.run_verb(__doc__, **VERBS))
