"""What a model can do with its context, measured the same way each time."""

import dataclasses
import functools

import jax
import numpy as np

from longjax import generate, llama, sharding
from longjax.data import layout, pack
from longjax.evals import passkey, position_loss


def evaluate(params, model: llama.Llama, mesh, config, store, tokenizer, log):
  """Runs the evaluations that a config asks for.

  Args:
    params: sharded over the mesh.
    model: how to read them.
    mesh: of the training run.
    config: the whole config; its section `eval` and `data.layout` are read.
    store: held-out documents (data.prepare.held_out), or None.
    tokenizer: of the model.
    log: called with a line about what is running.

  Returns:
    {'position_loss': {...}, 'passkey': {...}}: what was asked for.
  """
  results = {}
  ask = config.eval
  if ask.length:
    log(f'  loss by position: {ask.documents} documents of {ask.length} tokens')
    batches = documents(store, config, mesh)
    nll = jax.jit(functools.partial(
      _nll, model=model, chunk=config.train.loss_chunk, mesh=mesh
    ))  # fmt: skip
    results['position_loss'] = position_loss.curve(
      lambda b: _host(nll(params, sharding.put(b, mesh))), batches, ask.length
    )
  if ask.passkey_lengths:
    log(f'  passkey at {", ".join(map(str, ask.passkey_lengths))} tokens')
    local = jax.device_put(params, jax.devices()[0])
    results['passkey'] = passkey.accuracy(
      functools.partial(generate.greedy, local, model),
      tokenizer, ask.passkey_lengths, ask.passkey_depths, config.seed,
    )  # fmt: skip
  return results


def asked(config) -> bool:
  """Whether a config asks for any evaluation."""
  return bool(config.eval.length or config.eval.passkey_lengths)


def documents(store, config, mesh):
  """Batches of the first tokens of held-out documents, a row each."""
  length, rows = config.eval.length, mesh.shape['data']
  order = layout.order(config.data.layout, length, mesh.shape['seq'])
  spans = pack.one_document_rows(store, length, config.eval.documents)
  for i in range(0, len(spans), rows):
    yield layout.apply(pack.batch(store, spans[i : i + rows], length), order)


def compute_as(model: llama.Llama, like: llama.Llama) -> llama.Llama:
  """`model` with the fields of `like` that say how, not what, to compute."""
  how = ('dtype', 'attention', 'block', 'remat')
  return dataclasses.replace(model, **{f: getattr(like, f) for f in how})


def _nll(params, batch, *, model, chunk, mesh):
  return llama.nll(params, model, batch, chunk=chunk, mesh=mesh)


def _host(x) -> np.ndarray:
  return np.asarray(jax.device_get(x))
