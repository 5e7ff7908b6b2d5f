"""Conversations as data sets have them: one form for all.

A record has its messages in a list, as `messages` (role, content) or ShareGPT's
`conversations` (from, value), or it has Alpaca's columns (instruction, input,
output). Beside them may stand `system`, a text, and `tools`, what an assistant
may call, as a list or as JSON.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from longjax import json_text

ROLES = ('system', 'user', 'assistant', 'tool')
NAMES = dict(  # of roles, in ShareGPT and elsewhere
  human='user', gpt='assistant', chatgpt='assistant', model='assistant',
  function_call='assistant', function_response='tool', observation='tool',
  function='tool', ipython='tool', tool_results='tool',
)  # fmt: skip
FIELDS = ('messages', 'conversations', 'instruction')


class Conversation(NamedTuple):
  """Messages {'role', 'content', ...}, and the tools that they may call."""

  messages: list
  tools: list | None = None


def read(value, field: str) -> Conversation | None:
  """The conversation of a record, or None if it has none.

  Args:
    value: a record, or a list of messages.
    field: with the messages; of FIELDS the first that is there, if it is
      `messages`.

  Raises:
    ValueError: says what is wrong with it.
  """
  if isinstance(value, list):
    return Conversation(plain(value))
  names = FIELDS if field == FIELDS[0] else (field,)
  name = next((n for n in names if isinstance(value.get(n), str | list)), '')
  messages = value.get(name)
  if name == 'instruction':
    messages = _alpaca(value)
  if not isinstance(messages, list):
    return None
  system = value.get('system')
  messages = plain(messages)
  own = messages and messages[0]['role'] == 'system'
  if isinstance(system, str) and system and not own:
    messages = [dict(role='system', content=system), *messages]
  return Conversation(messages, _tools(value.get('tools')))


def plain(messages: list) -> list[dict]:
  """Messages with role and content as text, of any form that is known.

  Contents in parts of text are joined, keys without a value left out, and
  tools' arguments parsed where they are JSON, as templates expect them.

  Raises:
    ValueError: names the message and says what is wrong with it.
  """
  made = []
  for number, message in enumerate(messages):
    message = _plain(message) if isinstance(message, Mapping) else {}
    role, content = message.get('role'), message.get('content')
    if role not in ROLES or not isinstance(content, str):
      what = f'the role {role!r}' if role not in ROLES else 'no text'
      raise ValueError(
        f'message {number} of a conversation has {what}; it needs a role, one '
        f'of {", ".join(ROLES)}, and a text as content'
      )
    for key in ('weight', 'train'):  # which others do not learn from
      if message.get(key, 1) != 1:
        raise ValueError(
          f'message {number} has {key}={message[key]!r}; every answer is '
          'learned here, so leave such conversations out'
        )
    made.append(message)
  return made


def _plain(message) -> dict:
  message = {k: v for k, v in message.items() if v is not None}
  given = 'from' in message and 'role' not in message
  role, content = ('from', 'value') if given else ('role', 'content')
  role, content = message.pop(role, None), message.pop(content, None)
  if isinstance(content, list) and all(map(_is_text, content)):
    content = ''.join(part['text'] for part in content)
  calls = message.pop('tool_calls', None)
  if role == 'function_call' and isinstance(content, str):
    calls, content = [_json(content)], ''
    if not isinstance(calls[0], Mapping) or 'name' not in calls[0]:
      calls, content = None, None  # not understood: refused
  if calls:
    if not isinstance(calls, list):
      raise ValueError(f'tool calls are {calls!r:.40}, not a list of them')
    message['tool_calls'] = [_call(call) for call in calls]
    content = content or ''
  if isinstance(role, str):
    role = NAMES.get(role, role)
  return dict(role=role, content=content) | message


def _is_text(part) -> bool:
  return (
    isinstance(part, Mapping)
    and part.get('type') == 'text'
    and isinstance(part.get('text'), str)
  )


def _call(call) -> dict:
  """A tool call as templates read it: arguments are a mapping, not its JSON."""
  if not isinstance(call, Mapping):
    raise ValueError(f'a tool call is {call!r}, no mapping')
  function = call.get('function')
  inner: dict = dict(function if isinstance(function, Mapping) else call)
  inner['arguments'] = _json(inner.get('arguments'))
  if not isinstance(function, Mapping):
    call = dict(type='function')
  return {k: v for k, v in call.items() if v is not None} | dict(function=inner)


def _json(value) -> Any:
  """What a text holds as JSON, or what is no such text, as it is."""
  try:
    return json_text.loads(value) if isinstance(value, str) else value
  except ValueError:
    return value


def _tools(given) -> list | None:
  tools = _json(given or None)
  if tools is not None and not isinstance(tools, list):
    raise ValueError(f'tools are {str(tools)[:40]!r}, not a list of them')
  return tools or None


def _alpaca(record) -> list | None:
  """Alpaca's columns as two messages."""
  texts = [record.get(k) or '' for k in ('instruction', 'input', 'output')]
  if not all(isinstance(t, str) for t in texts) or 'output' not in record:
    return None
  ask = '\n\n'.join(text for text in texts[:2] if text)
  return [
    dict(role='user', content=ask), dict(role='assistant', content=texts[2]),
  ]  # fmt: skip
