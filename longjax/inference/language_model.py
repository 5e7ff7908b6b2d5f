"""A model as two functions: the losses of a batch, and answers to prompts.

Evaluations, chats and data synthesis know a model by these alone.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from longjax import llama, rope
from longjax.batch import Batch, one_document
from longjax.data import layout as layouts
from longjax.errors import InputError
from longjax.inference import generate, kv_cache, memory
from longjax.inference.prefix import Prefix
from longjax.parallel import sharding

LONG = 4096  # tokens whose losses take a CPU longer than a progress line


class LM(NamedTuple):
  """A model as two functions."""

  # Batch of numpy arrays in the order of the text -> [batch, seq] float32 nats.
  nll: Callable
  # (prompts, count, stopped=None, sampling=GREEDY) -> list of ids, see
  # generate.generate.
  generate: Callable


def from_config(params, model: llama.Llama, mesh, config, ends, log=None) -> LM:
  """The LM of a model, on the mesh of a config.

  One with memory layers reads windows of train.seq_len tokens, as in training.

  Args:
    params: on the mesh, or numpy.
    model: how to read them.
    mesh: of axes 'data' and 'seq'.
    config: the whole config; `eval.batch`, `data.layout` and `train` are read.
    ends: ids that end an answer, see `stop_token_ids`.
    log: called with a progress line every few seconds, or None.
  """
  chunk = config.train.loss_chunk
  if model.memory.layers:
    options = memory.Options(config.train.seq_len, chunk=chunk)
    return with_memory(params, model, mesh, options, ends, log)
  rows = -(-config.eval.batch // mesh.shape['data']) * mesh.shape['data']
  options = generate.Options(ends=ends, rows=rows, log=log)
  return with_cache(
    params, model, mesh, options, layout=config.data.layout, chunk=chunk
  )


def row_losses(lm: LM, rows) -> list[np.ndarray]:
  """[tokens - 1] nats of the tokens of each row of ids after its first."""
  # Causal: what fills a row changes nothing before it.
  width = max(map(len, rows))
  padded = np.stack([np.pad(row, (0, width - len(row))) for row in rows])
  nll = np.asarray(lm.nll(one_document(padded)), np.float64)
  return [x[: len(row) - 1] for x, row in zip(nll, rows)]


def stop_token_ids(tokenizer, *others: int | None) -> tuple[int, ...]:
  """The ids that end an answer: the end of a document, or one of `others`."""
  return tuple(
    sorted({tokenizer.eos, tokenizer.document_end, *others} - {None})
  )


def with_cache(
  params, config: llama.Llama, mesh=None, options=generate.DEFAULT,
  layout='contiguous', chunk=1024,
) -> LM:  # fmt: skip
  """An LM that generates with a KV cache.

  Args:
    params: numpy, or on the mesh.
    config: the model.
    mesh: of axes 'data' and 'seq'; None is one device.
    options: of `generate`; losses are computed for as many rows at once.
    layout: of the rows whose losses are computed, a name in data.layout.
    chunk: tokens whose logits exist at once, per device.
  """
  params = generate.place_params(params, config, mesh)
  model, prefix = kv_cache.ModelOnMesh(config, mesh), Prefix()

  def nll(batch: Batch):
    prefix.forget()
    rope.check_reach(config.rope, batch.tokens.shape[1])
    total = len(batch.tokens)
    rows = min(options.rows or total, total)
    rows += -rows % (mesh.shape['data'] if mesh else 1)
    progress = generate.make_progress(
      'losses', batch.tokens.size, 'tokens', options.log
    )
    losses = []
    for first in range(0, total, rows):
      part = Batch(*(np.asarray(x)[first : first + rows] for x in batch))
      with _counted_by_layer(progress, part.tokens.size, model):
        losses.append(_losses(params, model, part, rows, layout, chunk))
    return np.concatenate(losses)

  def answers(prompts, count, stopped=None, sampling=generate.GREEDY):
    asked = options._replace(stopped=stopped, sampling=sampling, prefix=prefix)
    return generate.generate(params, config, prompts, count, asked, mesh)

  return LM(nll, answers)


def with_memory(
  params, config: llama.Llama, mesh, options: memory.Options, ends, log=None
) -> LM:
  """An LM of a model with memory layers: losses on the mesh, greedy answers on
  one device.

  Args:
    params: on the mesh.
    config: the model.
    mesh: of axes 'data' and 'seq'.
    options: how much is read at once.
    ends: ids that end an answer.
    log: called with a progress line every few seconds, or None.
  """

  @functools.cache
  def local():
    if jax.process_count() > 1:
      raise InputError(
        'answers of a model with memory layers need a job of one process: take '
        'evaluations that prompt out of eval.tasks and passkey_lengths here'
      )
    return jax.device_put(params, jax.local_devices()[0])

  def nll(batch: Batch):
    return memory.nll(params, config, batch, options, mesh, log)

  def answers(prompts, count, stopped=None, sampling=generate.GREEDY):
    if sampling.temperature:
      raise InputError(
        'a model with memory layers is decoded greedily; use --temperature 0'
      )
    last = max(1, min(options.last, options.window - count))
    asked = options._replace(last=last)
    found = memory.greedy(local(), config, prompts, count, asked)
    return [generate.until(ids, ends) for ids in found]

  return LM(nll, answers)


def _losses(params, model: kv_cache.ModelOnMesh, batch, rows, layout, chunk):
  """[batch, seq] of at most `rows` rows in the order of the text, on the host.

  Rows and tokens are filled up with padding.
  """
  (count, seq), n = batch.tokens.shape, model.ring
  length = kv_cache.rounded(seq)
  length += -length % (2 * n)  # what zigzag needs
  widths = ((0, rows - count), (0, length - seq))
  batch = Batch(*(np.pad(x, widths) for x in batch))
  place = np.tile(np.arange(batch.tokens.shape[1]), (rows, 1))
  # The model does not read `weights`: here they say where each token was.
  arranged = layouts.arrange(
    batch._replace(weights=place), layout, n, model.config.block
  )
  inputs = arranged._replace(weights=np.zeros(place.shape, np.float32))
  if model.mesh:
    inputs = sharding.put(inputs, model.mesh)
  losses = _nll(params, inputs, model=model, chunk=chunk)
  found = np.empty(place.shape, np.float32)
  np.put_along_axis(found, arranged.weights, np.asarray(losses), 1)
  return found[:count, :seq]


@functools.partial(jax.jit, static_argnames=('model', 'chunk'))
def _nll(params, batch, *, model, chunk):
  config, mesh = model
  # Rows this long take minutes on a CPU, and less than a line's time on a TPU.
  # A program that calls the host is compiled anew in each process.
  long = batch.tokens.size >= LONG and jax.default_backend() == 'cpu'
  done = _layer_done if long else None
  nll = llama.nll(
    params, config, batch, chunk=chunk, mesh=mesh, layer_done=done
  )
  return kv_cache.replicated(nll, mesh)


# Called after each layer that a CPU has computed: a compiled program can only
# call what is the same in each of its runs.
_listeners = []


def _layer_done():
  for listener in _listeners:
    listener()


@contextlib.contextmanager
def _counted_by_layer(progress, tokens: int, model: kv_cache.ModelOnMesh):
  """Adds `tokens` to the progress, a part of them after each layer on a CPU."""
  before, parts = progress.done, model.config.layers + 1  # and the logits
  listener = functools.partial(progress.add, tokens / parts)
  _listeners.append(listener)
  try:
    yield
  finally:
    _listeners.remove(listener)
  progress.add(before + tokens - progress.done)
