"""Vocabularies of other programs, as one of the two libraries takes them.

tiktoken's ranks (Llama 3), the metadata of a GGUF file and plain bytes become
the JSON text of a tokenizer.json, or, from GGUF's 'llama', a SentencePiece
model. A SentencePiece model becomes a tokenizer.json too, which transformers
reads without guessing. What cannot be rebuilt exactly is refused: ValueError.
"""

import base64
import itertools
import re

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
CONTROL = 3  # SentencePiece's and GGUF's number for tokens that no text makes


def from_bytes() -> str:
  """Bytes: ids 0-255 are bytes, 256 is <bos>, 257 <eos>, up to 383 unused."""
  vocabulary = {c: i for i, c in enumerate(byte_names())}
  special = ['<bos>', '<eos>', *(f'<unused_{i}>' for i in range(258, 384))]
  return _byte_level(vocabulary, [], _bytes(), special)


def from_tiktoken(raw: bytes) -> str:
  """Llama 3: lines of a token in base64 and its rank; 256 specials follow.

  Args:
    raw: the content of the file. tiktoken's own reader is not used: it keeps a
      cache in a shared directory, by name, whatever the file holds.

  Returns:
    The JSON of a tokenizer.json that begins texts with '<|begin_of_text|>'.
  """
  shown, ids = byte_names(), {}
  for number, line in enumerate(raw.splitlines(), 1):
    try:
      token, rank = line.split()
      token = base64.b64decode(token, validate=True)
      ids[''.join(shown[b] for b in token)] = int(rank)
    except ValueError as error:
      raise ValueError(
        f'line {number} is not a token in base64 and its rank'
      ) from error
  if sorted(ids.values()) != list(range(len(ids))):
    raise ValueError(f'its {len(ids)} ranks are not 0, 1, 2, ...')
  missing = [b for b in range(256) if shown[b] not in ids]
  if missing:
    raise ValueError(f'there is no token for byte {missing[0]}')
  return _llama3(ids, merges(ids, ids), LLAMA3_SPECIAL, LLAMA3_SPECIAL[0])


def gguf_metadata(path) -> dict:
  """The 'tokenizer.*' fields of a GGUF file, without 'ggml'."""
  from longjax import gguf_file  # late: not every command reads one

  return {
    re.sub(r'^tokenizer\.(ggml\.)?', '', name): field.contents()
    for name, field in gguf_file.read(path).fields.items()
    if name.startswith('tokenizer.')
  }


def from_gguf(meta: dict) -> str | bytes:
  """A tokenizer.json or a SentencePiece model from `gguf_metadata`."""
  known = {
    ('llama', None): ('scores', _gguf_llama),
    ('gpt2', 'smollm'): ('merges', _gguf_smollm),
    ('gpt2', 'llama-bpe'): ('merges', _gguf_llama3),
  }
  model, pre = meta.get('model'), meta.get('pre')
  key = (model, None if model == 'llama' else pre)
  if key not in known:
    raise ValueError(
      f"it is {model!r} with pre-tokenizer {pre!r}; only 'llama', and 'gpt2' "
      "with 'smollm' or 'llama-bpe', can be rebuilt exactly from GGUF. Set "
      'data.tokenizer to the tokenizer files of this model'
    )
  field, rebuild = known[key]
  missing = [k for k in ('tokens', 'token_type', field) if k not in meta]
  if missing:
    raise ValueError(f'it is {model!r} without {", ".join(missing)}')
  if len(meta['token_type']) != len(meta['tokens']):
    raise ValueError('its tokens and their types differ in number')
  return rebuild(meta)


def sentencepiece_json(proto, add_bos=True) -> str:
  """The tokenizer.json of a SentencePiece BPE model, for transformers.

  Args:
    proto: a ModelProto that encoders.SentencePiece.is_exact_as_json takes.
    add_bos: whether a text begins with bos.

  Returns:
    JSON that gives SentencePiece's own ids.
  """
  pieces, spec = proto.pieces, proto.normalizer_spec
  ids = {piece.piece: i for i, piece in enumerate(pieces)}
  ranks = {p.piece: -p.score for p in pieces if p.type == p.NORMAL}
  inner = Tokenizer(
    models.BPE(
      ids,
      merges(ids, ranks),
      unk_token=next(p.piece for p in pieces if p.type == p.UNKNOWN),
      fuse_unk=True,
      byte_fallback=proto.trainer_spec.byte_fallback,
    )
  )
  steps: list = []
  if spec.remove_extra_whitespaces:
    steps.append(normalizers.Replace(Regex(r'\A +'), ''))
    steps.append(normalizers.Replace(Regex(' {2,}'), ' '))
  steps.append(normalizers.Replace(' ', SPACE))
  if spec.remove_extra_whitespaces:
    steps.append(normalizers.Replace(Regex(rf'{SPACE}+\z'), ''))
  if spec.add_dummy_prefix:
    steps.append(normalizers.Prepend(SPACE))
  inner.normalizer = normalizers.Sequence(steps)
  steps = [decoders.Replace(SPACE, ' '), decoders.ByteFallback()]
  steps.append(decoders.Fuse())
  if spec.add_dummy_prefix:
    steps.append(decoders.Strip(' ', 1, 0))
  inner.decoder = decoders.Sequence(steps)
  special = [p.piece for p in pieces if p.type in (p.CONTROL, p.UNKNOWN)]
  bos = proto.trainer_spec.bos_id if add_bos else -1
  bos = pieces[bos].piece if 0 <= bos < len(pieces) else ''
  return _finished(inner, special, bos)


def merges(ids, ranks) -> list[tuple[str, str]]:
  """Every pair of tokens that makes a token, the best ranked token first.

  Args:
    ids: name of a token -> its id.
    ranks: name of a token that merging may make -> its rank.
  """
  pairs = []
  for name in sorted(ranks, key=ranks.__getitem__):
    halves = ((name[:i], name[i:]) for i in range(1, len(name)))
    known = [(a, b) for a, b in halves if a in ids and b in ids]
    pairs += sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
  return pairs


def byte_names() -> list[str]:
  """The character that stands for each byte in byte-level BPE (GPT-2)."""
  shown = {*range(33, 127), *range(161, 173), *range(174, 256)}
  spare = itertools.count(256)
  return [chr(b) if b in shown else chr(next(spare)) for b in range(256)]


def _bytes():
  return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def _byte_level(ids, pairs, splitter, special, bos='', **options) -> str:
  """The JSON of a byte-level BPE; a text begins with `bos`, if any."""
  inner = Tokenizer(models.BPE(ids, pairs, **options))
  inner.pre_tokenizer = splitter
  inner.decoder = decoders.ByteLevel()
  return _finished(inner, special, bos)


def _finished(inner: Tokenizer, special, bos: str) -> str:
  inner.add_special_tokens([AddedToken(n, normalized=False) for n in special])
  if bos:
    inner.post_processor = processors.TemplateProcessing(
      single=f'{bos} $A', special_tokens=[(bos, inner.token_to_id(bos))]
    )
  return inner.to_str()


def _llama3(ids, pairs, special, bos) -> str:
  words = pre_tokenizers.Split(Regex(LLAMA3_WORDS), 'isolated')
  splitter = pre_tokenizers.Sequence([words, _bytes()])
  return _byte_level(ids, pairs, splitter, special, bos, ignore_merges=True)


def _gguf_llama3(meta) -> str:
  special = _control(meta)
  ids = {n: i for i, n in enumerate(meta['tokens']) if n not in special}
  if special and min(special.values()) < len(ids):
    raise ValueError('its special tokens do not follow the others')
  return _llama3(ids, _pairs(meta), special, _added_bos(meta, True))


def _gguf_smollm(meta) -> str:
  ids = {name: i for i, name in enumerate(meta['tokens'])}
  splitter = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Digits(individual_digits=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  control, bos = _control(meta), _added_bos(meta, False)
  return _byte_level(ids, _pairs(meta), splitter, control, bos)


def _added_bos(meta, default) -> str:
  """The token that texts begin with, or ''."""
  adds = meta.get('add_bos_token', default)
  return meta['tokens'][meta['bos_token_id']] if adds else ''


def _control(meta) -> dict[str, int]:
  """name: id of the tokens that no text makes."""
  both = zip(meta['tokens'], meta['token_type'])
  return {n: i for i, (n, kind) in enumerate(both) if kind == CONTROL}


def _pairs(meta) -> list[tuple[str, str]]:
  return [(a, b) for a, b in (pair.split(' ') for pair in meta['merges'])]


def _gguf_llama(meta) -> bytes:
  """GGUF numbers the types of pieces as SentencePiece does."""
  model = sentencepiece_model_pb2.ModelProto()  # pyright: ignore
  columns = meta['tokens'], meta['scores'], meta['token_type']
  for piece, score, kind in zip(*columns, strict=True):
    model.pieces.add(piece=piece, score=score, type=int(kind))
  spec, normal = model.trainer_spec, model.normalizer_spec
  spec.model_type, spec.vocab_size = BPE, len(model.pieces)
  spec.byte_fallback = any(p.type == p.BYTE for p in model.pieces)
  spec.pad_id = -1
  for i, (name, key) in enumerate(
    (('unk', 'unknown'), ('bos', 'bos'), ('eos', 'eos'))
  ):
    number = meta.get(f'{key}_token_id', i)
    setattr(spec, f'{name}_id', number)
    setattr(spec, f'{name}_piece', meta['tokens'][number])
  normal.name = 'identity'
  normal.add_dummy_prefix = bool(meta.get('add_space_prefix', True))
  normal.remove_extra_whitespaces = bool(
    meta.get('remove_extra_whitespaces', False)
  )
  normal.precompiled_charsmap = bytes(meta.get('precompiled_charsmap', []))
  return model.SerializeToString()
