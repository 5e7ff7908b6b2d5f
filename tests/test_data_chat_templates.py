"""The tokenizer's own chat template: masks beside ones marked by hand.

The tokenizers have a token for each byte and each special token, so that a mask
of tokens is one of characters.
"""

import contextlib
import json
import pathlib
import signal
import time

import jinja2
import pytest
import small_tokenizers
from test_data_chat import learned

from configs import common
from longjax import errors
from longjax.data import chat, prepare, template_sandbox, tokenizer

HERE = pathlib.Path(__file__).with_name('templates')
SPECIAL = dict(
  llama3='<|begin_of_text|> <|eot_id|> <|start_header_id|> <|end_header_id|>',
  qwen3='<s> <|im_end|> <|im_start|>',
  mistral='<s> </s> [INST] [/INST] [TOOL_CALLS] [TOOL_RESULTS] [/TOOL_RESULTS]',
  smollm2='<s> <|im_end|> <|im_start|>',
)
# s system, u user, a assistant, c call of a tool, t what the tool returned.
SHAPES = (
  'ua', 'sua', 'uaua', 'suaua', 'uauaua', 'suauaua', 'ucta', 'sucta', 'uctaua',
  'suctaua', 'uauucta', 'uctctct', 'uctcta', 'suctcta', 'uctuaucta', 'uaucta',
  'suaucta', 'uctauctaua', 'uctctcta', 'suctauct',
)  # fmt: skip
TEXTS = (
  'one',
  ' two\n',
  'é \U0001f642',
  'a\n\nb',
  '  x',
  '</s><|im_end|>!',
  '',
)


def own(directory, template, special):
  """A tokenizer of bytes whose authors' template is this; bos, eos first."""
  bos, eos, *_ = names = special.split()
  return small_tokenizers.of_bytes(
    directory, *names, bos_token=bos, eos_token=eos, chat_template=template
  )


@pytest.fixture(scope='module')
def tokens(tmp_path_factory):
  return {
    name: own(
      tmp_path_factory.mktemp(name),
      (HERE / f'{name}.jinja').read_text(),
      special,
    )
    for name, special in SPECIAL.items()
  }


def conversation(shape: str, calls=True) -> list[dict]:
  roles = dict(s='system', u='user', a='assistant', c='assistant', t='tool')
  made = []
  for number, letter in enumerate(shape):
    message = dict(
      role=roles[letter], content=TEXTS[(number + len(shape)) % len(TEXTS)]
    )
    if letter == 'c' and calls:
      function = dict(name='f', arguments=dict(x=number))
      message |= dict(content='', tool_calls=[dict(function=function)])
    made.append(message)
  return made


def called(message, arguments='arguments') -> str:
  """The JSON of a call, as a template writes it."""
  function = message['tool_calls'][0]['function']
  return (
    f'{{"name": "f", "{arguments}": {{"x": {function["arguments"]["x"]}}}}}'
  )


def llama3(messages, system):
  head = '<|start_header_id|>{}<|end_header_id|>\n\n'
  yield '<|begin_of_text|>' + head.format('system'), 0
  yield f'Today Date: 26 Jul 2024\n\n{(system or "").strip()}<|eot_id|>', 0
  for m in messages[system is not None :]:
    yield head.format(m['role'].replace('tool', 'ipython')), 0
    text = m['content'] if m['role'] == 'tool' else m['content'].strip()
    if 'tool_calls' in m:
      text = called(m, 'parameters')
    yield f'{text}<|eot_id|>', m['role'] == 'assistant'


def mistral(messages, system):
  yield '<s>', 0
  for m in messages:
    if 'tool_calls' in m:
      yield f'[TOOL_CALLS] [{called(m)}]</s>', 1
    elif m['role'] == 'assistant':
      yield f' {m["content"].strip()}</s>', 1
    elif m['role'] == 'tool':
      text = json.dumps(m['content'], ensure_ascii=False)
      yield f'[TOOL_RESULTS] {text}[/TOOL_RESULTS]', 0
    else:
      yield f'[INST] {m["content"]}[/INST]', 0


def qwen3(messages, system):
  for m in messages:
    role, text = m['role'], m['content']
    if role == 'tool':
      role, text = 'user', f'<tool_response>\n{text}\n</tool_response>'
    if 'tool_calls' in m:
      text = f'<tool_call>\n{called(m)}\n</tool_call>'
    if m is messages[-1] and role == 'assistant':
      text = f'<think>\n\n</think>\n\n{text}'
    yield from turn(role, text)


def smollm2(messages, system):
  if system is None:
    yield '<|im_start|>system\nYou help.<|im_end|>\n', 0
  for m in messages:
    yield from turn(m['role'], m['content'])


def turn(role, text):
  """A turn of ChatML: (text, whether it is learned)."""
  yield f'<|im_start|>{role}\n', 0
  yield f'{text}<|im_end|>', role == 'assistant'
  yield '\n', 0


BY_HAND = dict(llama3=llama3, mistral=mistral, qwen3=qwen3, smollm2=smollm2)


@pytest.mark.parametrize('name', SPECIAL)
@pytest.mark.parametrize('shape', SHAPES)
def test_masks_are_those_marked_by_hand(name, shape, tokens):
  messages = conversation(shape, calls=name != 'smollm2')
  if name == 'mistral' and shape[0] == 's':  # its text has no system message
    with pytest.raises(errors.InputError, match='uncertain'):
      chat.encode(messages, tokens[name], 'tokenizer')
    return
  made = chat.encode(messages, tokens[name], 'tokenizer')
  system = messages[0]['content'] if shape[0] == 's' else None
  pieces = list(BY_HAND[name](messages, system))
  whole = ''.join(text for text, _ in pieces)
  assert tokens[name].decode(made.tokens) == whole
  # A name of a special token in a message is text: it has no token of its own.
  whole = whole.replace(TEXTS[5], '')
  count = sum(whole.count(mark) for mark in SPECIAL[name].split())
  assert (made.tokens >= 256).sum() == count
  at = 0
  for text, is_learned in pieces:
    begin, said = at, ''
    while said != text:
      at += 1
      said = tokens[name].decode(made.tokens[begin:at])
      assert at <= len(made.tokens)
    assert (made.weights[begin:at] == is_learned).all(), (text, is_learned)
  assert at == len(made.tokens)


def test_an_end_is_found_and_a_prompt_ends_before_the_answer(tokens):
  ends = dict(llama3='<|eot_id|>', mistral='</s>')
  for name, tokenizer_ in tokens.items():
    assert chat.end(tokenizer_, 'tokenizer') == ends.get(name, '<|im_end|>')
    messages = conversation('uaua')
    whole = chat.encode(messages, tokenizer_, 'tokenizer')
    begin = chat.prompt(messages[:-1], tokenizer_, 'tokenizer')
    assert begin.tolist() == whole.tokens[: len(begin)].tolist()
    assert chat.learns_end(tokenizer_, 'tokenizer')
    assert whole.weights[len(begin) :].tolist().count(0) <= 1  # a line end


def test_generation_blocks_are_those_of_transformers(tmp_path):
  utils = pytest.importorskip('transformers.utils.chat_template_utils')
  template = (
    '{% for m in messages %}<|im_start|>{{ m.role }}\n'
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>"
    '{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n'
    '{% endfor %}'
  )
  tokens = own(tmp_path, template, SPECIAL['qwen3'])
  messages = [
    dict(role=r, content=c) for r, c in zip(('user', 'assistant') * 2, 'abcd')
  ]
  (text,), (spans,) = utils.render_jinja_template(
    [messages], chat_template=template, return_assistant_tokens_mask=True
  )
  made = chat.encode(messages, tokens, 'tokenizer')
  assert tokens.decode(made.tokens) == text
  assert learned(made, tokens) == [text[a:b] for a, b in spans]
  assert chat.learns_end(tokens, 'tokenizer')
  end = '<|im_end|>{% endgeneration %}'
  without = template.replace(end, '{% endgeneration %}<|im_end|>')
  assert not chat.learns_end(
    own(tmp_path / 'other', without, SPECIAL['qwen3']), 'tokenizer'
  )


@pytest.mark.parametrize(
  'template, fact',
  [
    ('{{ messages', 'not Jinja'),
    ('', 'no chat template of its own'),
    ("{{ raise_exception('never') }}", 'never'),
    ('{{ messages[0].__class__.__mro__ }}', 'unsafe|__class__'),
    ('{% for m in messages %}{{ m.content }}{% endfor %}', 'special token'),
    ('{{ messages | length }}<|im_end|>', 'uncertain'),
    (
      "{% for m in messages %}{{ m.content + '<|im_end|>' }}{% endfor %}",
      'leaves out the tool calls',
    ),
  ],
)
def test_what_no_mask_or_text_is_certain_of_is_refused(
  template, fact, tmp_path
):
  tokens = own(tmp_path, template, SPECIAL['qwen3'])
  with pytest.raises(errors.InputError, match=fact):
    shape = 'ucta' if 'calls' in fact else 'uaua'
    chat.encode(conversation(shape), tokens, 'tokenizer')


@pytest.mark.parametrize('calls', [0.5, 7, 'f', {'name': 'f'}])
def test_tool_calls_are_a_list(calls, tokens):
  messages = conversation('ua')
  messages[1]['tool_calls'] = calls
  with pytest.raises(errors.InputError, match='not a list'):
    chat.encode(messages, tokens['llama3'], 'tokenizer')


def test_an_interruption_that_is_lost_comes_again(monkeypatch):
  """As one is that is raised while garbage is collected."""
  monkeypatch.setattr(template_sandbox, 'SECONDS', 0.2)

  def spin(_):
    for _ in range(2):
      with contextlib.suppress(template_sandbox.TooLongError):
        while True:
          pass
    while True:
      pass

  environment = template_sandbox.Sandbox()
  environment.filters['spin'] = spin
  template = environment.from_string('{{ x | spin }}')
  with (
    pytest.raises(jinja2.TemplateError, match=r'0\.2 s'),
    template_sandbox.bounded(),
  ):
    template.render(x=1)


def test_only_the_template_is_interrupted(monkeypatch):
  """Not what lifts its limits: a timer that is left would kill the process."""
  monkeypatch.setattr(template_sandbox, 'SECONDS', 0.1)
  until = time.thread_time() + 0.3
  with template_sandbox.bounded():
    while time.thread_time() < until:
      pass
  assert signal.getitimer(signal.ITIMER_PROF) == (0, 0)


def test_tools_that_a_template_ignores_are_refused(tokens):
  tools, messages = [dict(name='f')], conversation('ucta')
  made = chat.encode(messages, tokens['llama3'], 'tokenizer', tools=tools)
  assert '\n{"name": "f"}\n' in tokens['llama3'].decode(made.tokens)
  with pytest.raises(errors.InputError, match='leaves out the tools'):
    chat.encode(messages, tokens['qwen3'], 'tokenizer', tools=tools)


def test_sharegpt_is_prepared_with_the_tokenizers_own_template(
  tokens, tmp_path, monkeypatch
):
  monkeypatch.setenv('LONGJAX_CACHE', str(tmp_path / 'cache'))
  turns = (
    ('system', 'Be brief.'), ('human', 'Which?'), ('gpt', 'ok'),
    ('tool', '{"a": 1}'), ('gpt', 'done'),
  )  # fmt: skip
  row = dict(conversations=[{'from': a, 'value': b} for a, b in turns])
  (tmp_path / 'a.jsonl').write_text(json.dumps(row) + '\n')
  config = common.base('tiny')
  config.data.sources = dict(
    talk=dict(path=str(tmp_path / 'a.jsonl'), kind='chat')
  )
  quiet = lambda _: None
  made = prepare.prepare(config, tokens['qwen3'], quiet)
  roles = ('system', 'user', 'assistant', 'tool', 'assistant')
  messages = [dict(role=r, content=c) for r, (_, c) in zip(roles, turns)]
  want = chat.encode(messages, tokens['qwen3'], 'tokenizer')
  assert made.tokens(0).tolist() == want.tokens.tolist()
  assert made.mask(0).tolist() == want.weights.tolist()
  learned = tokens['qwen3'].decode(want.tokens[want.weights > 0])
  assert learned == 'ok<|im_end|><think>\n\n</think>\n\ndone<|im_end|>'
  # Another template of the same tokenizer makes another store.
  path = tmp_path / 'other.jinja'
  for text in ('chatml', 'smollm2'):
    path.write_text((chat.HERE / f'{text}.jinja').read_text())
    config.data.sources.talk.template = str(path)
    other = prepare.prepare(config, tokens['qwen3'], quiet)
    assert other.directory != made.directory
    made = other
  with pytest.raises(errors.InputError, match='no chat template'):
    config.data.sources.talk.template = ''
    prepare.prepare(config, tokenizer.load('bytes'), quiet)


@pytest.mark.parametrize('space', ['first', 'always'])
def test_what_stands_before_a_text_may_change_its_ids(space, tmp_path):
  """A space goes before the first text alone in Mistral's tokenizer.json."""
  import tokenizers

  special = SPECIAL['mistral'].split()
  vocab = ['<unk>', *'▁abq12 ', '▁a', *special]
  model = tokenizers.models.BPE(
    {name: i for i, name in enumerate(vocab)}, [('▁', 'a')], unk_token='<unk>'
  )
  made = tokenizers.Tokenizer(model)
  made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme=space)
  made.add_special_tokens(special)
  made.save(str(tmp_path / 'tokenizer.json'))
  config = dict(bos_token='<s>', eos_token='</s>')
  config['chat_template'] = (HERE / 'mistral.jinja').read_text()
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(config))
  tokens = tokenizer.load(tmp_path)
  messages = [
    dict(role=role, content=text)
    for role, text in zip(('user', 'assistant') * 2, ('q1', 'a1', 'q2', 'ba'))
  ]
  text = '<s>[INST] q1[/INST] a1</s>[INST] q2[/INST] ba</s>'
  want = made.encode(text, add_special_tokens=False)
  found = chat.encode(messages, tokens, 'tokenizer')
  assert found.tokens.tolist() == want.ids
  learned = [text.index(' a1</s>') + i for i in range(7)]
  learned += [text.index(' ba</s>') + i for i in range(7)]
  overlap = [any(a <= i < b for i in learned) for a, b in want.offsets]
  assert found.weights.astype(bool).tolist() == overlap
  messages[0]['content'] = 'q</s>'
  if space == 'first':
    with pytest.raises(errors.InputError, match='name of a special token'):
      chat.encode(messages, tokens, 'tokenizer')
  else:
    found = chat.encode(messages, tokens, 'tokenizer')
    assert found.tokens.tolist().count(tokens.token_to_id('</s>')) == 2


@pytest.mark.slow
@pytest.mark.parametrize('legacy', [None, True, False])
@pytest.mark.parametrize('bos', ['{{ bos_token }}', ''])
def test_a_sentencepiece_model_is_encoded_as_transformers_does(
  legacy, bos, tmp_path
):
  transformers = pytest.importorskip('transformers')
  lines = ['who are you? it is me'] * 20
  model = small_tokenizers.sentencepiece_model(lines)
  (tmp_path / 'tokenizer.model').write_bytes(model)
  template = (
    bos + "{% for m in messages %}{% if m.role == 'user' %}"
    "{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
  )
  config = dict(
    tokenizer_class='LlamaTokenizer', bos_token='<s>', eos_token='</s>',
    unk_token='<unk>', chat_template=template,
  )  # fmt: skip
  if legacy is not None:
    config['legacy'] = legacy
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(config))
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  messages = [
    dict(role=role, content=text)
    for role, text in zip(('user', 'assistant') * 2, ('who', 'me', '', 'it is'))
  ]
  want = theirs.apply_chat_template(messages, return_dict=False)
  tokens = tokenizer.load(tmp_path)
  made = chat.encode(messages, tokens, 'tokenizer')
  assert made.tokens.tolist() == want
  tokens.save(tmp_path / 'saved')  # with a tokenizer.json, made of the model
  again = chat.encode(messages, tokenizer.load(tmp_path / 'saved'), 'tokenizer')
  assert again.tokens.tolist() == want
  learned = tokens.decode(made.tokens[made.weights > 0]).replace(' ', '')
  assert learned == 'me</s>itis</s>'
