"""Continues a prompt, a file, or a chat with a checkpoint.

  python launch/generate.py [--config configs/C.py] --checkpoint DIR
      --prompt 'Once upon a time' [--tokens 128] [--temperature 0.8]
  python launch/generate.py ... --file book.txt --prompt 'Who is Ahab?'
  python launch/generate.py ... --chat smollm2

A file's text comes before the prompt. --chat names the template and reads a
line for each turn, until an empty one. The config sets the mesh,
one device without it (--config.mesh.seq=N sets it as well); the KV cache is
sharded over mesh.seq, so a prompt may be as long as all devices hold.
"""

import pathlib
import sys
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from longjax import cli
from longjax.errors import InputError


class AnswerFlags(NamedTuple):
  """The flags that shape the answers."""

  tokens: int
  temperature: float
  top_p: float
  seed: int
  stop: list[str]


def main(
  config, checkpoint, prompt='', file='', chat='', tokens='', temperature='',
  top_p='', seed='', stop='',
):  # fmt: skip
  """Prints the answers; returns the exit code."""
  check(checkpoint, prompt or file, chat)
  flags = AnswerFlags(
    cli.number('tokens', tokens, 128, 1),
    cli.number('temperature', temperature, 0.0, 0, 100),
    cli.number('top-p', top_p, 1.0, 0, 1),
    cli.number('seed', seed, 0, 0, 2**31 - 1),
    [stop.replace(r'\n', '\n').replace(r'\t', '\t')] if stop else [],
  )
  if flags.top_p < 1 and not flags.temperature:
    raise InputError(
      f'--top-p {flags.top_p:g} is of random draws, and --temperature 0 takes '
      'the likeliest token: set --temperature above 0, or leave --top-p out'
    )
  text = read(file) + prompt
  tokenizer, answer = load(config, checkpoint, chat, flags)
  if chat:
    converse(tokenizer, answer, chat, text)
  else:
    from longjax.evals import prompts

    print(text + answer(prompts.encode(tokenizer, text)))
  return 0


def check(checkpoint, text, chat):
  """InputError for flags that ask for nothing, before anything is loaded."""
  from longjax.data.chat import check_template

  if not checkpoint:
    raise InputError('--checkpoint=DIR is needed: a run directory or weights')
  if not (text or chat):
    raise InputError('give a text to continue: --prompt, --file or --chat')
  if chat:
    check_template(chat)


def load(config, checkpoint, chat, flags: AnswerFlags):
  """(the tokenizer, a function ids of a prompt -> text of its answer)."""
  import jax

  from longjax import checks, evals
  from longjax.data import chat as chats
  from longjax.data import downloads, prepare
  from longjax.evals import prompts
  from longjax.inference import generate, language_model
  from longjax.parallel import sharding
  from longjax.weights import model_section, released

  sharding.start(config.mesh.data * config.mesh.seq)
  if chat and jax.process_count() > 1:
    raise InputError(
      f'--chat reads one terminal, and this job has {jax.process_count()} '
      'processes; use --prompt'
    )
  mesh = sharding.make_mesh(config.mesh.data, config.mesh.seq)
  config.weights = str(downloads.locate(checkpoint))
  tokenizer = prepare.find_tokenizer(config)
  released.check_tokenizer(config.weights, tokenizer, config)
  others = []
  if chat:
    # Refuses a tokenizer without the template's tokens, before weights load.
    chats.prompt([dict(role='user', content='')], tokenizer, chat)
    others = [tokenizer.token_to_id(chats.end(tokenizer, chat))]
  ends = language_model.stop_token_ids(tokenizer, *others)
  like = checks.llama_config(config)
  params, model = evals.load(config.weights, like, mesh)
  config = evals.as_trained(config, config.weights, model, model_section.log)
  lm = language_model.from_config(params, model, mesh, config, ends)
  stopped = generate.stop_at(tokenizer, flags.stop)
  sampling = generate.SamplingOptions(
    flags.temperature, flags.top_p, flags.seed
  )

  def answer(ids) -> str:
    (found,) = lm.generate([ids], flags.tokens, stopped, sampling=sampling)
    return prompts.until(tokenizer.decode(found), flags.stop)

  return tokenizer, answer


def converse(tokenizer, answer, template: str, first: str):
  """Answers the user's lines, turn by turn."""
  from longjax.data import chat

  messages: list = []
  for turn in turns(first):
    messages.append(dict(role='user', content=turn))
    text = answer(chat.prompt(messages, tokenizer, template))
    messages.append(dict(role='assistant', content=text))
    print(text)


def turns(first: str):
  """The user's lines, until an empty one."""
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


if __name__ == '__main__':
  sys.exit(
    cli.run(
      main,
      __doc__,
      checkpoint='run directory, or weights in a known format',
      prompt='text to continue',
      file='text to continue; the prompt comes after it',
      chat="chat template: 'tokenizer' (the tokenizer's own), llama2, "
      'llama3, chatml, smollm2, or a .jinja file',
      tokens='tokens to generate at most, default 128',
      temperature='sampling temperature; 0 (the default) takes the likeliest '
      'token',
      top_p='nucleus sampling: draw from the likeliest tokens whose '
      'probabilities add up to this, default 1',
      seed='random seed of the sampling, default 0',
      stop=r'text before which an answer ends; \n is a line break',
    )
  )
