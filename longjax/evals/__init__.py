"""What a model can do with its context, measured the same way each time."""

import dataclasses
import functools

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

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
    nll = functools.partial(
      _nll, params, model=model, chunk=config.train.loss_chunk, mesh=mesh
    )
    results['position_loss'] = position_loss.curve(
      lambda b: np.asarray(nll(sharding.put(b, mesh))), batches, ask.length
    )
  if ask.passkey_lengths:
    log(f'  passkey at {", ".join(map(str, ask.passkey_lengths))} tokens')
    local = jax.device_put(params, jax.local_devices()[0])
    results['passkey'] = passkey.accuracy(
      functools.partial(generate.greedy, local, model),
      tokenizer, ask.passkey_lengths, ask.passkey_depths, config.seed,
    )  # fmt: skip
  return results


def check(config, store, tokenizer):
  """InputError, before any training, for what could not be evaluated."""
  ask = config.eval
  if ask.length:
    pack.one_document_rows(store, ask.length, ask.documents)
  for length in ask.passkey_lengths:
    passkey.prompt(tokenizer, length, 0.5, 12345)


def documents(store, config, mesh):
  """Batches of the first tokens of held-out documents, a row each."""
  length, rows = config.eval.length, mesh.shape['data']
  spans = pack.one_document_rows(store, length, config.eval.documents)
  for i in range(0, len(spans), rows):
    yield layout.arrange(
      pack.batch(store, spans[i : i + rows], length),
      config.data.layout,
      mesh.shape['seq'],
      config.model.block,
    )


def compute_as(model: llama.Llama, like: llama.Llama) -> llama.Llama:
  """`model` with the fields of `like` that say how, not what, to compute."""
  how = ('dtype', 'attention', 'block', 'remat', 'mlp_chunk')
  return dataclasses.replace(model, **{f: getattr(like, f) for f in how})


@functools.partial(jax.jit, static_argnames=('model', 'chunk', 'mesh'))
def _nll(params, batch, *, model, chunk, mesh):
  """[batch, seq] on every device, so that every process can read it."""
  nll = llama.nll(params, model, batch, chunk=chunk, mesh=mesh)
  return jax.lax.with_sharding_constraint(nll, NamedSharding(mesh, P()))
