"""Chat templates: messages to tokens, and which of them are trained on.

A message is {'role': ROLE, 'content': text} with one of ROLES; `plain` makes
such of ShareGPT's {'from': 'human' or 'gpt', 'value': text}. The templates
write a conversation as their authors did:

  llama2    Meta's llama (chat_completion): <s>[INST] ... [/INST] ... </s>
  llama3    Meta's llama3 (ChatFormat): header, message, <|eot_id|>; like it
            and the template at Hugging Face, unlike llama-models, it strips
            the spaces around a message
  chatml    <|im_start|>role, message, <|im_end|>
  smollm2   chatml with SmolLM2's system prompt where there is none

The content of a message is text: a '<|eot_id|>' in it ends no turn. Loss falls
on the answers of the assistant and what ends them, or, for long documents in a
message, on everything (Llama 2 Long, arXiv:2309.16039, 4.3, where
the loss on the long input helps most).
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from longjax import errors

ROLES = ('system', 'user', 'assistant', 'tool')
SHAREGPT = dict(  # its names of roles
  human='user', gpt='assistant', function_response='tool', observation='tool'
)
LOSSES = ('answers', 'all')
SMOLLM2_SYSTEM = (
  'You are a helpful AI assistant named SmolLM, trained by Hugging Face'
)


class Chat(NamedTuple):
  """A tokenized conversation."""

  tokens: np.ndarray  # int32 [tokens]
  weights: np.ndarray  # uint8 [tokens], 1: this token is to be predicted


class Piece(NamedTuple):
  """Text, or the name of a special token, and whether it is learned."""

  text: str
  learned: bool = False
  special: bool = False


def plain(messages: list) -> list:
  """Messages with role and content as text, of any form that is known.

  Args:
    messages: with role or from, content or value; a content may be a list of
      parts of type text. What is none of this stays, for `encode` to refuse.
  """
  return [_plain(message) for message in messages]


def _plain(message):
  if not isinstance(message, dict):
    return message
  given = 'from' in message and 'role' not in message
  role, content = ('from', 'value') if given else ('role', 'content')
  role, content = message.get(role), message.get(content)
  if isinstance(content, list) and all(
    isinstance(part, dict)
    and part.get('type') == 'text'
    and isinstance(part.get('text'), str)
    for part in content
  ):
    content = ''.join(part['text'] for part in content)
  if given and isinstance(role, str):
    role = SHAREGPT.get(role, role)
  return message | dict(role=role, content=content)


def encode(messages, tokenizer, template: str, loss='answers') -> Chat:
  """The tokens of a conversation and which of them are learned.

  Args:
    messages: a list of messages; one at least is the assistant's.
    tokenizer: a data.tokenizer.Tokenizer.
    template: a name in TEMPLATES.
    loss: 'answers', or 'all' for everything but the first token.

  Returns:
    Tokens with their own begin and end, and a weight for each of them. The
    weights 1 / length of LongAlign are made when they are packed.

  Raises:
    InputError: what is not a conversation, or a template for a tokenizer that
      lacks its special tokens.
  """
  _check(messages, template)
  if loss not in LOSSES:
    raise errors.InputError(
      f'chat loss {loss!r} is none of {", ".join(LOSSES)}'
    )
  if not any(m['role'] == 'assistant' for m in messages):
    raise errors.InputError('a conversation without an answer has no targets')
  chat = _encode(TEMPLATES[template](messages), tokenizer, template)
  if loss == 'all':
    chat.weights[:] = 1
  chat.weights[0] = 0  # nothing comes before it
  return chat


def prompt(messages, tokenizer, template: str) -> np.ndarray:
  """int32 [tokens] up to where the assistant's next answer begins."""
  _check(messages, template)
  if messages[-1]['role'] == 'assistant':
    raise errors.InputError('the last message is an answer already')
  pieces = TEMPLATES[template](messages, opened=True)
  return _encode(pieces, tokenizer, template).tokens


def _llama2(messages, opened=False) -> Iterator[Piece]:
  system, turns = '', list(messages)
  if turns[0]['role'] == 'system':
    system = f'<<SYS>>\n{turns.pop(0)["content"]}\n<</SYS>>\n\n'
  expected = ['user', 'assistant'] * len(turns)
  if not turns or any(m['role'] != r for m, r in zip(turns, expected)):
    raise errors.InputError(
      'the llama2 template needs user and assistant in turns, after one system '
      f'message or none; got {", ".join(m["role"] for m in messages)}'
    )
  for message in turns:
    text = message['content']
    if message['role'] == 'user':
      yield Piece('<s>', special=True)
      yield Piece(f'[INST] {(system + text).strip()} [/INST]')
      system = ''
    else:
      yield Piece(f' {text.strip()} ', learned=True)
      yield Piece('</s>', learned=True, special=True)


def _llama3(messages, opened=False) -> Iterator[Piece]:
  def header(role):
    yield Piece('<|start_header_id|>', special=True)
    yield Piece(role)
    yield Piece('<|end_header_id|>', special=True)
    yield Piece('\n\n')

  yield Piece('<|begin_of_text|>', special=True)
  for message in messages:
    learned = message['role'] == 'assistant'
    # Llama 3.1's name of a tool's role.
    yield from header(message['role'].replace('tool', 'ipython'))
    yield Piece(message['content'].strip(), learned)
    yield Piece('<|eot_id|>', learned, special=True)
  if opened:
    yield from header('assistant')


def _chatml(messages, opened=False) -> Iterator[Piece]:
  for message in messages:
    learned = message['role'] == 'assistant'
    yield Piece('<|im_start|>', special=True)
    yield Piece(message['role'] + '\n')
    yield Piece(message['content'], learned)
    yield Piece('<|im_end|>', learned, special=True)
    yield Piece('\n')
  if opened:
    yield Piece('<|im_start|>', special=True)
    yield Piece('assistant\n')


def _smollm2(messages, opened=False) -> Iterator[Piece]:
  if messages[0]['role'] != 'system':
    messages = [dict(role='system', content=SMOLLM2_SYSTEM), *messages]
  return _chatml(messages, opened)


TEMPLATES = dict(
  llama2=_llama2, llama3=_llama3, chatml=_chatml, smollm2=_smollm2
)
ENDS = dict(
  llama2='</s>', llama3='<|eot_id|>', chatml='<|im_end|>', smollm2='<|im_end|>'
)  # of an answer


def _check(messages, template):
  """Raises InputError for what is not a list of messages."""
  if template not in TEMPLATES:
    raise errors.InputError(
      f'chat template {template!r} is none of {", ".join(TEMPLATES)}'
    )
  if not isinstance(messages, list) or not messages:
    raise errors.InputError('a conversation is a list of messages, not empty')
  for number, message in enumerate(messages):
    known = isinstance(message, dict) and message.get('role') in ROLES
    if not known or not isinstance(message.get('content'), str):
      raise errors.InputError(
        f'message {number} of a conversation needs a role, one of '
        f'{", ".join(ROLES)}, and a text as content'
      )


def _encode(pieces, tokenizer, template) -> Chat:
  """Special tokens by name, and the text between them as one."""
  tokens, weights = [], []
  for special, group in itertools.groupby(pieces, lambda piece: piece.special):
    group = list(group)
    if special:
      ids = [tokenizer.ident(piece.text) for piece in group]
      if None in ids:
        raise errors.InputError(
          f'the chat template {template!r} needs the token '
          f'{group[ids.index(None)].text}, which the tokenizer of '
          f'{tokenizer.vocab} ids lacks; use another template'
        )
      learned = [piece.learned for piece in group]
    else:
      ids = tokenizer.encode(''.join(piece.text for piece in group))
      learned = np.arange(len(ids)) >= _first_learned(group, ids, tokenizer)
    tokens.append(ids)
    weights.append(learned)
  return Chat(
    np.concatenate(tokens).astype(np.int32),
    np.concatenate(weights).astype(np.uint8),
  )


def _first_learned(pieces, ids, tokenizer) -> int:
  """The first learned token of a text, whose learned pieces are its last.

  A token that begins in what is given and ends in what is learned is learned.
  """
  if not any(piece.learned for piece in pieces):
    return len(ids)
  given = ''.join(piece.text for piece in pieces if not piece.learned)
  before = tokenizer.encode(given)[: len(ids)]
  differs = np.flatnonzero(before != ids[: len(before)])
  return int(differs[0]) if len(differs) else len(before)
