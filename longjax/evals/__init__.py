"""What a model can do with its context, measured the same way each time."""

import dataclasses
import functools
import math
import statistics

import jax

from longjax import llama, weights
from longjax.data import pack
from longjax.errors import InputError
from longjax.evals import passkey, tasks
from longjax.inference import generate, memory
from longjax.parallel import sharding

SHARES = dict(passkey='found', needle='score')  # where they say what was found
MEMORY_LAST = 1024  # last_context_length, arXiv:2307.03170, appendix


def evaluate(
  params, model: llama.Llama, mesh, config, store, tokenizer, log, asked=()
):
  """Runs the evaluations that a config asks for.

  Args:
    params: sharded over the mesh, or numpy.
    model: how to read them.
    mesh: the devices.
    config: the whole config; `eval`, `seed`, `data.layout` and
      `train.loss_chunk` are read.
    store: held-out documents (data.prepare.held_out), or None.
    tokenizer: of the model.
    log: called with a line about what is running.
    asked: names of tasks to run instead of those of the config.

  Returns:
    {task: what it found}, as JSON has it.
  """
  lm = language_model(params, model, mesh, config, tokenizer)
  setting = tasks.Setting(lm, tokenizer, store, config.eval, config.seed, log)
  results = {}
  for name in asked or names(config.eval):
    log(f'  {name}')
    results[name] = finite(tasks.run(setting, name))
  return results


def names(ask) -> list[str]:
  """The evaluations of a section `eval`, in order, each once."""
  asked = []
  if ask.length and ask.documents:
    asked.append('position_loss')
  if ask.passkey_lengths:
    asked.append('passkey')
  return list(dict.fromkeys([*asked, *ask.tasks]))


def check(config, store, tokenizer, asked=()):
  """InputError, before any training, for what could not be evaluated."""
  ask, asked = config.eval, asked or names(config.eval)
  for name in asked:
    tasks.check(name)
    head = name.partition('/')[0]
    if head in tasks.LOSSES and not ask.length:
      raise InputError(f'task {name} needs config.eval.length, which is 0')
    if head not in tasks.NO_TEXT and store is None:
      raise InputError(f'task {name} needs documents in config.eval.sources')
    if head in tasks.LOSSES:
      pack.one_document_rows(store, ask.length, ask.documents)
    if head == 'passkey':
      for length in ask.passkey_lengths or ask.lengths:
        passkey.prompt(tokenizer, length, 0.5, 12345)
  if not ask.lengths or min(ask.lengths) < 1:
    raise InputError(
      f'config.eval.lengths are numbers of tokens, got {tuple(ask.lengths)}'
    )
  setting = tasks.Setting(None, tokenizer, store, ask, config.seed, print)
  for name in asked:
    tasks.check_room(setting, name)


def need_documents(asked) -> bool:
  """Whether one of these evaluations reads eval.sources."""
  heads = {name.partition('/')[0] for name in asked}
  return bool(heads - set(tasks.NO_TEXT))


def language_model(
  params, model, mesh, config, tokenizer, ends=()
) -> generate.LM:
  """The model as evaluations call it, on the mesh of a run.

  One with memory layers reads windows of train.seq_len tokens, as it learned.
  An answer ends with the end of a document, or one of `ends`.
  """
  ends = {tokenizer.eos, tokenizer.document_end, *ends} - {None}
  if model.memory.layers:
    return _remembering(params, model, mesh, config, tuple(ends))
  rows = -(-config.eval.batch // mesh.shape['data']) * mesh.shape['data']
  return generate.lm(
    params, model, mesh=mesh, rows=rows, ends=tuple(sorted(ends)),
    arrangement=config.data.layout, loss_chunk=config.train.loss_chunk,
  )  # fmt: skip


def _remembering(params, model, mesh, config, ends) -> generate.LM:
  """Inference with memory: losses on the mesh, answers on one device."""
  window, chunk = config.train.seq_len, config.train.loss_chunk
  nll = functools.partial(
    memory.nll, params, model, window=window, chunk=chunk, mesh=mesh
  )
  local = jax.device_put(params, jax.local_devices()[0])

  def answer(prompts, count, stopped=None, sampling=generate.GREEDY):
    if sampling.temperature:
      raise InputError(
        'a model with memory layers takes the likeliest token: --temperature 0'
      )
    last = max(1, min(MEMORY_LAST, window - count))
    found = memory.greedy(
      local, model, prompts, count, window=window, last=last
    )
    return [generate.until(ids, ends) for ids in found]

  return generate.LM(nll, answer)


def load(path, like: llama.Llama, mesh):
  """(params on the mesh, the model), computed as another one is.

  The model is that of the weights, its RoPE too.
  """
  place = lambda model: sharding.params(llama.abstract(model), mesh)
  params, model = weights.load(path, dtype=like.dtype, place=place)
  return params, compute_as(model, like).for_inference()


def compute_as(model: llama.Llama, like: llama.Llama) -> llama.Llama:
  """`model` with the fields of `like` that say how, not what, to compute."""
  how = ('dtype', 'attention', 'block', 'remat', 'mlp_chunk', 'ulysses')
  return dataclasses.replace(model, **{f: getattr(like, f) for f in how})


def scalars(results: dict) -> dict[str, float]:
  """What of results is worth a curve over training: {tag: number}."""
  found: dict = {}
  for name, result in results.items():
    head = name.partition('/')[0]
    if head == 'position_loss':
      curves = {head: zip(result['end'], result['loss'])}
    elif head in SHARES:
      means = map(statistics.fmean, result[SHARES[head]])
      curves = {head: zip(result['length'], means)}
    elif head in tasks.PROMPTS:
      curves = {
        f'{head}/{task}': [(x['length'], x['score']) for x in scores]
        for task, scores in result.items()
      }
    else:
      continue
    found |= {f'{tag}/{x}': y for tag, line in curves.items() for x, y in line}
  return {tag: y for tag, y in found.items() if y is not None}


def finite(found):
  """As JSON has it: None for numbers that are none."""
  if isinstance(found, dict):
    return {str(k): finite(v) for k, v in found.items()}
  if isinstance(found, list | tuple):
    return [finite(v) for v in found]
  if isinstance(found, float) and not math.isfinite(found):
    return None
  return found
