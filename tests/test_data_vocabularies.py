"""Other programs' vocabularies: the ids of their own libraries, exactly.

Small models are trained here. The slow tests fetch those of Llama 2 and 3,
with llama.cpp's test vectors, and are compared with each model's own library.
"""

import base64
import json
import pathlib
import random

import pytest
import sentencepiece
from small_tokenizers import (
  gguf_metadata,
  sentencepiece_model,
  tiktoken_ranks,
)

from longjax import errors
from longjax.data import downloads, tokenizer, vocabularies

LLAMA_CPP = (
  'llama-cpp-python==0.3.36',
  '832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e',
)
LLAMA_MODELS = (
  'llama-models==0.3.0',
  '7f77f78ff13fca09f70d76a376aff6414cd901623fb9d57e69c2f8367a73032f',
)
META = 'llama_models/llama3/tokenizer.model'
PARTS = (
  'a', 'b', 'ab', ' ', '  ', '\n', '\t', '\r\n', '=', '-', '...', '1', '23',
  'é', 'e\u0301', '½', '你好', '🙂', '👩‍👩‍👧', '\uff46\uff55\uff4c\uff4c',
  '\ufb01', '\u0661', 'İ', '\u017f', '\x00', '\x7f', '\u200b', '\u00a0',
  '\u3000', '\u2581', "'s", "'LL", 'Hello', ' world',
  'def f(x):\n    return x', '<s>', '</s>', '<|eot_id|>',
)  # fmt: skip


@pytest.fixture(scope='module')
def nasty():
  """Two thousand texts of what breaks tokenizers, long runs among them."""
  draw = random.Random(0)
  lengths = (1, 1, 1, 2, 3, 8, 40)
  texts = ['', ' ', '  x', 'x' * 3000, ' ' * 3000]
  for _ in range(1500):
    parts = draw.choices(PARTS, k=draw.randint(1, 9))
    texts.append(''.join(part * draw.choice(lengths) for part in parts))
  for _ in range(500):
    codes = [draw.randrange(0xD800), draw.randrange(0xE000, 0x20000)]
    texts.append(''.join(map(chr, codes * draw.randint(1, 3))))
  return texts


@pytest.fixture(scope='module')
def lines():
  text = (pathlib.Path(__file__).parent / 'test_rope.py').read_text()
  return text.splitlines() + [p * 5 for p in PARTS if '\0' not in p] * 3


@pytest.fixture(scope='module')
def small(lines):
  return sentencepiece_model(lines, vocab_size=600)


MERGED = (b'ab', b'  ', b' w', b'or', b' wor', b'ld', b' world', b'==', b'====')
RANKS = tiktoken_ranks(MERGED)


def test_a_sentencepiece_model_keeps_its_ids_and_its_ends(
  small, nasty, tmp_path
):
  path = tmp_path / 'tokenizer.model'
  path.write_bytes(small)
  tokens = tokenizer.load(tmp_path)
  theirs = sentencepiece.SentencePieceProcessor(model_proto=small)
  ours = [ids.tolist() for ids in tokens.encode_batch(nasty)]
  assert ours == [theirs.encode(text) for text in nasty]
  assert (tokens.vocab, tokens.bos, tokens.eos) == (theirs.vocab_size(), 1, 2)
  assert (tokens.document_start, tokens.document_end) == (1, 2)
  assert tokens.encode('a</s>b', ('</s>',)).tolist() == [
    *theirs.encode('a'),
    2,
    *theirs.encode('b'),
  ]
  assert tokens.decode([-1, *theirs.encode('a'), 2, 10**6]) == 'a</s>'
  assert not {1, 2} & set(tokens.encode('<s>a</s>').tolist())
  tokens.save(tmp_path / 'saved')
  assert tokenizer.load(tmp_path / 'saved').digest == tokens.digest
  assert (tmp_path / 'saved' / 'tokenizer.model').read_bytes() == small


@pytest.mark.parametrize('options, as_json', [
  ({}, True),
  (dict(byte_fallback=False), True),
  (dict(add_dummy_prefix=False), True),
  (dict(remove_extra_whitespaces=True), True),
  (dict(normalization_rule_name='nfkc'), False),
  (dict(normalization_rule_name='nmt_nfkc'), False),
  (dict(model_type='unigram'), False),
  (dict(user_defined_symbols=['<sep>', 'def']), False),
  (dict(treat_whitespace_as_suffix=True), False),
  (dict(treat_whitespace_as_suffix=True, bos_id=-1), False),
])  # fmt: skip
def test_transformers_gives_the_ids_of_a_sentencepiece_model_that_was_saved(
  lines, nasty, options, as_json, tmp_path
):
  transformers = pytest.importorskip('transformers')
  model = sentencepiece_model(lines, **dict(vocab_size=600) | options)
  (tmp_path / 'tokenizer.model').write_bytes(model)
  config = dict(tokenizer_class='LlamaTokenizer', chat_template='{{ x }}')
  if 'bos_id' not in options:
    config['bos_token'] = '<s>'
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(config))
  tokens = tokenizer.load(tmp_path)
  tokens.save(tmp_path / 'saved')
  tokens = tokenizer.load(tmp_path / 'saved')  # what it saves is the same
  tokens.save(tmp_path / 'saved')
  assert (tmp_path / 'saved' / 'tokenizer.json').exists() == as_json
  assert (tmp_path / 'saved' / 'tokenizer.model').read_bytes() == model
  # As beside an export.
  (tmp_path / 'saved' / 'config.json').write_text('{"model_type": "llama"}')
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / 'saved')
  names = ('<s>', '</s>', '<unk>')  # which transformers takes as such
  texts = [t for t in nasty if not any(name in t for name in names)]
  ours = sentencepiece.SentencePieceProcessor(model_proto=model)
  found = [theirs(t, add_special_tokens=False).input_ids for t in texts]
  assert found == [ours.encode(t) for t in texts]
  assert len(theirs) == tokens.vocab and theirs.chat_template == '{{ x }}'
  begins = theirs('a').input_ids[0] == tokens.document_start
  start = tokens.document_start is None
  assert tokens.starts_in_transformers == (begins or start)


def test_tokens_that_somebody_added_to_a_model_are_not_lost(small, tmp_path):
  (tmp_path / 'tokenizer.model').write_bytes(small)
  tokenizer.load(tmp_path).save(tmp_path)
  whole = tmp_path / 'tokenizer.json'
  definition = json.loads(whole.read_text())
  added = definition['added_tokens'][0] | dict(id=600, content='<|im_end|>')
  definition['added_tokens'].append(added)
  whole.write_text(json.dumps(definition))
  tokens = tokenizer.load(tmp_path)
  assert tokens.token_to_id('<|im_end|>') == tokens.vocab - 1


def test_a_broken_config_and_a_place_without_tokenizer_are_named(
  small, tmp_path
):
  with pytest.raises(errors.InputError, match=f'{tmp_path}: not a tokenizer'):
    tokenizer.load(tmp_path)
  (tmp_path / 'tokenizer.model').write_bytes(small)
  config = tmp_path / 'tokenizer_config.json'
  for text, told in (
    ('{', 'tokenizer_config'),
    ('{"bos_token": "<x>"}', '<x>'),
  ):
    config.write_text(text)
    with pytest.raises(errors.InputError, match=told) as error:
      tokenizer.load(tmp_path)
    assert 'not a SentencePiece' not in str(error.value)


def test_ids_that_were_left_out_count(small, tmp_path):
  tokenizer.load('bytes').save(tmp_path)
  whole = tmp_path / 'tokenizer.json'
  definition = json.loads(whole.read_text())
  vocabulary = definition['model']['vocab']
  vocabulary['zz'] = 1000
  whole.write_text(json.dumps(definition))
  assert tokenizer.load(tmp_path).vocab == 1001


def test_tiktoken_ranks_have_256_specials_after_them(tmp_path):
  (tmp_path / 'tokenizer.model').write_bytes(RANKS)
  tokens = tokenizer.load(tmp_path)
  base = 256 + len(MERGED)
  assert tokens.vocab == base + 256
  assert tokens.encode('ab  world ====').tolist() == [256, 32, 262, 32, 264]
  assert (tokens.bos, tokens.eos) == (base, base + 1)
  assert (tokens.document_start, tokens.document_end) == (base, base + 1)
  assert tokens.token_to_id('<|eot_id|>') == base + 9
  assert tokens.token_to_id('<|reserved_special_token_245|>') == base + 255
  text = 'a<|eot_id|>'
  assert tokens.decode(tokens.encode(text)) == text
  assert max(tokens.encode(text)) < base
  assert tokens.encode(text, ('<|eot_id|>',)).tolist() == [97, base + 9]


def test_tiktoken_ranks_equal_tiktoken(nasty, tmp_path):
  tiktoken = pytest.importorskip('tiktoken')
  (tmp_path / 'tokenizer.model').write_bytes(RANKS)
  both = (line.split() for line in RANKS.splitlines())
  theirs = tiktoken.Encoding(
    'small',
    pat_str=vocabularies.LLAMA3_WORDS,
    mergeable_ranks={base64.b64decode(t): int(i) for t, i in both},
    special_tokens={},
  )
  ours = tokenizer.load(tmp_path).encode_batch(nasty)
  assert [ids.tolist() for ids in ours] == [
    theirs.encode_ordinary(text) for text in nasty
  ]


def test_half_a_surrogate_pair_becomes_a_replacement_character(small, tmp_path):
  (tmp_path / 'tokenizer.model').write_bytes(small)
  for tokens in (tokenizer.load(tmp_path), tokenizer.load('bytes')):
    assert tokens.decode(tokens.encode('a\ud83d b')) == 'a\ufffd b'
    assert tokens.decode(tokens.encode('\ud83d\ude42')) == '\U0001f642'


def test_what_a_file_is_is_told_by_its_content(small, tmp_path):
  for name, content in (('a.bin', small), ('b.txt', RANKS)):
    (tmp_path / name).write_bytes(content)
  assert tokenizer.load(tmp_path / 'a.bin').eos == 2
  assert tokenizer.load(tmp_path / 'b.txt').bos == 256 + len(MERGED)


def test_meta_keeps_one_tokenizer_beside_its_models(small, tmp_path):
  (tmp_path / 'tokenizer.model').write_bytes(small)
  (tmp_path / '7b').mkdir()
  (tmp_path / '7b' / 'params.json').write_text('{}')
  (tmp_path / '7b' / 'consolidated.00.pth').write_bytes(b'PK\x03\x04')
  whole = tokenizer.load(tmp_path).digest
  assert tokenizer.load(tmp_path / '7b').digest == whole
  assert tokenizer.load(tmp_path / '7b/consolidated.00.pth').digest == whole


@pytest.mark.parametrize(
  'change',
  [
    lambda raw: raw[: len(raw) // 2],
    lambda raw: raw[:-20],
    lambda raw: raw + b'YWI= 12 13\n',
    lambda raw: raw.replace(b' 17\n', b' 18\n'),
    lambda raw: raw.replace(b'Kg== ', b'Kg=* '),
    lambda raw: b'\x00' * 100,
    lambda raw: b'',
  ],
)
def test_damaged_ranks_are_refused(change, tmp_path):
  path = tmp_path / 'tokenizer.model'
  path.write_bytes(change(RANKS))
  with pytest.raises(errors.InputError, match=r'tokenizer\.model: not '):
    tokenizer.load(tmp_path)


def test_damaged_sentencepiece_models_are_refused(small, tmp_path):
  path = tmp_path / 'tokenizer.model'
  # The pieces end long before the file: what follows says how to split.
  for damaged in (small[:50], small[:4000], small[:-1], small[:-300]):
    path.write_bytes(damaged)
    with pytest.raises(errors.InputError, match=r'tokenizer\.model: not '):
      tokenizer.load(tmp_path)


def test_a_llama_tokenizer_in_gguf_is_that_of_its_model(small, tmp_path):
  (tmp_path / 'tokenizer.model').write_bytes(small)
  theirs = sentencepiece.SentencePieceProcessor(model_proto=small)
  count = theirs.vocab_size()
  kinds = [2, 3, 3] + [6] * 256 + [1] * (count - 259)
  gguf_metadata(
    tmp_path / 'model.gguf', 'llama',
    token_list=[theirs.id_to_piece(i) for i in range(count)],
    token_scores=[theirs.get_score(i) for i in range(count)],
    token_types=kinds, bos_token_id=1, eos_token_id=2, chat_template='{{ x }}',
  )  # fmt: skip
  tokens = tokenizer.load(tmp_path / 'model.gguf')
  assert tokens.digest == tokenizer.load(tmp_path / 'tokenizer.model').digest
  assert tokens.chat_template == '{{ x }}'
  tokens.save(tmp_path / 'saved')
  assert tokenizer.load(tmp_path / 'saved').chat_template == '{{ x }}'


def test_a_gguf_tokenizer_without_its_merges_is_refused(tmp_path):
  path = tmp_path / 'model.gguf'
  gguf_metadata(
    path, 'gpt2', tokenizer_pre='llama-bpe', token_list=['a'], token_types=[1]
  )
  with pytest.raises(errors.InputError, match='without merges'):
    tokenizer.load(path)


# Real vocabularies


def vectors(name) -> list[tuple[str, list[int]]]:
  """llama.cpp's texts for a vocabulary and their ids."""
  archive = downloads.fetch(*LLAMA_CPP)
  glob = f'*/models/ggml-vocab-{name}.gguf'
  texts, ids = (downloads.extract(archive, glob + e) for e in ('.inp', '.out'))
  texts = texts.read_bytes().decode().split('\n__ggml_vocab_test__\n')
  lines = ids.read_text().split('\n')
  return [(t, [int(i) for i in line.split()]) for t, line in zip(texts, lines)]


def real(name) -> tokenizer.Tokenizer:
  archive = downloads.fetch(*LLAMA_CPP)
  glob = f'*/models/ggml-vocab-{name}.gguf'
  return tokenizer.load(downloads.extract(archive, glob))


@pytest.fixture(scope='module')
def llama3():
  archive = downloads.fetch(*LLAMA_MODELS)
  return tokenizer.load(downloads.extract(archive, META))


@pytest.mark.slow
@pytest.mark.parametrize('name', ['llama-spm', 'llama-bpe'])
def test_all_47_vectors_of_llama_cpp(name):
  cases = vectors(name)
  assert len(cases) == 47
  encoded = real(name).encode_batch([text for text, _ in cases])
  assert [x.tolist() for x in encoded] == [ids for _, ids in cases]


@pytest.mark.slow
def test_llama_3_has_the_ids_of_meta_and_of_tiktoken(llama3, nasty):
  cases = vectors('llama-bpe')
  encoded = llama3.encode_batch([text for text, _ in cases])
  assert [x.tolist() for x in encoded] == [ids for _, ids in cases]
  assert (llama3.vocab, llama3.bos, llama3.eos) == (128_256, 128_000, 128_001)
  assert llama3.token_to_id('<|eot_id|>') == 128_009
  tiktoken = pytest.importorskip('tiktoken')
  archive = downloads.fetch(*LLAMA_MODELS)
  raw = downloads.extract(archive, META).read_bytes()
  both = (line.split() for line in raw.splitlines())
  theirs = tiktoken.Encoding(
    'llama3',
    pat_str=vocabularies.LLAMA3_WORDS,
    mergeable_ranks={base64.b64decode(t): int(i) for t, i in both},
    special_tokens={},
  )
  assert [ids.tolist() for ids in llama3.encode_batch(nasty)] == [
    theirs.encode_ordinary(text) for text in nasty
  ]


@pytest.mark.slow
@pytest.mark.parametrize('name', ['llama-spm', 'meta'])
def test_transformers_reads_the_same_ids_from_what_is_saved(
  name, llama3, nasty, tmp_path
):
  transformers = pytest.importorskip('transformers')
  tokens = llama3 if name == 'meta' else real(name)
  tokens.save(tmp_path)
  config = dict(model_type='llama', vocab_size=tokens.vocab)
  (tmp_path / 'config.json').write_text(json.dumps(config))
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  assert (theirs.bos_token_id, theirs.eos_token_id) == (tokens.bos, tokens.eos)
  assert theirs('a')['input_ids'][0] == tokens.bos
  special = ('<s>', '</s>', '<|eot_id|>')
  ours = tokens.encode_batch(nasty, special)
  assert [ids.tolist() for ids in ours] == [
    theirs(text, add_special_tokens=False)['input_ids'] for text in nasty
  ]
  assert tokenizer.load(tmp_path).digest == tokens.digest
