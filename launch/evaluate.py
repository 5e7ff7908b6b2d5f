"""Evaluates a checkpoint, or two side by side, and writes a report.

  python launch/evaluate.py [--config configs/C.py] --checkpoint DIR
      [--against DIR] [--tasks a,b] [--lengths 4096,8192] [--out DIR]
      [--limit N]

A checkpoint is a run directory, or weights in any known format; it is
evaluated with its own RoPE and tokenizer. Without a config, name tasks that
need no documents. The config sets the mesh, the
held-out documents (eval.sources, eval.length, eval.documents) and the number
of prompts (eval.samples). Tasks: position_loss, source_loss, perplexity,
context_gain, longppl, passkey, passkey_original, needle, first_sentence, ruler
or ruler/vt, helmet or helmet/icl, helmet_recall, helmet_rag, helmet_rerank,
helmet_icl, helmet_longqa, helmet_summ, llama2_long or llama2_long/qmsum,
nolima, longbench_v2, mrcr, graphwalks, lm_eval/NAME or lm_eval/FILE.yaml.
Prints the scores, and writes results.json, plots/ and REPORT.md to
RUN/evals/STEP, or to runs/WEIGHTS/evals for weights that are not a run's. The
same command resumes an evaluation that was interrupted.
"""

import dataclasses
import functools
import pathlib
import sys
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from longjax import cli, config_values, progress
from longjax.config import KEYS, check_value
from longjax.errors import InputError


class Checkpoint(NamedTuple):
  """Weights to evaluate."""

  path: pathlib.Path
  step: int | None  # None: not of a run
  tokenizer: Any


def main(
  config, checkpoint, against='', tasks='', lengths='', out='', limit=''
):
  """Evaluates and writes; returns the exit code."""
  if not checkpoint:
    raise InputError('--checkpoint=DIR is needed: a run directory or weights')
  set_lengths(config, lengths)
  config.eval.limit = cli.number('limit', limit, config.eval.limit, 0)

  from longjax import evals
  from longjax.evals import table
  from longjax.parallel import processes, sharding
  from longjax.train import preflight

  asked = [name.strip() for name in tasks.split(',') if name.strip()]
  for name in asked:
    table.find(name)
  asked = asked or evals.names(config.eval)
  if not asked:
    raise InputError(
      f'{config.name} has no evaluation to run; set config.eval.tasks or use '
      '--tasks=a,b'
    )
  sharding.start(config.mesh.data * config.mesh.seq)
  mesh = sharding.make_mesh(config.mesh.data, config.mesh.seq)
  preflight.same_everywhere(config)
  given = [x for x in (checkpoint, against) if x]
  checkpoints, store = find_inputs(config, given, evals.need_documents(asked))
  tokenizer = next(iter(checkpoints.values())).tokenizer
  primary = processes.is_primary()
  log = print if primary else lambda _: None
  setup = evals.Setup(config, tokenizer, store, mesh, log)
  processes.raise_on_all(lambda: evals.check(setup, asked))

  directory = (
    pathlib.Path(out) if out else report_directory(*checkpoints.values())
  )
  make = lambda: directory.mkdir(parents=True, exist_ok=True)
  # Before the first hour of work.
  processes.raise_on_all(lambda: primary and make())
  with progress.with_heartbeat(log) as log:
    measure(dataclasses.replace(setup, log=log), checkpoints, asked, directory)
  return 0


def find_inputs(config, given, documents: bool):
  """({name: Checkpoint}, the held-out documents or None), on all processes."""
  from longjax import weights
  from longjax.data import prepare
  from longjax.parallel import processes

  checkpoints = processes.raise_on_all(lambda: find(config, given))
  tokenizer, store = next(iter(checkpoints.values())).tokenizer, None
  if documents and config.eval.sources:
    store = processes.raise_on_all(lambda: prepare.held_out(config, tokenizer))
    processes.require_equal('held-out documents', store.digest)
  for one in checkpoints.values():
    processes.require_equal('weights', weights.fingerprint(one.path))
  processes.require_equal('tokenizer', tokenizer.digest)
  return checkpoints, store


def measure(setup, checkpoints, asked, directory):
  """All tasks of all checkpoints; the report is written after each task."""
  from longjax import checks, evals
  from longjax.evals import comparison
  from longjax.evals.result_cache import ResultCache
  from longjax.parallel import processes
  from longjax.train import provenance

  results, about, code, cache = {}, {}, provenance.code(), ResultCache()
  like = checks.llama_config(setup.config)
  for name, (path, step, tokenizer) in checkpoints.items():
    setup.log(f'evaluating {name}')
    params, model = evals.load(path, like, setup.mesh)
    config = evals.as_trained(setup.config, path, model, setup.log)
    checks.check_sequence(config, model)
    if tokenizer.vocab > model.vocab:
      raise InputError(
        f'the tokenizer has {tokenizer.vocab} ids, but {path} only '
        f'{model.vocab}; set --config.data.tokenizer'
      )
    about[name] = dict(path=str(path), step=step, rope=model.rope)
    results[name] = {}
    unfinished = directory / 'unfinished.jsonl'
    windows = config.train.seq_len  # of a model with memory
    cache = ResultCache(unfinished, f'{identity(path, step)} {windows}')
    mine = dataclasses.replace(setup, config=config, cache=cache)
    for task, result in evals.evaluate(params, model, mine, asked):
      results[name][task] = result
      write = functools.partial(
        comparison.write, directory, setup.config, code, about, dict(results)
      )
      processes.from_primary(write)
  cache.clear()
  setup.log(comparison.summary(results, setup.config.eval))
  setup.log(f'wrote {directory / "REPORT.md"}')


def identity(path, step: int | None) -> str:
  """Of weights: where they are, and when they were written."""
  from longjax import checkpoint

  place = path
  if step is not None:
    place = pathlib.Path(checkpoint.find(path)[0]) / str(step)
  written = place.stat().st_mtime_ns if place.exists() else 0
  return f'{path.resolve()} {step} {written}'


def set_lengths(config, lengths: str):
  """Other lengths of prompts for the config, typed as those of its key."""
  if lengths:
    tokens = config_values.parse('eval.lengths', lengths)
    check_value('--lengths', tokens, KEYS['eval.lengths'])
    config.eval.update(lengths=tokens, passkey_lengths=tokens)


def find(config, given) -> dict[str, Checkpoint]:
  """{name: Checkpoint}; refuses what cannot be compared."""
  from longjax import checkpoint, weights
  from longjax.data import downloads, prepare
  from longjax.weights import released

  found: dict[str, Checkpoint] = {}
  for spec in given:
    path = downloads.locate(spec)
    ours = weights.find(path) is None
    step = checkpoint.find(path)[1] if ours else None
    config.weights = str(path)  # where find_tokenizer looks
    name = path.name if path.name not in found else str(path)
    tokenizer = prepare.find_tokenizer(config)
    released.check_tokenizer(path, tokenizer, config)
    found[name] = Checkpoint(path, step, tokenizer)
  if len({one.path.resolve() for one in found.values()}) < len(given):
    raise InputError(f'--checkpoint and --against are both {given[0]}')
  if len({one.tokenizer.digest for one in found.values()}) > 1:
    raise InputError(
      f'{" and ".join(found)} have different tokenizers, so their losses '
      'cannot be compared'
    )
  return found


def report_directory(first: Checkpoint, *_) -> pathlib.Path:
  """Where the report of checkpoints goes: to the first of them."""
  if first.step is None:
    return pathlib.Path('runs') / first.path.resolve().name / 'evals'
  from longjax import checkpoint

  root = checkpoint.find(first.path)[0]
  run = root.parent if root.name == 'checkpoints' else root
  return pathlib.Path(run) / 'evals' / str(first.step)


if __name__ == '__main__':
  sys.exit(
    cli.run(
      main,
      __doc__,
      checkpoint='run directory, or weights in a known format',
      against='another one, shown beside it',
      tasks='names with commas; default: those of the config',
      lengths='tokens of prompts, with commas; default: eval.lengths',
      limit='prompts of a task and length, at most; default: eval.limit',
      out='directory for the report; default: beside the checkpoint',
    )
  )
