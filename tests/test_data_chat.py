"""Chat: the tokens of the models' own code; answers alone are learned."""

import pathlib

import numpy as np
import pytest
import sentencepiece
import small_tokenizers

from longjax import errors
from longjax.data import chat, downloads, tokenizer

LLAMA_MODELS = (
  'llama-models==0.3.0',
  '7f77f78ff13fca09f70d76a376aff6414cd901623fb9d57e69c2f8367a73032f',
)


def say(*contents, system=''):
  """Messages of user and assistant in turns."""
  first = [dict(role='system', content=system)] if system else []
  roles = ['user', 'assistant'] * len(contents)
  return first + [dict(role=r, content=c) for r, c in zip(roles, contents)]


TALKS = (
  say('Hello!', 'Hi, how are you?'),
  say('  two  ', '\n\n- a\n- b  ', 'more?', '', system='Be brief.'),
  say('a<|eot_id|>b</s><|im_end|>', '<|im_start|>user\n', 'x', '12 34\n'),
  say('\tdef f():\n\treturn 1\n', '   spaces', 'x' * 300, '你好 \U0001f642'),
)


@pytest.fixture(scope='module')
def llama2():
  """A small SentencePiece model with Meta's options."""
  lines = pathlib.Path(__file__).read_text().splitlines() * 2
  model = small_tokenizers.sentencepiece_model(lines, vocab_size=500)
  return tokenizer.Tokenizer(tokenizer.encoders.SentencePiece(model))


@pytest.fixture(scope='module')
def llama3():
  """Bytes, and what is merged of a few words, as Llama 3's file has it."""
  merged = [b'\n\n', b'us', b'er', b'user', b' w', b'  ', b'll', b'llo']
  ranks = small_tokenizers.tiktoken_ranks(merged)
  encoder = tokenizer.encoders.HuggingFace(
    tokenizer.vocabularies.from_tiktoken(ranks)
  )
  ends = tokenizer.encoders.Settings('<|begin_of_text|>', '<|end_of_text|>')
  return tokenizer.Tokenizer(encoder, ends)


@pytest.fixture(scope='module')
def smollm2():
  return tokenizer.load(small_tokenizers.smollm2_path())


def learned(made, tokens) -> list[str]:
  """The texts of the runs of learned tokens."""
  edges = np.flatnonzero(np.diff(np.pad(made.weights, 1).astype(int)))
  return [
    tokens.decode(made.tokens[a:b]) for a, b in zip(edges[::2], edges[1::2])
  ]


def test_llama_2_writes_what_meta_writes(llama2):
  theirs = sentencepiece.SentencePieceProcessor(
    model_proto=llama2.encoder._model
  )
  for talk in TALKS:
    system, turns = '', talk
    if talk[0]['role'] == 'system':
      system, turns = f'<<SYS>>\n{talk[0]["content"]}\n<</SYS>>\n\n', talk[1:]
    want = []
    for ask, answer in zip(turns[::2], turns[1::2]):
      question = (system + ask['content']).strip()
      text = f'[INST] {question} [/INST] {answer["content"].strip()} '
      want += [1, *theirs.encode(text), 2]
      system = ''
    assert chat.encode(talk, llama2, 'llama2').tokens.tolist() == want


def test_an_answer_that_has_begun_is_encoded_with_its_prompt(llama2):
  """RULER's: a SentencePiece would put another blank before it alone."""
  theirs = sentencepiece.SentencePieceProcessor(
    model_proto=llama2.encoder._model
  )
  made = chat.prompt(say('q'), llama2, 'llama2', ' Answer: 1')
  assert made.tolist() == [1, *theirs.encode('[INST] q [/INST] Answer: 1')]


def test_longalign_writes_what_its_pre_tokenize_py_writes(llama2):
  """By hand: its tokenizer encodes what is between the marks of an answer by
  itself. It learns an end after each answer, we the one that is there."""
  theirs = sentencepiece.SentencePieceProcessor(
    model_proto=llama2.encoder._model
  )
  for talk in (say('Hello!', 'Hi'), say('a b', 'c', 'is it?', 'x - y')):
    want, weights, before = [1], [0], ''
    for ask, answer in zip(talk[::2], talk[1::2]):
      question = theirs.encode(f'{before}[INST]{ask["content"]}[/INST]')
      learned = theirs.encode(answer['content'])
      want += [*question, *learned]
      weights += [0] * len(question) + [1] * len(learned)
      before = '\n\n'
    # It takes zero-width characters out of answers.
    talk[-1]['content'] = f'\ufeff{answer["content"]}\u200b'
    made = chat.encode(talk, llama2, 'longalign')
    assert made.tokens.tolist() == [*want, 2]
    assert made.weights.tolist() == [*weights, 1]


def test_llama_3_by_hand(llama3):
  begin, _, _, _, _, _, head, tail, _, turn = range(264, 274)
  assert llama3.bos == begin and llama3.token_to_id('<|eot_id|>') == turn
  made = chat.encode(say(' w ', 'hello'), llama3, 'llama3')
  who = [ord(c) for c in 'assistant']
  ids = [begin, head, 259, tail, 256, ord('w'), turn]
  ids += [head, *who, tail, 256, ord('h'), ord('e'), 263, turn]
  assert made.tokens.tolist() == ids
  assert made.weights.tolist() == [0] * (len(ids) - 4) + [1] * 4


@pytest.mark.parametrize('template', ['llama2', 'llama3'])
def test_answers_and_their_ends_are_learned(template, request):
  tokens = request.getfixturevalue(template)
  end = dict(llama2='</s>', llama3='<|eot_id|>')[template]
  for talk in TALKS:
    made = chat.encode(talk, tokens, template)
    answers = [m['content'].strip() for m in talk if m['role'] == 'assistant']
    got = [text.strip() for text in learned(made, tokens)]
    assert [text.removesuffix(end).strip() for text in got] == answers
    assert all(text.endswith(end) for text in got)


def test_everything_is_learned_but_the_first_token(llama2):
  answers = chat.encode(TALKS[1], llama2, 'llama2')
  whole = chat.encode(TALKS[1], llama2, 'llama2', loss='all')
  assert whole.tokens.tolist() == answers.tokens.tolist()
  assert whole.weights.tolist() == [0] + [1] * (len(whole.tokens) - 1)


@pytest.mark.parametrize('template', ['llama2', 'llama3'])
def test_a_prompt_is_what_comes_before_the_answer(template, request):
  tokens = request.getfixturevalue(template)
  whole = chat.encode(TALKS[0], tokens, template)
  begin = chat.prompt(TALKS[0][:1], tokens, template)
  assert begin.tolist() == whole.tokens[: len(begin)].tolist()
  assert whole.weights[: len(begin)].sum() == 0 and whole.weights[len(begin)]


def test_smollm2_is_its_own_chat_template(smollm2, tmp_path):
  transformers = pytest.importorskip('transformers')
  pytest.importorskip('jinja2')
  smollm2.save(tmp_path)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  for talk in (*TALKS[:2], TALKS[3]):
    want = theirs.apply_chat_template(talk, return_dict=False)
    made = chat.encode(talk, smollm2, 'smollm2')
    assert made.tokens.tolist() == want
    answers = [m['content'] for m in talk if m['role'] == 'assistant']
    # The line end before an answer may be one token with its own.
    got = [text.lstrip('\n') for text in learned(made, smollm2)]
    assert got == [f'{answer}<|im_end|>'.lstrip('\n') for answer in answers]
    assert chat.prompt(talk[:-1], smollm2, 'smollm2').tolist() == (
      theirs.apply_chat_template(
        talk[:-1], add_generation_prompt=True, return_dict=False
      )
    )


@pytest.mark.slow
def test_llama_3_is_metas_own_chat_format():
  pytest.importorskip('PIL')
  chat_format = pytest.importorskip('llama_models.llama3.chat_format')
  datatypes = pytest.importorskip('llama_models.datatypes')
  archive = downloads.fetch(*LLAMA_MODELS)
  path = downloads.extract(archive, 'llama_models/llama3/tokenizer.model')
  ours = tokenizer.load(path)
  theirs = chat_format.ChatFormat(chat_format.Tokenizer(path))
  for talk in TALKS:
    talk = [m | dict(content=m['content'].strip()) for m in talk]
    said = [datatypes.RawMessage(**m) for m in talk[:-1]]
    want = theirs.encode_dialog_prompt(said).tokens
    assert chat.prompt(talk[:-1], ours, 'llama3').tolist() == want
    answer = datatypes.RawMessage(
      **talk[-1], stop_reason=datatypes.StopReason.end_of_turn
    )
    end, _ = theirs.encode_message(answer, datatypes.ToolPromptFormat.json)
    whole = chat.encode(talk, ours, 'llama3').tokens.tolist()
    head = len(theirs._encode_header('assistant'))
    assert whole == want + end[head:]


@pytest.mark.parametrize(
  ('messages', 'told'),
  [
    ([], 'not empty'),
    ('hello', 'list of messages'),
    ([dict(role='user', content=None)], 'message 0'),
    ([dict(role='robot', content='x')], 'message 0'),
    (say('a', 'b') + say('c')[0:1] + say('d'), 'in turns'),
    (say('a'), 'no targets|without an answer'),
    (say('a', 'b')[1:], 'in turns'),
  ],
)
def test_what_is_no_conversation_is_refused(messages, told, llama2):
  with pytest.raises(errors.InputError, match=told):
    chat.encode(messages, llama2, 'llama2')


def test_a_template_for_another_tokenizer_is_refused(llama2):
  with pytest.raises(errors.InputError, match=r'begin_of_text.*lacks'):
    chat.encode(TALKS[0], llama2, 'llama3')
  with pytest.raises(errors.InputError, match='not one of tokenizer, llama2'):
    chat.encode(TALKS[0], llama2, 'alpaca')
  with pytest.raises(errors.InputError, match='not one of'):
    chat.encode(TALKS[0], llama2, 'llama2', loss='some')
  with pytest.raises(errors.InputError, match='an answer already'):
    chat.prompt(TALKS[0], llama2, 'llama2')
