"""What a model can do with its context, measured the same way each time."""

import dataclasses

from longjax import generate, llama
from longjax.data import pack
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
  results, ask = {}, config.eval
  lm = language_model(params, model, mesh, config, tokenizer)
  if ask.length:
    log(f'  loss by position: {ask.documents} documents of {ask.length} tokens')
    results['position_loss'] = position_loss.curve(
      lm.nll, documents(store, config, mesh.shape['data']), ask.length
    )
  if ask.passkey_lengths:
    log(f'  passkey at {", ".join(map(str, ask.passkey_lengths))} tokens')
    results['passkey'] = passkey.accuracy(
      lm.generate, tokenizer, ask.passkey_lengths, ask.passkey_depths,
      config.seed,
    )  # fmt: skip
  return results


def language_model(params, model, mesh, config, tokenizer) -> generate.LM:
  """The model as evaluations call it, on the mesh of a run."""
  ends = {tokenizer.eos, tokenizer.document_end} - {None}
  return generate.lm(
    params, model, mesh=mesh, rows=mesh.shape['data'], ends=tuple(ends),
    arrangement=config.data.layout, loss_chunk=config.train.loss_chunk,
  )  # fmt: skip


def check(config, store, tokenizer):
  """InputError, before any training, for what could not be evaluated."""
  ask = config.eval
  if ask.length:
    pack.one_document_rows(store, ask.length, ask.documents)
  for length in ask.passkey_lengths:
    passkey.prompt(tokenizer, length, 0.5, 12345)


def documents(store, config, rows):
  """Batches of the first tokens of held-out documents, a row each."""
  length = config.eval.length
  spans = pack.one_document_rows(store, length, config.eval.documents)
  for i in range(0, len(spans), rows):
    yield pack.batch(store, spans[i : i + rows], length)


def compute_as(model: llama.Llama, like: llama.Llama) -> llama.Llama:
  """`model` with the fields of `like` that say how, not what, to compute."""
  how = ('dtype', 'attention', 'block', 'remat', 'mlp_chunk')
  return dataclasses.replace(model, **{f: getattr(like, f) for f in how})
