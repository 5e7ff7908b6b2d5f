"""Vocabularies of other programs, as one of the two libraries takes them.

tiktoken's ranks (Llama 3), the metadata of a GGUF file and plain bytes become
the JSON text of a tokenizer.json, or, from GGUF's 'llama', a SentencePiece
model. A SentencePiece model becomes a tokenizer.json too, which transformers
reads without guessing. What cannot be rebuilt exactly is refused.
"""

import base64
import itertools

from sentencepiece import sentencepiece_model_pb2
from tokenizers import (
  AddedToken,
  Regex,
  Tokenizer,
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
)

# What Meta names them in llama-models; the other 244 are reserved.
LLAMA3_SPECIAL = (
  '<|begin_of_text|>',
  '<|end_of_text|>',
  '<|reserved_special_token_0|>',
  '<|reserved_special_token_1|>',
  '<|finetune_right_pad_id|>',
  '<|step_id|>',
  '<|start_header_id|>',
  '<|end_header_id|>',
  '<|eom_id|>',
  '<|eot_id|>',
  '<|python_tag|>',
  '<|image|>',
  *(f'<|reserved_special_token_{i}|>' for i in range(2, 246)),
)
LLAMA3_WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
  r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
SPACE = '\u2581'  # what SentencePiece writes for it
BPE = 2  # SentencePiece's number for this kind of model


def from_bytes() -> str:
  """Bytes: ids 0-255 are bytes, 256 is <bos>, 257 <eos>, up to 383 unused."""
  vocabulary = {c: i for i, c in enumerate(byte_names())}
  inner = Tokenizer(models.BPE(vocabulary, []))
  inner.pre_tokenizer = pre_tokenizers.ByteLevel(
    add_prefix_space=False, use_regex=False
  )
  inner.decoder = decoders.ByteLevel()
  names = ['<bos>', '<eos>', *(f'<unused_{i}>' for i in range(258, 384))]
  inner.add_special_tokens(names)
  return inner.to_str()


def from_tiktoken(ranks: bytes) -> str:
  """Llama 3: lines of a token in base64 and its rank; 256 specials follow.

  Args:
    ranks: the content of the file. tiktoken's own reader is not used: it
      keeps a cache in a shared directory, by name, whatever the file holds.

  Returns:
    The JSON of a tokenizer.json that begins texts with '<|begin_of_text|>'.
  """
  by_bytes = _ranks(ranks)
  shown = byte_names()
  names = {''.join(shown[b] for b in t): i for t, i in by_bytes.items()}
  special = dict(zip(LLAMA3_SPECIAL, itertools.count(len(names))))
  return _llama3(names, merges(names, names), special, '<|begin_of_text|>')


def from_gguf(meta: dict) -> str | bytes:
  """A tokenizer.json or a SentencePiece model from the metadata of GGUF.

  Args:
    meta: the 'tokenizer.ggml.*' fields without this prefix.

  Raises:
    ValueError: a tokenizer that cannot be rebuilt exactly.
  """
  model, pre = str(meta.get('model')), str(meta.get('pre'))
  if model != 'llama' and (model, pre) not in GGUF_HUB:
    known = ', '.join(repr(pre) for _, pre in GGUF_HUB)
    raise ValueError(
      f"it is {model!r} with pre-tokenizer {pre!r}; only 'llama' and 'gpt2' "
      f'with {known} can be rebuilt exactly from GGUF. Set data.tokenizer to '
      'the tokenizer files of this model'
    )
  needed = ['tokens', 'token_type']
  needed.append('scores' if model == 'llama' else 'merges')
  missing = [key for key in needed if key not in meta]
  if missing:
    raise ValueError(f'it is {model!r} without {", ".join(missing)}')
  if len(meta['token_type']) != len(meta['tokens']):
    raise ValueError('its tokens and their types differ in number')
  return _gguf_llama(meta) if model == 'llama' else GGUF_HUB[model, pre](meta)


def sentencepiece_json(proto) -> str:
  """The tokenizer.json of a SentencePiece BPE model, for transformers.

  Args:
    proto: a ModelProto without pieces that its user defined: around these the
      libraries disagree.

  Returns:
    JSON that gives SentencePiece's own ids. Only a model that maps characters
    (nmt_nfkc) but keeps all spaces differs, at control characters and '\\r\\n'.
  """
  pieces = proto.pieces
  ids = {piece.piece: i for i, piece in enumerate(pieces)}
  scores = {p.piece: -p.score for p in pieces if p.type == p.NORMAL}
  inner = Tokenizer(
    models.BPE(
      ids,
      merges(ids, scores),
      unk_token=next(p.piece for p in pieces if p.type == p.UNKNOWN),
      fuse_unk=True,
      byte_fallback=proto.trainer_spec.byte_fallback,
    )
  )
  inner.normalizer = _normalizer(proto.normalizer_spec)
  inner.decoder = _decoder(proto.normalizer_spec)
  names = [p.piece for p in pieces if p.type in (p.CONTROL, p.UNKNOWN)]
  inner.add_special_tokens([AddedToken(n, normalized=False) for n in names])
  bos = proto.trainer_spec.bos_id
  if 0 <= bos < len(pieces):
    inner.post_processor = processors.TemplateProcessing(
      single=f'{pieces[bos].piece} $A',
      special_tokens=[(pieces[bos].piece, bos)],
    )
  return inner.to_str()


def merges(ids, ranks) -> list[tuple[str, str]]:
  """Every pair of tokens that makes a token, the best ranked token first.

  Args:
    ids: name of a token -> its id.
    ranks: name of a token that merging may make -> its rank.
  """
  pairs = []
  for name in sorted(ranks, key=ranks.__getitem__):
    cuts = ((name[:i], name[i:]) for i in range(1, len(name)))
    ways = [(a, b) for a, b in cuts if a in ids and b in ids]
    pairs += sorted(ways, key=lambda way: (ids[way[0]], ids[way[1]]))
  return pairs


def byte_names() -> list[str]:
  """The character that stands for each byte in byte-level BPE (GPT-2)."""
  shown = {*range(33, 127), *range(161, 173), *range(174, 256)}
  spare = itertools.count(256)
  return [chr(b) if b in shown else chr(next(spare)) for b in range(256)]


def _ranks(raw: bytes) -> dict[bytes, int]:
  """Token -> rank; every byte is one, and the ranks are 0, 1, 2, ..."""
  found = {}
  for number, line in enumerate(raw.splitlines(), 1):
    try:
      token, rank = line.split()
      found[base64.b64decode(token, validate=True)] = int(rank)
    except ValueError as error:
      raise ValueError(
        f'line {number} is not a token in base64 and its rank'
      ) from error
  if sorted(found.values()) != list(range(len(found))):
    raise ValueError(f'its {len(found)} ranks are not 0, 1, 2, ...')
  missing = [b for b in range(256) if bytes([b]) not in found]
  if missing:
    raise ValueError(f'there is no token for byte {missing[0]}')
  return found


def _llama3(names, pairs, special, bos) -> str:
  inner = Tokenizer(models.BPE(names, pairs, ignore_merges=True))
  inner.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(Regex(LLAMA3_WORDS), 'isolated'),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  inner.decoder = decoders.ByteLevel()
  inner.add_special_tokens([AddedToken(n, normalized=False) for n in special])
  if bos:
    inner.post_processor = processors.TemplateProcessing(
      single=f'{bos} $A', special_tokens=[(bos, special[bos])]
    )
  return inner.to_str()


def _gguf_llama3(meta) -> str:
  special = {name: i for i, name in _control(meta)}
  bos = ''
  if meta.get('add_bos_token', True):
    bos = meta['tokens'][meta['bos_token_id']]
  names = {n: i for i, n in enumerate(meta['tokens']) if n not in special}
  if special and min(special.values()) < len(names):
    raise ValueError('its special tokens do not follow the others')
  return _llama3(names, _pairs(meta), special, bos)


def _gguf_smollm(meta) -> str:
  if meta.get('add_bos_token'):
    raise ValueError('a smollm tokenizer that adds bos is unknown here')
  names = {name: i for i, name in enumerate(meta['tokens'])}
  inner = Tokenizer(models.BPE(names, _pairs(meta)))
  inner.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Digits(individual_digits=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  inner.decoder = decoders.ByteLevel()
  special = [AddedToken(n, normalized=False) for _, n in _control(meta)]
  inner.add_special_tokens(special)
  return inner.to_str()


def _gguf_llama(meta) -> bytes:
  """GGUF numbers the types of pieces as SentencePiece does."""
  model = sentencepiece_model_pb2.ModelProto()  # pyright: ignore
  parts = meta['tokens'], meta['scores'], meta['token_type']
  for piece in zip(*parts, strict=True):
    model.pieces.add(piece=piece[0], score=piece[1], type=int(piece[2]))
  spec = model.trainer_spec
  spec.model_type, spec.vocab_size = BPE, len(model.pieces)
  spec.byte_fallback = any(p.type == p.BYTE for p in model.pieces)
  spec.unk_id = meta.get('unknown_token_id', 0)
  spec.bos_id = meta.get('bos_token_id', 1)
  spec.eos_id = meta.get('eos_token_id', 2)
  spec.pad_id = -1
  for which in ('unk', 'bos', 'eos'):
    name = meta['tokens'][getattr(spec, f'{which}_id')]
    setattr(spec, f'{which}_piece', name)
  normal = model.normalizer_spec
  normal.name = 'identity'
  normal.add_dummy_prefix = bool(meta.get('add_space_prefix', True))
  normal.remove_extra_whitespaces = bool(
    meta.get('remove_extra_whitespaces', False)
  )
  normal.precompiled_charsmap = bytes(meta.get('precompiled_charsmap', []))
  return model.SerializeToString()


GGUF_HUB = {
  ('gpt2', 'smollm'): _gguf_smollm,
  ('gpt2', 'llama-bpe'): _gguf_llama3,
}


def _control(meta) -> list[tuple[int, str]]:
  """(id, name) of the tokens that no text makes."""
  both = zip(meta['tokens'], meta['token_type'])
  return [(i, name) for i, (name, kind) in enumerate(both) if kind == 3]


def _pairs(meta) -> list[tuple[str, str]]:
  return [(a, b) for a, b in (pair.split(' ') for pair in meta['merges'])]


def _normalizer(spec):
  steps: list = []
  if spec.precompiled_charsmap:
    steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
  if spec.remove_extra_whitespaces:
    steps.append(normalizers.Replace(Regex(r'\A +'), ''))
    steps.append(normalizers.Replace(Regex(' {2,}'), ' '))
  steps.append(normalizers.Replace(' ', SPACE))
  if spec.remove_extra_whitespaces:
    steps.append(normalizers.Replace(Regex(rf'{SPACE}+\z'), ''))
  if spec.add_dummy_prefix:
    steps.append(normalizers.Prepend(SPACE))
  return normalizers.Sequence(steps)


def _decoder(spec):
  steps: list = [decoders.Replace(SPACE, ' ')]
  steps += [decoders.ByteFallback(), decoders.Fuse()]
  if spec.add_dummy_prefix:
    steps.append(decoders.Strip(' ', 1, 0))
  return decoders.Sequence(steps)
