"""The two libraries that turn text into ids, behind one interface.

`HuggingFace` is the `tokenizers` library, `SentencePiece` that of this name;
each is exact for the models that its own authors wrote. An encoder has

  vocab            number of ids
  settings         the model's own settings of its special tokens
  around           ids before and after a text where no setting says so;
                   `bos`, which the settings may have changed, is given
  token_to_id      name of a token -> id or None
  names            id -> name of its token
  prefix_space     whether texts get a space before them; None: no setting says
  encode           texts -> lists of ids, on all cores; special names are text
  special          names of its special tokens
  encode_marked    a text in parts, some of them special tokens, and which of
                   its characters are marked -> ids, which of them are marked
  decode           ids -> text, with the names of special tokens
  definition       everything that decides ids, as JSON
  files            file name -> content, which transformers reads too; add_bos:
                   whether what is made for it puts `bos` before a text
"""

import base64
import copy
import functools
import itertools
import json
import re
from typing import NamedTuple

import numpy as np
import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2

from longjax import errors
from longjax.data import vocabularies


class Part(NamedTuple):
  """Text, or the name of a special token."""

  text: str
  special: bool = False


class Settings(NamedTuple):
  """Special tokens and when they are added; '' and None: unset."""

  bos: str = ''
  eos: str = ''
  pad: str = ''
  chat_template: str = ''
  add_bos: bool | None = None  # whether a text begins with bos
  add_eos: bool | None = None  # whether a text ends with eos

  def with_defaults(self, other):
    """These, and `other` where they say nothing."""
    said = {k: v for k, v in self._asdict().items() if v not in ('', None)}
    return other._replace(**said)


NO_SETTINGS = Settings()


class HuggingFace:
  """A tokenizer.json."""

  def __init__(self, definition: str, settings=NO_SETTINGS):
    self._inner = tokenizers.Tokenizer.from_str(definition)
    self._inner.encode_special_tokens = True  # special names are plain text
    self._inner.no_truncation()
    self._inner.no_padding()
    if isinstance(self._inner.model, tokenizers.models.BPE):
      self._inner.model.dropout = None  # ids would be drawn at random
    # Not their number: somebody may have left ids out.
    self.vocab = 1 + max(self._inner.get_vocab().values(), default=-1)
    self.settings = settings
    self.token_to_id = self._inner.token_to_id
    added = self._inner.get_added_tokens_decoder().values()
    self.special = frozenset(token.content for token in added if token.special)
    splitter = self._inner.pre_tokenizer
    of_bytes = isinstance(splitter, tokenizers.pre_tokenizers.ByteLevel)
    self.prefix_space = splitter.add_prefix_space if of_bytes else None

  def around(self, bos: int | None) -> tuple[list[int], list[int]]:
    whole = self._inner.encode('a')  # its post-processor adds the specials
    text = [i for i, x in enumerate(whole.special_tokens_mask) if not x]
    if not text:
      return whole.ids, []
    return whole.ids[: text[0]], whole.ids[text[-1] + 1 :]

  def names(self) -> dict[int, str]:
    return {i: name for name, i in self._inner.get_vocab().items()}

  def encode(self, texts) -> list[list[int]]:
    encoded = self._inner.encode_batch_fast(texts, add_special_tokens=False)
    return [e.ids for e in encoded]

  def encode_marked(self, parts, marked) -> tuple[list[int], np.ndarray]:
    if not self._parts_are_independent:
      return self._encode_together(parts, marked)
    ids, flags, at = [], [np.zeros(0, bool)], 0
    for part in parts:
      here = marked[at : at + len(part.text)]
      at += len(part.text)
      if part.special or here.all() or not here.any():
        one = [self.token_to_id(part.text)] if part.special else None
        ids += one or self.encode([part.text])[0]
        flags.append(np.full(len(ids) - sum(map(len, flags)), here.any()))
      else:
        encoded = self._inner.encode(part.text, add_special_tokens=False)
        ids += encoded.ids
        flags.append(_overlap(encoded.offsets, here))
    return ids, np.concatenate(flags)

  def _encode_together(self, parts, marked) -> tuple[list[int], np.ndarray]:
    """As transformers encodes them, where what stands before a text matters."""
    find = any_of(self.special).search
    if any(find(part.text) for part in parts if not part.special):
      raise errors.InputError(
        'it has the name of a special token in its text, which this tokenizer '
        'cannot tell from the token'
      )
    encoded = self._with_special(''.join(part.text for part in parts))
    return encoded.ids, _overlap(encoded.offsets, marked)

  def _with_special(self, text: str):
    """The library's encoding, in which names are special tokens."""
    self._inner.encode_special_tokens = False
    try:
      return self._inner.encode(text, add_special_tokens=False)
    finally:
      self._inner.encode_special_tokens = True

  @functools.cached_property
  def _parts_are_independent(self) -> bool:
    """Whether special tokens change nothing in the texts around them."""
    added = self._inner.get_added_tokens_decoder().values()
    if any(
      token.lstrip or token.rstrip or token.single_word for token in added
    ):
      return False
    name = min(self.special, default='')
    (text,), (spaced,) = self.encode(['a']), self.encode([' a'])
    mark = [self.token_to_id(name)] if name else []
    whole = self._with_special(f'a{name} a{name}a').ids
    return not name or whole == [*text, *mark, *spaced, *mark, *text]

  def decode(self, ids: list[int]) -> str:
    return self._inner.decode(ids, skip_special_tokens=False)

  def definition(self) -> dict:
    # Of the parts that decide ids, not of the file: the library adds fields
    # to its JSON from one version to the next.
    whole = json.loads(self._inner.to_str())
    model = whole['model']
    parts = {k: whole[k] for k in ('normalizer', 'pre_tokenizer', 'decoder')}
    parts['added'] = [[t['id'], t['content']] for t in whole['added_tokens']]
    parts['vocab'] = self._inner.get_vocab(with_added_tokens=True)
    parts['merges'] = model.get('merges')
    switches = ('byte_fallback', 'ignore_merges', 'fuse_unk', 'unk_token')
    parts |= {key: model[key] for key in switches if model.get(key)}
    if model.get('type', 'BPE') != 'BPE':
      parts['model'] = model
    return parts

  def files(self, add_bos=True) -> dict[str, bytes]:
    return {'tokenizer.json': self._inner.to_str(pretty=True).encode()}


class SentencePiece:
  """A tokenizer.model of SentencePiece (Llama 2, OpenLLaMA)."""

  def __init__(self, model: bytes, settings=NO_SETTINGS):
    form = sentencepiece_model_pb2.ModelProto  # pyright: ignore
    self._model, self._proto = model, form.FromString(model)
    for part in ('trainer_spec', 'normalizer_spec'):  # they end the file
      if not self._proto.pieces or not self._proto.HasField(part):
        raise ValueError(f'it has {len(self._proto.pieces)} pieces, no {part}')
    self._inner = sentencepiece.SentencePieceProcessor(model_proto=model)
    self._later = self._inner  # for what is not the first of marked parts
    self.vocab = self._inner.get_piece_size()
    names = [piece.piece for piece in self._proto.pieces]
    self._control = {
      i: piece.piece
      for i, piece in enumerate(self._proto.pieces)
      if piece.type in (piece.CONTROL, piece.UNKNOWN)
    }
    ends = (self._inner.bos_id(), self._inner.eos_id())
    own_bos, own_eos = (names[i] if i >= 0 else '' for i in ends)
    self.settings = settings.with_defaults(Settings(own_bos, own_eos))
    self.prefix_space = self._proto.normalizer_spec.add_dummy_prefix
    self.names = lambda: dict(enumerate(names))
    self.token_to_id = {name: i for i, name in enumerate(names)}.get
    self.special = frozenset(self._control.values())

  def with_one_prefix(self):
    """This, but of marked parts only the first gets a space before it."""
    other, proto = copy.copy(self), type(self._proto)()
    proto.CopyFrom(self._proto)
    proto.normalizer_spec.add_dummy_prefix = False
    other._later = sentencepiece.SentencePieceProcessor(
      model_proto=proto.SerializeToString()
    )
    return other

  def around(self, bos: int | None) -> tuple[list[int], list[int]]:
    return ([] if bos is None else [bos]), []

  def encode(self, texts) -> list[list[int]]:
    return self._inner.encode(texts, out_type=int)

  def encode_marked(self, parts, marked) -> tuple[list[int], np.ndarray]:
    ids, flags, at = [], [], 0
    for part in parts:
      here = marked[at : at + len(part.text)]
      encode = self._later.encode if at else self._inner.encode
      at += len(part.text)
      if part.special:
        made, flag = [self.token_to_id(part.text)], np.array([here.any()])
      else:
        made = encode(part.text)
        flag = np.zeros(len(made), bool)
        edges = np.flatnonzero(np.diff(here, prepend=False, append=False))
        for begin, end in edges.reshape(-1, 2).tolist():
          first, _ = _shared(made, encode(part.text[:begin]))
          last, cut = _shared(made, encode(part.text[:end]))
          flag[first : last + cut] = True
      ids += made
      flags.append(flag)
    return ids, np.concatenate([np.zeros(0, bool), *flags])

  def decode(self, ids: list[int]) -> str:
    # The library gives nothing for control tokens.
    parts = []
    for name, run in itertools.groupby(ids, self._control.get):
      run = list(run)
      parts.append(name * len(run) if name else self._inner.decode(run))
    return ''.join(parts)

  def definition(self) -> dict:
    trained, normal = self._proto.trainer_spec, self._proto.normalizer_spec
    return dict(
      pieces=[[p.piece, p.score, p.type] for p in self._proto.pieces],
      model=[trained.model_type, trained.byte_fallback],
      suffix=trained.treat_whitespace_as_suffix,
      charsmap=base64.b64encode(normal.precompiled_charsmap).decode(),
      prefix=normal.add_dummy_prefix,
      collapse=normal.remove_extra_whitespaces,
      escape=normal.escape_whitespaces,
    )

  def files(self, add_bos=True) -> dict[str, bytes]:
    files = {'tokenizer.model': self._model}
    if self.is_exact_as_json():
      made = vocabularies.sentencepiece_json(self._proto, add_bos)
      return files | HuggingFace(made).files()
    # The one class of transformers that leaves all to the library: its
    # LlamaTokenizer makes a tokenizer.json of any model, whose ids may differ.
    return files | {'spiece.model': self._model}

  def is_exact_as_json(self) -> bool:
    """Whether the library of tokenizer.json gives the same ids."""
    trained, normal = self._proto.trainer_spec, self._proto.normalizer_spec
    return (
      trained.model_type == vocabularies.BPE
      and not any(p.type == p.USER_DEFINED for p in self._proto.pieces)
      and not trained.treat_whitespace_as_suffix
      and not normal.precompiled_charsmap
      and normal.escape_whitespaces
    )


def _shared(ids, of_begin) -> tuple[int, bool]:
  """(ids that the begin of a text has too, whether it cuts the next one)."""
  pairs = zip(ids, of_begin)
  same = sum(
    1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)
  )
  return same, same < len(of_begin)


@functools.lru_cache
def any_of(names) -> re.Pattern:
  """Matches any of these names, a longer one first; nothing if there are none.

  Args:
    names: a frozenset.
  """
  longest = sorted(names, key=len, reverse=True)
  return re.compile('|'.join(map(re.escape, longest)) or '(?!)')


def _overlap(offsets, marked) -> np.ndarray:
  """bool [tokens]: those of which a character is marked.

  Args:
    offsets: of tokens, pairs of characters. The library leaves out spaces at
      the begin of a token, which are taken to be its own.
    marked: bool [characters].
  """
  begin, end = np.array(offsets, np.int64).reshape(-1, 2).T
  begin = np.minimum(begin, np.insert(end, 0, 0)[:-1])
  count = np.insert(np.cumsum(marked), 0, 0)
  return count[end] > count[begin]


def from_gguf(path) -> HuggingFace | SentencePiece:
  """The tokenizer in the metadata of a GGUF file."""
  meta = vocabularies.gguf_metadata(path)
  made = vocabularies.from_gguf(meta)
  special = (meta.get(f'{x}_token_id') for x in ('bos', 'eos', 'padding'))
  settings = Settings(
    *('' if i is None else meta['tokens'][i] for i in special),
    chat_template=meta.get('chat_template', ''),
    add_bos=meta.get('add_bos_token'),
    add_eos=meta.get('add_eos_token'),
  )
  encoder = HuggingFace if isinstance(made, str) else SentencePiece
  return encoder(made, settings)  # pyright: ignore
