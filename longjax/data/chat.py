"""Chat templates: messages to tokens, and which of them are trained on.

A template is Jinja, as transformers renders it. It is one of data/templates:

  llama2    Meta's llama (chat_completion): <s>[INST] ... [/INST] ... </s>
  llama3    Meta's llama3 (ChatFormat): header, message, <|eot_id|>
  chatml    <|im_start|>role, message, <|im_end|>
  smollm2   chatml with SmolLM2's system prompt where there is none
  longalign [INST]...[/INST] ..., LongAlign's for Llama (arXiv:2401.18058)

or 'tokenizer', that of the tokenizer's authors, or the path of a .jinja file.

The content of a message is text: a '<|eot_id|>' in it ends no turn. Loss falls
on the answers of the assistant and what ends them, or, for long documents in a
message, on everything (Llama 2 Long, arXiv:2309.16039, 4.3, where the loss on
the long input helps most).

The template's `generation` blocks mark the answers, as in transformers. Few
templates have them; in others an answer is what follows the prompt for it, up
to the token that ends its turn. A conversation whose text does not begin with
that prompt, as when a system message goes into the last turn, is refused.
"""

import pathlib
from typing import Any, NamedTuple

import numpy as np

from longjax import errors, storage
from longjax.data import conversations, encoders
from longjax.data import tokenizer as tokenizers
from longjax.data.template_sandbox import CLOSE, OPEN, bounded, compiled

LOSSES = ('answers', 'all')
FROM_TOKENIZER = 'tokenizer'
HERE = pathlib.Path(__file__).with_name('templates')
# The special tokens that a template of ours writes; the last ends an answer.
TEMPLATES = dict(
  llama2=('<s>', '</s>'),
  llama3=(
    '<|begin_of_text|>', '<|start_header_id|>', '<|end_header_id|>',
    '<|eot_id|>',
  ),
  chatml=('<|im_start|>', '<|im_end|>'),
  smollm2=('<|im_start|>', '<|im_end|>'),
  longalign=('<s>', '</s>'),
)  # fmt: skip
# Inside the name of a special token that is text: no character.
BREAK = '\ufdd2'
MARKS = (OPEN, CLOSE, BREAK)
REPLACED = dict.fromkeys(map(ord, MARKS), '\ufffd')  # in what others wrote
REMOVED = dict.fromkeys(map(ord, MARKS))
# A conversation, to see how a template ends an answer.
SHORTEST = [dict(role=role, content='a') for role in ('user', 'assistant')]


class Chat(NamedTuple):
  """A tokenized conversation."""

  tokens: np.ndarray  # int32 [tokens]
  weights: np.ndarray  # uint8 [tokens], 1: this token is to be predicted


def check_template(name: str):
  """InputError for what names no template, whatever the tokenizer."""
  if name.endswith('.jinja') and not pathlib.Path(name).is_file():
    raise errors.InputError(f'chat template {name}: no such file')
  if not name.endswith('.jinja'):
    errors.check_choice(
      'chat template', name, (FROM_TOKENIZER, *TEMPLATES, 'FILE.jinja')
    )


def source(name: str, tokenizer: tokenizers.Tokenizer) -> str:
  """The text of a template; InputError where the tokenizer lacks what it needs.

  Args:
    name: one of TEMPLATES, FROM_TOKENIZER or the path of a .jinja file.
  """
  check_template(name)
  if name == FROM_TOKENIZER:
    if not tokenizer.chat_template:
      raise errors.InputError(
        'the tokenizer has no chat template of its own; name one of '
        f'{", ".join(TEMPLATES)}, or a .jinja file'
      )
    return tokenizer.chat_template
  for token in TEMPLATES.get(name, ()):
    if tokenizer.token_to_id(token) is None:
      raise errors.InputError(
        f'the chat template {name!r} needs the token {token}, which the '
        f'tokenizer of {tokenizer.vocab} ids lacks; use another template'
      )
  path = HERE / f'{name}.jinja' if name in TEMPLATES else name
  return storage.content(path).decode()


def encode(
  messages, tokenizer, template: str, loss='answers', tools=None
) -> Chat:
  """The tokens of a conversation and which of them are learned.

  Args:
    messages: of any form that data/conversations knows; one at least is the
      assistant's.
    tokenizer, template: as in `source`.
    loss: 'answers', or 'all' for everything but the first token.
    tools: that the assistant may call, or None.

  Returns:
    Tokens with their own begin and end, and a weight for each of them. The
    weights 1 / length of LongAlign are made when they are packed.

  Raises:
    InputError: what is not a conversation, a template for another tokenizer, or
      one that leaves out what the conversation has.
  """
  writer = _Writer(messages, tokenizer, template, tools)
  errors.check_choice('chat loss', loss, LOSSES)
  if not any(m['role'] == 'assistant' for m in messages):
    raise errors.InputError('a conversation without an answer has no targets')
  writer.refuse_lost()
  text = writer.text(writer.messages)
  if loss == 'answers' and OPEN not in text:
    text = writer.mark_answers(text)
  chat = writer.encode(text)
  if loss == 'all':
    chat.weights[:] = 1
  chat.weights[:1] = 0  # nothing comes before it
  return chat


def prompt(messages, tokenizer, template: str, begun='') -> np.ndarray:
  """int32 [tokens] up to the assistant's next answer, and how it has begun."""
  writer = _Writer(messages, tokenizer, template)
  if messages[-1]['role'] == 'assistant':
    raise errors.InputError('the last message is an answer already')
  text = writer.text(writer.messages, opened=True)
  return writer.encode(text + writer.protected(begun)).tokens


def end(tokenizer, template: str) -> str:
  """The name of the special token that ends an answer."""
  if template in TEMPLATES:
    return TEMPLATES[template][-1]
  writer = _Writer(SHORTEST, tokenizer, template)
  return writer.end(writer.text(SHORTEST).replace(CLOSE, ''))


def learns_end(tokenizer, template: str) -> bool:
  """Whether an answer is learned with the token that ends it."""
  try:
    made = encode(SHORTEST, tokenizer, template)
    name = end(tokenizer, template)
  except errors.InputError:  # each conversation will tell
    return True
  (ends,) = np.nonzero(made.tokens == tokenizer.token_to_id(name))
  return bool(made.weights[ends[-1]])


class _Writer:
  """Writes one conversation with one template, for one tokenizer."""

  def __init__(self, messages, tokenizer, name: str, tools=None):
    self.name, self._template = name, compiled(source(name, tokenizer))
    ours = name in TEMPLATES
    self._encoder = tokenizer.encoder if ours else tokenizer.chat_encoder
    settings = tokenizer.settings
    self._names = dict(
      bos_token=settings.bos, eos_token=settings.eos, pad_token=settings.pad
    )
    special = self._encoder.special.union(TEMPLATES.get(name, ()))
    self._special = encoders.any_of(special)
    if not isinstance(messages, list) or not messages:
      raise errors.InputError('a conversation is a list of messages, not empty')
    try:
      self.messages = self.protected(conversations.plain(messages))
    except ValueError as error:
      raise errors.InputError(str(error)) from None
    self.tools = self.protected(tools)

  def protected(self, value) -> Any:
    """Messages in which no text is the name of a special token."""
    if isinstance(value, dict):
      return {k: self.protected(v) for k, v in value.items()}
    if isinstance(value, list):
      return [self.protected(v) for v in value]
    if not isinstance(value, str):
      return value
    value = tokenizers.without_surrogates(value).translate(REPLACED)
    return self._special.sub(lambda m: m[0][0] + BREAK + m[0][1:], value)

  def text(self, messages, opened=False, **more) -> str:
    """What the template writes."""
    given = dict(tools=self.tools, documents=None) | self._names | more
    try:
      with bounded():
        return self._template.render(
          messages=messages, add_generation_prompt=opened, **given
        )
    except Exception as error:  # a template may run into any
      reason = ' '.join(str(error).split()) or type(error).__name__
      raise errors.InputError(
        f'the chat template {self.name!r} refuses it: {reason}'
      ) from error

  def refuse_lost(self):
    """InputError for tools or calls that the template does not write."""
    plain = [{**m} for m in self.messages]
    calls = [m.pop('tool_calls') for m in plain if 'tool_calls' in m]
    for given, what, messages, tools in (
      (calls, 'tool calls', plain, self.tools),
      (self.tools, 'tools', self.messages, None),
    ):
      try:
        text = given and self.text(messages, tools=tools)
        lost = given and text == self.text(self.messages)
      except errors.InputError:  # so it does read them
        lost = False
      if lost:
        raise errors.InputError(
          f'the chat template {self.name!r} leaves out the {what}'
        )

  def mark_answers(self, text: str) -> str:
    """The text with marks around what answers the prompts before them."""
    marked, done = [], 0
    for number, message in enumerate(self.messages):
      if message['role'] != 'assistant':
        continue
      before = self.text(self.messages[:number], opened=True)
      closed = self.text(self.messages[: number + 1])
      fits = text.startswith(before) and closed.startswith(before)
      if not fits or len(before) < done:
        raise errors.InputError(
          f'the chat template {self.name!r} has no generation blocks, and '
          f'writes what comes before message {number} otherwise once there '
          'are more messages, so that what it answers is uncertain; name a '
          '.jinja file with such blocks as template'
        )
      name = self.end(closed[len(before) :])
      answer, found, _ = text[len(before) :].partition(name)
      if not found or closed.count(name, len(before)) > 1:
        raise errors.InputError(
          f'the chat template {self.name!r} must write {name} exactly once in '
          f'message {number}; otherwise the end of the answer is uncertain'
        )
      marked += [text[done : len(before)], OPEN, answer, name, CLOSE]
      done = len(before) + len(answer) + len(name)
    return ''.join([*marked, text[done:]])

  def end(self, answer: str) -> str:
    """The one special token with which an answer ends."""
    found = list(self._special.finditer(answer))
    if not found or answer[found[-1].end() :].strip():
      raise errors.InputError(
        f'the chat template {self.name!r} ends no answer with a special token'
      )
    return found[-1][0]

  def encode(self, text: str) -> Chat:
    """The tokens of a text with marks."""
    chars = np.frombuffer(text.encode('utf-32-le'), '<u4')
    opened, closed, broken = (chars == ord(mark) for mark in MARKS)
    learned = np.cumsum(opened) > np.cumsum(closed)
    kept = ~(opened | closed | broken)
    parts, done = [], 0
    for match in self._special.finditer(text):
      before = text[done : match.start()].translate(REMOVED)
      parts += [encoders.Part(before), encoders.Part(match[0], True)]
      done = match.end()
    parts.append(encoders.Part(text[done:].translate(REMOVED)))
    parts = [part for part in parts if part.text]
    ids, marked = self._encoder.encode_marked(parts, learned[kept])
    return Chat(np.array(ids, np.int32), marked.astype(np.uint8))
