"""Tokenizers: text to int32 ids and back.

One class over two libraries (data/encoders), whatever file it is read from:
tokenizer.json, SentencePiece's or Llama 3's tokenizer.model, the metadata of a
GGUF file, or nothing at all: plain bytes (tests, configs/tiny). A file is
recognized by its content.

Corpus text is data: a literal '<|im_end|>' in a web page must not end a turn.
So `encode` treats the names of special tokens as ordinary text, except for
those in `special`, which the caller vouches for: the '<file_sep>' that
data/sources writes between the files of a repository, or the marks of a chat
template. A name that the vocabulary lacks stays text. Half a surrogate pair,
which is no character, is read as U+FFFD.
"""

import functools
import hashlib
import itertools
import json
import pathlib
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from longjax import errors, hub, storage
from longjax.data import encoders, tokenizer_files, vocabularies
from longjax.data.tokenizer_files import FILES

# What ends a document of a pretraining corpus. An instruction-tuned model has
# another `eos` (the end of a turn), which must not stand for this.
DOCUMENT_ENDS = ('<|endoftext|>', '<|end_of_text|>')
TURN_END = re.compile(
  r'im_end|\beot(_id)?\b|\beom(_id)?\b|\bend_?of_?(turn|utterance)'
  r'|<\|end\|>|\bturn_end\b',
  re.IGNORECASE,
)
PROBE = (
  ' Two  spaces, THREE   LINES\n\n\n\ttabs, 3.14 12345; naïve e\u0301 ½ ﬁn\r\n'
  "def f(x):\n    return x**2 != 'it\u2019s'  # I'll we've \u00a0\u3000\u200b "
  '你好\uff0c世界 привет नमस्ते १२३ السلام 🙂👩\u200d👧 https://x.y/?a=b&c=%20 '
) * 3
HEAD_BYTES = 1 << 12  # of a file, to tell what it is
NEEDED = (
  'a tokenizer is a tokenizer.json, a tokenizer.model of SentencePiece or '
  "Llama 3, a GGUF file, a directory that holds one, or 'bytes'"
)
SURROGATES = re.compile('[\ud800-\udfff]')


class Tokenizer:
  """Encodes and decodes; equal `digest`s mean equal ids.

  Attributes:
    vocab: number of ids.
    bos, eos, pad: ids or None, as the model's authors named them.
    document_start: id to put before a document, or None.
    document_end: id to put after a document, or None; never the end of a turn.
    chat_template: of its authors, in Jinja, or ''.
    digest: sha256 of the definition, hex.
  """

  def __init__(self, encoder, settings=encoders.NO_SETTINGS, files=None):
    """Takes an encoder, and what it does not know or has otherwise.

    Args:
      encoder: of data/encoders.
      settings: these go before the encoder's own.
      files: {name: content} of those of FILES that it was read from.
    """
    self.encoder, self._files = encoder, files or {}
    self.settings = settings = settings.with_defaults(encoder.settings)
    self.chat_template, self.vocab = settings.chat_template, encoder.vocab
    self.bos, self.eos = (self._known(x) for x in (settings.bos, settings.eos))
    self.pad = self.token_to_id(settings.pad)
    before, after = encoder.around(self.bos)
    if settings.add_bos and self.bos is None:
      raise errors.InputError('add_bos_token is true, but bos_token is not set')
    self.document_start = self.bos if settings.add_bos else None
    if settings.add_bos is None and before:
      self.document_start = self._alone(before)
    self.document_end = self._document_end(after)

  def _known(self, name) -> int | None:
    """The id of a special token; InputError if its name is no token's."""
    if name and self.token_to_id(name) is None:
      raise errors.InputError(f'{name!r} is not in the vocabulary')
    return self.token_to_id(name)

  def _alone(self, ids) -> int:
    """The only id of what is put before or after a text."""
    if len(ids) != 1:
      raise errors.InputError(
        f'it puts {len(ids)} tokens before or after a text; set add_bos_token '
        'and add_eos_token in tokenizer_config.json to say which one'
      )
    return ids[0]

  def _document_end(self, after) -> int | None:
    """The id that ended documents when the model was pretrained."""
    eos, adds = self.settings.eos, self.settings.add_eos
    ends_turn = eos and TURN_END.search(eos)
    if after and adds is None and not ends_turn:
      return self._alone(after)
    if not eos or (adds and not ends_turn):
      return self.eos
    others = (eos, self.encoder.settings.eos, '</s>')
    names = [*DOCUMENT_ENDS, *(n for n in others if not TURN_END.search(n))]
    found = (self.token_to_id(name) for name in names)
    return next((i for i in found if i is not None), None)

  def encode(self, text: str, special=()) -> np.ndarray:
    """The ids of a text, int32 [tokens]; nothing is added at its ends.

    Args:
      text: what to encode.
      special: names of special tokens that `text` may contain as such.
    """
    return self.encode_batch([text], special)[0]

  def encode_batch(self, texts, special=()) -> list[np.ndarray]:
    """`encode` of many texts on all cores."""
    marks = {
      name: i for name in special if (i := self.token_to_id(name)) is not None
    }
    if not marks:
      texts = [without_surrogates(text) for text in texts]
      return [np.array(ids, np.int32) for ids in self.encoder.encode(texts)]
    parts = [_split(without_surrogates(text), marks) for text in texts]
    plain = [p for text in parts for p in text if p not in marks]
    encoded = iter(self.encoder.encode(plain))
    return [
      np.fromiter(
        itertools.chain.from_iterable(
          [marks[p]] if p in marks else next(encoded) for p in text
        ),
        np.int32,
      )
      for text in parts
    ]

  @functools.cached_property
  def chat_encoder(self):
    """The encoder that the authors' chat template was written for."""
    if not isinstance(self.encoder, encoders.SentencePiece):
      return self.encoder
    theirs = self._files.get('tokenizer.json')
    # A tokenizer.json that `save` generated is not the authors' file.
    starts = self.document_start is not None
    if theirs and theirs != self.encoder.files(starts).get('tokenizer.json'):
      return encoders.HuggingFace(theirs.decode())
    config = self._files.get('tokenizer_config.json')
    if not config or json.loads(config).get('legacy'):
      return self.encoder
    return self.encoder.with_one_prefix()  # as transformers 5 does

  def decode(self, ids) -> str:
    """The text of ids, special tokens included; unknown ids give nothing."""
    ids = np.asarray(ids).reshape(-1)
    return self.encoder.decode(ids[(ids >= 0) & (ids < self.vocab)].tolist())

  def token_to_id(self, name: str) -> int | None:
    """The id of a token, special ones included, or None."""
    known = name and not SURROGATES.search(name)  # which no library takes
    return self.encoder.token_to_id(name) if known else None

  def save(self, directory):
    """Writes the files that `load` and transformers' AutoTokenizer read."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    files = self.encoder.files(self.document_start is not None)
    settings = self.settings
    config = dict(
      tokenizer_class='PreTrainedTokenizerFast',
      bos_token=settings.bos or None,
      eos_token=settings.eos or None,
      clean_up_tokenization_spaces=False,
    )
    for name in ('pad_token', 'chat_template'):
      if value := getattr(settings, name.removesuffix('_token')):
        config[name] = value
    for name in ('add_bos', 'add_eos'):
      if (value := getattr(settings, name)) is not None:
        config[f'{name}_token'] = value
    theirs = self._files
    is_model = isinstance(self.encoder, encoders.SentencePiece)
    if is_model and 'tokenizer_config.json' not in theirs:
      config['legacy'] = True  # as `chat_encoder` takes one without a config
    if 'tokenizer.json' not in theirs:  # its authors' class is for other files
      config = json.loads(theirs.get('tokenizer_config.json', '{}')) | config
    if 'tokenizer.json' not in files | theirs:
      config['tokenizer_class'] = 'BertGenerationTokenizer'  # see encoders
      for name in ('bos', 'eos', 'pad', 'sep'):  # or it adds its own
        config.setdefault(f'{name}_token', None)
    text = json.dumps(config, indent=2) + '\n'
    files['tokenizer_config.json'] = text.encode()
    kept = 'tokenizer.json' in theirs
    files = files | theirs if kept else theirs | files
    for stale in set(FILES) - set(files):
      (directory / stale).unlink(missing_ok=True)
    for name, content in files.items():
      (directory / name).write_bytes(content)

  @property
  def starts_in_transformers(self) -> bool:
    """Whether a text begins alike in what transformers reads from `save`."""
    files = self.encoder.files() | self._files
    return 'tokenizer.json' in files or self.document_start is None

  @functools.cached_property
  def digest(self) -> str:
    parts = self.encoder.definition()
    parts['ends'] = [self.bos, self.eos, self.document_start, self.document_end]
    return hashlib.sha256(
      json.dumps(parts, sort_keys=True).encode()
    ).hexdigest()


def are_alike(one: Tokenizer, other: Tokenizer) -> bool:
  """Whether two tokenizers give the same ids, also from unlike files.

  A tokenizer.model and the tokenizer.json that its authors made of it have
  digests of their own. Their names, ends and the ids of `PROBE` are compared.
  """
  ends = lambda t: (t.bos, t.eos, t.document_start, t.document_end)
  return one.digest == other.digest or (
    ends(one) == ends(other)
    and one.encoder.names() == other.encoder.names()
    and one.encode(PROBE).tolist() == other.encode(PROBE).tolist()
  )


class Format(NamedTuple):
  """A kind of file."""

  name: str
  sign: bytes  # a pattern of how it begins
  read: Callable  # path -> encoder


FORMATS = (
  Format(
    'a tokenizer.json',
    rb'\s*\{',
    lambda path: encoders.HuggingFace(storage.content(path).decode()),
  ),
  Format(
    'ranks of tiktoken',
    rb'[A-Za-z0-9+/]+=* \d+\r?\n',
    lambda path: encoders.HuggingFace(
      vocabularies.from_tiktoken(storage.content(path)),
      encoders.Settings(*vocabularies.LLAMA3_SPECIAL[:2]),
    ),
  ),
  Format('a GGUF file with a known tokenizer', rb'GGUF', encoders.from_gguf),
  Format(
    'a SentencePiece model',
    rb'\n.\n.',  # field 1, a message, whose field 1 is a string
    lambda path: encoders.SentencePiece(storage.content(path)),
  ),
)


def load(spec) -> Tokenizer:
  """A tokenizer from where it is kept.

  Args:
    spec: 'bytes', a tokenizer.json, a tokenizer.model, a GGUF file, a
      directory with one of these (or with tokenizer/), or a file of weights
      in such a directory.
  """
  if str(spec) == 'bytes':
    settings = encoders.Settings('<bos>', '<eos>')
    return Tokenizer(encoders.HuggingFace(vocabularies.from_bytes(), settings))
  path = pathlib.Path(spec).expanduser()
  if not path.exists():
    raise errors.InputError(f'{path}: no such file or directory; {NEEDED}')
  file, form = path, _format(path)
  if not form and not path.name.startswith('tokenizer.'):
    file = _find(path)
    form = _format(file)
  if not form:
    where = file if file.is_file() else path
    if file.is_file() and storage.content(file).startswith(hub.POINTER):
      raise errors.InputError(f'{file}: {hub.LFS_POINTER}')
    raise errors.InputError(f'{where}: not a tokenizer; {NEEDED}')
  encoder = _read(file, form)
  try:
    if form.sign == b'GGUF':
      return Tokenizer(encoder)
    beside = tokenizer_files.read(file)
    made = Tokenizer(encoder, beside.settings, beside.contents)
    beside.check(made)
    return made
  except errors.InputError as error:
    raise errors.InputError(f'{file}: {error}') from error


def _read(path, form):
  """The encoder of a file; InputError if it is damaged."""
  try:
    return form.read(path)
  except OSError as error:
    raise errors.InputError(f'{path}: {error.strerror or error}') from error
  except Exception as error:  # the libraries raise plain Exception
    reason = ' '.join(str(error).split())
    raise errors.InputError(f'{path}: not {form.name}: {reason}') from error


def _format(path) -> Format | None:
  """What a file is; None of what is no file or no tokenizer."""
  if not path.is_file():
    return None
  with open(path, 'rb') as file:
    head = file.read(HEAD_BYTES)
  fit = (form for form in FORMATS if re.match(form.sign, head, re.DOTALL))
  return next(fit, None)


def _find(path) -> pathlib.Path:
  """The tokenizer file for a directory or a file of weights.

  Where there are two, the SentencePiece model is the authors' own, unless
  somebody has added tokens to the tokenizer.json.
  """
  root = path if path.is_dir() else path.parent
  # A run directory, its checkpoints/, or one of these.
  places = [
    root,
    *(d / 'tokenizer' for d in (root, *root.resolve().parents[:2])),
  ]
  if (root / 'params.json').is_file():  # Meta keeps it beside its models
    places.append(root.resolve().parent)
  for place in places:
    whole, model = place / 'tokenizer.json', place / 'tokenizer.model'
    found = [file for file in (whole, model) if storage.is_safe_file(file)]
    if len(found) == 2 and (form := _format(model)):
      as_many = _is_contained(whole, model)
      authors = form.name == 'a SentencePiece model'
      return model if authors and as_many else whole
    if found:
      return found[0]
    if place == root and len(files := list(root.glob('*.gguf'))) == 1:
      return files[0]
  return root / 'tokenizer.json'


def _is_contained(whole, model) -> bool:
  """Whether a tokenizer.json has no ids but those of the model beside it.

  Raises:
    InputError: an id is another token in the other.
  """
  one, other = (
    _read(path, form).names() if (form := _format(path)) else {}
    for path in (model, whole)
  )
  for i in sorted(one.keys() & other.keys()):
    if one[i] != other[i]:
      raise errors.InputError(
        f'{whole} and {model.name} are two tokenizers: id {i} is {other[i]!r} '
        f'and {one[i]!r}; keep the one that the model was trained with'
      )
  return other.keys() <= one.keys()


def without_surrogates(text: str) -> str:
  """The text with U+FFFD for what UTF-8 cannot encode."""
  if not SURROGATES.search(text):
    return text
  return text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')


def _split(text: str, special) -> list[str]:
  """`text` cut before and after each special name, without empty parts."""
  pattern = encoders.any_of(frozenset(special)).pattern
  return [part for part in re.split(f'({pattern})', text) if part]
