"""Tokenizers: text to int32 ids and back.

One class over the `tokenizers` library, built from a tokenizer.json, from the
metadata of a GGUF file, or as plain bytes (tests, configs/tiny).

Corpus text is data: a literal '<|im_end|>' in a web page must not end a turn.
So `encode` treats the names of special tokens as ordinary text, except for
those in `special`, which the caller vouches for: the '<file_sep>' that
data/sources writes between the files of a repository, or the marks of a chat
template. A name that the vocabulary lacks stays text.
"""

import functools
import hashlib
import itertools
import json
import pathlib
import re

import numpy as np

from longjax import errors

# What ends a document of a pretraining corpus. An instruction-tuned model has
# another `eos` (the end of a turn), which must not stand for this.
DOCUMENT_ENDS = ('<|endoftext|>', '<|end_of_text|>')


class Tokenizer:
  """Encodes and decodes; equal `digest`s mean equal ids.

  Attributes:
    vocab: number of ids.
    bos, eos: ids or None, as the model's authors named them.
    document_start: id to put before a document, or None.
    document_end: id to put after a document, or None.
    digest: sha256 of the definition, hex.
  """

  def __init__(self, definition: str, bos: str = '', eos: str = ''):
    """Takes the text of a tokenizer.json and the names of two tokens."""
    import tokenizers

    self._inner = tokenizers.Tokenizer.from_str(definition)
    self._inner.encode_special_tokens = True  # special names are plain text
    self._inner.no_truncation()
    self._inner.no_padding()
    self._names = (bos, eos)
    self.vocab = self._inner.get_vocab_size(with_added_tokens=True)
    self.bos, self.eos = (self._id(name) for name in self._names)
    for name, number in zip(self._names, (self.bos, self.eos)):
      if name and number is None:
        raise errors.InputError(f'{name!r} is not in the vocabulary')
    added = self._inner.encode('').ids  # what a post-processor puts around
    self.document_start = self.bos if self.bos in added else None
    ends = [self._id(name) for name in DOCUMENT_ENDS]
    self.document_end = next((i for i in ends if i is not None), self.eos)

  def encode(self, text: str, special=()) -> np.ndarray:
    """The ids of a text, int32 [tokens]; nothing is added at its ends.

    Args:
      text: what to encode.
      special: names of special tokens that `text` may contain as such.
    """
    return self.encode_batch([text], special)[0]

  def encode_batch(self, texts, special=()) -> list[np.ndarray]:
    """`encode` of many texts on all cores."""
    marks = {name: i for name in special if (i := self._id(name)) is not None}
    parts = [_split(text, marks) for text in texts]
    plain = [p for text in parts for p in text if p not in marks]
    encoded = iter(
      self._inner.encode_batch_fast(plain, add_special_tokens=False)
    )
    return [
      np.fromiter(
        itertools.chain.from_iterable(
          [marks[p]] if p in marks else next(encoded).ids for p in text
        ),
        np.int32,
      )
      for text in parts
    ]

  def decode(self, ids) -> str:
    """The text of ids, special tokens included."""
    ids = np.asarray(ids).reshape(-1).tolist()
    return self._inner.decode(ids, skip_special_tokens=False)

  def save(self, directory):
    """Writes tokenizer.json and tokenizer_config.json, as transformers does."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / 'tokenizer.json').write_text(self._inner.to_str(pretty=True))
    bos, eos = self._names
    config = dict(
      tokenizer_class='PreTrainedTokenizerFast',
      bos_token=bos or None,
      eos_token=eos or None,
      clean_up_tokenization_spaces=False,
    )
    (directory / 'tokenizer_config.json').write_text(
      json.dumps(config, indent=2) + '\n'
    )

  @functools.cached_property
  def digest(self) -> str:
    # Of the parts that decide ids, not of the file: the library adds fields
    # to its JSON from one version to the next.
    whole = json.loads(self._inner.to_str())
    parts = {k: whole[k] for k in ('normalizer', 'pre_tokenizer', 'decoder')}
    parts['added'] = [[t['id'], t['content']] for t in whole['added_tokens']]
    parts['vocab'] = self._inner.get_vocab(with_added_tokens=True)
    parts['merges'] = whole['model'].get('merges')
    parts['ends'] = [self.bos, self.eos, self.document_start, self.document_end]
    return hashlib.sha256(
      json.dumps(parts, sort_keys=True).encode()
    ).hexdigest()

  def _id(self, name: str):
    return self._inner.token_to_id(name) if name else None


def load(spec) -> Tokenizer:
  """A tokenizer from where it is kept.

  Args:
    spec: 'bytes', a .gguf file, a tokenizer.json, or a directory with one (or
      with tokenizer/tokenizer.json), or a file of weights in such a directory.
  """
  if str(spec) == 'bytes':
    return from_bytes()
  path = pathlib.Path(spec).expanduser()
  if path.is_dir() and not (path / 'tokenizer.json').is_file():
    found = list(path.glob('*.gguf'))
    path = found[0] if len(found) == 1 else path
  if path.suffix == '.gguf':
    return from_gguf(path)
  if path.suffix != '.json':
    root = path if path.is_dir() else path.parent
    # A run directory, its checkpoints/, or one of these.
    runs = [d / 'tokenizer' for d in (root, *root.resolve().parents[:2])]
    places = [d / 'tokenizer.json' for d in (root, *runs)]
    path = next((p for p in places if p.is_file()), places[0])
  config = path.with_name('tokenizer_config.json')
  bos, eos = _ends(config) if config.is_file() else ('', '')
  try:
    return Tokenizer(path.read_text('utf-8'), bos, eos)
  except OSError as error:
    raise errors.InputError(
      f'{path}: {error.strerror}; a tokenizer is a tokenizer.json, a directory '
      "that holds one, a .gguf file, or 'bytes'"
    ) from error
  except Exception as error:  # the library raises plain Exception
    raise errors.InputError(
      f'{path}: not a tokenizer.json ({error})'
    ) from error


def from_bytes() -> Tokenizer:
  """Bytes: ids 0-255 are bytes, 256 is bos, 257 eos, up to 383 unused."""
  import tokenizers

  inner = tokenizers.Tokenizer(
    tokenizers.models.BPE({c: i for i, c in enumerate(_byte_names())}, [])
  )
  inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False, use_regex=False
  )
  inner.decoder = tokenizers.decoders.ByteLevel()
  names = ['<bos>', '<eos>', *(f'<unused_{i}>' for i in range(258, 384))]
  inner.add_special_tokens(names)
  return Tokenizer(inner.to_str(), '<bos>', '<eos>')


def from_gguf(path) -> Tokenizer:
  """The tokenizer in the metadata of a GGUF file.

  Exact for the byte-level BPE of SmolLM ('gpt2' with pre-tokenizer 'smollm');
  others are refused rather than approximated.
  """
  meta = _gguf_metadata(path)
  _require_smollm(path, meta)
  try:
    return _smollm(meta)
  except Exception as error:  # the library raises plain Exception
    raise errors.InputError(
      f'{path}: its tokenizer is damaged ({type(error).__name__}: {error})'
    ) from error


def _smollm(meta: dict) -> Tokenizer:
  import tokenizers
  from tokenizers import AddedToken

  names, kinds = meta['tokens'], meta['token_type']
  inner = tokenizers.Tokenizer(
    tokenizers.models.BPE(
      {name: i for i, name in enumerate(names)},
      [tuple(merge.split(' ')) for merge in meta['merges']],
    )
  )
  inner.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
    [
      tokenizers.pre_tokenizers.Digits(individual_digits=True),
      tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  inner.decoder = tokenizers.decoders.ByteLevel()
  control = [n for n, kind in zip(names, kinds) if kind == 3]
  inner.add_special_tokens([AddedToken(n, normalized=False) for n in control])
  ends = (meta.get('bos_token_id'), meta.get('eos_token_id'))
  bos, eos = ('' if i is None else names[i] for i in ends)
  return Tokenizer(inner.to_str(), bos, eos)


def _gguf_metadata(path) -> dict:
  """The 'tokenizer.ggml.*' fields of a GGUF file, without the prefix."""
  import gguf

  prefix = 'tokenizer.ggml.'
  try:
    fields = gguf.GGUFReader(str(path)).fields
    return {
      name.removeprefix(prefix): field.contents()
      for name, field in fields.items()
      if name.startswith(prefix)
    }
  except OSError as error:
    raise errors.InputError(f'{path}: {error.strerror or error}') from error
  except Exception as error:  # whatever the reader stumbles over
    raise errors.InputError(
      f'{path}: not a whole GGUF file ({type(error).__name__}: {error})'
    ) from error


def _require_smollm(path, meta: dict):
  model, pre = meta.get('model'), meta.get('pre')
  if (model, pre) != ('gpt2', 'smollm'):
    raise errors.InputError(
      f'{path}: its tokenizer is {model!r} with pre-tokenizer {pre!r}; only '
      "'gpt2' with 'smollm' can be rebuilt exactly from GGUF. Set "
      'data.tokenizer to a tokenizer.json of this model'
    )
  needed = ('tokens', 'token_type', 'merges')
  missing = [name for name in needed if name not in meta]
  if missing or meta.get('add_bos_token'):
    raise errors.InputError(
      f'{path}: a smollm tokenizer with add_bos_token '
      f'{meta.get("add_bos_token")} and without {missing} is unknown here'
    )


def _byte_names() -> list[str]:
  """The character that stands for each byte in byte-level BPE (GPT-2)."""
  shown = {*range(33, 127), *range(161, 173), *range(174, 256)}
  spare = itertools.count(256)
  return [chr(b) if b in shown else chr(next(spare)) for b in range(256)]


def _ends(config: pathlib.Path) -> tuple[str, str]:
  """The names of bos and eos in a tokenizer_config.json."""
  try:
    told = json.loads(config.read_text('utf-8'))
    names = (told.get('bos_token') or '', told.get('eos_token') or '')
    bos, eos = (n if isinstance(n, str) else n['content'] for n in names)
    return bos, eos
  except (ValueError, TypeError, KeyError, AttributeError) as error:
    raise errors.InputError(
      f'{config}: not a tokenizer_config.json ({error})'
    ) from error


def _split(text: str, marks) -> list[str]:
  """`text` cut before and after each mark, without empty parts."""
  if not marks:
    return [text]
  pattern = '|'.join(re.escape(name) for name in marks)
  return [part for part in re.split(f'({pattern})', text) if part]
