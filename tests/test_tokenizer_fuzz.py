"""Random directories of tokenizers: the ids of their library, or one line.

A directory is a definition that was trained here, settings drawn at random,
files of others beside it, a cut or a rename. What is read gives the ids that
`tokenizers` or `sentencepiece` gives for the same file; in the slow run those
of transformers' AutoTokenizer.
"""

import functools
import json
import random

import pytest
import sentencepiece
import small_tokenizers
import tokenizers
from tokenizers import (
  AddedToken,
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
  trainers,
)

from longjax import errors
from longjax.data import tokenizer, vocabularies

SPECIAL = ('<unk>', '<s>', '</s>', '<pad>', '<|im_end|>', '<|endoftext|>')
WORDS = (
  'some words', ' of', 'text', '\n\n', '\t', '  ', "it's", 'naïve', 'e\u0301',
  '三十', '🙂', '12345', '\u00a0', 'x = f(y)', 'HELLO', '\ufb01n', '   end ',
)  # fmt: skip
LINES = [' '.join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))] * 3


def train(model, trainer, normalizer, splitter, decoder):
  inner = tokenizers.Tokenizer(model)
  inner.normalizer, inner.pre_tokenizer = normalizer, splitter
  inner.decoder = decoder
  inner.train_from_iterator(
    LINES, trainer(special_tokens=list(SPECIAL), show_progress=False)
  )
  return inner


def byte_level(splitter, normalizer=None, **options):
  trainer = functools.partial(
    trainers.BpeTrainer, vocab_size=400,
    initial_alphabet=sorted(vocabularies.byte_names()),
  )  # fmt: skip
  return train(
    models.BPE(**options), trainer, normalizer, splitter, decoders.ByteLevel()
  )


def regex_of_llama3():
  words = tokenizers.Regex(vocabularies.LLAMA3_WORDS)
  last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  return pre_tokenizers.Sequence(
    [pre_tokenizers.Split(words, 'isolated'), last]
  )


def digits():
  each = pre_tokenizers.Digits(individual_digits=True)
  last = pre_tokenizers.ByteLevel(add_prefix_space=False)
  return pre_tokenizers.Sequence([each, last])


JSONS = dict(
  gpt2=lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)),
  prefixed=lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)),
  llama3=lambda: byte_level(regex_of_llama3(), ignore_merges=True),
  smollm=lambda: byte_level(digits()),
  composed=lambda: byte_level(digits(), normalizers.NFC()),
  unigram=lambda: train(
    models.Unigram(),
    functools.partial(
      trainers.UnigramTrainer, vocab_size=200, unk_token='<unk>'
    ),
    normalizers.NFKC(), pre_tokenizers.Metaspace(), decoders.Metaspace(),
  ),
  wordpiece=lambda: train(
    models.WordPiece(unk_token='<unk>'),
    functools.partial(trainers.WordPieceTrainer, vocab_size=200),
    normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer(),
    decoders.WordPiece(),
  ),
  words=lambda: train(
    models.WordLevel(unk_token='<unk>'), trainers.WordLevelTrainer,
    None, pre_tokenizers.WhitespaceSplit(), None,
  ),
)  # fmt: skip
MODELS = dict(
  llama2=dict(),
  plain=dict(byte_fallback=False, add_dummy_prefix=False),
  collapsed=dict(remove_extra_whitespaces=True),
  nfkc=dict(normalization_rule_name='nfkc'),
  defined=dict(user_defined_symbols=['<sep>', 'text']),
  unigram=dict(model_type='unigram', vocab_size=320),
)
CLASSES = (
  None, 'PreTrainedTokenizerFast', 'LlamaTokenizer', 'LlamaTokenizerFast',
  'GPT2Tokenizer', 'TokenizersBackend',
)  # fmt: skip


@functools.cache
def trained_json(name) -> str:
  return JSONS[name]().to_str()


@functools.cache
def trained_model(name) -> bytes:
  symbols = dict(control_symbols=['<|im_end|>', '<|endoftext|>'])
  return small_tokenizers.sentencepiece_model(
    LINES, **dict(vocab_size=420) | symbols | MODELS[name]
  )


def author_json(name):
  """The tokenizer.json that transformers makes of a model, as authors ship."""
  return tokenizer.encoders.SentencePiece(trained_model(name)).files()


def changed(rng, text):
  """A tokenizer.json with what its authors may have set."""
  inner = tokenizers.Tokenizer.from_str(text)
  start, end = ('<s>', 1), ('</s>', 2)
  around = rng.choice(['', '', '<s> $A', '<s> $A </s>', '$A </s>'])
  if around:
    pair = around.replace('$A', '$A $B')
    inner.post_processor = processors.TemplateProcessing(
      single=around, pair=pair, special_tokens=[start, end]
    )
  if rng.random() < 0.2:
    inner.enable_truncation(8)
  if rng.random() < 0.2:
    inner.enable_padding(length=64, pad_id=3, pad_token='<pad>')
  for name in ('<|tool|>', 'two words', '[X]'):
    if rng.random() < 0.2:
      flags = dict(normalized=rng.random() < 0.5, special=rng.random() < 0.5)
      token = AddedToken(name, **flags)
      inner.add_tokens([token])
  value = json.loads(inner.to_str())
  if value['model']['type'] == 'BPE' and rng.random() < 0.1:
    value['model']['dropout'] = 0.5
  return json.dumps(value)


def settings_of(rng):
  """tokenizer_config.json, special_tokens_map.json, ..., as dicts."""
  maybe = lambda *values: rng.choice([None, *values])
  config: dict = {}
  named = lambda name: rng.choice([name, dict(
    __type='AddedToken', content=name, lstrip=False,
    normalized=False, rstrip=False, single_word=False)])  # fmt: skip
  for key, names in (
    ('bos_token', ['<s>', '<|endoftext|>']),
    ('eos_token', ['</s>', '<|im_end|>', '<|endoftext|>']),
    ('pad_token', ['<pad>', '</s>']),
    ('unk_token', ['<unk>']),
  ):
    if rng.random() < 0.7:
      name = maybe(*names)
      config[key] = name and named(name)
  if kind := rng.choice(CLASSES):
    config['tokenizer_class'] = kind
  for key in ('add_bos_token', 'add_eos_token'):
    if rng.random() < 0.4:
      config[key] = rng.choice([True, False])
  for key, values in (
    ('legacy', [True, False]), ('add_prefix_space', [True, False, None]),
    ('clean_up_tokenization_spaces', [True, False]), ('model_max_length', [9]),
    ('chat_template', ['{{ messages }}', [dict(name='default', template='x')]]),
    ('extra_special_tokens', [['<|extra|>']]),
    ('additional_special_tokens', [['<|im_end|>'], ['<|more|>']]),
  ):  # fmt: skip
    if rng.random() < 0.15:
      config[key] = rng.choice(values)
  files = {}
  if rng.random() < 0.05:
    token = dict(content='<|late|>', lstrip=False, normalized=False,
                 rstrip=False, single_word=False, special=True)  # fmt: skip
    config['added_tokens_decoder'] = {'900': token}
  if rng.random() < 0.85:
    files['tokenizer_config.json'] = config
  if rng.random() < 0.2:
    files['special_tokens_map.json'] = dict(bos_token='<s>', eos_token='</s>')
  if rng.random() < 0.05:
    files['added_tokens.json'] = {'<|added|>': 901}
  if rng.random() < 0.1:
    files['chat_template.jinja'] = '{{ bos_token }}'
  return files


def directory(rng, root):
  """Writes a directory of a tokenizer."""
  root.mkdir()
  files = {
    name: (v if isinstance(v, str) else json.dumps(v)).encode()
    for name, v in settings_of(rng).items()
  }
  kind = rng.random()
  if kind < 0.65:
    text = trained_json(rng.choice(list(JSONS)))
    files['tokenizer.json'] = changed(rng, text).encode()
  if kind > 0.6:
    name = rng.choice(list(MODELS))
    files['tokenizer.model'] = trained_model(name)
    if rng.random() < 0.3:
      made = author_json(name).get('tokenizer.json')
      if made:
        files['tokenizer.json'] = made
  if rng.random() < 0.15:
    name = rng.choice(list(files))
    files[name] = files[name][: rng.randrange(len(files[name]))]
  if rng.random() < 0.1:
    name = rng.choice(list(files))
    to = ('tokenizer.json', 'tokenizer.model', 'spiece.model', 'other.json')
    files[rng.choice(to)] = files.pop(name)
  if rng.random() < 0.3:
    files['config.json'] = b'{"model_type": "llama"}'
  for name, content in files.items():
    (root / name).write_bytes(content)
  return sorted(files)


def texts_of(rng, names=()):
  pieces = [*WORDS, 'two words', '[X]', *names]
  return [''.join(rng.choices(pieces, k=rng.randint(1, 12))) for _ in range(8)]


class Library:
  """What the library of a file says of it."""

  def __init__(self, root, of_model):
    files = (root / 'tokenizer.json', root / 'tokenizer.model')  # any name
    contents = [f.read_bytes() for f in files if f.exists()]
    raw = next(x for x in contents if (x[:1] != b'{') == of_model)
    if of_model:
      inner = sentencepiece.SentencePieceProcessor(model_proto=raw)
      self.encode, self.decode = inner.encode, inner.decode
      self.special = ['<s>', '</s>', '<|im_end|>', '<|endoftext|>', '<unk>']
      self.around = [inner.bos_id()], []
      return
    inner = tokenizers.Tokenizer.from_buffer(raw)
    inner.no_truncation()
    inner.no_padding()
    if isinstance(inner.model, models.BPE):
      inner.model.dropout = None
    self.encode = lambda text: inner.encode(text, add_special_tokens=False).ids
    self.decode = lambda ids: inner.decode(ids, skip_special_tokens=False)
    added = inner.get_added_tokens_decoder().values()
    self.special = [token.content for token in added if token.special]
    ids, plain = inner.encode('HELLO').ids, self.encode('HELLO')
    at = next(i for i in range(len(ids)) if ids[i:][: len(plain)] == plain)
    self.around = ids[:at], ids[at + len(plain) :]


class Transformers:
  """What AutoTokenizer says of a directory."""

  def __init__(self, root):
    import transformers

    self.inner = inner = transformers.AutoTokenizer.from_pretrained(root)
    if hasattr(inner.backend_tokenizer.model, 'dropout'):
      inner.backend_tokenizer.model.dropout = None
    added = inner.added_tokens_decoder.values()
    named = {token.content for token in added if token.special}
    self.special = sorted(named | {*inner.all_special_tokens})

  def encode(self, text):
    settings = dict(add_special_tokens=False, truncation=False, padding=False)
    return self.inner(text, **settings).input_ids

  def decode(self, ids):
    return self.inner.decode(ids, clean_up_tokenization_spaces=False)


def compare(rng, ours, theirs, seed):
  """Ids and texts, special tokens among them where the caller vouches."""
  for text in texts_of(rng):
    if not any(name in text for name in theirs.special):
      assert ours.encode(text).tolist() == theirs.encode(text), (seed, text)
  names = [n for n in theirs.special if ours.token_to_id(n) is not None]
  for text in texts_of(rng, names):
    ids = ours.encode(text, names).tolist()
    if not isinstance(ours.encoder, tokenizer.encoders.SentencePiece):
      assert ids == theirs.encode(text), (seed, text)
      assert ours.decode(ids) == theirs.decode(ids), (seed, text)


def check(seed, root, transformers=False):
  """One case: 'refused', 'read', or '' where transformers is another."""
  rng = random.Random(seed)
  files = directory(rng, root)
  try:
    ours = tokenizer.load(root)
  except errors.InputError as error:
    assert '\n' not in str(error) and str(root) in str(error), (seed, error)
    return 'refused'
  of_model = isinstance(ours.encoder, tokenizer.encoders.SentencePiece)
  if not transformers:
    theirs = Library(root, of_model)
    compare(rng, ours, theirs, seed)
    check_ends(ours, theirs.around, seed)
    return 'read'
  # It makes another tokenizer of a model, and of a tokenizer.json by classes.
  if of_model or 'tokenizer_config.json' not in files:
    return ''
  try:
    theirs = Transformers(root)
  except (TypeError, ValueError, OSError):  # it refuses more
    return ''
  if type(theirs.inner).__name__ not in (
    'TokenizersBackend',
    'PreTrainedTokenizerFast',
  ):
    return ''
  compare(rng, ours, theirs, seed)
  return 'read'


def check_ends(ours, around, seed):
  """A document begins as its library begins a text, unless the files say."""
  before, _ = around
  if ours.settings.add_bos is None:
    start = [] if ours.document_start is None else [ours.document_start]
    assert start == before or ours.bos in start, (seed, start, before)
  else:
    wanted = ours.bos if ours.settings.add_bos else None
    assert ours.document_start == wanted, seed


def run(seeds, tmp_path, **options):
  results = [check(s, tmp_path / str(s), **options) for s in seeds]
  assert results.count('read') > len(seeds) // 40
  assert 'refused' in results


def test_ids_are_those_of_the_library_or_one_line(tmp_path):
  run(range(100), tmp_path)


@pytest.mark.slow
def test_ids_are_those_of_transformers(tmp_path):
  pytest.importorskip('transformers')
  run(range(200), tmp_path, transformers=True)
