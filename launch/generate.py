"""Continues a prompt, a file, or a chat with a checkpoint.

  python launch/generate.py --config configs/C.py --checkpoint DIR
      --prompt 'Once upon a time' [--tokens 128] [--temperature 0.8]
  python launch/generate.py ... --file book.txt --prompt 'Who is Ahab?'
  python launch/generate.py ... --chat smollm2

A file's text comes before the prompt. --chat names the template and reads a
line for each turn, until an empty one. The config says on which mesh; the KV
cache is sharded over mesh.seq, so a prompt may be as long as all devices hold.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from longjax import cli
from longjax.errors import InputError


def main(
  config, checkpoint, prompt='', file='', chat='', tokens='', temperature='',
  top_p='', seed='', stop='',
):  # fmt: skip
  """Prints what the model says; the answer is the exit code."""
  from longjax.data import chat as chats

  if not checkpoint:
    raise InputError('--checkpoint=DIR is needed: a run directory or weights')
  if not (prompt or file or chat):
    raise InputError('say what to continue: --prompt, --file or --chat')
  if chat and chat not in chats.TEMPLATES:
    raise InputError(
      f'chat template {chat!r} is none of {", ".join(chats.TEMPLATES)}'
    )
  count = number('tokens', tokens, int, 128, 1, 1 << 20)
  how = (
    number('temperature', temperature, float, 0.0, 0, 100),
    number('top_p', top_p, float, 1.0, 0, 1),
    number('seed', seed, int, 0, 0, 2**31 - 1),
  )
  text = read(file) + prompt

  from longjax import evals, generate, settings, sharding
  from longjax.data import packages, prepare
  from longjax.evals import prompts

  settings.check(config)
  sharding.start(config.mesh.data * config.mesh.seq)
  mesh = sharding.make_mesh(config.mesh.data, config.mesh.seq)
  config.weights = str(packages.locate(checkpoint))
  tokenizer = prepare.find_tokenizer(config)
  ends = []
  if chat:
    chats.prompt([dict(role='user', content='')], tokenizer, chat)  # it can
    ends = [tokenizer.ident(chats.ENDS[chat])]
  model = evals.load(config.weights, settings.llama_config(config), mesh)
  lm = evals.language_model(*model, mesh, config, tokenizer, ends)
  stops = [stop.replace(r'\n', '\n').replace(r'\t', '\t')] if stop else []

  def say(ids) -> str:
    stopped = generate.stop_at(tokenizer, stops)
    (answer,) = lm.generate(
      [ids], count, stopped, sampling=generate.Sampling(*how)
    )
    return prompts.until(tokenizer.decode(answer), stops)

  if not chat:
    print(text + say(prompts.encode(tokenizer, text)))
    return 0
  messages: list = []
  for turn in turns(text):
    messages.append(dict(role='user', content=turn))
    answer = say(chats.prompt(messages, tokenizer, chat))
    messages.append(dict(role='assistant', content=answer))
    print(answer)
  return 0


def turns(first: str):
  """What the user says, line by line until an empty one."""
  if first:
    yield first
  while True:
    try:
      line = input('> ' if sys.stdin.isatty() else '').strip()
    except EOFError:
      return
    if not line:
      return
    yield line


def read(file: str) -> str:
  """The text of a file, '' for none."""
  try:
    return pathlib.Path(file).read_text('utf-8') if file else ''
  except UnicodeDecodeError as error:
    raise InputError(f'{file} is not UTF-8 text: {error}') from None


def number(name: str, text: str, kind, default, least, most):
  """The value of a flag, within bounds."""
  try:
    value = kind(text) if text else default
    if not least <= value <= most:
      raise ValueError
  except ValueError:
    flag = name.replace('_', '-')
    raise InputError(
      f'--{flag} is a number from {least} to {most}, got {text!r}'
    ) from None
  return value


if __name__ == '__main__':
  sys.exit(
    cli.run(
      main,
      __doc__,
      checkpoint='run directory, or weights in a known format',
      prompt='text to continue',
      file='text to continue; the prompt comes after it',
      chat='template of a conversation: llama2, llama3, chatml, smollm2',
      tokens='to generate at most, default 128',
      temperature='0 (the default) takes the likeliest token',
      top_p='share of the likeliest tokens to draw from, default 1',
      seed='of what is drawn, default 0',
      stop=r'text before which an answer ends; \n is a line break',
    )
  )
